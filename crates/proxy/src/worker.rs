//! Workers: one thread with one current-thread runtime each, owning its connections, pools and dice. Nothing of a worker
//! is ever touched by another thread; orders come through a channel.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use engine::listener::Direction;
use engine::{Dice, FilterChain, Listener};
use hashbrown::{HashMap, HashSet};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};

use crate::door;
use crate::door::accept::Open;
use crate::door::limited::Counted;
use crate::net::listen::Bound;
use crate::net::stream::Socket;
use crate::overload::{Client, Door};
use crate::report::Tally;
use crate::shared::Shared;
use crate::upstream::pool::Pools;

/// How often idle upstream connections are looked at.
const SWEEP: Duration = Duration::from_secs(1);

/// What a worker is told.
#[derive(Debug)]
pub enum Order {
    /// Accept connections on this socket for the listener of that name.
    Listen {
        /// Names the socket until [`Order::Stop`].
        socket: u64,
        /// The listener's name.
        listener: Arc<str>,
        /// The socket.
        bound: Bound,
        /// Hand accepted connections over to the least loaded worker instead of keeping them.
        spread: bool,
    },
    /// Give a copy of that socket away; no answer where it is not open.
    Copy {
        /// As in [`Order::Listen`].
        socket: u64,
        /// Where to.
        answer: std::sync::mpsc::SyncSender<OwnedFd>,
    },
    /// Accept no more on that socket.
    Stop {
        /// As in [`Order::Listen`].
        socket: u64,
    },
    /// Give back what the allocator keeps for this thread.
    GiveBack,
    /// Serve a connection that another worker accepted.
    Take {
        /// The listener's name.
        listener: Arc<str>,
        /// The connection, not bound to any runtime.
        stream: std::net::TcpStream,
    },
    /// The plan changed: connections of chains that are no more come to their end, and pools of endpoints that are no more.
    PlanChanged,
    /// Accept no more for these listeners and let their connections come to their end; the worker goes on.
    Shed {
        /// Only listeners for traffic into the workload.
        inbound_only: bool,
    },
    /// Accept no more, let connections come to their end, stop after this time at the latest.
    Drain {
        /// The limit.
        within: Duration,
    },
}

/// A running worker as others see it.
#[derive(Debug)]
pub struct Handle {
    orders: mpsc::UnboundedSender<Order>,
    load: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Handle {
    /// Gives an order; a worker that has ended takes none.
    pub fn order(&self, order: Order) {
        let _ = self.orders.send(order);
    }

    /// Connections at the moment.
    pub fn load(&self) -> usize {
        self.load.load(Ordering::Relaxed)
    }

    /// Waits for the worker's end.
    pub fn wait(&self) {
        while self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn peer(&self) -> Peer {
        Peer { orders: self.orders.clone(), load: Arc::clone(&self.load) }
    }
}

/// Another worker, as the one that spreads connections sees it.
#[derive(Debug, Clone)]
struct Peer {
    orders: mpsc::UnboundedSender<Order>,
    load: Arc<AtomicUsize>,
}

/// A worker as its own connections see it.
pub struct Worker {
    /// Its number, from 0.
    pub index: usize,
    /// What all workers see.
    pub shared: Arc<Shared>,
    /// Its connections to endpoints.
    pub pools: Pools,
    /// Where it reports to.
    pub tally: Rc<Tally>,
    /// Its chance.
    pub dice: RefCell<Dice>,
    peers: Arc<[Peer]>,
    load: Arc<AtomicUsize>,
    chains: RefCell<HashMap<usize, Group>>,
    sockets: RefCell<HashMap<u64, Accepting>>,
    draining: watch::Sender<bool>,
}

/// A socket on which connections are accepted.
struct Accepting {
    listener: Arc<str>,
    stop: watch::Sender<bool>,
    /// It closes when accepting ends, whoever knows of it here.
    open: Weak<Open>,
}

/// The connections of one filter chain.
struct Group {
    listener: Arc<str>,
    chain: Arc<FilterChain>,
    drain: watch::Sender<bool>,
}

/// Starts `count` workers.
///
/// # Errors
/// When the system gives no thread or no runtime.
pub fn start(count: usize, shared: &Arc<Shared>) -> std::io::Result<Vec<Handle>> {
    let mut receivers = Vec::with_capacity(count);
    let mut handles = Vec::with_capacity(count);
    for _ in 0..count {
        let (orders, receiver) = mpsc::unbounded_channel();
        receivers.push(receiver);
        handles.push(Handle { orders, load: Arc::default(), thread: None });
    }
    let peers: Arc<[Peer]> = handles.iter().map(Handle::peer).collect();
    for (index, (handle, receiver)) in handles.iter_mut().zip(receivers).enumerate() {
        let (shared, peers, load) = (Arc::clone(shared), Arc::clone(&peers), Arc::clone(&handle.load));
        let body = move || {
            let Ok(runtime) = Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) else {
                tracing::error!(worker = index, "no runtime for the worker");
                return;
            };
            let dice = RefCell::new(Dice::new(rand::random()));
            let tally = Rc::new(Tally::new(Arc::clone(&shared.tower), index));
            let worker = Rc::new(Worker {
                index,
                shared,
                pools: Pools::default(),
                tally,
                dice,
                peers,
                load,
                chains: RefCell::default(),
                sockets: RefCell::default(),
                draining: watch::Sender::new(false),
            });
            runtime.block_on(worker.run(receiver));
        };
        handle.thread = Some(std::thread::Builder::new().name(format!("worker-{index}")).spawn(body)?);
    }
    Ok(handles)
}

impl Worker {
    async fn run(self: Rc<Self>, mut orders: mpsc::UnboundedReceiver<Order>) {
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                order = orders.recv() => match order {
                    None => return,
                    Some(Order::Drain { within }) => return self.drain(within).await,
                    Some(order) => self.obey(order),
                },
                now = sweep.tick() => {
                    self.pools.sweep(now);
                    self.fetch_keys();
                }
            }
        }
    }

    fn obey(self: &Rc<Self>, order: Order) {
        match order {
            Order::Listen { socket, listener, bound, spread } => {
                let open = match Open::new(bound) {
                    Ok(open) => Rc::new(open),
                    Err(error) => return tracing::error!(%listener, %error, "cannot accept connections"),
                };
                let stop = watch::Sender::new(false);
                let stopped = stop.subscribe();
                let accepting = Accepting { listener: Arc::clone(&listener), stop, open: Rc::downgrade(&open) };
                self.sockets.borrow_mut().insert(socket, accepting);
                tokio::task::spawn_local(door::accept::run(Rc::clone(self), listener, open, spread, stopped));
            }
            Order::Copy { socket, answer } => {
                let open = self.sockets.borrow().get(&socket).and_then(|accepting| accepting.open.upgrade());
                if let Some(copy) = open.and_then(|open| open.copy().ok()) {
                    let _ = answer.try_send(copy);
                }
            }
            Order::Stop { socket } => {
                if let Some(accepting) = self.sockets.borrow_mut().remove(&socket) {
                    accepting.stop.send_replace(true);
                }
            }
            Order::Take { listener, stream } => match tokio::net::TcpStream::from_std(stream) {
                Ok(stream) => self.serve(&listener, Socket::Tcp(stream)),
                Err(error) => tracing::debug!(%error, "a connection that was handed over is lost"),
            },
            Order::GiveBack => crate::settle::trim(),
            Order::PlanChanged => self.follow_plan(),
            Order::Shed { inbound_only } => self.shed(inbound_only),
            Order::Drain { .. } => {}
        }
    }

    /// Serves a connection in a task of its own; what goes wrong in it stays in it.
    pub fn serve(self: &Rc<Self>, listener: &Arc<str>, socket: Socket) {
        let plan = self.shared.plan.load();
        let Some(listener) = plan.listener(listener).cloned() else { return };
        let overload = &self.shared.overload;
        match overload.door(listener.bypasses_overload, listener.ignores_limit, self.chance()) {
            Door::Open => {}
            closed => return self.tally.turned_away(&listener, closed),
        }
        let counted = listener.limit.as_ref().map(Counted::begin);
        if matches!(counted, Some((_, false))) {
            return self.tally.turned_away(&listener, Door::ListenerFull);
        }
        self.load.fetch_add(1, Ordering::Relaxed);
        let busy = Busy { worker: Rc::clone(self), _client: overload.client() };
        tokio::task::spawn_local(async move {
            door::connection::serve(&busy.worker, listener, socket).await;
            drop((busy, counted));
        });
    }

    /// A number from 0 to 1, each equally likely.
    pub fn chance(&self) -> f64 {
        self.dice.borrow_mut().below(1 << 32) as f64 / (1_u64 << 32) as f64
    }

    /// Gives a connection to the worker that has the fewest.
    pub fn spread(self: &Rc<Self>, listener: &Arc<str>, stream: tokio::net::TcpStream) {
        let least = self.peers.iter().enumerate().min_by_key(|(_, peer)| peer.load.load(Ordering::Relaxed));
        match least {
            Some((index, peer)) if index != self.index => {
                let Ok(stream) = stream.into_std() else { return };
                let _ = peer.orders.send(Order::Take { listener: Arc::clone(listener), stream });
            }
            _ => self.serve(listener, Socket::Tcp(stream)),
        }
    }

    /// Becomes true when the connections of this chain must come to their end.
    pub fn drain_of(&self, listener: &Listener, chain: &Arc<FilterChain>) -> watch::Receiver<bool> {
        if *self.draining.borrow() {
            return self.draining.subscribe();
        }
        let mut chains = self.chains.borrow_mut();
        let group = chains.entry(Arc::as_ptr(chain) as usize).or_insert_with(|| Group {
            listener: Arc::clone(&listener.name),
            chain: Arc::clone(chain),
            drain: watch::Sender::new(false),
        });
        group.drain.subscribe()
    }

    /// Whether the process is on its way out.
    pub fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Fetches key sets before the first request asks for them, and anew when they are old; one worker does it for all.
    fn fetch_keys(self: &Rc<Self>) {
        if self.index != 0 {
            return;
        }
        let plan = self.shared.plan.load();
        let now = self.shared.now();
        for keys in plan.remote_keys().iter().filter(|keys| keys.is_due(now)) {
            crate::http::keys::begin(self, keys);
        }
    }

    fn follow_plan(&self) {
        self.tally.plan_changed();
        let plan = self.shared.plan.load();
        self.chains.borrow_mut().retain(|_, group| {
            let same = |chain: &Arc<FilterChain>| {
                Arc::ptr_eq(chain, &group.chain)
                    || (chain.version == group.chain.version && chain.name == group.chain.name)
            };
            let alive = plan.listener(&group.listener).is_some_and(|listener| listener.chains.iter().any(same));
            if !alive {
                group.drain.send_replace(true);
            }
            alive && group.drain.receiver_count() > 0
        });
        let versions: HashSet<u64> = plan.clusters().map(|cluster| cluster.config.version).collect();
        self.pools.retain(|key, _| versions.contains(&key.cluster));
    }

    fn shed(&self, inbound_only: bool) {
        let plan = self.shared.plan.load();
        let concerned = |name: &str| {
            let direction = plan.listener(name).map(|listener| listener.direction);
            !inbound_only || direction == Some(Direction::Inbound)
        };
        for accepting in self.sockets.borrow().values() {
            if concerned(&accepting.listener) {
                accepting.stop.send_replace(true);
            }
        }
        for group in self.chains.borrow().values() {
            if concerned(&group.listener) {
                group.drain.send_replace(true);
            }
        }
    }

    async fn drain(self: Rc<Self>, within: Duration) {
        let end = Instant::now() + within;
        self.draining.send_replace(true);
        for (_, accepting) in self.sockets.borrow_mut().drain() {
            accepting.stop.send_replace(true);
        }
        for group in self.chains.borrow().values() {
            group.drain.send_replace(true);
        }
        while self.load.load(Ordering::Relaxed) > 0 && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Counts a connection while it lives, also when its task panics.
struct Busy {
    worker: Rc<Worker>,
    _client: Client,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.worker.load.fetch_sub(1, Ordering::Relaxed);
    }
}
