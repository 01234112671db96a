//! How a destination is called: what a DestinationRule says.

use std::time::Duration;

use serde::Serialize;

use crate::name::Labels;
use crate::origin::Origin;

/// The policy for one host (one DestinationRule).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DestinationPolicy {
    /// Namespace of the declaring object.
    pub namespace: String,
    /// Host as written; may be short or `*.suffix`.
    pub host: String,
    /// For the whole host.
    pub traffic: TrafficPolicy,
    /// Named subsets.
    pub subsets: Vec<Subset>,
    /// Namespaces that may see it; empty means all. `.` was replaced by the own namespace.
    pub export_to: Vec<String>,
    /// Only for calling workloads with these labels (`workloadSelector`).
    pub client_selector: Labels,
    /// `metadata.creationTimestamp` as given; empty where unknown.
    pub created: String,
    /// Where it was declared.
    pub origin: Origin,
}

/// A named subset of a host's endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Subset {
    /// Name.
    pub name: String,
    /// Labels that its endpoints have.
    pub labels: Labels,
    /// Replaces fields of the host's policy.
    pub traffic: TrafficPolicy,
    /// The subset's own place.
    pub origin: Origin,
}

/// Connection and balancing settings; a missing part is inherited.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct TrafficPolicy {
    /// Balancing.
    pub load_balancer: Option<LoadBalancer>,
    /// Pools and circuit limits.
    pub connection_pool: Option<ConnectionPool>,
    /// Passive health.
    pub outlier: Option<OutlierDetection>,
    /// TLS to the destination.
    pub tls: Option<ClientTls>,
    /// Retries as a share of requests.
    pub retry_budget: Option<RetryBudget>,
    /// By port number: replaces the four above for that port (Istio: not merged).
    pub ports: Vec<(u16, Self)>,
}

/// Retries under way, as a share of the requests under way (Istio `retryBudget`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RetryBudget {
    /// Thousandths of a per cent; 20000 (20 %) by default.
    pub share: u32,
    /// Retries always allowed; 3 by default.
    pub minimum: u32,
}

/// Balancing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LoadBalancer {
    /// How.
    pub kind: BalancerKind,
    /// New endpoints get their share gradually.
    pub warmup: Option<Warmup>,
    /// Which endpoints are preferred by where they are; `None`: as the mesh says.
    pub locality: Option<LocalityBalancing>,
}

/// How new endpoints get their share (Istio `warmup`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Warmup {
    /// How long an endpoint counts as new.
    pub duration: Duration,
    /// The share it begins with, in thousandths of a per cent; 10000 (10 %) by default.
    pub minimum: u32,
    /// How the share grows, in thousandths; 1000 (in a straight line) by default.
    pub aggression: u32,
}

impl Warmup {
    /// Istio's defaults; the duration is to be given.
    pub const LINEAR: Self = Self { duration: Duration::ZERO, minimum: 10_000, aggression: 1000 };
}

/// Which endpoints are preferred by where they are (Istio `LocalityLoadBalancerSetting`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct LocalityBalancing {
    /// Nobody is preferred.
    pub off: bool,
    /// Shares of the load by the caller's place; the first that fits.
    pub distribute: Vec<Distribute>,
    /// Where the load of a region goes when that region fails: `from` and `to`.
    pub failover: Vec<(String, String)>,
    /// Labels, the most important first: endpoints that share more of them with the caller come first.
    pub failover_priority: Vec<PriorityLabel>,
}

/// Shares of the load from one place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Distribute {
    /// The caller's place: `region/zone/sub-zone`, where a part may be missing or `*`.
    pub from: String,
    /// Places of endpoints and their shares, per cent.
    pub to: Vec<(String, u32)>,
}

/// A label that decides about preference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PriorityLabel {
    /// The label.
    pub key: String,
    /// The wanted value; `None`: the caller's own.
    pub value: Option<String>,
}

/// Kinds of balancing (Istio `LoadBalancerSettings`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum BalancerKind {
    /// Istio's default.
    LeastRequest,
    /// In turn.
    RoundRobin,
    /// At random.
    Random,
    /// To the address the caller used.
    Passthrough,
    /// By hash.
    ConsistentHash {
        /// Hash of what.
        on: HashOn,
        /// Which table.
        table: HashTable,
    },
}

/// What is hashed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum HashOn {
    /// A header.
    Header(String),
    /// A cookie, made when missing if `ttl` is given.
    Cookie {
        /// Name.
        name: String,
        /// Path.
        path: String,
        /// Time to live.
        ttl: Option<Duration>,
        /// Further attributes of a cookie that is made: name and value.
        attributes: Vec<(String, String)>,
    },
    /// The source address.
    SourceIp,
    /// A query parameter.
    QueryParameter(String),
}

/// Which consistent-hash table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum HashTable {
    /// Ring; minimum size 1024 by default.
    Ring {
        /// Minimum ring size.
        minimum: u64,
    },
    /// Maglev; table size 65537 by default.
    Maglev {
        /// Table size, a prime.
        size: u64,
    },
}

/// Pools and circuit limits (Istio `ConnectionPoolSettings`); `None` = no limit / Envoy's default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct ConnectionPool {
    /// Most connections.
    pub max_connections: Option<u32>,
    /// Connect timeout; 10 s by default.
    pub connect_timeout: Option<Duration>,
    /// TCP idle timeout.
    pub tcp_idle_timeout: Option<Duration>,
    /// Longest life of a connection.
    pub max_connection_duration: Option<Duration>,
    /// Keepalive probes, time, interval.
    pub keepalive: Option<TcpKeepalive>,
    /// Most requests waiting for a connection (`http1MaxPendingRequests`; 1024 by Envoy's default).
    pub max_pending: Option<u32>,
    /// Most requests at once (`http2MaxRequests`; 1024 by Envoy's default).
    pub max_requests: Option<u32>,
    /// Requests per connection; 0 = no limit.
    pub max_requests_per_connection: Option<u32>,
    /// Retries at once (`maxRetries`).
    pub max_retries: Option<u32>,
    /// HTTP idle timeout; 1 h by default.
    pub http_idle_timeout: Option<Duration>,
    /// Whether HTTP/1 requests are sent as HTTP/2.
    pub h2_upgrade: Option<bool>,
    /// Keep the client's protocol.
    pub use_client_protocol: Option<bool>,
    /// Most streams per HTTP/2 connection.
    pub max_concurrent_streams: Option<u32>,
}

/// TCP keepalive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TcpKeepalive {
    /// Probes.
    pub probes: Option<u32>,
    /// Idle time before the first.
    pub time: Option<Duration>,
    /// Between two.
    pub interval: Option<Duration>,
}

/// Passive health (Istio `OutlierDetection`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct OutlierDetection {
    /// Consecutive 5xx; 5 by default, 0 = off.
    pub consecutive_5xx: Option<u32>,
    /// Consecutive 502, 503, 504; off by default.
    pub consecutive_gateway_errors: Option<u32>,
    /// Consecutive local failures; 5 by default when split.
    pub consecutive_local_origin: Option<u32>,
    /// Judge local and upstream failures apart.
    pub split_external_local_origin: bool,
    /// Sweep interval; 10 s by default.
    pub interval: Option<Duration>,
    /// First ejection; 30 s by default.
    pub base_ejection_time: Option<Duration>,
    /// Most endpoints ejected, in percent; 10 by default.
    pub max_ejection_percent: Option<u32>,
    /// Below this healthy share, balance over all; 0 by default (Istio).
    pub min_health_percent: Option<u32>,
}

/// TLS from the proxy to the destination (Istio `ClientTLSSettings`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClientTls {
    /// Mode.
    pub mode: TlsMode,
    /// Files, for SIMPLE and MUTUAL.
    pub certificate: Option<String>,
    /// Private key file.
    pub private_key: Option<String>,
    /// CA file.
    pub ca: Option<String>,
    /// SANs the server must have one of.
    pub subject_alt_names: Vec<String>,
    /// SNI.
    pub sni: Option<String>,
    /// Do not check the server (`insecureSkipVerify`).
    pub insecure: bool,
}

/// TLS modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum TlsMode {
    /// Plaintext.
    Disable,
    /// Server TLS.
    Simple,
    /// With a client certificate from files.
    Mutual,
    /// With the mesh's identity.
    IstioMutual,
}
