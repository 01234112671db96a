//! Clusters as running data: settings, endpoints, and the state that outlives updates.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

use crate::balance::{Balancer, LbPolicy, ZoneAware};
use crate::circuit::{Limits, Usage};
use crate::dice::Dice;
use crate::endpoint::{Endpoint, EndpointSet};
use crate::health::HealthCheck;
use crate::http_manager::{Http1Options, Http2Options};
use crate::listener::{SocketOption, TcpKeepalive};
use crate::metadata::{Datum, Metadata, MetadataKey};
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
    /// How endpoints are asked whether they work; `None`: they are not.
    pub health_check: Option<Arc<HealthCheck>>,
    /// Connections of bytes to an endpoint that was found to fail are closed. Default false.
    pub close_on_failure: bool,
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
    /// A request header that stands for the authority where the server name comes from the request
    /// (`override_auto_sni_header`).
    pub sni_header: Option<HeaderName>,
    /// Where it came from and more.
    pub metadata: Metadata,
    /// No filter says what its endpoints are offered by ALPN (Istio's metadata `istio`, `alpn_override: "false"`). Default false.
    pub keeps_alpn: bool,
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
        /// What filters noted of a request may name it as well, and goes before the header.
        noted: Option<MetadataKey>,
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
    /// In panic no endpoint is used rather than all. Default false.
    pub fail_on_panic: bool,
    /// An endpoint that was never checked yet is not counted at all. Default false.
    pub ignore_unchecked: bool,
    /// Localities take load by their weight.
    pub locality_weighted: bool,
    /// Endpoints of the proxy's own place are preferred, where it is known; `None`: not. On by default.
    pub zone_aware: Option<ZoneAware>,
    /// Hash the endpoint's host name rather than its address (ring hash, Maglev).
    pub hash_hostname: bool,
    /// Most requests under way at one endpoint, per cent of the average, before others take them (ring hash, Maglev;
    /// `hash_balance_factor`). `None`: no bound.
    pub hash_balance: Option<u32>,
}

impl Default for LbCommon {
    fn default() -> Self {
        Self {
            panic_threshold: 50.0,
            fail_on_panic: false,
            ignore_unchecked: false,
            locality_weighted: false,
            zone_aware: Some(ZoneAware::default()),
            hash_hostname: false,
            hash_balance: None,
        }
    }
}

/// How names are resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsOptions {
    /// Between lookups. Default 5 s.
    pub refresh: Duration,
    /// The records' own time to live counts instead, where it is not zero. Default false.
    pub respect_ttl: bool,
    /// A random part of this is added. Default none.
    pub jitter: Duration,
    /// Waits after failures: the first, and the longest; `None`: as after a success.
    pub after_failure: Option<(Duration, Duration)>,
    /// Which addresses.
    pub family: DnsFamily,
}

impl Default for DnsOptions {
    fn default() -> Self {
        Self {
            refresh: Duration::from_secs(5),
            respect_ttl: false,
            jitter: Duration::ZERO,
            after_failure: None,
            family: DnsFamily::Auto,
        }
    }
}

impl DnsOptions {
    /// The wait after a lookup that gave records which live so long.
    #[must_use]
    pub fn wait(&self, ttl: Option<Duration>, dice: &mut Dice) -> Duration {
        let own = ttl.filter(|ttl| self.respect_ttl && !ttl.is_zero());
        own.unwrap_or(self.refresh) + self.part_of_jitter(dice)
    }

    /// The wait after so many failed lookups in a row (from 1): a random time that doubles from the first to the
    /// longest.
    #[must_use]
    pub fn wait_after_failure(&self, failures: u32, dice: &mut Dice) -> Duration {
        let Some((base, max)) = self.after_failure else { return self.wait(None, dice) };
        let factor = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        let most = base.saturating_mul(factor).min(max);
        Duration::from_millis(dice.below(u64::try_from(most.as_millis()).unwrap_or(u64::MAX)))
    }

    fn part_of_jitter(&self, dice: &mut Dice) -> Duration {
        Duration::from_millis(dice.below(u64::try_from(self.jitter.as_millis()).unwrap_or(u64::MAX)))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_asked_for_again_when_their_records_end() {
        let mut options = DnsOptions { refresh: Duration::from_secs(30), ..DnsOptions::default() };
        let mut dice = Dice::new(1);
        let two = Some(Duration::from_secs(2));
        assert_eq!(options.wait(two, &mut dice), Duration::from_secs(30));
        options.respect_ttl = true;
        assert_eq!(options.wait(two, &mut dice), Duration::from_secs(2));
        assert_eq!(options.wait(Some(Duration::ZERO), &mut dice), Duration::from_secs(30));
        options.jitter = Duration::from_secs(1);
        let waits: Vec<Duration> = (0..50).map(|_| options.wait(two, &mut dice)).collect();
        assert!(waits.iter().all(|wait| (Duration::from_secs(2)..Duration::from_secs(3)).contains(wait)));
        assert!(waits.windows(2).any(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn failures_wait_longer_and_longer() {
        let second = Duration::from_secs(1);
        let options = DnsOptions { after_failure: Some((second, second * 8)), ..DnsOptions::default() };
        let mut dice = Dice::new(3);
        let longest =
            |failures, dice: &mut Dice| (0..200).map(|_| options.wait_after_failure(failures, dice)).max().unwrap();
        assert!(longest(1, &mut dice) < second);
        assert!((second * 3..second * 4).contains(&longest(3, &mut dice)));
        assert!(longest(40, &mut dice) < second * 8);
        assert_eq!(DnsOptions::default().wait_after_failure(3, &mut dice), Duration::from_secs(5));
    }
}
