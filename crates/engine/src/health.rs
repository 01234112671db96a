//! Active health checks: what an endpoint is asked, how its answers count, and when it is asked again.
//!
//! An endpoint that has never been checked counts as failed, its first answer decides at once, and later ones need as
//! many in a row as the thresholds say (Envoy `health_checking`).

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderMap, HeaderName, Method};

use crate::dice::Dice;
use crate::matcher::StringMatcher;

/// How the endpoints of a cluster are checked (`envoy.config.core.v3.HealthCheck`).
#[derive(Debug, Clone, PartialEq)]
pub struct HealthCheck {
    /// How long one answer is waited for.
    pub timeout: Duration,
    /// Between checks of a healthy endpoint.
    pub interval: Duration,
    /// While the cluster has never been connected to. Default 60 s.
    pub no_traffic_interval: Duration,
    /// The same for healthy endpoints. Default: as above.
    pub no_traffic_healthy_interval: Duration,
    /// Between checks of an unhealthy endpoint. Default: `interval`.
    pub unhealthy_interval: Duration,
    /// After a failure that did not yet make it unhealthy. Default: `unhealthy_interval`.
    pub unhealthy_edge_interval: Duration,
    /// After a success that did not yet make it healthy. Default: `interval`.
    pub healthy_edge_interval: Duration,
    /// A random part of this goes before the first check.
    pub initial_jitter: Duration,
    /// A random part of this is added to every interval.
    pub interval_jitter: Duration,
    /// And a random part of this share of it, per cent.
    pub interval_jitter_percent: u32,
    /// Failures in a row that make it unhealthy.
    pub unhealthy_threshold: u32,
    /// Successes in a row that make it healthy.
    pub healthy_threshold: u32,
    /// Whether the connection is kept for the next check. Default true.
    pub reuse_connection: bool,
    /// Another port to ask than the endpoint's; `None`: the same.
    pub port: Option<u16>,
    /// What is asked.
    pub probe: Probe,
}

/// What is asked, and which answer is good.
#[derive(Debug, Clone, PartialEq)]
pub enum Probe {
    /// An HTTP request.
    Http(Box<HttpProbe>),
    /// Bytes.
    Tcp {
        /// What is sent first; empty: nothing, connecting is enough unless an answer is wanted.
        send: Vec<u8>,
        /// What must come, in this order, other bytes between them allowed.
        receive: Vec<Vec<u8>>,
    },
    /// `grpc.health.v1.Health/Check`.
    Grpc {
        /// The service asked about; empty: the server.
        service: Arc<str>,
        /// `:authority`; empty: the endpoint's host name or the cluster's name.
        authority: Arc<str>,
        /// Further headers.
        headers: HeaderMap,
    },
}

/// An HTTP request and what its answer must be.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpProbe {
    /// Method. Default GET.
    pub method: Method,
    /// Path and query.
    pub path: Arc<str>,
    /// Host; empty: the endpoint's host name or the cluster's name.
    pub host: Arc<str>,
    /// Speak HTTP/2.
    pub http2: bool,
    /// Body of the request.
    pub send: Vec<u8>,
    /// Headers to add.
    pub headers: HeaderMap,
    /// Headers not to send.
    pub removed: Vec<HeaderName>,
    /// Statuses that are good, from and to (exclusive). Default 200 alone.
    pub expected: Vec<(u16, u16)>,
    /// Statuses that need the threshold to make it unhealthy; any other bad one does at once.
    pub retriable: Vec<(u16, u16)>,
    /// What the body must have, in this order.
    pub receive: Vec<Vec<u8>>,
    /// How much of a body is looked at, bytes; 0: all. Default 1024.
    pub buffer: u64,
    /// What `x-envoy-upstream-healthchecked-cluster` must say, so that another service at this address is not taken for
    /// this one.
    pub service_name: Option<StringMatcher>,
}

/// What came of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckResult {
    /// It is well.
    Good {
        /// But it asks to be spared.
        degraded: bool,
    },
    /// No connection, or it broke.
    Network,
    /// No answer in time.
    Timeout,
    /// It says that it is not well.
    Bad {
        /// The status is one of the retriable ones.
        retriable: bool,
    },
}

/// What follows from a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// The endpoint is in or out, or spared, otherwise than before.
    pub changed: bool,
    /// When to ask again.
    pub next: Duration,
}

/// What active checks know of one endpoint.
#[derive(Debug, Default)]
pub struct HealthState {
    flags: AtomicU8,
    rows: Mutex<Rows>,
}

#[derive(Debug, Default)]
struct Rows {
    good: u32,
    bad: u32,
}

/// It is checked at all.
const CHECKED: u8 = 1;
/// It counts as failed.
const FAILED: u8 = 2;
/// It was never checked yet.
const PENDING: u8 = 4;
/// The last check ran out of time.
const TIMED_OUT: u8 = 8;
/// It asks to be spared.
const DEGRADED: u8 = 16;

impl HealthState {
    /// Checks begin, unless they have: until the first answer it counts as failed.
    pub fn begin(&self) {
        let begun = self.flags.fetch_or(CHECKED, Ordering::AcqRel) & CHECKED != 0;
        if !begun {
            self.flags.fetch_or(FAILED | PENDING, Ordering::AcqRel);
        }
    }

    /// There are no checks any more: what they found is forgotten.
    pub fn end(&self) {
        self.flags.store(0, Ordering::Release);
    }

    /// Checks found that it does not work, or there was none yet.
    #[must_use]
    pub fn is_failed(&self) -> bool {
        self.has(FAILED)
    }

    /// It was never checked yet.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.has(PENDING)
    }

    /// The last check ran out of time.
    #[must_use]
    pub fn is_timed_out(&self) -> bool {
        self.has(TIMED_OUT)
    }

    /// It works, but asks to be spared.
    #[must_use]
    pub fn is_degraded(&self) -> bool {
        self.has(DEGRADED)
    }

    fn has(&self, flag: u8) -> bool {
        self.flags.load(Ordering::Acquire) & flag != 0
    }

    fn set(&self, flag: u8, on: bool) {
        if on {
            self.flags.fetch_or(flag, Ordering::AcqRel);
        } else {
            self.flags.fetch_and(!flag, Ordering::AcqRel);
        }
    }

    /// Counts a check. `traffic`: the cluster was connected to before.
    pub fn note(&self, check: &HealthCheck, result: CheckResult, traffic: bool, dice: &mut Dice) -> Verdict {
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        let first = self.is_pending();
        let change = match result {
            CheckResult::Good { degraded } => self.good(check, &mut rows, first, degraded),
            bad => self.bad(check, &mut rows, bad),
        };
        self.set(PENDING, false);
        let changed = change == Change::Done || (first && change == Change::None);
        let base = check.wait(matches!(result, CheckResult::Good { .. }), change == Change::Near, traffic);
        Verdict { changed, next: check.jittered(base, dice) }
    }

    fn good(&self, check: &HealthCheck, rows: &mut Rows, first: bool, degraded: bool) -> Change {
        rows.bad = 0;
        self.set(TIMED_OUT, false);
        let mut change = Change::None;
        if self.is_failed() {
            rows.good = rows.good.saturating_add(1);
            if first || rows.good >= check.healthy_threshold {
                self.set(FAILED, false);
                change = Change::Done;
            } else {
                change = Change::Near;
            }
        }
        if self.is_degraded() != degraded {
            self.set(DEGRADED, degraded);
            change = Change::Done;
        }
        change
    }

    fn bad(&self, check: &HealthCheck, rows: &mut Rows, result: CheckResult) -> Change {
        rows.good = 0;
        self.set(TIMED_OUT, result == CheckResult::Timeout);
        if self.is_failed() {
            return Change::None;
        }
        // A clear no needs no repetition.
        let at_once = result == CheckResult::Bad { retriable: false };
        rows.bad = rows.bad.saturating_add(1);
        if at_once || rows.bad >= check.unhealthy_threshold {
            self.set(FAILED, true);
            return Change::Done;
        }
        Change::Near
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    None,
    /// On its way to another state.
    Near,
    Done,
}

impl HealthCheck {
    /// The wait before the first check.
    #[must_use]
    pub fn first_wait(&self, dice: &mut Dice) -> Duration {
        part_of(self.initial_jitter, dice)
    }

    fn wait(&self, good: bool, near: bool, traffic: bool) -> Duration {
        match (traffic, good, near) {
            (false, true, false) => self.no_traffic_healthy_interval,
            (false, _, _) => self.no_traffic_interval,
            (true, true, false) => self.interval,
            (true, true, true) => self.healthy_edge_interval,
            (true, false, false) => self.unhealthy_interval,
            (true, false, true) => self.unhealthy_edge_interval,
        }
    }

    fn jittered(&self, base: Duration, dice: &mut Dice) -> Duration {
        let share = base.mul_f64(f64::from(self.interval_jitter_percent) / 100.0);
        let wait = base + part_of(share, dice) + part_of(self.interval_jitter, dice);
        wait.max(Duration::from_millis(1))
    }
}

impl HttpProbe {
    /// What an answer's status means; `None`: it is good.
    #[must_use]
    pub fn judge(&self, status: u16) -> Option<CheckResult> {
        let within = |ranges: &[(u16, u16)]| ranges.iter().any(|(from, to)| (*from..*to).contains(&status));
        let good = if self.expected.is_empty() { status == 200 } else { within(&self.expected) };
        (!good).then(|| CheckResult::Bad { retriable: within(&self.retriable) })
    }
}

/// Whether the parts are in the bytes, in order and apart.
#[must_use]
pub fn has_in_order(bytes: &[u8], parts: &[Vec<u8>]) -> bool {
    let mut rest = bytes;
    parts.iter().all(|part| {
        if part.is_empty() {
            return true;
        }
        let found = rest.windows(part.len()).position(|window| window == part.as_slice());
        found.and_then(|at| rest.get(at + part.len()..)).map(|after| rest = after).is_some()
    })
}

fn part_of(most: Duration, dice: &mut Dice) -> Duration {
    let most = u64::try_from(most.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(dice.below(most))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check() -> HealthCheck {
        let seconds = Duration::from_secs;
        HealthCheck {
            timeout: seconds(1),
            interval: seconds(10),
            no_traffic_interval: seconds(60),
            no_traffic_healthy_interval: seconds(90),
            unhealthy_interval: seconds(20),
            unhealthy_edge_interval: seconds(2),
            healthy_edge_interval: seconds(3),
            initial_jitter: Duration::ZERO,
            interval_jitter: Duration::ZERO,
            interval_jitter_percent: 0,
            unhealthy_threshold: 3,
            healthy_threshold: 2,
            reuse_connection: true,
            port: None,
            probe: Probe::Tcp { send: Vec::new(), receive: Vec::new() },
        }
    }

    const GOOD: CheckResult = CheckResult::Good { degraded: false };

    fn note(state: &HealthState, result: CheckResult) -> (bool, bool, u64) {
        let verdict = state.note(&check(), result, true, &mut Dice::new(1));
        (state.is_failed(), verdict.changed, verdict.next.as_secs())
    }

    #[test]
    fn the_first_answer_decides() {
        let state = HealthState::default();
        assert!(!state.is_failed());
        state.begin();
        assert!(state.is_failed() && state.is_pending());
        assert_eq!(note(&state, GOOD), (false, true, 10));
        state.begin();
        assert!(!state.is_failed(), "what is known stays");
        let other = HealthState::default();
        other.begin();
        assert_eq!(note(&other, CheckResult::Network), (true, true, 20));
        assert!(!other.is_pending());
        other.end();
        assert!(!other.is_failed());
    }

    #[test]
    fn thresholds_and_edges() {
        let state = HealthState::default();
        state.begin();
        note(&state, GOOD);
        assert_eq!(note(&state, CheckResult::Network), (false, false, 2));
        assert_eq!(note(&state, GOOD), (false, false, 10));
        assert_eq!(note(&state, CheckResult::Timeout), (false, false, 2));
        assert!(state.is_timed_out());
        assert_eq!(note(&state, CheckResult::Bad { retriable: true }), (false, false, 2));
        assert_eq!(note(&state, CheckResult::Network), (true, true, 20));
        assert_eq!(note(&state, CheckResult::Network), (true, false, 20));
        assert_eq!(note(&state, GOOD), (true, false, 3));
        assert_eq!(note(&state, GOOD), (false, true, 10));
        assert_eq!(note(&state, CheckResult::Bad { retriable: false }), (true, true, 20));
    }

    #[test]
    fn a_spared_endpoint_is_another_state() {
        let state = HealthState::default();
        state.begin();
        note(&state, GOOD);
        assert!(note(&state, CheckResult::Good { degraded: true }).1 && state.is_degraded());
        assert!(note(&state, GOOD).1 && !state.is_degraded());
    }

    #[test]
    fn a_cluster_that_nobody_calls_is_asked_seldom() {
        let (state, check) = (HealthState::default(), check());
        state.begin();
        let mut dice = Dice::new(1);
        assert_eq!(state.note(&check, GOOD, false, &mut dice).next.as_secs(), 90);
        assert_eq!(state.note(&check, CheckResult::Network, false, &mut dice).next.as_secs(), 60);
    }

    #[test]
    fn jitter_stays_within_its_bounds() {
        let mut check = check();
        check.interval_jitter = Duration::from_secs(4);
        check.interval_jitter_percent = 50;
        check.initial_jitter = Duration::from_secs(1);
        let mut dice = Dice::new(7);
        let waits: Vec<f64> =
            (0..200).map(|_| check.jittered(Duration::from_secs(10), &mut dice).as_secs_f64()).collect();
        assert!(waits.iter().all(|wait| (10.0..19.0).contains(wait)));
        assert!(waits.iter().any(|wait| *wait > 15.0) && waits.iter().any(|wait| *wait < 12.0));
        assert!(check.first_wait(&mut dice) < Duration::from_secs(1));
    }

    #[test]
    fn parts_come_in_order() {
        let parts = |list: &[&str]| list.iter().map(|part| part.as_bytes().to_vec()).collect::<Vec<_>>();
        assert!(has_in_order(b"+PONG ready", &parts(&["PONG", "ready"])));
        assert!(!has_in_order(b"ready PONG", &parts(&["PONG", "ready"])));
        assert!(!has_in_order(b"aa", &parts(&["aa", "a"])));
        assert!(has_in_order(b"", &parts(&[])));
        assert!(!has_in_order(b"", &parts(&["x"])));
    }
}
