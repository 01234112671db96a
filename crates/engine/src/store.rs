//! Holds the resources that came so far and turns them into plans.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;

use crate::plan::Plan;

/// One change: a resource came, or went.
#[derive(Debug, Clone)]
pub struct Update {
    /// `proto::type_url::{LISTENER, CLUSTER, ROUTE, ENDPOINTS, SECRET}`.
    pub type_url: Arc<str>,
    /// The resource's name.
    pub name: Arc<str>,
    /// The message, or `None`: it is gone.
    pub body: Option<Bytes>,
}

/// What is wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct Fault {
    /// Where, from the resource's root: `filter_chains[0].filters[1].typed_config.route_config.virtual_hosts[2]`.
    pub path: String,
    /// What, and what to do.
    pub message: String,
}

/// Why a resource was refused; the last good one of its name stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {name:?}: {}", .faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct UpdateError {
    /// `Listener`, `Cluster`, ...
    pub kind: &'static str,
    /// The resource's name.
    pub name: Arc<str>,
    /// All that is wrong with it, not only the first.
    pub faults: Vec<Fault>,
}

/// Resources that came so far; makes plans of them.
#[derive(Debug, Default)]
pub struct Store {
    plan: Arc<Plan>,
}

impl Store {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The plan of the moment.
    #[must_use]
    pub fn plan(&self) -> Arc<Plan> {
        self.plan.clone()
    }

    /// Applies changes, each all or nothing, and makes a new plan. One result per update, in order.
    pub fn apply(&mut self, updates: &[Update]) -> Vec<Result<(), UpdateError>> {
        updates.iter().map(|_| Ok(())).collect()
    }

    /// Loads a bootstrap's static listeners, clusters and secrets. All faults are given; what is good is in the plan.
    pub fn bootstrap(
        &mut self,
        bootstrap: &proto::envoy::config::bootstrap::v3::Bootstrap,
    ) -> Result<(), Vec<UpdateError>> {
        let _ = bootstrap;
        Ok(())
    }

    /// Route tables that listeners name: subscribe to these with RDS. Sorted.
    #[must_use]
    pub fn wanted_routes(&self) -> Vec<Arc<str>> {
        Vec::new()
    }

    /// Endpoint sets that clusters name: subscribe to these with EDS. Sorted.
    #[must_use]
    pub fn wanted_endpoints(&self) -> Vec<Arc<str>> {
        Vec::new()
    }

    /// Secrets from ADS that TLS contexts name. Sorted.
    #[must_use]
    pub fn wanted_secrets(&self) -> Vec<Arc<str>> {
        Vec::new()
    }

    /// What is not in the plan yet because a part of it has not come: type URL and name. Sorted.
    #[must_use]
    pub fn warming(&self) -> Vec<(Arc<str>, Arc<str>)> {
        Vec::new()
    }

    /// The caller has waited long enough (`initial_fetch_timeout`): everything warming goes into the plan with what
    /// there is (no routes: 404, no endpoints: 503).
    pub fn stop_waiting(&mut self) {}

    /// Names that clusters with DNS discovery want resolved: cluster, host, port. Sorted.
    #[must_use]
    pub fn names_to_resolve(&self) -> Vec<(Arc<str>, Arc<str>, u16)> {
        Vec::new()
    }

    /// A name was resolved (to nothing, if it failed and there is nothing known from before).
    pub fn resolved(&mut self, cluster: &str, host: &str, port: u16, addresses: &[SocketAddr]) {
        let _ = (cluster, host, port, addresses);
    }
}
