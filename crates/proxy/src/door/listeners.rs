//! Which sockets are open for which listener: follows the plan, changing only what changed.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use engine::Plan;
use engine::listener::{Address, Listener};
use hashbrown::HashMap;

use crate::handover::heir::Inheritance;
use crate::net::listen::{self, Bound, ListenOptions};
use crate::worker::{Handle, Order};

/// Open sockets by listener.
#[derive(Debug, Default)]
pub struct Listeners {
    open: HashMap<Arc<str>, Vec<Door>>,
    next: u64,
    /// Sockets of the proxy that this one takes over from.
    inherited: Option<Inheritance>,
}

/// One address of a listener.
#[derive(Debug)]
struct Door {
    wanted: Address,
    namespace: Option<Arc<Path>>,
    bound: Option<SocketAddr>,
    /// The socket's number and the worker that accepts on it.
    sockets: Vec<(u64, usize)>,
}

/// An address that could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("listener `{listener}`: cannot listen on {address}: {reason}")]
pub struct Closed {
    /// The listener's name.
    pub listener: Arc<str>,
    /// The address.
    pub address: String,
    /// What the system said.
    pub reason: io::Error,
}

/// An address that is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listening {
    /// The listener's name.
    pub listener: Arc<str>,
    /// As configured.
    pub address: Address,
    /// With the port that the system chose, for TCP.
    pub bound: Option<SocketAddr>,
    /// The file of the network namespace it is in, if that is not this process's own.
    pub namespace: Option<Arc<Path>>,
    /// Its sockets, each with the worker that accepts on it.
    pub sockets: Vec<(u64, usize)>,
}

impl Listeners {
    /// Listeners that take the sockets of another proxy where they have the same address.
    pub fn inheriting(inherited: Option<Inheritance>) -> Self {
        Self { inherited, ..Self::default() }
    }

    /// Everything wanted is open: what is left of another proxy's sockets is closed.
    pub fn settle(&mut self) {
        self.inherited = None;
    }

    /// Opens what the plan has and closes what it has no more. What fails is tried again at the next call.
    pub fn follow(&mut self, plan: &Plan, workers: &[Handle]) -> Vec<Closed> {
        let mut failures = Vec::new();
        let open = std::mem::take(&mut self.open);
        for (name, doors) in open {
            let listener = plan.listener(&name).filter(|listener| listener.bind);
            let (kept, closed): (Vec<_>, Vec<_>) =
                doors.into_iter().partition(|door| listener.is_some_and(|listener| door.is_of(listener)));
            for (socket, worker) in closed.iter().flat_map(|door| &door.sockets) {
                if let Some(worker) = workers.get(*worker) {
                    worker.order(Order::Stop { socket: *socket });
                }
            }
            if !kept.is_empty() {
                self.open.insert(name, kept);
            }
        }
        for listener in plan.listeners().filter(|listener| listener.bind) {
            for address in addresses(listener) {
                let known = self.open.get(&listener.name);
                if known.is_some_and(|doors| doors.iter().any(|door| door.wanted == *address && door.is_of(listener))) {
                    continue;
                }
                match self.open_door(listener, address, workers) {
                    Ok(door) => self.open.entry(Arc::clone(&listener.name)).or_default().push(door),
                    Err(reason) => failures.push(Closed {
                        listener: Arc::clone(&listener.name),
                        address: address.to_string(),
                        reason,
                    }),
                }
            }
        }
        failures
    }

    /// Everything that is open.
    pub fn listening(&self) -> Vec<Listening> {
        let all = self.open.iter().flat_map(|(name, doors)| {
            doors.iter().map(|door| Listening {
                listener: Arc::clone(name),
                address: door.wanted.clone(),
                bound: door.bound,
                namespace: door.namespace.clone(),
                sockets: door.sockets.clone(),
            })
        });
        all.collect()
    }

    fn open_door(&mut self, listener: &Listener, address: &Address, workers: &[Handle]) -> io::Result<Door> {
        // With several workers each has a socket of its own and the kernel spreads connections; where that is not wanted
        // the first worker accepts and hands over to the least loaded one.
        let own_sockets = workers.len() > 1 && listener.reuse_port && !listener.exact_balance;
        let mode = listener.socket_modes.iter().find(|(of, _)| of == address);
        let options = ListenOptions {
            reuse_port: own_sockets,
            transparent: listener.transparent,
            freebind: listener.freebind,
            ipv4_compat: listener.ipv4_compat.contains(address),
            namespace: listener.namespace.clone(),
            backlog: listener.backlog.and_then(|backlog| i32::try_from(backlog).ok()).unwrap_or(4096),
            mode: mode.map_or_else(|| ListenOptions::default().mode, |(_, mode)| *mode),
        };
        let namespace = listener.namespace.clone();
        let inherited = self.inherited.as_mut().map(|all| all.claim(address, namespace.as_deref()));
        let mut sockets = inherited.filter(|sockets| !sockets.is_empty()).unwrap_or_default();
        // One socket that was opened for itself cannot be joined by others.
        let alone = sockets.len() == 1;
        if sockets.is_empty() {
            sockets.push(bind(address, &options)?);
        }
        let bound = sockets.first().and_then(Bound::local);
        let mut door = Door { wanted: address.clone(), namespace, bound, sockets: Vec::new() };
        let accepting = if own_sockets && !alone && bound.is_some() { workers.len() } else { 1 };
        while let (true, Some(bound)) = (sockets.len() < accepting, bound) {
            sockets.push(listen::bind_tcp(bound, &options).map(Bound::Tcp)?);
        }
        let spread = workers.len() > 1 && sockets.len() == 1;
        // Every socket is somebody's, also when there are more of them than workers: the kernel gives connections to each.
        for (at, bound) in sockets.into_iter().enumerate() {
            let index = at % workers.len().max(1);
            let Some(worker) = workers.get(index) else { continue };
            self.next += 1;
            let socket = self.next;
            worker.order(Order::Listen { socket, listener: Arc::clone(&listener.name), bound, spread });
            door.sockets.push((socket, index));
        }
        Ok(door)
    }
}

impl Door {
    /// Whether a listener still wants this address in this place.
    fn is_of(&self, listener: &Listener) -> bool {
        self.namespace == listener.namespace && addresses(listener).any(|address| *address == self.wanted)
    }
}

fn addresses(listener: &Listener) -> impl Iterator<Item = &Address> {
    std::iter::once(&listener.address).chain(&listener.additional_addresses)
}

fn bind(address: &Address, options: &ListenOptions) -> io::Result<Bound> {
    match address {
        Address::Socket(address) => listen::bind_tcp(*address, options).map(Bound::Tcp),
        Address::Unix(path) => listen::bind_unix(path, options).map(Bound::Unix),
        Address::Name { host, .. } => {
            Err(io::Error::new(io::ErrorKind::InvalidInput, format!("`{host}` is not an IP address")))
        }
    }
}
