//! Circuit limits: how much a cluster may carry at once. Counting is by guards, so nothing is forgotten.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::cluster::ClusterState;
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
    /// Whether metrics tell how much is left. Default false.
    pub track_remaining: bool,
}

/// Retries as a share of the requests under way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryBudget {
    /// Per cent. Default 20.
    pub percent: f64,
    /// Retries always allowed. Default 3.
    pub min_concurrency: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 1024, pending: 1024, requests: 1024, retries: 3, budget: None, track_remaining: false }
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
}

/// How much of each there is now, for one priority.
#[derive(Debug, Default)]
pub struct Usage {
    connections: AtomicU32,
    pending: AtomicU32,
    requests: AtomicU32,
    retries: AtomicU32,
}

impl Usage {
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
    let usage = state.usage(priority);
    let limit = limits.most(resource, usage);
    let taken = usage
        .counter(resource)
        .fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| (count < limit).then(|| count + 1));
    taken.ok().map(|_| Slot { state: state.clone(), priority, resource })
}

impl Limits {
    /// The limit of a resource now; a budget's follows what is under way.
    #[must_use]
    pub fn most(&self, resource: Resource, usage: &Usage) -> u32 {
        match (resource, &self.budget) {
            (Resource::Connections, _) => self.connections,
            (Resource::Pending, _) => self.pending,
            (Resource::Requests, _) => self.requests,
            (Resource::Retries, None) => self.retries,
            (Resource::Retries, Some(budget)) => budget.limit(usage),
        }
    }
}

impl RetryBudget {
    fn limit(&self, usage: &Usage) -> u32 {
        let under_way = usage.count(Resource::Requests).saturating_add(usage.count(Resource::Pending));
        let share = (f64::from(under_way) * self.percent / 100.0) as u32;
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
        let one = take(&state, &limits, Priority::Default, Resource::Requests).unwrap();
        let _two = take(&state, &limits, Priority::Default, Resource::Requests).unwrap();
        assert!(take(&state, &limits, Priority::Default, Resource::Requests).is_none());
        assert!(take(&state, &limits, Priority::High, Resource::Requests).is_some());
        drop(one);
        assert!(take(&state, &limits, Priority::Default, Resource::Requests).is_some());
    }

    #[test]
    fn a_budget_follows_the_load() {
        let state = Arc::new(ClusterState::default());
        let budget = RetryBudget { percent: 20.0, min_concurrency: 1 };
        let limits = Limits { budget: Some(budget), ..Limits::default() };
        let _requests: Vec<_> =
            (0..10).map(|_| take(&state, &limits, Priority::Default, Resource::Requests).unwrap()).collect();
        let retries: Vec<_> =
            std::iter::from_fn(|| take(&state, &limits, Priority::Default, Resource::Retries)).take(9).collect();
        assert_eq!(retries.len(), 2);
    }
}
