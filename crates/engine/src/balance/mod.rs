//! Choosing an endpoint: round robin, least request, random, ring hash and Maglev, over priorities and localities, with
//! panic mode.
//!
//! A [`View`] is what follows from the endpoints and their health: rebuilt when either changes, read without a lock.

mod bound;
mod maglev;
mod pool;
mod ring;
mod view;
mod zone;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::cluster::ClusterConfig;
use crate::dice::Dice;
use crate::endpoint::{Endpoint, EndpointSet};
use crate::moment::Moment;
use view::View;
pub use zone::{Home, ZoneAware};

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
        /// How many are compared; `None`: all (`selection_method: FULL_SCAN`). Default 2.
        choices: Option<u32>,
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
    /// Leave out the priorities of `tried`, looking again at every so manieth retry (0: they are not looked at).
    pub priorities_every: u32,
}

/// Chooses endpoints of one cluster.
#[derive(Debug)]
pub struct Balancer {
    config: Arc<ClusterConfig>,
    endpoints: Arc<EndpointSet>,
    home: Option<Arc<Home>>,
    view: ArcSwap<View>,
    /// Whose turn it is.
    turn: AtomicU64,
}

impl Balancer {
    /// A balancer for these endpoints. `home`: where this proxy is, for zone-aware routing.
    #[must_use]
    pub fn new(config: &Arc<ClusterConfig>, endpoints: &Arc<EndpointSet>, home: Option<&Arc<Home>>) -> Self {
        let view = View::new(config, endpoints, home.map(|home| &**home), Moment::START);
        Self {
            config: config.clone(),
            endpoints: endpoints.clone(),
            home: home.cloned(),
            view: ArcSwap::from_pointee(view),
            // Not zero: after every update the first endpoint would be served first.
            turn: AtomicU64::new(endpoints.version % 65_521),
        }
    }

    /// The endpoint for a request; `None`: there is no healthy one (`UH`, 503). Endpoints of `request.tried` are avoided
    /// as long as the attempts allow.
    #[must_use]
    pub fn pick(&self, request: Request<'_>, now: Moment, dice: &mut Dice) -> Option<Arc<Endpoint>> {
        let mut view = self.view.load();
        let moved = self.home.as_ref().is_some_and(|home| home.changes() != view.home_changes);
        if moved || view.refresh_at.is_some_and(|at| now >= at) {
            self.look_again(now);
            view = self.view.load();
        }
        let attempts = if request.tried.is_empty() { 0 } else { request.avoid_attempts };
        let every = request.priorities_every as usize;
        let other = if every == 0 { None } else { view.loads_without(request.tried, every) };
        let mut picked = None;
        for attempt in 0..=attempts {
            let found = view.pick(request.hash, attempt, other.as_deref(), &self.turn, dice)?;
            let again = request.tried.iter().any(|tried| tried.address == found.address);
            picked = Some(found);
            if !again {
                break;
            }
        }
        picked.cloned()
    }

    /// Looks at the endpoints' health again. Outlier detection does this by itself.
    pub fn refresh(&self, now: Moment) {
        if let Some(home) = self.home.as_ref().filter(|home| home.cluster == self.config.name) {
            home.changed();
        }
        self.look_again(now);
    }

    fn look_again(&self, now: Moment) {
        let home = self.home.as_deref();
        self.view.store(Arc::new(View::new(&self.config, &self.endpoints, home, now)));
    }

    /// Share of the load of each priority, per cent, and whether it is in panic; for the admin pages.
    #[must_use]
    pub fn priorities(&self) -> Vec<(u32, bool)> {
        self.view.load().priorities()
    }
}

/// One request under way at an endpoint; dropping it ends it.
#[derive(Debug)]
pub struct InFlight(Arc<Endpoint>);

impl InFlight {
    /// Counts a request (or a TCP connection) at an endpoint, as least-request balancing sees it.
    #[must_use]
    pub fn begin(endpoint: &Arc<Endpoint>) -> Self {
        endpoint.state.active.fetch_add(1, Ordering::Relaxed);
        endpoint.state.requests.fetch_add(1, Ordering::Relaxed);
        Self(endpoint.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.state.active.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
