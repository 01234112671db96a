//! Listeners and filter chains as running data.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;

use crate::access_log::AccessLog;
use crate::chains::ChainTable;
use crate::http_manager::HttpManager;
use crate::limit::ConnectionRateLimit;
use crate::metadata::Metadata;
use crate::rbac::NetworkRbac;
use crate::tls::DownstreamTls;

/// Somewhere to listen or to connect to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// An IP address and a port.
    Socket(SocketAddr),
    /// A Unix socket; a leading `@` means the abstract namespace.
    Unix(Arc<Path>),
    /// A name to be resolved by the caller, who then tells [`crate::Store::resolved`].
    Name {
        /// Host name.
        host: Arc<str>,
        /// Port.
        port: u16,
    },
}

impl Address {
    /// The socket address, if it is one.
    #[must_use]
    pub const fn socket(&self) -> Option<SocketAddr> {
        match self {
            Self::Socket(address) => Some(*address),
            _ => None,
        }
    }
}

impl std::fmt::Display for Address {
    /// As Envoy prints upstream hosts: `1.2.3.4:80`, `[::1]:80`, `/path`, `host:80`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Name { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// Which way traffic goes through a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Direction {
    /// Not said.
    #[default]
    Unspecified,
    /// To the workload.
    Inbound,
    /// From the workload.
    Outbound,
}

/// A listener, complete: every route table and chain it names is in the plan.
#[derive(Debug)]
pub struct Listener {
    /// Unique name.
    pub name: Arc<str>,
    /// Where it listens (or, unbound, for which original destination it stands).
    pub address: Address,
    /// Further addresses.
    pub additional_addresses: Vec<Address>,
    /// The file of the network namespace that its sockets are opened in. Default: this process's own.
    pub namespace: Option<Arc<Path>>,
    /// Those of its IPv6 addresses that take IPv4 connections too.
    pub ipv4_compat: Vec<Address>,
    /// File modes of its Unix sockets, where they are not the usual one.
    pub socket_modes: Vec<(Address, u32)>,
    /// False: a virtual listener, reached only through another's `use_original_dst`. Default true.
    pub bind: bool,
    /// Hand connections to the listener of the original destination. Default false.
    pub use_original_dst: bool,
    /// Which way traffic goes.
    pub direction: Direction,
    /// What looks at a connection before its chain is chosen, in order.
    pub listener_filters: Vec<ListenerFilter>,
    /// How long they may take; `None`: for ever. Default 15 s.
    pub listener_filters_timeout: Option<Duration>,
    /// After that time: go on with what is known (true) or close (false, the default).
    pub continue_on_timeout: bool,
    /// The chains with their matching table.
    pub chains: ChainTable,
    /// Soft limit of what one connection may buffer, bytes. Default 1 MiB.
    pub buffer_limit: u32,
    /// Connections that no chain took are logged here.
    pub access_log: Vec<Arc<AccessLog>>,
    /// Length of the accept queue. Default 128, as Linux takes it.
    pub backlog: Option<u32>,
    /// One socket per worker. Default true.
    pub reuse_port: bool,
    /// IP_TRANSPARENT. Default false.
    pub transparent: bool,
    /// IP_FREEBIND. Default false.
    pub freebind: bool,
    /// Do not count in, or hold to, the limit of client connections. Default false.
    pub ignores_limit: bool,
    /// Take no measures against overload. Default false.
    pub bypasses_overload: bool,
    /// Spread connections evenly over workers. Default false.
    pub exact_balance: bool,
    /// Socket options to set before bind: (level, name, value).
    pub socket_options: Vec<SocketOption>,
    /// TCP keepalive on accepted connections.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// First part of metric names; the address if absent.
    pub stat_prefix: Option<Arc<str>>,
    /// Where it came from and more.
    pub metadata: Metadata,
    /// A limit of client connections (the runtime key `envoy.resource_limits.listener.NAME.connection_limit`). Default: none.
    pub limit: Option<Arc<ConnectionLimit>>,
    /// Hash of the resource: equal means unchanged.
    pub version: u64,
}

/// One raw socket option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketOption {
    /// SOL_SOCKET is 1 on Linux.
    pub level: i32,
    /// SO_MARK is 36 on Linux.
    pub name: i32,
    /// The value.
    pub value: SocketValue,
}

/// The value of a raw socket option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SocketValue {
    /// An `int`.
    Int(i32),
    /// Raw bytes.
    Bytes(Bytes),
}

/// Keepalive of TCP; `None` fields keep the system's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpKeepalive {
    /// Unanswered probes before the connection is dead.
    pub probes: Option<u32>,
    /// Idle time before the first probe.
    pub time: Option<Duration>,
    /// Time between probes.
    pub interval: Option<Duration>,
}

/// Something that looks at a fresh connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerFilter {
    /// What it does.
    pub kind: ListenerFilterKind,
    /// On which destination ports it is off.
    pub disabled: PortPredicate,
}

/// The listener filters that exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenerFilterKind {
    /// Restores the destination before redirection.
    OriginalDst,
    /// Reads the TLS client hello: server name and ALPN.
    TlsInspector,
    /// Tells HTTP/1 and HTTP/2 from other bytes.
    HttpInspector,
    /// Reads a PROXY header, v1 or v2.
    ProxyProtocol {
        /// A connection without the header goes on. Default false: it is closed.
        allow_without: bool,
    },
}

/// A predicate over the destination port.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum PortPredicate {
    /// No connection.
    #[default]
    Never,
    /// Every connection.
    Always,
    /// Destination port in [start, end).
    Port {
        /// First.
        start: u32,
        /// One after the last.
        end: u32,
    },
    /// Any of them.
    Or(Vec<Self>),
    /// All of them.
    And(Vec<Self>),
    /// Not that.
    Not(Box<Self>),
}

impl PortPredicate {
    /// Whether it holds for a connection to `port`.
    #[must_use]
    pub fn holds(&self, port: u16) -> bool {
        match self {
            Self::Never => false,
            Self::Always => true,
            Self::Port { start, end } => (*start..*end).contains(&u32::from(port)),
            Self::Or(all) => all.iter().any(|p| p.holds(port)),
            Self::And(all) => all.iter().all(|p| p.holds(port)),
            Self::Not(inner) => !inner.holds(port),
        }
    }
}

/// What happens to connections that a chain takes.
#[derive(Debug)]
pub struct FilterChain {
    /// Unique in its listener; made from its position if absent.
    pub name: Arc<str>,
    /// TLS that ends here; `None`: plain bytes.
    pub tls: Option<Arc<DownstreamTls>>,
    /// How long TLS may take; `None`: our own limit of 10 s.
    pub tls_timeout: Option<Duration>,
    /// Network filters in order; the last is the terminal one.
    pub filters: Vec<NetworkFilter>,
    /// Where it came from and more.
    pub metadata: Metadata,
    /// Hash of the message: a chain with an equal hash need not be drained on update.
    pub version: u64,
}

impl FilterChain {
    /// The HTTP connection manager, if that is how the chain ends.
    #[must_use]
    pub fn http(&self) -> Option<&Arc<HttpManager>> {
        match self.filters.last() {
            Some(NetworkFilter::Http(manager)) => Some(manager),
            _ => None,
        }
    }

    /// The TCP proxy, if that is how the chain ends.
    #[must_use]
    pub fn tcp(&self) -> Option<&Arc<TcpProxy>> {
        match self.filters.last() {
            Some(NetworkFilter::Tcp(tcp)) => Some(tcp),
            _ => None,
        }
    }
}

/// Network filters.
#[derive(Debug, Clone)]
pub enum NetworkFilter {
    /// Authorization of connections.
    Rbac(Arc<NetworkRbac>),
    /// Takes the TLS server name as the cluster's name for a TCP proxy that follows.
    SniCluster,
    /// Raw bytes to a cluster; terminal.
    Tcp(Arc<TcpProxy>),
    /// HTTP; terminal.
    Http(Arc<HttpManager>),
    /// Sends these bytes and closes; terminal.
    DirectResponse(Bytes),
    /// A limit of connections through this chain.
    ConnectionLimit(Arc<ConnectionLimit>),
    /// A limit of how fast connections may come.
    RateLimit(Arc<ConnectionRateLimit>),
    /// Something known by its type that the shell may act on (Istio's metadata exchange and statistics).
    Extension(Extension),
}

/// A limit of connections (`envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit`).
#[derive(Debug)]
pub struct ConnectionLimit {
    /// How many at once, on all workers together; at least 1.
    pub max: u64,
    /// How long a connection beyond that is held before it is closed. Default: not at all.
    pub delay: Option<Duration>,
    /// Connections now, with those that are held.
    open: AtomicU64,
}

impl ConnectionLimit {
    /// With no connection yet.
    #[must_use]
    pub const fn new(max: u64, delay: Option<Duration>) -> Self {
        Self { max, delay, open: AtomicU64::new(0) }
    }

    /// Counts a connection until [`ConnectionLimit::leave`]; whether it is within the limit.
    pub fn enter(&self) -> bool {
        self.open.fetch_add(1, Ordering::Relaxed) < self.max
    }

    /// A connection that was counted is gone.
    pub fn leave(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A filter that the engine passes on to the shell unread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extension {
    /// The filter's name in the configuration.
    pub name: Arc<str>,
    /// Type of `value`, such as `type.googleapis.com/stats.PluginConfig`.
    pub type_url: Arc<str>,
    /// The message.
    pub value: Bytes,
}

/// Raw bytes to a cluster.
#[derive(Debug)]
pub struct TcpProxy {
    /// First part of metric names.
    pub stat_prefix: Arc<str>,
    /// Where to.
    pub clusters: TcpClusters,
    /// Close after this long without a byte either way; `None`: never. Default 1 h.
    pub idle_timeout: Option<Duration>,
    /// Attempts to connect in all. Default 1.
    pub max_connect_attempts: u32,
    /// Close after this long; `None`: never.
    pub max_connection_duration: Option<Duration>,
    /// Hash the client's address for ring hash and Maglev.
    pub hash_source_ip: bool,
    /// Where to log connections.
    pub access_log: Vec<Arc<AccessLog>>,
}

/// The clusters of a TCP proxy.
#[derive(Debug, Clone)]
pub enum TcpClusters {
    /// One.
    One(Arc<str>),
    /// Several by weight.
    Weighted {
        /// Name and weight (at least 1).
        clusters: Vec<(Arc<str>, u32)>,
        /// Sum of the weights.
        total: u64,
    },
}

impl TcpProxy {
    /// The hash of a connection, for ring hash and Maglev.
    #[must_use]
    pub fn hash(&self, facts: &crate::ConnectionFacts) -> Option<u64> {
        let address = || facts.remote.ip().to_canonical().to_string();
        self.hash_source_ip.then(|| xxhash_rust::xxh64::xxh64(address().as_bytes(), 0))
    }

    /// The cluster for one connection.
    #[must_use]
    pub fn choose(&self, dice: &mut crate::Dice) -> Option<&Arc<str>> {
        match &self.clusters {
            TcpClusters::One(name) => Some(name),
            TcpClusters::Weighted { clusters, total } => {
                let mut point = dice.below(*total);
                clusters.iter().find_map(|(name, weight)| match point.checked_sub(u64::from(*weight)) {
                    None => Some(name),
                    Some(rest) => {
                        point = rest;
                        None
                    }
                })
            }
        }
    }
}
