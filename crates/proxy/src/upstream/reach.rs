//! Reaching an endpoint: a pooled connection, or a new one within the cluster's limits.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use engine::alpn::{AlpnOverrides, Offer};
use engine::circuit::{self, Resource, Slot};
use engine::cluster::UpstreamProtocol;
use engine::routes::Priority;
use engine::tls::UpstreamTls;
use engine::{Address, Cluster, Endpoint};
use tokio::net::lookup_host;

use super::failure::{Failure, Kind};
use super::pool::{H1, Key, Link, Pool, Stream as H2Stream};
use crate::h1::client::Client;
use crate::h2;
use crate::net::dial::{DialError, DialOptions, Target, Tls, dial};
use crate::net::frames::Frames;
use crate::net::peers;
use crate::net::stream::{Ahead, Stream};
use crate::shared::Shared;
use crate::tls::server_name;
use crate::worker::Worker;

/// Bytes of an answer's head, and of its interim answers together; beyond it the answer is a protocol error.
pub const MAX_RESPONSE_HEAD: usize = 64 * 1024;

/// A connection on which one request can be sent.
#[derive(Debug)]
pub enum Via {
    /// An HTTP/1 connection of its own.
    H1(H1),
    /// A stream of an HTTP/2 connection.
    H2(H2Stream),
}

impl Via {
    /// What is known about the connection.
    pub fn link(&self) -> &Rc<Link> {
        match self {
            Self::H1(h1) => &h1.link,
            Self::H2(stream) => stream.link(),
        }
    }
}

/// Whom to reach, and for whom.
#[derive(Debug, Clone, Copy)]
pub struct Want<'a> {
    /// The cluster.
    pub cluster: &'a Arc<Cluster>,
    /// The endpoint that was picked.
    pub endpoint: &'a Arc<Endpoint>,
    /// Which circuit limits count.
    pub priority: Priority,
    /// The client speaks HTTP/2.
    pub downstream_h2: bool,
    /// The request's authority, for clusters that take the server name from it.
    pub authority: &'a str,
    /// Do not use a kept-alive connection: the last one turned out to be dead.
    pub fresh: bool,
    /// The request asks for an upgrade.
    pub upgrade: bool,
    /// What TLS offers by ALPN; `None`: what the cluster says.
    pub alpn: Option<&'a AlpnOverrides>,
}

/// A way to an endpoint.
#[derive(Debug)]
pub struct Way {
    /// The connection.
    pub via: Via,
    /// Where an HTTP/1 connection goes back to.
    pub pool: Rc<Pool>,
    /// Whether the connection served an exchange before.
    pub reused: bool,
}

impl Way {
    /// Gives an HTTP/1 connection back to its pool after a whole exchange.
    pub fn give_back(self) {
        if let Via::H1(h1) = self.via {
            self.pool.give_back(h1);
        }
    }
}

/// Takes a connection from the pool or makes one.
///
/// # Errors
/// [`Failure`]: no room, no connection, no secrets.
pub async fn reach(worker: &Rc<Worker>, want: Want<'_>) -> Result<Way, Failure> {
    let config = &want.cluster.config;
    let tls = want.cluster.transport(want.endpoint);
    let h2 = match config.protocol {
        UpstreamProtocol::Http1 => Some(false),
        UpstreamProtocol::Http2 => Some(true),
        UpstreamProtocol::Downstream => Some(want.downstream_h2),
        // Whether a server takes upgrades over HTTP/2 is not known before it was asked.
        UpstreamProtocol::Auto => (want.upgrade || tls.is_none()).then_some(false),
    };
    let target = target(&want.endpoint.address).await?;
    let server_name = tls.and_then(|tls| chosen_name(tls, &want));
    let offer = want.alpn.filter(|_| tls.is_some()).and_then(|overrides| overrides.offer(h2 == Some(false)));
    let key = Key {
        cluster: config.version,
        target,
        transport: tls.map_or(0, |tls| Arc::as_ptr(tls) as u64),
        server_name,
        alpn: offer.map_or(0, |offer| offer.id),
        h2,
        priority: want.priority,
    };
    let pool = pool(worker, &want, &key)?;
    pool.set_idle_timeout(config.idle_timeout);
    let reaching = Reaching { worker, want, tls, offer, key: &key, pool: &pool };
    match h2 {
        Some(false) => reaching.h1().await,
        Some(true) | None => reaching.shared().await,
    }
}

/// The pool of a key. A cluster has no more of them than its limit says; an endpoint for which there is none cannot be
/// had, as in Envoy.
fn pool(worker: &Worker, want: &Want<'_>, key: &Key) -> Result<Rc<Pool>, Failure> {
    if let Some(pool) = worker.pools.of(key) {
        return Ok(pool);
    }
    let (state, limits) = (&want.cluster.state, want.cluster.config.limits(want.priority));
    let take = || circuit::take(state, limits, want.priority, Resource::Pools);
    let slot = take().or_else(|| {
        worker.pools.make_room(key, |target| {
            let mut there = want.cluster.endpoints.iter().map(|endpoint| &endpoint.address);
            there.any(|address| match (address, target) {
                (Address::Socket(address), Target::Tcp(target)) => address == target,
                (Address::Unix(path), Target::Unix(target)) => path == target,
                // What a name led to is not known any more.
                (Address::Name { .. }, _) => true,
                _ => false,
            })
        });
        take()
    });
    let Some(slot) = slot else {
        worker.tally.cluster(want.cluster).upstream_cx_pool_overflow.inc();
        return Err(Kind::NoHealthyUpstream.into());
    };
    Ok(worker.pools.add(key, slot))
}

/// The socket address of an endpoint; names are resolved here only where configuration-time resolution does not apply.
async fn target(address: &Address) -> Result<Target, Failure> {
    match address {
        Address::Socket(address) => Ok(Target::Tcp(*address)),
        Address::Unix(path) => Ok(Target::Unix(Arc::clone(path))),
        Address::Name { host, port } => {
            let found = Box::pin(lookup_host((&**host, *port))).await.ok().and_then(|mut all| all.next());
            found.map(Target::Tcp).ok_or_else(|| Failure::connect("name resolution failed"))
        }
    }
}

/// The server name that goes before the one of the transport itself: the request's host, or the endpoint's.
fn chosen_name(tls: &UpstreamTls, want: &Want<'_>) -> Option<Arc<str>> {
    let host = || Some(&want.endpoint.hostname).filter(|host| tls.auto_host_sni && !host.is_empty()).cloned();
    if tls.auto_sni { Some(Arc::from(host_of(want.authority))) } else { host() }
}

fn host_of(authority: &str) -> &str {
    if let Some(end) = authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return end.0;
    }
    authority.rsplit_once(':').map_or(authority, |(host, _)| host)
}

struct Reaching<'a> {
    worker: &'a Rc<Worker>,
    want: Want<'a>,
    tls: Option<&'a Arc<UpstreamTls>>,
    offer: Option<&'a Offer>,
    key: &'a Key,
    pool: &'a Rc<Pool>,
}

impl Reaching<'_> {
    async fn h1(&self) -> Result<Way, Failure> {
        if let Some(way) = self.idle() {
            return Ok(way);
        }
        if self.want.downstream_h2 {
            // A stream that the client takes back in the same breath ends here, and has cost no connection.
            tokio::task::yield_now().await;
            if let Some(way) = self.idle() {
                return Ok(way);
            }
        }
        let pending = self.take(Resource::Pending).ok_or(Kind::Overflow)?;
        let slot = loop {
            if let Ok(slot) = self.connection_slot() {
                break slot;
            }
            // Who waits is served by a connection that comes back, or looks again when the last one ended.
            if let Ok(h1) = self.pool.wait().await {
                return Ok(self.way(Via::H1(h1), true));
            }
        };
        // Making a connection is rare and takes much room: on the heap, so that no exchange carries it along.
        let opened = Box::pin(self.open(slot)).await?;
        drop(pending);
        Ok(self.way(Via::H1(self.h1_of(opened)), false))
    }

    /// A kept-alive connection that is ready.
    fn idle(&self) -> Option<Way> {
        if self.want.fresh {
            return None;
        }
        self.pool.take_idle().map(|h1| self.way(Via::H1(h1), true))
    }

    /// HTTP/2, or whatever ALPN agrees on.
    async fn shared(&self) -> Result<Way, Failure> {
        let mut pending = None;
        loop {
            if let Some(stream) = self.pool.take_stream() {
                return Ok(self.way(Via::H2(stream), true));
            }
            if self.key.h2.is_none()
                && let Some(way) = self.idle()
            {
                return Ok(way);
            }
            if pending.is_none() {
                pending = Some(self.take(Resource::Pending).ok_or(Kind::Overflow)?);
            }
            if !self.pool.is_connecting() {
                break;
            }
            if let Some(failure) = self.pool.connected().await {
                return Err(failure);
            }
        }
        let connecting = self.pool.begin_connecting();
        let made = Box::pin(self.make_shared()).await;
        drop(pending);
        connecting.done(made.as_ref().err());
        made
    }

    async fn make_shared(&self) -> Result<Way, Failure> {
        let slot = self.connection_slot().unwrap_or_default();
        let opened = self.open(slot).await?;
        let h2 = self.key.h2.unwrap_or_else(|| {
            opened.stream.tls().and_then(rustls::CommonState::alpn_protocol).is_some_and(|agreed| agreed == b"h2")
        });
        if !h2 {
            return Ok(self.way(Via::H1(self.h1_of(opened)), false));
        }
        let config = &self.want.cluster.config;
        let Opened { stream, link, open } = opened;
        let guarded = Ahead::none(stream).guarding(Frames::of_server());
        let sender = h2::client::connect(guarded, &config.http2, open).await;
        let sender = sender.map_err(|error| handshake_failure(&error))?;
        let most = config.http2.max_concurrent_streams;
        let stream = self.pool.add_shared(sender, link, most, config.max_requests_per_connection);
        Ok(self.way(Via::H2(stream), false))
    }

    fn h1_of(&self, opened: Opened) -> H1 {
        let Opened { stream, link, open } = opened;
        let client = Client::new(stream, &self.want.cluster.config.http1, open);
        H1 { client, link, served: 0 }
    }

    fn way(&self, mut via: Via, reused: bool) -> Way {
        if let Via::H1(h1) = &mut via {
            h1.served = h1.served.saturating_add(1);
        }
        Way { via, pool: Rc::clone(self.pool), reused }
    }

    fn take(&self, resource: Resource) -> Option<Slot> {
        let cluster = self.want.cluster;
        circuit::take(&cluster.state, cluster.config.limits(self.want.priority), self.want.priority, resource)
    }

    /// A unit of the connection limit; every worker may have one connection per endpoint beyond it (as in Envoy), else
    /// who must wait would wait for another worker. `Err`: wait for a connection of this worker.
    fn connection_slot(&self) -> Result<Option<Slot>, ()> {
        let most = self.want.cluster.config.per_host_connections;
        let host_full = most.is_some_and(|most| self.want.endpoint.state.connections.load(Ordering::Relaxed) >= most);
        let slot = if host_full { None } else { self.take(Resource::Connections) };
        match slot {
            Some(slot) => Ok(Some(slot)),
            None if self.pool.open_connections() == 0 => Ok(None),
            None => Err(()),
        }
    }

    async fn open(&self, slot: Option<Slot>) -> Result<Opened, Failure> {
        let endpoint = self.want.endpoint;
        let tls = self.tls.map(|context| self.client_tls(context)).transpose()?;
        self.make_room().await?;
        let open = Open::begin(self.pool, endpoint, slot);
        let stream = connect(self.want.cluster, &self.key.target, tls).await;
        let stream = stream.inspect_err(|_| {
            endpoint.state.connect_failures.fetch_add(1, Ordering::Relaxed);
        })?;
        self.worker.tally.upstream_handshake(self.want.cluster, &stream);
        let link = Rc::new(link_of(&stream));
        Ok(Opened { stream, link, open })
    }

    /// Where descriptors run out, idle connections to other endpoints make room.
    async fn make_room(&self) -> Result<(), Failure> {
        let overload = &self.worker.shared.overload;
        if overload.may_dial() {
            return Ok(());
        }
        self.worker.pools.close_idle();
        // Their tasks close them in this turn of the runtime.
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        if overload.may_dial() { Ok(()) } else { Err(Kind::Overflow.into()) }
    }

    fn client_tls(&self, context: &Arc<UpstreamTls>) -> Result<Tls, Failure> {
        let client = self.worker.shared.tls.client(context);
        let client = client.map_err(|problem| Failure::connect(&format!("TLS configuration: {problem}")))?;
        let client = match self.offer {
            Some(offer) => client.offering(&offer.names),
            None => client,
        };
        let name = self.key.server_name.as_deref().or(context.sni.as_deref());
        Ok(client.towards(server_name(name)))
    }
}

/// A connection to an endpoint of a cluster, as the cluster says.
///
/// # Errors
/// [`Failure`] with what the transport said.
pub async fn connect(cluster: &Cluster, target: &Target, tls: Option<Tls>) -> Result<Stream, Failure> {
    let config = &cluster.config;
    let options = DialOptions {
        source: config.source_address,
        namespace: config.source_namespace.as_deref(),
        options: &config.socket_options,
        keepalive: config.keepalive,
        timeout: config.connect_timeout,
        tls,
    };
    dial(target, options).await.map_err(|error| match error {
        DialError::Exhausted => Kind::Overflow.into(),
        DialError::Timeout => Kind::ConnectTimeout.into(),
        DialError::Connect(error) => Failure::connect(&format!("delayed connect error: {}", system_text(&error))),
        DialError::Tls(error) => Failure::connect(&format!("TLS_error: {error}")),
    })
}

/// For raw TCP: a connection to an endpoint with its transport, outside of any pool.
///
/// # Errors
/// As [`connect`].
pub async fn connect_endpoint(
    shared: &Shared,
    cluster: &Arc<Cluster>,
    endpoint: &Arc<Endpoint>,
) -> Result<(Stream, Link), Failure> {
    let target = target(&endpoint.address).await?;
    let tls = match cluster.transport(endpoint) {
        None => None,
        Some(context) => {
            let client = shared.tls.client(context);
            let client = client.map_err(|problem| Failure::connect(&format!("TLS configuration: {problem}")))?;
            Some(client.towards(server_name(context.sni.as_deref())))
        }
    };
    let stream = connect(cluster, &target, tls).await?;
    let link = link_of(&stream);
    Ok((stream, link))
}

/// What the system says, without Rust's "(os error N)".
fn system_text(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split_once(" (os error").map_or_else(|| text.clone(), |(text, _)| text.to_owned())
}

fn link_of(stream: &Stream) -> Link {
    let local = stream.raw().local();
    let Some(state) = stream.tls() else { return Link { local, ..Link::default() } };
    let known = peers::of(state, std::time::SystemTime::now()).ok().flatten();
    let identity = known.and_then(|known| known.identity.clone());
    let mtls = identity.is_some();
    Link { local, identity, mtls }
}

fn handshake_failure(error: &::h2::Error) -> Failure {
    Failure { kind: Kind::Termination, transport: Some(error.to_string().into()) }
}

struct Opened {
    stream: Stream,
    link: Rc<Link>,
    open: Open,
}

/// Counts a connection for as long as it is open.
#[derive(Debug)]
pub struct Open {
    pool: Rc<Pool>,
    endpoint: Arc<Endpoint>,
    _slot: Option<Slot>,
}

impl Open {
    fn begin(pool: &Rc<Pool>, endpoint: &Arc<Endpoint>, slot: Option<Slot>) -> Self {
        pool.opened();
        endpoint.state.connections.fetch_add(1, Ordering::Relaxed);
        endpoint.state.connections_total.fetch_add(1, Ordering::Relaxed);
        Self { pool: Rc::clone(pool), endpoint: Arc::clone(endpoint), _slot: slot }
    }

    /// Where it leads.
    pub fn endpoint(&self) -> &Address {
        &self.endpoint.address
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.endpoint.state.connections.fetch_sub(1, Ordering::Relaxed);
        self.pool.closed();
    }
}
