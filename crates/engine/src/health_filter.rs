//! Answers to those who ask this proxy how its workload does (Envoy's HTTP filter `health_check`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::StatusCode;

use crate::facts::Facts;
use crate::matcher::HeaderMatcher;
use crate::moment::Moment;
use crate::plan::Plan;
use crate::reply::{Flags, LocalReply};

/// One filter (`HealthCheck`).
#[derive(Debug)]
pub struct HealthCheckFilter {
    /// The workload is asked; the answers are the proxy's own only while the process fails its checks, or from what was heard last.
    pub pass_through: bool,
    /// Which requests are checks: all of these hold.
    pub headers: Vec<HeaderMatcher>,
    /// How long an answer of the workload counts; `None`: it is asked each time.
    pub cache_time: Option<Duration>,
    /// Clusters, and the least share of each that must work, per cent.
    pub clusters: Vec<(Arc<str>, u64)>,
    /// What the workload said last.
    pub(crate) heard: Heard,
}

/// The last answer of a workload, shared by all workers: its status above, and milliseconds of a [`Moment`] below.
#[derive(Debug, Default)]
pub(crate) struct Heard(AtomicU64);

const STATUS_SHIFT: u32 = 48;

impl HealthCheckFilter {
    /// Whether a request is a check.
    pub(crate) fn takes(&self, facts: &Facts<'_>) -> bool {
        self.headers.iter().all(|header| header.matches(facts))
    }

    /// The answer to a check; `None`: the workload gives it. `failing`: the process was told to fail its checks.
    pub(crate) fn answer(&self, plan: &Plan, failing: bool, now: Moment) -> Option<LocalReply> {
        let (status, details) = if failing {
            (StatusCode::SERVICE_UNAVAILABLE, "health_check_failed")
        } else if self.pass_through {
            (self.heard(now)?, "health_check_cached")
        } else {
            match self.judge(plan) {
                Ok(details) => (StatusCode::OK, details),
                Err(details) => (StatusCode::SERVICE_UNAVAILABLE, details),
            }
        };
        let flags = if status.is_success() { Flags::NONE } else { Flags::FAILED_LOCAL_HEALTH_CHECK };
        Some(LocalReply::error(status, "", details, flags))
    }

    /// Whether enough of each cluster works.
    fn judge(&self, plan: &Plan) -> Result<&'static str, &'static str> {
        if self.clusters.is_empty() {
            return Ok("health_check_ok");
        }
        for (name, least) in &self.clusters {
            let cluster = plan.cluster(name).ok_or("health_check_failed_no_cluster_found")?;
            let (mut all, mut working) = (0, 0);
            for endpoint in cluster.endpoints.iter() {
                all += 1;
                working += u64::from(endpoint.is_healthy() || endpoint.is_degraded());
            }
            if all == 0 && *least > 0 {
                return Err("health_check_failed_cluster_empty");
            }
            if working * 100 < all * least {
                return Err("health_check_failed_cluster_unhealthy");
            }
        }
        Ok("health_check_ok_cluster_healthy")
    }

    /// Notes what the workload answered to a check.
    pub fn hear(&self, status: StatusCode, now: Moment) {
        if self.cache_time.is_some() {
            let heard = u64::from(status.as_u16()) << STATUS_SHIFT | millis(now);
            self.heard.0.store(heard, Ordering::Relaxed);
        }
    }

    /// What it answered, while that counts.
    fn heard(&self, now: Moment) -> Option<StatusCode> {
        let limit = self.cache_time?;
        let heard = self.heard.0.load(Ordering::Relaxed);
        let status = u16::try_from(heard >> STATUS_SHIFT).ok().and_then(|code| StatusCode::from_u16(code).ok())?;
        let age = millis(now).saturating_sub(heard & ((1 << STATUS_SHIFT) - 1));
        (u128::from(age) < limit.as_millis()).then_some(status)
    }
}

fn millis(now: Moment) -> u64 {
    u64::try_from(now.since_start().as_millis()).unwrap_or(u64::MAX) & ((1 << STATUS_SHIFT) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(cache: u64) -> HealthCheckFilter {
        HealthCheckFilter {
            pass_through: true,
            headers: Vec::new(),
            cache_time: (cache > 0).then(|| Duration::from_millis(cache)),
            clusters: Vec::new(),
            heard: Heard::default(),
        }
    }

    #[test]
    fn what_was_heard_counts_for_a_time() {
        let (filter, plan) = (filter(100), Plan::default());
        let at = |millis| Moment::at(Duration::from_millis(millis));
        assert!(filter.answer(&plan, false, at(5)).is_none(), "nothing was heard yet");
        filter.hear(StatusCode::IM_A_TEAPOT, at(1000));
        let reply = filter.answer(&plan, false, at(1099)).unwrap();
        assert_eq!((reply.status, &*reply.details), (StatusCode::IM_A_TEAPOT, "health_check_cached"));
        assert!(reply.flags.has(Flags::FAILED_LOCAL_HEALTH_CHECK));
        assert!(filter.answer(&plan, false, at(1100)).is_none());
        assert_eq!(filter.answer(&plan, true, at(1099)).unwrap().status, StatusCode::SERVICE_UNAVAILABLE);
    }

    #[test]
    fn without_a_time_the_workload_is_asked_each_time() {
        let filter = filter(0);
        filter.hear(StatusCode::OK, Moment::START);
        assert!(filter.answer(&Plan::default(), false, Moment::START).is_none());
    }
}
