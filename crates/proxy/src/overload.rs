//! Pressure on this process, measured, and what is done about it.
//!
//! Two things are watched whatever the bootstrap says, because a proxy that has run out of them serves nobody:
//! descriptors (a part is kept for the administration and for connections to endpoints) and, where the system limits
//! memory, memory. The rest is Envoy's overload manager.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use engine::overload::{Measures, MonitorKind, Overload as Rules};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use telemetry::registry::Gauge;

use crate::report::Watchtower;

mod memory;

/// How often a listener that may not accept looks whether it may again.
const LOOK: Duration = Duration::from_millis(20);
/// Descriptors that are never used for connections: files, timers, the administration, the control plane.
const RESERVE: usize = 64;

/// Sockets of clients and endpoints that are open in this process; descriptors are the process's, not a proxy's.
static SOCKETS: AtomicUsize = AtomicUsize::new(0);

/// Counts a socket while it is open.
#[derive(Debug)]
pub struct Socket(());

impl Socket {
    /// One more.
    pub fn open() -> Self {
        SOCKETS.fetch_add(1, Relaxed);
        Self(())
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        SOCKETS.fetch_sub(1, Relaxed);
    }
}

/// What all workers ask before they take on more.
#[derive(Debug)]
pub struct Overload {
    rules: Rules,
    measures: ArcSwap<Measures>,
    /// Whether any measure is in force, for those who ask for every request.
    any: std::sync::atomic::AtomicBool,
    /// Client connections now.
    clients: AtomicU64,
    /// Descriptors that connections may use.
    room: usize,
}

/// What to do with a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// Serve it.
    Open,
    /// Close it: there are as many as may be.
    Full,
    /// Close it: its listener has as many as it may have.
    ListenerFull,
    /// Close it: the process is under pressure.
    Shed,
}

impl Overload {
    /// With the bootstrap's rules, or the safe ones; `most`: client connections at once, where the rules do not say.
    pub fn new(configured: Option<&Rules>, most: Option<u64>) -> Self {
        let mut rules = configured.cloned().unwrap_or_else(|| match memory::limit() {
            Some(most) => Rules::safe(most),
            None => Rules { monitors: Vec::new(), rules: Vec::new(), ..Rules::safe(u64::MAX) },
        });
        rules.max_connections = rules.max_connections.or(most);
        let limit = descriptors();
        let room = limit.saturating_sub(RESERVE.max(limit / 16)).max(limit / 4).max(2);
        Self { rules, measures: ArcSwap::default(), any: false.into(), clients: AtomicU64::new(0), room }
    }

    /// Whether listeners may accept at this moment. Half of the descriptors are for clients, half for endpoints.
    pub fn may_accept(&self, bypass: bool) -> bool {
        let descriptors = self.clients.load(Relaxed) < (self.room / 2).max(1) as u64 && may_open(self.room);
        descriptors && (bypass || !self.any.load(Relaxed) || self.measures.load().stop_accepting < 1.0)
    }

    /// Waits until listeners may accept.
    pub async fn accepting(&self, bypass: bool) {
        while !self.may_accept(bypass) {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What to do with a connection that was accepted; `chance` is a number from 0 to 1.
    pub fn door(&self, bypass: bool, unlimited: bool, chance: f64) -> Door {
        let most = self.rules.max_connections.filter(|_| !unlimited);
        if most.is_some_and(|most| self.clients.load(Relaxed) >= most) {
            return Door::Full;
        }
        if !bypass && self.any.load(Relaxed) && chance < self.measures.load().reject_connections {
            return Door::Shed;
        }
        Door::Open
    }

    /// Whether a new request is answered with 503.
    pub fn sheds_request(&self, chance: impl FnOnce() -> f64) -> bool {
        self.any.load(Relaxed) && happens(self.measures.load().stop_requests, chance)
    }

    /// Whether the connection ends after the exchange under way.
    pub fn ends_connection(&self, chance: impl FnOnce() -> f64) -> bool {
        self.any.load(Relaxed) && happens(self.measures.load().disable_keepalive, chance)
    }

    /// An idle timeout as it is now.
    pub fn idle(&self, configured: Option<Duration>) -> Option<Duration> {
        if !self.any.load(Relaxed) {
            return configured;
        }
        configured.map(|configured| self.measures.load().idle(configured))
    }

    /// Whether one more connection to an endpoint may be opened.
    pub fn may_dial(&self) -> bool {
        may_open(self.room)
    }

    /// Counts a client connection while it lives.
    pub fn client(self: &Arc<Self>) -> Client {
        self.clients.fetch_add(1, Relaxed);
        Client(Arc::clone(self))
    }

    /// Measures and judges for as long as the proxy runs; on the control thread's runtime, which no client can keep busy.
    pub async fn watch(self: Arc<Self>, tower: Arc<Watchtower>) {
        if self.rules.monitors.is_empty() {
            return;
        }
        let help = "What an overload monitor measured, 0 to 1000.";
        let gauge = |name: &str| tower.registry.gauge("tulle_overload_pressure", help, &[("monitor", name)]);
        let gauges: Vec<Arc<Gauge>> = self.rules.monitors.iter().map(|monitor| gauge(&monitor.name)).collect();
        let mut pressures = vec![0.0; gauges.len()];
        loop {
            for ((monitor, pressure), gauge) in self.rules.monitors.iter().zip(&mut pressures).zip(&gauges) {
                match measure(&monitor.kind) {
                    Ok(measured) => *pressure = measured.clamp(0.0, 10.0),
                    Err(error) => tracing::debug!(monitor = %monitor.name, %error, "a pressure cannot be measured"),
                }
                gauge.set((*pressure * 1000.0) as u64);
            }
            self.put(self.rules.judge(&pressures));
            tokio::time::sleep(self.rules.refresh).await;
        }
    }

    fn put(&self, measures: Measures) {
        if **self.measures.load() == measures {
            return;
        }
        if (measures == Measures::default()) == self.any.load(Relaxed) {
            tracing::warn!(event = "overload", ?measures, "the measures against overload changed");
        }
        self.any.store(measures != Measures::default(), Relaxed);
        self.measures.store(Arc::new(measures));
    }
}

/// See [`Overload::client`].
#[derive(Debug)]
pub struct Client(Arc<Overload>);

impl Drop for Client {
    fn drop(&mut self) {
        self.0.clients.fetch_sub(1, Relaxed);
    }
}

fn happens(share: f64, chance: impl FnOnce() -> f64) -> bool {
    share >= 1.0 || (share > 0.0 && chance() < share)
}

fn may_open(room: usize) -> bool {
    SOCKETS.load(Relaxed) < room
}

fn measure(kind: &MonitorKind) -> io::Result<f64> {
    match kind {
        MonitorKind::Memory { most } => Ok(memory::own()? as f64 / *most as f64),
        MonitorKind::Group { most } => memory::group(*most),
        MonitorKind::File(path) => {
            let text = std::fs::read_to_string(path)?;
            text.trim().parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "no number"))
        }
    }
}

/// Descriptors that this process may have open: as many as the system lets it take.
fn descriptors() -> usize {
    let limits = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limits.maximum, maximum: limits.maximum };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limits.maximum,
        Err(_) => limits.current,
    };
    // No limit at all, or one beyond any use.
    current.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX / 4).min(usize::MAX / 4)
}

#[cfg(test)]
mod tests {
    use engine::overload::{Action, Monitor, Rule, Trigger};

    use super::*;

    fn with(actions: &[Action], max_connections: Option<u64>) -> Arc<Overload> {
        let monitors = vec![Monitor { name: "m".into(), kind: MonitorKind::Memory { most: 1 } }];
        let rules = actions.iter().map(|action| Rule { action: *action, triggers: vec![(0, Trigger::Threshold(0.5))] });
        let rules = Rules { refresh: Duration::from_secs(1), monitors, rules: rules.collect(), max_connections };
        Arc::new(Overload::new(Some(&rules), None))
    }

    #[test]
    fn measures_act_while_they_are_in_force() {
        let overload = with(&[Action::StopAccepting, Action::StopRequests, Action::RejectConnections], None);
        assert!(overload.may_accept(false) && !overload.sheds_request(|| 0.0));
        overload.put(overload.rules.judge(&[0.9]));
        assert!(!overload.may_accept(false) && overload.may_accept(true));
        assert!(overload.sheds_request(|| 0.9));
        assert_eq!(overload.door(false, false, 0.9), Door::Shed);
        assert_eq!(overload.door(true, false, 0.9), Door::Open);
        overload.put(overload.rules.judge(&[0.1]));
        assert!(overload.may_accept(false) && !overload.sheds_request(|| 0.0));
    }

    #[test]
    fn one_connection_more_than_allowed_is_closed() {
        let overload = with(&[], Some(2));
        let (first, _second) = (overload.client(), overload.client());
        assert_eq!(overload.door(false, false, 1.0), Door::Full);
        assert_eq!(overload.door(false, true, 1.0), Door::Open);
        drop(first);
        assert_eq!(overload.door(false, false, 1.0), Door::Open);
    }
}
