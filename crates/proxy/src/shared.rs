//! What all workers see: the plan, the TLS contexts, the process's age and numbers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use engine::{Moment, Plan};

use crate::config::ledger::Ledger;
use crate::http::keys::Flights;
use crate::overload::Overload;
use crate::report::Watchtower;
use crate::tls::Contexts;

/// State shared by workers, configuration and administration. Nothing in it is locked per request.
#[derive(Debug)]
pub struct Shared {
    /// The configuration in force; loaded once per exchange.
    pub plan: ArcSwap<Plan>,
    /// TLS configurations built from the plan's contexts and the secrets of the moment.
    pub tls: Contexts,
    /// What all workers report to.
    pub tower: Arc<Watchtower>,
    /// Every resource as it was received.
    pub ledger: Ledger,
    /// What is done under pressure.
    pub overload: Arc<Overload>,
    /// When the process began; [`Moment`]s count from here.
    pub started: Instant,
    /// Key sets that are being fetched.
    pub flights: Flights,
    failing: AtomicBool,
    connections: AtomicU64,
}

impl Shared {
    /// Fresh state around a first plan.
    pub fn new(plan: Arc<Plan>, tower: Arc<Watchtower>, overload: Overload) -> Arc<Self> {
        Arc::new(Self {
            plan: ArcSwap::new(plan),
            tls: Contexts::default(),
            tower,
            ledger: Ledger::default(),
            overload: Arc::new(overload),
            started: Instant::now(),
            flights: Flights::default(),
            failing: AtomicBool::new(false),
            connections: AtomicU64::new(0),
        })
    }

    /// The time now, as the engine counts it.
    pub fn now(&self) -> Moment {
        Moment::at(self.started.elapsed())
    }

    /// A moment of the system's clock, as the engine counts it.
    pub fn at(&self, instant: tokio::time::Instant) -> Moment {
        Moment::at(instant.into_std().saturating_duration_since(self.started))
    }

    /// The process fails the health checks that it answers, and closes connections when it can (`/healthcheck/fail`).
    pub fn fail_checks(&self, fail: bool) {
        self.failing.store(fail, Ordering::Relaxed);
    }

    /// Whether it does.
    pub fn fails_checks(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    /// A number for a new connection, unique in this process.
    pub fn connection_id(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed)
    }
}
