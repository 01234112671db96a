//! Endpoints of a cluster, with the little state that outlives an update.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};

use crate::dice::Fraction;
use crate::health::HealthState;
use crate::listener::Address;
use crate::metadata::Metadata;
use crate::outlier::OutlierState;

/// All endpoints of a cluster (`envoy.config.endpoint.v3.ClusterLoadAssignment`).
#[derive(Debug, Default)]
pub struct EndpointSet {
    /// Groups of the same locality and priority, in the order of the resource.
    pub groups: Vec<EndpointGroup>,
    /// How much of a priority's endpoints may fail before load spills over, per cent. Default 140.
    pub overprovisioning: u32,
    /// Weights, not numbers of endpoints, say how healthy a priority is. Default false.
    pub weighted_priority_health: bool,
    /// Shares of requests to drop, by category.
    pub drops: Vec<(Arc<str>, Fraction)>,
    /// Hash of the resource: equal means unchanged.
    pub version: u64,
}

impl EndpointSet {
    /// All endpoints.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.groups.iter().flat_map(|group| &group.endpoints)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.groups.iter().map(|group| group.endpoints.len()).sum()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.groups.iter().all(|group| group.endpoints.is_empty())
    }
}

/// Endpoints of one locality and priority.
#[derive(Debug)]
pub struct EndpointGroup {
    /// Where they are.
    pub locality: Arc<Locality>,
    /// Share of the locality in its priority; 0 with locality weighting on: no load. `None`: not said.
    pub weight: Option<u32>,
    /// 0 is the highest.
    pub priority: u32,
    /// The endpoints.
    pub endpoints: Vec<Arc<Endpoint>>,
}

/// Where endpoints are.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct Locality {
    /// Region.
    pub region: Arc<str>,
    /// Zone.
    pub zone: Arc<str>,
    /// Part of a zone.
    pub sub_zone: Arc<str>,
}

/// What the control plane says about an endpoint's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HealthStatus {
    /// Nothing said, or healthy.
    #[default]
    Healthy,
    /// Unhealthy, or timed out.
    Unhealthy,
    /// Going away: no new load.
    Draining,
    /// Working, but not well.
    Degraded,
}

/// One endpoint.
#[derive(Debug)]
pub struct Endpoint {
    /// Where to connect.
    pub address: Address,
    /// Host name, for `auto` host rewrite and health checks; may be empty.
    pub hostname: Arc<str>,
    /// Share in its locality, at least 1. Default 1.
    pub weight: u32,
    /// What the control plane says.
    pub health: HealthStatus,
    /// `envoy.lb`, `envoy.transport_socket_match`, `istio`, ...
    pub metadata: Arc<Metadata>,
    /// Where it is.
    pub locality: Arc<Locality>,
    /// 0 is the highest.
    pub priority: u32,
    /// Where and whether it is checked, if not where it is called.
    pub check: Option<Box<CheckAddress>>,
    /// What outlives an update of the set: the same address keeps it.
    pub state: Arc<EndpointState>,
}

/// Where an endpoint is asked whether it works (`Endpoint.HealthCheckConfig`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct CheckAddress {
    /// Another address; `None`: its own.
    pub address: Option<Address>,
    /// Another port; `None`: the address's own.
    pub port: Option<u16>,
    /// The host that is asked for; may be empty.
    pub hostname: Arc<str>,
    /// It is not asked at all.
    pub disabled: bool,
}

/// Running state of one endpoint.
#[derive(Debug, Default)]
pub struct EndpointState {
    /// Requests (or TCP connections) under way.
    pub active: AtomicU32,
    /// All requests so far.
    pub requests: AtomicU64,
    /// Requests that failed (5xx, reset, no connection).
    pub errors: AtomicU64,
    /// Connections open.
    pub connections: AtomicU32,
    /// Connections so far.
    pub connections_total: AtomicU64,
    /// Attempts to connect that failed.
    pub connect_failures: AtomicU64,
    /// When it was first seen, nanoseconds of a [`crate::Moment`], for slow start; 0: not yet.
    pub since: AtomicU64,
    /// What outlier detection knows.
    pub outlier: OutlierState,
    /// What active checks know.
    pub health: HealthState,
}

impl EndpointState {
    /// Whether checks, or what it says of itself, found it to be overburdened.
    fn is_degraded(&self) -> bool {
        self.health.is_degraded() || self.outlier.is_degraded()
    }
}

impl Endpoint {
    /// Whether it takes new load: healthy as the control plane and checks say, and not ejected.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.health == HealthStatus::Healthy && self.works() && !self.state.is_degraded()
    }

    /// Whether it takes load only when healthy endpoints do not suffice.
    #[must_use]
    pub fn is_degraded(&self) -> bool {
        let degraded = match self.health {
            HealthStatus::Degraded => true,
            HealthStatus::Healthy => self.state.is_degraded(),
            HealthStatus::Unhealthy | HealthStatus::Draining => false,
        };
        degraded && self.works()
    }

    /// Neither ejected nor found to fail by checks.
    fn works(&self) -> bool {
        !self.state.outlier.is_ejected() && !self.state.health.is_failed()
    }
}
