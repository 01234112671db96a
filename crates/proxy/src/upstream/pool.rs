//! Connections to endpoints, kept by each worker for itself: HTTP/1 kept alive, HTTP/2 shared by many streams.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use engine::circuit::Slot;
use engine::routes::Priority;
use hashbrown::HashMap;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::failure::Failure;
use crate::h1::client::Client;
use crate::h2::client::Sender;
use crate::net::dial::Target;

/// What makes two connections exchangeable.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// Hash of the cluster's configuration: a changed cluster gets fresh connections.
    pub cluster: u64,
    /// The endpoint.
    pub target: Target,
    /// Which transport: 0 for plain, else the number of the TLS settings.
    pub transport: u64,
    /// The server name asked for, where it differs from request to request.
    pub server_name: Option<Arc<str>>,
    /// What TLS offers by ALPN instead of what the transport says ([`engine::alpn::Offer::id`]); 0: nothing else.
    pub alpn: u64,
    /// HTTP/2, HTTP/1, or whatever ALPN agrees on.
    pub h2: Option<bool>,
    /// Whose circuit limits its connections count in.
    pub priority: Priority,
}

/// What is known about an upstream connection.
#[derive(Debug, Default)]
pub struct Link {
    /// This end's address.
    pub local: Option<SocketAddr>,
    /// The identity that the server proved.
    pub identity: Option<Arc<str>>,
    /// Both ends proved who they are.
    pub mtls: bool,
}

/// All pools of one worker.
#[derive(Debug, Default)]
pub struct Pools {
    pools: RefCell<HashMap<Key, Rc<Pool>>>,
}

impl Pools {
    /// The pool of a key, if there is one.
    pub fn of(&self, key: &Key) -> Option<Rc<Pool>> {
        self.pools.borrow().get(key).cloned()
    }

    /// Makes the pool of a key; it counts in its cluster's limit until it is forgotten.
    pub fn add(&self, key: &Key, slot: Slot) -> Rc<Pool> {
        let pool = Rc::new(Pool { slot: RefCell::new(Some(slot)), ..Pool::default() });
        self.pools.borrow_mut().insert(key.clone(), Rc::clone(&pool));
        pool
    }

    /// Makes room for one more pool of a cluster: of those that nobody has in use, forgets the ones without connections, those
    /// of the same endpoint, and those of endpoints that are no more (`is_there` tells).
    pub fn make_room(&self, wanted: &Key, is_there: impl Fn(&Target) -> bool) {
        self.retain(|key, pool| {
            let of_cluster = (key.cluster, key.priority) == (wanted.cluster, wanted.priority);
            // The map has it, and each of its connections; whoever works with one has it as well.
            let open = pool.open.get();
            let unused = Rc::strong_count(pool) == 1 + open;
            !(of_cluster && unused && (open == 0 || key.target == wanted.target || !is_there(&key.target)))
        });
    }

    /// Closes what has been idle for longer than its pool allows, and forgets pools without connections.
    pub fn sweep(&self, now: Instant) {
        self.pools.borrow_mut().retain(|_, pool| {
            pool.sweep(now);
            Rc::strong_count(pool) > 1 || !pool.is_empty()
        });
    }

    /// Closes every HTTP/1 connection that is idle.
    pub fn close_idle(&self) {
        self.pools.borrow().values().for_each(|pool| pool.idle.borrow_mut().clear());
    }

    /// Forgets the pools that are not to be kept and closes their idle connections; busy ones end with their exchange.
    pub fn retain(&self, mut keep: impl FnMut(&Key, &Rc<Pool>) -> bool) {
        self.pools.borrow_mut().retain(|key, pool| {
            let kept = keep(key, pool);
            if !kept {
                pool.retire();
            }
            kept
        });
    }
}

/// The connections of one key.
#[derive(Debug, Default)]
pub struct Pool {
    idle: RefCell<Vec<Idle>>,
    waiting: RefCell<VecDeque<oneshot::Sender<H1>>>,
    shared: RefCell<Vec<Rc<H2>>>,
    connecting: Cell<usize>,
    connected: Notify,
    /// What the last connection attempt came to, for those who waited for it.
    last_failure: RefCell<Option<Failure>>,
    open: Cell<usize>,
    retired: Cell<bool>,
    idle_timeout: Cell<Option<Duration>>,
    /// Its place in its cluster's limit of pools.
    slot: RefCell<Option<Slot>>,
}

#[derive(Debug)]
struct Idle {
    h1: H1,
    /// When it was first found idle.
    since: Option<Instant>,
}

/// An HTTP/1 connection in the hands of one exchange.
#[derive(Debug)]
pub struct H1 {
    /// The connection itself.
    pub client: Rc<Client>,
    /// What is known about it.
    pub link: Rc<Link>,
    /// Requests sent on it so far.
    pub served: u32,
}

/// An HTTP/2 connection.
#[derive(Debug)]
pub struct H2 {
    sender: Sender,
    link: Rc<Link>,
    active: Cell<u32>,
    served: Cell<u32>,
    most_streams: u32,
    most_requests: Option<u32>,
}

/// One stream's share of an HTTP/2 connection.
#[derive(Debug)]
pub struct Stream {
    h2: Rc<H2>,
}

impl Stream {
    /// What sends its request.
    pub fn sender(&self) -> &Sender {
        &self.h2.sender
    }

    /// What is known about the connection.
    pub fn link(&self) -> &Rc<Link> {
        &self.h2.link
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.h2.active.set(self.h2.active.get().saturating_sub(1));
    }
}

impl H2 {
    fn has_room(&self) -> bool {
        self.active.get() < self.most_streams && self.most_requests.is_none_or(|most| self.served.get() < most)
    }
}

impl Pool {
    /// How long a connection may idle; kept from the cluster's configuration.
    pub fn set_idle_timeout(&self, timeout: Option<Duration>) {
        self.idle_timeout.set(timeout);
    }

    /// A kept-alive connection that is ready for a request, the most recently used first.
    pub fn take_idle(&self) -> Option<H1> {
        let mut idle = self.idle.borrow_mut();
        while let Some(Idle { h1, .. }) = idle.pop() {
            if h1.client.is_ready() {
                return Some(h1);
            }
        }
        None
    }

    /// Gives a connection back after its exchange, to who waits for one or to the idle ones.
    pub fn give_back(&self, h1: H1) {
        if self.retired.get() || !h1.client.is_idle() {
            return;
        }
        let mut h1 = h1;
        while let Some(waiter) = self.waiting.borrow_mut().pop_front() {
            match waiter.send(h1) {
                Ok(()) => return,
                Err(returned) => h1 = returned,
            }
        }
        self.idle.borrow_mut().push(Idle { h1, since: None });
    }

    /// Waits until an exchange of this worker gives its connection back.
    pub fn wait(&self) -> oneshot::Receiver<H1> {
        let (sender, receiver) = oneshot::channel();
        self.waiting.borrow_mut().push_back(sender);
        receiver
    }

    /// A stream on an HTTP/2 connection that has room.
    pub fn take_stream(&self) -> Option<Stream> {
        let mut shared = self.shared.borrow_mut();
        shared.retain(|h2| !h2.sender.is_closed());
        let h2 = shared.iter().find(|h2| h2.has_room())?;
        h2.active.set(h2.active.get() + 1);
        h2.served.set(h2.served.get().saturating_add(1));
        Some(Stream { h2: Rc::clone(h2) })
    }

    /// Adds an HTTP/2 connection and takes its first stream.
    pub fn add_shared(&self, sender: Sender, link: Rc<Link>, most_streams: u32, most_requests: Option<u32>) -> Stream {
        let (active, served) = (Cell::new(1), Cell::new(1));
        let most_streams = most_streams.max(1);
        let h2 = Rc::new(H2 { sender, link, active, served, most_streams, most_requests });
        if !self.retired.get() {
            self.shared.borrow_mut().push(Rc::clone(&h2));
        }
        Stream { h2 }
    }

    /// Whether a connection is being made at the moment.
    pub fn is_connecting(&self) -> bool {
        self.connecting.get() > 0
    }

    /// Notes that a connection is being made, until the guard is dropped; then everybody who waits looks again.
    pub fn begin_connecting(self: &Rc<Self>) -> Connecting {
        self.connecting.set(self.connecting.get() + 1);
        Connecting { pool: Rc::clone(self) }
    }

    /// Waits until a connection attempt of this worker ended; its failure, if it failed.
    pub async fn connected(&self) -> Option<Failure> {
        self.connected.notified().await;
        self.last_failure.borrow().clone()
    }

    /// Notes that a connection was opened.
    pub fn opened(&self) {
        self.open.set(self.open.get() + 1);
    }

    /// Notes that a connection ended; who waits for one must not wait for ever.
    pub fn closed(&self) {
        self.open.set(self.open.get().saturating_sub(1));
        if self.open.get() == 0 {
            self.waiting.borrow_mut().clear();
        }
    }

    /// Connections of this worker that are open or being made.
    pub fn open_connections(&self) -> usize {
        self.open.get()
    }

    fn sweep(&self, now: Instant) {
        let expired = |since: Instant| self.idle_timeout.get().is_some_and(|limit| now.duration_since(since) >= limit);
        let mut idle = self.idle.borrow_mut();
        idle.retain_mut(|entry| entry.h1.client.is_ready() && !expired(*entry.since.get_or_insert(now)));
        drop(idle);
        self.shared.borrow_mut().retain(|h2| !h2.sender.is_closed());
    }

    fn retire(&self) {
        self.retired.set(true);
        self.idle.borrow_mut().clear();
        self.shared.borrow_mut().clear();
        self.slot.take();
    }

    fn is_empty(&self) -> bool {
        self.idle.borrow().is_empty() && self.shared.borrow().is_empty()
    }
}

/// See [`Pool::begin_connecting`].
#[derive(Debug)]
pub struct Connecting {
    pool: Rc<Pool>,
}

impl Connecting {
    /// Tells those who wait how it ended.
    pub fn done(self, failure: Option<&Failure>) {
        *self.pool.last_failure.borrow_mut() = failure.cloned();
    }
}

impl Drop for Connecting {
    fn drop(&mut self) {
        self.pool.connecting.set(self.pool.connecting.get().saturating_sub(1));
        self.pool.connected.notify_waiters();
    }
}
