//! Clusters as running data: settings, endpoints, and the state that outlives updates.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::balance::{Balancer, LbPolicy};
use crate::circuit::{Limits, Usage};
use crate::endpoint::{Endpoint, EndpointSet};
use crate::http_manager::{Http1Options, Http2Options};
use crate::listener::{SocketOption, TcpKeepalive};
use crate::metadata::{Datum, Metadata};
use crate::outlier::{Monitor, OutlierConfig};
use crate::routes::Priority;
use crate::tls::UpstreamTls;

/// A cluster: what was configured, who is in it now, and how it fares.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Settings.
    pub config: Arc<ClusterConfig>,
    /// Who is in it.
    pub endpoints: Arc<EndpointSet>,
    /// What outlives updates.
    pub state: Arc<ClusterState>,
    /// The balancer for these endpoints.
    pub balancer: Arc<Balancer>,
}

/// Counters and detectors of a cluster; kept as long as a cluster of the name exists.
#[derive(Debug, Default)]
pub struct ClusterState {
    default: Usage,
    high: Usage,
    /// Outlier detection.
    pub monitor: Monitor,
}

impl ClusterState {
    /// What a priority uses now.
    #[must_use]
    pub const fn usage(&self, priority: Priority) -> &Usage {
        match priority {
            Priority::Default => &self.default,
            Priority::High => &self.high,
        }
    }
}

/// Settings of a cluster (`envoy.config.cluster.v3.Cluster`).
#[derive(Debug)]
pub struct ClusterConfig {
    /// Unique name.
    pub name: Arc<str>,
    /// Name in metrics, if another.
    pub alt_stat_name: Option<Arc<str>>,
    /// Where endpoints come from.
    pub discovery: Discovery,
    /// Limit of TCP connect plus TLS handshake. Default 5 s.
    pub connect_timeout: Duration,
    /// How endpoints are chosen.
    pub lb: LbPolicy,
    /// Settings all balancers share.
    pub lb_common: LbCommon,
    /// TLS to endpoints that no match below covers; `None`: plain.
    pub tls: Option<Arc<UpstreamTls>>,
    /// TLS by the endpoint's metadata; the first that fits.
    pub transport_matches: Vec<TransportMatch>,
    /// Which HTTP version endpoints speak.
    pub protocol: UpstreamProtocol,
    /// HTTP/1 options.
    pub http1: Http1Options,
    /// HTTP/2 options.
    pub http2: Http2Options,
    /// Idle limit of a pooled connection; `None`: none. Default 1 h.
    pub idle_timeout: Option<Duration>,
    /// Life of a pooled connection; `None`: no limit.
    pub max_connection_duration: Option<Duration>,
    /// Limit of one exchange; `None`: none.
    pub max_stream_duration: Option<Duration>,
    /// Requests on one connection; `None`: any number.
    pub max_requests_per_connection: Option<u32>,
    /// Limits of the default priority.
    pub limits: Limits,
    /// Limits of the high priority.
    pub limits_high: Limits,
    /// Connections to one endpoint; `None`: no limit.
    pub per_host_connections: Option<u32>,
    /// Outlier detection; `None`: off.
    pub outlier: Option<Arc<OutlierConfig>>,
    /// Address that connections leave from (port 0: any).
    pub source_address: Option<SocketAddr>,
    /// The file of the network namespace that its connections are opened in. Default: this process's own.
    pub source_namespace: Option<Arc<Path>>,
    /// Socket options to set before connect.
    pub socket_options: Vec<SocketOption>,
    /// TCP keepalive.
    pub keepalive: Option<TcpKeepalive>,
    /// Soft limit of what one connection may buffer, bytes. Default 1 MiB.
    pub buffer_limit: u32,
    /// How names are resolved.
    pub dns: DnsOptions,
    /// Where it came from and more.
    pub metadata: Metadata,
    /// Hash of the resource: equal means unchanged.
    pub version: u64,
}

impl ClusterConfig {
    /// The limits of a priority.
    #[must_use]
    pub const fn limits(&self, priority: Priority) -> &Limits {
        match priority {
            Priority::Default => &self.limits,
            Priority::High => &self.limits_high,
        }
    }
}

/// Where endpoints come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Discovery {
    /// From the resource itself.
    Static,
    /// Names in the resource; every address of every name is an endpoint.
    StrictDns,
    /// One name in the resource; the first address is the endpoint.
    LogicalDns,
    /// From an endpoint resource of this name.
    Eds(Arc<str>),
    /// The destination that the client meant.
    OriginalDst {
        /// A request header (or `x-envoy-original-dst-host`) may name it instead.
        header: Option<http::HeaderName>,
        /// Another port.
        port: Option<u16>,
    },
}

/// Which HTTP version endpoints speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2.
    Http2,
    /// What the client speaks.
    Downstream,
    /// By ALPN, else HTTP/1.1.
    Auto,
}

/// TLS by the endpoint's metadata.
#[derive(Debug, Clone)]
pub struct TransportMatch {
    /// Name in metrics.
    pub name: Arc<str>,
    /// Members that `envoy.transport_socket_match` must have; none: every endpoint.
    pub criteria: Vec<(Arc<str>, Datum)>,
    /// TLS, or plain.
    pub tls: Option<Arc<UpstreamTls>>,
}

/// Settings all balancers share.
#[derive(Debug, Clone, PartialEq)]
pub struct LbCommon {
    /// Below this share of healthy endpoints all are used, per cent; 0: never. Default 50.
    pub panic_threshold: f64,
    /// Localities take load by their weight.
    pub locality_weighted: bool,
    /// Hash the endpoint's host name rather than its address (ring hash, Maglev).
    pub hash_hostname: bool,
}

impl Default for LbCommon {
    fn default() -> Self {
        Self { panic_threshold: 50.0, locality_weighted: false, hash_hostname: false }
    }
}

/// How names are resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsOptions {
    /// Between lookups. Default 5 s.
    pub refresh: Duration,
    /// Which addresses.
    pub family: DnsFamily,
}

impl Default for DnsOptions {
    fn default() -> Self {
        Self { refresh: Duration::from_secs(5), family: DnsFamily::Auto }
    }
}

/// Which addresses of a name count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DnsFamily {
    /// IPv6, failing that IPv4.
    #[default]
    Auto,
    /// IPv4.
    V4Only,
    /// IPv6.
    V6Only,
    /// IPv4, failing that IPv6.
    V4Preferred,
    /// Both.
    All,
}

impl Cluster {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.config.name
    }

    /// How to connect to an endpoint: TLS, or `None` for plain bytes.
    #[must_use]
    pub fn transport(&self, endpoint: &Endpoint) -> Option<&Arc<UpstreamTls>> {
        if self.config.transport_matches.is_empty() {
            return self.config.tls.as_ref();
        }
        let labels = endpoint.metadata.space("envoy.transport_socket_match");
        let fits = |rule: &&TransportMatch| {
            rule.criteria.iter().all(|(key, wanted)| labels.and_then(|labels| labels.key(key)) == Some(wanted))
        };
        match self.config.transport_matches.iter().find(fits) {
            Some(rule) => rule.tls.as_ref(),
            None => self.config.tls.as_ref(),
        }
    }
}
