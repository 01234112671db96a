//! What happened on each edge lately: the answer to `/tulle/edges`, read by `tulle stat`.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use serde::{Deserialize, Serialize};

use crate::Registry;
use crate::istio::Edge;
use crate::registry::cells::{LATENCY_BUCKETS, latency_bound_ms};

/// Version of the report's form; a reader refuses another one.
pub const REPORT_VERSION: u32 = 1;

/// How often the past is written down.
pub const TICK: Duration = Duration::from_secs(5);
/// How many ticks are kept: ten minutes.
const TICKS: usize = 120;

/// Sums of one edge.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EdgeTotals {
    /// HTTP exchanges.
    pub requests: u64,
    /// Exchanges without an answer, with a 5xx, or with a gRPC status that blames the server.
    pub failures: u64,
    /// Exchanges and connections that an authorization policy refused.
    pub denied: u64,
    /// Raw TCP connections opened.
    pub opened: u64,
    /// Raw TCP connections closed.
    pub closed: u64,
    /// Raw TCP connections open now.
    pub open: u64,
    /// Bytes sent to the caller over raw TCP.
    pub sent: u64,
    /// Bytes received from the caller over raw TCP.
    pub received: u64,
    /// Durations: (index of a bucket, how many), only buckets that hold something. Bucket bounds are those of
    /// [`latency_bound_ms`].
    pub latency: Vec<(u16, u32)>,
}

impl EdgeTotals {
    /// Sets the durations from a full set of buckets.
    pub fn set_latency(&mut self, buckets: &[u32; LATENCY_BUCKETS]) {
        self.latency = (0_u16..).zip(buckets).filter(|(_, count)| **count > 0).map(|(i, count)| (i, *count)).collect();
    }

    /// What was added since `before`; `open` stays what it is now.
    pub fn since(&self, before: &Self) -> Self {
        let mut latency = self.latency.clone();
        for (index, count) in &mut latency {
            let held = before.latency.iter().find(|(held, _)| held == index).map_or(0, |(_, held)| *held);
            *count = count.wrapping_sub(held);
        }
        latency.retain(|(_, count)| *count > 0);
        Self {
            requests: self.requests.saturating_sub(before.requests),
            failures: self.failures.saturating_sub(before.failures),
            denied: self.denied.saturating_sub(before.denied),
            opened: self.opened.saturating_sub(before.opened),
            closed: self.closed.saturating_sub(before.closed),
            open: self.open,
            sent: self.sent.saturating_sub(before.sent),
            received: self.received.saturating_sub(before.received),
            latency,
        }
    }

    /// Adds another part's sums; `open` is added too.
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.failures += other.failures;
        self.denied += other.denied;
        self.opened += other.opened;
        self.closed += other.closed;
        self.open += other.open;
        self.sent += other.sent;
        self.received += other.received;
        for (index, count) in &other.latency {
            match self.latency.iter_mut().find(|(held, _)| held == index) {
                Some((_, sum)) => *sum = sum.saturating_add(*count),
                None => self.latency.push((*index, *count)),
            }
        }
    }

    /// The duration in milliseconds below which `share` (0 to 1) of the exchanges stayed.
    pub fn quantile_ms(&self, share: f64) -> Option<f64> {
        let mut sorted = self.latency.clone();
        sorted.sort_unstable();
        let count: u64 = sorted.iter().map(|(_, count)| u64::from(*count)).sum();
        let wanted = (share.clamp(0.0, 1.0) * count as f64).ceil().max(1.0) as u64;
        let mut below = 0;
        for (index, inside) in sorted {
            below += u64::from(inside);
            if below >= wanted {
                return Some(latency_bound_ms(usize::from(index)));
            }
        }
        None
    }

    /// Whether nothing happened and nothing is open.
    pub fn is_empty(&self) -> bool {
        self.requests == 0
            && self.denied == 0
            && self.opened == 0
            && self.closed == 0
            && self.open == 0
            && self.sent == 0
            && self.received == 0
    }
}

/// An edge with its sums over the window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeReport {
    /// Who called whom.
    #[serde(flatten)]
    pub edge: Edge,
    /// How often and how.
    #[serde(flatten)]
    pub totals: EdgeTotals,
}

/// Endpoints of a cluster held back by outlier detection now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ejected {
    /// The cluster: `outbound|8080||cart.shop.svc.cluster.local`.
    pub cluster: String,
    /// How many of its endpoints.
    pub endpoints: u64,
}

/// Facts about the reporting proxy.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ProxyFacts {
    /// `node.id` of its bootstrap.
    pub node: String,
    /// Instance name.
    pub name: String,
    /// Workload it belongs to.
    pub workload: String,
    /// Canonical service it belongs to (label `app`, else the workload).
    pub service: String,
    /// Namespace.
    pub namespace: String,
    /// Process id, so that memory can be read on the same machine.
    pub pid: u32,
    /// Proportional set size in bytes, where the system tells; 0 otherwise.
    pub pss_bytes: u64,
    /// Connections that clients hold to its HTTP listeners for traffic into the workload.
    pub connections: u64,
    /// Version of the configuration in force; empty when it is static.
    pub config_version: String,
    /// Configurations refused since start.
    pub config_rejects: u64,
    /// Whether the control plane is connected; `None` when none is configured.
    pub connected: Option<bool>,
}

/// The answer to `/tulle/edges`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`REPORT_VERSION`].
    pub version: u32,
    /// Over how many seconds the sums run (less than asked for when the proxy is younger).
    pub window_seconds: f64,
    /// Who reports.
    pub proxy: ProxyFacts,
    /// Edges on which something happened.
    pub edges: Vec<EdgeReport>,
    /// Endpoints held back now.
    pub ejected: Vec<Ejected>,
}

/// The recent past: what was added in each tick.
#[derive(Debug)]
pub struct History {
    started: Instant,
    last: HashMap<Edge, EdgeTotals>,
    ticks: VecDeque<(Instant, Vec<(Edge, EdgeTotals)>)>,
}

impl Default for History {
    fn default() -> Self {
        Self { started: Instant::now(), last: HashMap::new(), ticks: VecDeque::new() }
    }
}

impl History {
    fn tick(&mut self, now: Instant, totals: HashMap<Edge, EdgeTotals>) {
        let none = EdgeTotals::default();
        let added = totals
            .iter()
            .map(|(edge, totals)| (edge.clone(), totals.since(self.last.get(edge).unwrap_or(&none))))
            .map(|(edge, totals)| (edge, EdgeTotals { open: 0, ..totals }))
            .filter(|(_, totals)| !totals.is_empty())
            .collect();
        if self.ticks.len() >= TICKS {
            self.ticks.pop_front();
        }
        self.ticks.push_back((now, added));
        self.last = totals;
    }

    /// The sums of the last `window`, and how long it really was.
    fn window(&self, now: Instant, window: Duration, totals: HashMap<Edge, EdgeTotals>) -> (Duration, Vec<EdgeReport>) {
        let none = EdgeTotals::default();
        let mut sums: HashMap<Edge, EdgeTotals> = totals
            .into_iter()
            .map(|(edge, totals)| {
                let since = totals.since(self.last.get(&edge).unwrap_or(&none));
                (edge, since)
            })
            .collect();
        let mut begins = self.ticks.back().map_or(self.started, |(at, _)| *at);
        let mut ticks = self.ticks.iter().rev().peekable();
        while let Some((at, added)) = ticks.next() {
            let starts = ticks.peek().map_or(self.started, |(before, _)| *before);
            if now.saturating_duration_since(*at) >= window {
                break;
            }
            begins = starts;
            for (edge, totals) in added {
                sums.entry(edge.clone()).or_default().add(totals);
            }
        }
        let mut edges: Vec<EdgeReport> = sums
            .into_iter()
            .filter(|(_, totals)| !totals.is_empty())
            .map(|(edge, totals)| EdgeReport { edge, totals })
            .collect();
        edges.sort_by(|a, b| a.edge.cmp(&b.edge));
        (now.saturating_duration_since(begins), edges)
    }
}

impl Registry {
    /// To be called every [`TICK`]: writes down what happened since the last call.
    pub fn tick(&self, now: Instant) {
        let totals = self.edge_totals();
        self.history().lock().tick(now, totals);
    }

    /// What happened on every edge in the last `window`.
    pub fn report(&self, now: Instant, window: Duration, proxy: ProxyFacts) -> Report {
        let (real, edges) = self.history().lock().window(now, window, self.edge_totals());
        let ejected = self.ejected().into_iter().map(|(cluster, endpoints)| Ejected { cluster, endpoints }).collect();
        Report { version: REPORT_VERSION, window_seconds: real.as_secs_f64(), proxy, edges, ejected }
    }

    fn edge_totals(&self) -> HashMap<Edge, EdgeTotals> {
        let mut totals = HashMap::new();
        self.requests().totals(|edge, sums| {
            totals.insert(edge.clone(), sums);
        });
        totals
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::istio::Sample;
    use crate::istio::tests::{edge, none, ok};

    #[test]
    fn the_window_holds_what_happened_in_it() {
        let registry = Registry::new(1, crate::registry::Limits::default());
        let mut handle = registry.requests().edge(&edge("web", "cart"), 0);
        let start = Instant::now();
        let sample = Sample { duration: Duration::from_millis(3), ..Sample::default() };
        for second in 0_u64..120 {
            handle.response(ok(), none, &sample);
            if second % 5 == 4 {
                registry.tick(start + Duration::from_secs(second + 1));
            }
        }
        handle.response(ok(), none, &sample);
        let now = start + Duration::from_secs(121);
        let report = registry.report(now, Duration::from_secs(60), ProxyFacts::default());
        assert_eq!(report.edges.len(), 1);
        assert_eq!(report.edges[0].totals.requests, 61, "twelve whole ticks and one request since");
        assert!((report.window_seconds - 61.0).abs() < 0.5, "{}", report.window_seconds);
        let p50 = report.edges[0].totals.quantile_ms(0.5);
        assert!(p50.is_some_and(|ms| (3.0..3.5).contains(&ms)), "{p50:?}");
        let all = registry.report(now, Duration::from_secs(10_000), ProxyFacts::default());
        assert_eq!(all.edges[0].totals.requests, 121);
    }

    #[test]
    fn the_report_survives_json() {
        let registry = Registry::new(1, crate::registry::Limits::default());
        registry.requests().edge(&edge("web", "cart"), 0).response(ok(), none, &Sample::default());
        let report = registry.report(Instant::now(), Duration::from_secs(60), ProxyFacts::default());
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
        assert!(text.contains(r#""reporter":"destination""#), "{text}");
    }

    #[test]
    fn what_wraps_is_still_a_difference() {
        let before = EdgeTotals { latency: vec![(3, u32::MAX)], ..EdgeTotals::default() };
        let after = EdgeTotals { latency: vec![(3, 4)], ..EdgeTotals::default() };
        assert_eq!(after.since(&before).latency, [(3, 5)]);
    }
}
