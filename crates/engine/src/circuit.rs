//! Circuit limits: how much a cluster may carry at once. Counting is by guards, so nothing is forgotten.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::cluster::ClusterState;
use crate::moment::Moment;
use crate::routes::Priority;

/// Limits of one priority (`envoy.config.cluster.v3.CircuitBreakers.Thresholds`).
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Connections. Default 1024.
    pub connections: u32,
    /// Requests waiting for a connection. Default 1024.
    pub pending: u32,
    /// Requests under way. Default 1024.
    pub requests: u32,
    /// Retries under way. Default 3; not used with a budget.
    pub retries: u32,
    /// Retries as a share of requests.
    pub budget: Option<RetryBudget>,
    /// Pools of connections, each to one endpoint in one way. Default: any number.
    pub pools: u32,
    /// Whether metrics tell how much is left. Default false.
    pub track_remaining: bool,
}

/// Retries as a share of the requests under way, or of those that began of late.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryBudget {
    /// Per cent. Default 20.
    pub percent: f64,
    /// Retries always allowed. Default 3.
    pub min_concurrency: u32,
    /// The requests that began within this time count, whether they have ended or not; `None`: those under way count.
    pub interval: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            pending: 1024,
            requests: 1024,
            retries: 3,
            budget: None,
            pools: u32::MAX,
            track_remaining: false,
        }
    }
}

/// What can be limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// Connections.
    Connections,
    /// Requests waiting for a connection.
    Pending,
    /// Requests under way.
    Requests,
    /// Retries under way.
    Retries,
    /// Pools of connections.
    Pools,
}

/// How much of each there is now, for one priority.
#[derive(Debug, Default)]
pub struct Usage {
    connections: AtomicU32,
    pending: AtomicU32,
    requests: AtomicU32,
    retries: AtomicU32,
    pools: AtomicU32,
    /// Requests that began of late; only where a budget asks for them.
    began: OnceLock<Box<Mutex<Began>>>,
}

/// Requests that began within an interval, counted in parts of it.
#[derive(Debug, Default)]
struct Began {
    /// The part under way first.
    parts: [u32; PARTS],
    /// When that one began.
    since: Moment,
}

const PARTS: usize = 10;

impl Began {
    /// Forgets parts that are over for longer than the interval.
    fn go_on(&mut self, interval: Duration, now: Moment) {
        let part = interval.div_f64(PARTS as f64).max(Duration::from_nanos(1));
        let over = (now - self.since).as_nanos() / part.as_nanos();
        for _ in 0..over.min(PARTS as u128) {
            self.parts.rotate_right(1);
            *self.part() = 0;
        }
        self.since = match u32::try_from(over) {
            Ok(over) if (over as usize) < PARTS => self.since + part.saturating_mul(over),
            _ => now,
        };
    }

    fn part(&mut self) -> &mut u32 {
        let [first, ..] = &mut self.parts;
        first
    }

    /// Counts one more.
    fn count(&mut self) {
        *self.part() = self.part().saturating_add(1);
    }

    /// How many there are.
    fn sum(&self) -> u32 {
        self.parts.iter().fold(0, |sum, part| sum.saturating_add(*part))
    }
}

impl Usage {
    /// The requests that began of late.
    fn began(&self, interval: Duration, now: Moment) -> MutexGuard<'_, Began> {
        let mut began = self.began.get_or_init(Box::default).lock().unwrap_or_else(PoisonError::into_inner);
        began.go_on(interval, now);
        began
    }

    /// How many there are now.
    #[must_use]
    pub fn count(&self, resource: Resource) -> u32 {
        self.counter(resource).load(Ordering::Relaxed)
    }

    const fn counter(&self, resource: Resource) -> &AtomicU32 {
        match resource {
            Resource::Connections => &self.connections,
            Resource::Pending => &self.pending,
            Resource::Requests => &self.requests,
            Resource::Retries => &self.retries,
            Resource::Pools => &self.pools,
        }
    }
}

/// One unit of a resource; dropping it gives it back.
#[derive(Debug)]
pub struct Slot {
    state: Arc<ClusterState>,
    priority: Priority,
    resource: Resource,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.state.usage(self.priority).counter(self.resource).fetch_sub(1, Ordering::AcqRel);
    }
}

/// Takes one unit, if the limit has room. A refusal is counted by the caller (`UO`, 503).
#[must_use]
pub fn take(state: &Arc<ClusterState>, limits: &Limits, priority: Priority, resource: Resource) -> Option<Slot> {
    take_below(limits.most(resource), state, priority, resource)
}

/// Takes a unit for an attempt at a request, if there is room.
#[must_use]
pub fn request(state: &Arc<ClusterState>, limits: &Limits, priority: Priority, now: Moment) -> Option<Slot> {
    let slot = take(state, limits, priority, Resource::Requests)?;
    if let Some(interval) = limits.budget.and_then(|budget| budget.interval) {
        state.usage(priority).began(interval, now).count();
    }
    Some(slot)
}

/// Takes a unit for a retry, if the limit, or the budget that stands for it, has room.
#[must_use]
pub fn retry(state: &Arc<ClusterState>, limits: &Limits, priority: Priority, now: Moment) -> Option<Slot> {
    let most = match &limits.budget {
        None => limits.retries,
        Some(budget) => budget.limit(state.usage(priority), now),
    };
    take_below(most, state, priority, Resource::Retries)
}

fn take_below(most: u32, state: &Arc<ClusterState>, priority: Priority, resource: Resource) -> Option<Slot> {
    let counter = state.usage(priority).counter(resource);
    let taken = counter.fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| (count < most).then(|| count + 1));
    taken.ok().map(|_| Slot { state: state.clone(), priority, resource })
}

impl Limits {
    /// The limit of a resource; of retries the one that is used without a budget.
    #[must_use]
    pub const fn most(&self, resource: Resource) -> u32 {
        match resource {
            Resource::Connections => self.connections,
            Resource::Pending => self.pending,
            Resource::Requests => self.requests,
            Resource::Retries => self.retries,
            Resource::Pools => self.pools,
        }
    }
}

impl RetryBudget {
    fn limit(&self, usage: &Usage, now: Moment) -> u32 {
        let load = match self.interval {
            None => usage.count(Resource::Requests).saturating_add(usage.count(Resource::Pending)),
            Some(interval) => usage.began(interval, now).sum(),
        };
        let share = (f64::from(load) * self.percent / 100.0) as u32;
        share.max(self.min_concurrency)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_return_when_dropped() {
        let state = Arc::new(ClusterState::default());
        let limits = Limits { requests: 2, ..Limits::default() };
        let request = |priority| take(&state, &limits, priority, Resource::Requests);
        let one = request(Priority::Default).unwrap();
        let _two = request(Priority::Default).unwrap();
        assert!(request(Priority::Default).is_none());
        assert!(request(Priority::High).is_some());
        drop(one);
        assert!(request(Priority::Default).is_some());
    }

    #[test]
    fn a_budget_follows_the_load() {
        let state = Arc::new(ClusterState::default());
        let budget = RetryBudget { percent: 20.0, min_concurrency: 1, interval: None };
        let limits = Limits { budget: Some(budget), ..Limits::default() };
        let request = || request(&state, &limits, Priority::Default, Moment::START);
        let retry = || retry(&state, &limits, Priority::Default, Moment::START);
        let _requests: Vec<_> = (0..10).map(|_| request().unwrap()).collect();
        let retries: Vec<_> = std::iter::from_fn(retry).take(9).collect();
        assert_eq!(retries.len(), 2);
    }

    #[test]
    fn a_budget_of_an_interval_follows_what_began_in_it() {
        let state = Arc::new(ClusterState::default());
        let interval = Some(Duration::from_secs(10));
        let budget = RetryBudget { percent: 50.0, min_concurrency: 0, interval };
        let limits = Limits { budget: Some(budget), ..Limits::default() };
        let at = |seconds| Moment::at(Duration::from_secs(seconds));
        let most = |now| budget.limit(state.usage(Priority::Default), now);
        for second in 100..104 {
            drop(request(&state, &limits, Priority::Default, at(second)).unwrap());
        }
        assert_eq!(most(at(104)), 2, "all count, though they have ended");
        assert_eq!(most(at(111)), 1, "the first two were more than ten seconds ago");
        assert_eq!(most(at(200)), 0);
        let seldom = |number: u64| Moment::at(Duration::from_millis(300_000 + 1_900 * number));
        for number in 0..20 {
            drop(request(&state, &limits, Priority::Default, seldom(number)).unwrap());
        }
        assert_eq!(most(seldom(19)), 2, "five began within nine seconds and a bit");
    }
}
