//! Outlier detection: endpoints that fail are left out for a while.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::cluster::Cluster;
use crate::dice::Dice;
use crate::endpoint::Endpoint;
use crate::moment::Moment;

/// Settings (`envoy.config.cluster.v3.OutlierDetection`); percentages are 0 to 100.
#[derive(Debug, Clone, PartialEq)]
pub struct OutlierConfig {
    /// 5xx answers in a row; 0: off. Default 5.
    pub consecutive_5xx: u32,
    /// How often that leads to ejection. Default 100.
    pub enforcing_consecutive_5xx: u32,
    /// Gateway failures (502, 503, 504, no connection) in a row. Default 5.
    pub consecutive_gateway_failure: u32,
    /// How often that leads to ejection. Default 0.
    pub enforcing_consecutive_gateway_failure: u32,
    /// Count our own failures (no connection, reset, timeout) apart. Default false.
    pub split_local_origin: bool,
    /// Own failures in a row. Default 5.
    pub consecutive_local_origin_failure: u32,
    /// How often that leads to ejection. Default 100.
    pub enforcing_consecutive_local_origin_failure: u32,
    /// Between sweeps. Default 10 s.
    pub interval: Duration,
    /// Ejection lasts this times the number of ejections. Default 30 s.
    pub base_ejection_time: Duration,
    /// But no longer than this. Default 300 s (or the base, if longer).
    pub max_ejection_time: Duration,
    /// A random part of this is added. Default 0.
    pub max_ejection_jitter: Duration,
    /// Share of endpoints that may be out. Default 10.
    pub max_ejection_percent: u32,
    /// One endpoint may be out whatever the share says. Default false.
    pub always_eject_one: bool,
    /// Success rates too far below the mean lead to ejection so often. Default 100.
    pub enforcing_success_rate: u32,
    /// Endpoints with enough requests that are needed for it. Default 5.
    pub success_rate_minimum_hosts: u32,
    /// What is enough. Default 100.
    pub success_rate_request_volume: u32,
    /// Standard deviations below the mean, times 1000. Default 1900.
    pub success_rate_stdev_factor: u32,
    /// The same for our own failures. Default 100.
    pub enforcing_local_origin_success_rate: u32,
    /// Share of failures that leads to ejection. Default 85.
    pub failure_percentage_threshold: u32,
    /// How often. Default 0.
    pub enforcing_failure_percentage: u32,
    /// The same for our own failures. Default 0.
    pub enforcing_failure_percentage_local_origin: u32,
    /// Endpoints with enough requests that are needed for it. Default 5.
    pub failure_percentage_minimum_hosts: u32,
    /// What is enough. Default 50.
    pub failure_percentage_request_volume: u32,
}

/// How one attempt at an endpoint ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// An HTTP status.
    Status(u16),
    /// No connection (refused, TLS failed).
    ConnectFailure,
    /// Connecting or the attempt took too long.
    Timeout,
    /// Reset or closed before the answer was complete.
    Reset,
    /// A TCP connection was made.
    Connected,
}

/// Something that happened to an endpoint.
#[derive(Debug, Clone)]
pub struct Event {
    /// To which.
    pub endpoint: Arc<Endpoint>,
    /// What.
    pub kind: EventKind,
}

/// What happened to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// It is out.
    Ejected {
        /// Which detector.
        cause: Cause,
        /// False: the detector fired, but its enforcing share let it pass.
        enforced: bool,
    },
    /// It is back.
    Returned,
}

/// Detectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// 5xx in a row.
    Consecutive5xx,
    /// Gateway failures in a row.
    ConsecutiveGateway,
    /// Own failures in a row.
    ConsecutiveLocalOrigin,
    /// Success rate.
    SuccessRate,
    /// Success rate of our own part.
    SuccessRateLocalOrigin,
    /// Share of failures.
    FailurePercentage,
    /// Share of our own failures.
    FailurePercentageLocalOrigin,
}

/// What outlier detection knows of one endpoint.
#[derive(Debug, Default)]
pub struct OutlierState {
    ejected: AtomicBool,
}

impl OutlierState {
    /// Whether it is out now.
    #[must_use]
    pub fn is_ejected(&self) -> bool {
        self.ejected.load(Ordering::Relaxed)
    }
}

/// Watches the endpoints of one cluster.
#[derive(Debug, Default)]
pub struct Monitor {}

impl Monitor {
    /// Notes how an attempt ended. An ejection takes effect at once; the events are for logs and metrics.
    pub fn record(
        &self,
        cluster: &Cluster,
        endpoint: &Arc<Endpoint>,
        report: Report,
        now: Moment,
        dice: &mut Dice,
    ) -> Option<Event> {
        let _ = (cluster, endpoint, report, now, dice);
        None
    }

    /// The periodic part: returns endpoints whose time is over and looks at rates. Call it every
    /// [`OutlierConfig::interval`].
    pub fn sweep(&self, cluster: &Cluster, now: Moment, dice: &mut Dice) -> Vec<Event> {
        let _ = (cluster, now, dice);
        Vec::new()
    }
}
