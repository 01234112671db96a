//! Outlier detection: endpoints that fail are left out for a while.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
    /// Endpoints that are well again within this time of the last change get requests this much later
    /// (`common_lb_config.update_merge_window`, in which Envoy gathers changes). 0: at once. Default 1 s.
    pub merge_window: Duration,
    /// Share of endpoints that may be out; of fewer endpoints than one is such a share of, none is put out. Default 10.
    pub max_ejection_percent: u32,
    /// One endpoint may be out whatever the share says. Default false.
    pub always_eject_one: bool,
    /// Success rates too far below the mean lead to ejection so often. Default 100.
    pub enforcing_success_rate: u32,
    /// Endpoints whose answers have an `x-envoy-degraded` header get, for as long as an ejection would last, only what the
    /// healthy ones cannot take. Default false.
    pub detect_degraded: bool,
    /// An active check that succeeds brings an endpoint back at once. Default true.
    pub pardon: bool,
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
    /// How often it was out so far, with this time.
    pub ejections: u32,
    /// Since it came back last (if it is put out) or was put out (if it comes back); `None`: never before.
    pub since: Option<Duration>,
    /// What a detector that looks at rates saw.
    pub rates: Option<SeenRates>,
}

/// What a detector saw, in per cent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SeenRates {
    /// The endpoint's successes.
    pub own: f64,
    /// The mean of all endpoints with enough requests, and the rate below which one is put out; `None`: they do not count.
    pub bounds: Option<(f64, f64)>,
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
    /// A detector fired, but too many are out already.
    Overflow {
        /// Which detector.
        cause: Cause,
    },
    /// It is back.
    Returned,
    /// It says of itself that it is overburdened: it is spared.
    Degraded,
    /// It is not spared any more.
    Restored,
}

/// Detectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
    degraded: AtomicBool,
    in_a_row_5xx: AtomicU32,
    in_a_row_gateway: AtomicU32,
    in_a_row_local: AtomicU32,
    answers: Tally,
    local: Tally,
    ejection: Mutex<Ejection>,
}

/// Attempts and successes since the last sweep.
#[derive(Debug, Default)]
struct Tally {
    all: AtomicU32,
    good: AtomicU32,
}

/// The endpoint's record of ejections.
#[derive(Debug, Default)]
struct Ejection {
    /// Ejections so far.
    times: u32,
    term: Term,
    /// When it came back last.
    returned: Option<Moment>,
    /// The last time that it was spared.
    spared: Option<Box<Term>>,
}

/// A time that an endpoint is out, or spared.
#[derive(Debug, Default)]
struct Term {
    /// Multiplies the base time; grows with each term, shrinks with healthy sweeps.
    backoff: u32,
    since: Moment,
    jitter: Duration,
}

impl Term {
    fn begin(&mut self, config: &OutlierConfig, now: Moment, dice: &mut Dice) {
        self.since = now;
        let jitter = u64::try_from(config.max_ejection_jitter.as_millis()).unwrap_or(u64::MAX);
        self.jitter = Duration::from_millis(dice.below(jitter));
        if config.base_ejection_time * self.backoff < config.max_ejection_time + config.base_ejection_time {
            self.backoff += 1;
        }
    }

    fn is_over(&self, config: &OutlierConfig, now: Moment) -> bool {
        now - self.since >= (config.base_ejection_time * self.backoff).min(config.max_ejection_time) + self.jitter
    }

    /// A sweep that found all well.
    fn forgive(&mut self) {
        self.backoff = self.backoff.saturating_sub(1);
    }
}

impl Ejection {
    fn event(&self, endpoint: &Arc<Endpoint>, kind: EventKind, since: Option<Moment>, now: Moment) -> Event {
        let since = since.map(|since| now - since);
        Event { endpoint: endpoint.clone(), kind, ejections: self.times, since, rates: None }
    }

    /// The endpoint comes back.
    fn end(&mut self, endpoint: &Arc<Endpoint>, now: Moment) -> Event {
        self.returned = Some(now);
        self.event(endpoint, EventKind::Returned, Some(self.term.since), now)
    }
}

impl OutlierState {
    /// Whether it is out now.
    #[must_use]
    pub fn is_ejected(&self) -> bool {
        self.ejected.load(Ordering::Relaxed)
    }

    /// Whether it is spared now, because of what it said itself.
    #[must_use]
    pub fn is_degraded(&self) -> bool {
        self.degraded.load(Ordering::Relaxed)
    }

    /// How often it was out so far.
    #[must_use]
    pub fn ejections(&self) -> u32 {
        locked(&self.ejection).times
    }

    fn forget_rows(&self) {
        for row in [&self.in_a_row_5xx, &self.in_a_row_gateway, &self.in_a_row_local] {
            row.store(0, Ordering::Relaxed);
        }
    }

    /// An HTTP status, or what stands for one. Gives the detectors that fired.
    fn note_status(&self, config: &OutlierConfig, status: u16) -> [Option<Cause>; 2] {
        self.answers.note(status < 500);
        if status < 500 {
            self.in_a_row_5xx.store(0, Ordering::Relaxed);
            self.in_a_row_gateway.store(0, Ordering::Relaxed);
            return [None, None];
        }
        let gateway = if (502..=504).contains(&status) {
            fires(&self.in_a_row_gateway, config.consecutive_gateway_failure).then_some(Cause::ConsecutiveGateway)
        } else {
            self.in_a_row_gateway.store(0, Ordering::Relaxed);
            None
        };
        let server = fires(&self.in_a_row_5xx, config.consecutive_5xx).then_some(Cause::Consecutive5xx);
        [gateway, server]
    }

    /// A success or failure of our own part: connecting, or the answer's arrival.
    fn note_local(&self, config: &OutlierConfig, good: bool) -> [Option<Cause>; 2] {
        self.local.note(good);
        if good {
            self.in_a_row_local.store(0, Ordering::Relaxed);
            return [None, None];
        }
        let fired = fires(&self.in_a_row_local, config.consecutive_local_origin_failure);
        [fired.then_some(Cause::ConsecutiveLocalOrigin), None]
    }
}

impl Tally {
    fn note(&self, good: bool) {
        self.all.fetch_add(1, Ordering::Relaxed);
        if good {
            self.good.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The number of attempts and the success rate in per cent; begins anew.
    fn take(&self) -> (u32, f64) {
        let all = self.all.swap(0, Ordering::Relaxed);
        let good = self.good.swap(0, Ordering::Relaxed).min(all);
        (all, if all == 0 { 100.0 } else { f64::from(good) * 100.0 / f64::from(all) })
    }
}

/// Counts one more in a row; true when the limit is reached just now.
fn fires(row: &AtomicU32, limit: u32) -> bool {
    row.fetch_add(1, Ordering::Relaxed).saturating_add(1) == limit
}

/// Watches the endpoints of one cluster.
#[derive(Debug, Default)]
pub struct Monitor {
    /// One decision at a time, so that the share of ejected endpoints is kept.
    decisions: Mutex<()>,
    changes: Mutex<Changes>,
}

/// When balancing was told of changes.
#[derive(Debug, Default)]
struct Changes {
    last: Option<Moment>,
    /// Endpoints have come back of which it is to hear then.
    due: Option<Moment>,
}

impl Monitor {
    /// Notes how an attempt ended. An ejection takes effect at once; the events, mostly none, are for logs and metrics.
    pub fn record(
        &self,
        cluster: &Cluster,
        endpoint: &Arc<Endpoint>,
        report: Report,
        now: Moment,
        dice: &mut Dice,
    ) -> Vec<Event> {
        let Some(config) = cluster.config.outlier.as_deref() else { return Vec::new() };
        let state = &endpoint.state.outlier;
        let fired = match (report, config.split_local_origin) {
            (Report::Status(status), false) => state.note_status(config, status),
            (Report::Status(status), true) => {
                state.note_local(config, true);
                state.note_status(config, status)
            }
            (report, true) => state.note_local(config, report == Report::Connected),
            (Report::Connected, false) => state.note_status(config, 200),
            (Report::Timeout, false) => state.note_status(config, 504),
            (Report::ConnectFailure | Report::Reset, false) => state.note_status(config, 503),
        };
        let mut events = Vec::new();
        for cause in fired.into_iter().flatten() {
            events.extend(self.eject(cluster, config, endpoint, cause, now, dice));
            match cause {
                Cause::ConsecutiveGateway => state.in_a_row_gateway.store(0, Ordering::Relaxed),
                Cause::ConsecutiveLocalOrigin => state.in_a_row_local.store(0, Ordering::Relaxed),
                _ => state.in_a_row_5xx.store(0, Ordering::Relaxed),
            }
        }
        if !events.is_empty() {
            self.changed(cluster, now);
        }
        events
    }

    /// An endpoint says of itself, in an answer, that it is overburdened.
    pub fn degrade(&self, cluster: &Cluster, endpoint: &Arc<Endpoint>, now: Moment, dice: &mut Dice) -> Option<Event> {
        let config = cluster.config.outlier.as_deref().filter(|config| config.detect_degraded)?;
        // Most such answers come of endpoints that are known for it: they take no lock.
        if endpoint.state.outlier.is_degraded() {
            return None;
        }
        let _one = locked(&self.decisions);
        if endpoint.state.outlier.degraded.swap(true, Ordering::Relaxed) {
            return None;
        }
        let mut ejection = locked(&endpoint.state.outlier.ejection);
        ejection.spared.get_or_insert_default().begin(config, now, dice);
        self.changed(cluster, now);
        Some(ejection.event(endpoint, EventKind::Degraded, None, now))
    }

    /// An active check found an endpoint well: one that is out comes back at once, where that is wanted.
    pub fn pardon(&self, cluster: &Cluster, endpoint: &Arc<Endpoint>, now: Moment) -> Option<Event> {
        let config = cluster.config.outlier.as_deref()?;
        let state = &endpoint.state.outlier;
        if !config.pardon || !state.is_ejected() || endpoint.state.health.is_failed() {
            return None;
        }
        let _one = locked(&self.decisions);
        state.forget_rows();
        state.ejected.store(false, Ordering::Relaxed);
        self.changed(cluster, now);
        Some(locked(&state.ejection).end(endpoint, now))
    }

    /// The periodic part: returns endpoints whose time is over and looks at rates. Call it every
    /// [`OutlierConfig::interval`].
    pub fn sweep(&self, cluster: &Cluster, now: Moment, dice: &mut Dice) -> Vec<Event> {
        let Some(config) = cluster.config.outlier.as_deref() else { return Vec::new() };
        let back = |endpoint| release(config, endpoint, now).into_iter().chain(restore(config, endpoint, now));
        let mut events: Vec<Event> = cluster.endpoints.iter().flat_map(back).collect();
        let causes = [(Cause::SuccessRate, Cause::FailurePercentage), LOCAL_CAUSES];
        for (tally, (by_rate, by_share)) in [answers as fn(&OutlierState) -> &Tally, local].into_iter().zip(causes) {
            let rates = Rates::take(cluster, tally);
            let found = rates.too_low(config).into_iter().map(|found| (by_rate, found));
            for (cause, (endpoint, seen)) in
                found.chain(rates.failing(config).into_iter().map(|found| (by_share, found)))
            {
                let event = self.eject(cluster, config, endpoint, cause, now, dice);
                events.extend(event.map(|event| Event { rates: Some(seen), ..event }));
            }
        }
        if !events.is_empty() {
            let returns = events.iter().all(|event| matches!(event.kind, EventKind::Returned | EventKind::Restored));
            self.heard(cluster, now, returns.then_some(config.merge_window));
        }
        events
    }

    /// Lets endpoints that came back be chosen when it is time; to be called more often than endpoints are looked at.
    pub fn catch_up(&self, cluster: &Cluster, now: Moment) {
        if locked(&self.changes).due.is_some_and(|due| due <= now) {
            self.changed(cluster, now);
        }
    }

    fn changed(&self, cluster: &Cluster, now: Moment) {
        self.heard(cluster, now, None);
    }

    /// Something changed. Balancing hears of it at once, or, within a window behind the last time, when that is over. Envoy makes
    /// ejections wait as well; a bad endpoint is not given more time here.
    fn heard(&self, cluster: &Cluster, now: Moment, window: Option<Duration>) {
        let mut changes = locked(&self.changes);
        if let Some(window) = window
            && changes.last.is_some_and(|last| now - last < window)
        {
            changes.due.get_or_insert(now + window);
            return;
        }
        *changes = Changes { last: Some(now), due: None };
        drop(changes);
        cluster.balancer.refresh(now);
    }

    /// Puts an endpoint out, if it is in and the share of ejected endpoints allows it.
    fn eject(
        &self,
        cluster: &Cluster,
        config: &OutlierConfig,
        endpoint: &Arc<Endpoint>,
        cause: Cause,
        now: Moment,
        dice: &mut Dice,
    ) -> Option<Event> {
        let _one = locked(&self.decisions);
        let state = &endpoint.state.outlier;
        if state.is_ejected() {
            return None;
        }
        let mut ejection = locked(&state.ejection);
        let event = |ejection: &Ejection, kind| Some(ejection.event(endpoint, kind, ejection.returned, now));
        let out = cluster.endpoints.iter().filter(|endpoint| endpoint.state.outlier.is_ejected()).count();
        // The share with this one.
        let share = 100.0 * (out + 1) as f64 / cluster.endpoints.len().max(1) as f64;
        let allowed = share <= f64::from(config.max_ejection_percent) || (config.always_eject_one && out == 0);
        if !allowed {
            return event(&ejection, EventKind::Overflow { cause });
        }
        if dice.below(100) >= u64::from(config.enforcing(cause)) {
            return event(&ejection, EventKind::Ejected { cause, enforced: false });
        }
        ejection.times += 1;
        ejection.term.begin(config, now, dice);
        state.ejected.store(true, Ordering::Relaxed);
        event(&ejection, EventKind::Ejected { cause, enforced: true })
    }
}

const LOCAL_CAUSES: (Cause, Cause) = (Cause::SuccessRateLocalOrigin, Cause::FailurePercentageLocalOrigin);

fn answers(state: &OutlierState) -> &Tally {
    &state.answers
}

fn local(state: &OutlierState) -> &Tally {
    &state.local
}

/// Takes an endpoint in again when its time is over; a healthy one gets back some of its good name.
fn release(config: &OutlierConfig, endpoint: &Arc<Endpoint>, now: Moment) -> Option<Event> {
    let state = &endpoint.state.outlier;
    let mut ejection = locked(&state.ejection);
    if !state.is_ejected() {
        ejection.term.forgive();
        return None;
    }
    if !ejection.term.is_over(config, now) {
        return None;
    }
    state.forget_rows();
    state.ejected.store(false, Ordering::Relaxed);
    Some(ejection.end(endpoint, now))
}

/// Ends the time that an endpoint is spared.
fn restore(config: &OutlierConfig, endpoint: &Arc<Endpoint>, now: Moment) -> Option<Event> {
    let state = &endpoint.state.outlier;
    let mut ejection = locked(&state.ejection);
    let spared = ejection.spared.as_mut()?;
    if !state.is_degraded() {
        spared.forgive();
        return None;
    }
    if !spared.is_over(config, now) {
        return None;
    }
    state.degraded.store(false, Ordering::Relaxed);
    Some(ejection.event(endpoint, EventKind::Restored, None, now))
}

/// An endpoint that a detector found, and what it saw.
type Found<'c> = (&'c Arc<Endpoint>, SeenRates);

/// Success rates of the endpoints that are in, since the last sweep.
struct Rates<'c> {
    seen: Vec<(&'c Arc<Endpoint>, u32, f64)>,
    hosts: usize,
}

impl<'c> Rates<'c> {
    fn take(cluster: &'c Cluster, tally: fn(&OutlierState) -> &Tally) -> Self {
        let all = cluster.endpoints.iter().map(|endpoint| {
            let (count, rate) = tally(&endpoint.state.outlier).take();
            (endpoint, count, rate)
        });
        let seen = all.filter(|(endpoint, count, _)| *count > 0 && !endpoint.state.outlier.is_ejected()).collect();
        Self { seen, hosts: cluster.endpoints.len() }
    }

    /// Endpoints too far below the mean.
    fn too_low(&self, config: &OutlierConfig) -> Vec<Found<'c>> {
        let enough: Vec<_> =
            self.seen.iter().filter(|(_, count, _)| *count >= config.success_rate_request_volume).collect();
        let wanted = config.success_rate_minimum_hosts as usize;
        if enough.is_empty() || enough.len() < wanted || self.hosts < wanted {
            return Vec::new();
        }
        let number = enough.len() as f64;
        let mean = enough.iter().map(|(_, _, rate)| rate).sum::<f64>() / number;
        let variance = enough.iter().map(|(_, _, rate)| (rate - mean).powi(2)).sum::<f64>() / number;
        let threshold = mean - variance.sqrt() * f64::from(config.success_rate_stdev_factor) / 1000.0;
        let low = enough.into_iter().filter(|(_, _, rate)| *rate < threshold);
        low.map(|(endpoint, _, own)| (*endpoint, SeenRates { own: *own, bounds: Some((mean, threshold)) })).collect()
    }

    /// Endpoints whose share of failures is too high.
    fn failing(&self, config: &OutlierConfig) -> Vec<Found<'c>> {
        let enough: Vec<_> =
            self.seen.iter().filter(|(_, count, _)| *count >= config.failure_percentage_request_volume).collect();
        let wanted = config.failure_percentage_minimum_hosts as usize;
        if enough.is_empty() || enough.len() < wanted || self.hosts < wanted {
            return Vec::new();
        }
        let threshold = f64::from(config.failure_percentage_threshold);
        let failing = enough.into_iter().filter(|(_, _, rate)| 100.0 - rate >= threshold);
        failing.map(|(endpoint, _, own)| (*endpoint, SeenRates { own: *own, bounds: None })).collect()
    }
}

impl OutlierConfig {
    /// How often (per cent) a detector's finding leads to ejection.
    const fn enforcing(&self, cause: Cause) -> u32 {
        match cause {
            Cause::Consecutive5xx => self.enforcing_consecutive_5xx,
            Cause::ConsecutiveGateway => self.enforcing_consecutive_gateway_failure,
            Cause::ConsecutiveLocalOrigin => self.enforcing_consecutive_local_origin_failure,
            Cause::SuccessRate => self.enforcing_success_rate,
            Cause::SuccessRateLocalOrigin => self.enforcing_local_origin_success_rate,
            Cause::FailurePercentage => self.enforcing_failure_percentage,
            Cause::FailurePercentageLocalOrigin => self.enforcing_failure_percentage_local_origin,
        }
    }
}

/// A lock that goes on after another holder's panic: the data are plain numbers.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
