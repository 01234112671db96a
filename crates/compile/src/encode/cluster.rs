//! Clusters: how a service's port is reached, balanced, limited and secured.

use std::collections::HashMap;
use std::time::Duration;

use model::Service;
use model::destination::{
    BalancerKind, ConnectionPool, HashTable, LoadBalancer, OutlierDetection as OutlierPolicy, RetryBudget, TlsMode,
    Warmup,
};
use model::service::{Location, Protocol, Resolution, ServicePort};
use model::workload::{AppAddress, Interception};
use proto::envoy::config::cluster::v3::{
    CircuitBreakers, Cluster, OutlierDetection, UpstreamConnectionOptions,
    circuit_breakers::{Thresholds, thresholds},
    cluster::{
        ClusterDiscoveryType, CommonLbConfig, DiscoveryType, DnsLookupFamily, EdsClusterConfig, LbConfig, LbPolicy,
        LeastRequestLbConfig, MaglevLbConfig, RingHashLbConfig, RoundRobinLbConfig, SlowStartConfig,
        TransportSocketMatch,
    },
};
use proto::envoy::config::core::v3::{
    AggregatedConfigSource, ApiVersion, BindConfig, ConfigSource, ExtraSourceAddress, Http1ProtocolOptions,
    Http2ProtocolOptions, HttpProtocolOptions as CommonHttpOptions, RuntimeDouble, SocketAddress, SocketOption,
    TcpKeepalive, config_source::ConfigSourceSpecifier, socket_option,
};
use proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use proto::envoy::extensions::upstreams::http::v3::{
    HttpProtocolOptions,
    http_protocol_options::{
        ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig, explicit_http_config::ProtocolConfig,
    },
};
use proto::envoy::r#type::v3::Percent;

use super::locality::Preference;
use super::{Delivery, Encoder, Target, endpoints, origin, tls, wire};
use crate::destination::Effective;
use crate::reach::InboundPort;

/// The mark on the proxy's own sockets, by which the redirection rules leave them alone (as Istio's 1337).
const SOCKET_MARK: i64 = 1337;
/// `SOL_SOCKET` and `SO_MARK` of Linux.
const SO_MARK: (i64, i64) = (1, 36);
/// Where calls of the outside world go.
pub(crate) const PASSTHROUGH: &str = "PassthroughCluster";
/// Where calls that must not leave go.
pub(crate) const BLACK_HOLE: &str = "BlackHoleCluster";
/// Where inbound calls of ports that nobody declared go.
pub(crate) const INBOUND_PASSTHROUGH: &str = "InboundPassthroughCluster";
/// Streams that one HTTP/2 connection carries at most, unless a DestinationRule says otherwise.
pub(crate) const MAX_STREAMS: u32 = 1024;
/// Envoy's largest hash ring.
const LARGEST_RING: u64 = 8 << 20;
/// How long a connection may lie idle; Envoy's default, written out.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

impl Encoder<'_> {
    /// The cluster of a service's port and subset, and its endpoints where they travel apart. `None` when the
    /// service, the port or the subset is not there: calls are answered 503.
    pub(super) fn service_cluster(&self, target: &Target) -> Option<(Cluster, Option<ClusterLoadAssignment>)> {
        let service = self.service(&target.hostname)?;
        let port = service.ports.iter().find(|port| port.number == target.port)?;
        let effective = self.mesh.effective(self.caller(), service, target.port, target.subset.as_deref())?;
        let name = target.cluster_name();
        let mut cluster = self.policy_cluster(&name, &effective, port.protocol);
        cluster.upstream_bind_config = self.leaves_from(service.location);
        let passthrough = effective.balancer.is_some_and(|balancer| balancer.kind == BalancerKind::Passthrough);
        let assignment = if passthrough || service.resolution == Resolution::None {
            original_destination(&mut cluster);
            None
        } else {
            balance(&mut cluster, effective.balancer);
            self.place(&mut cluster, service, port, &effective)
        };
        self.secure(&mut cluster, target, service, port, &effective);
        cluster.metadata = origin::of_service(effective.origin.unwrap_or(&service.origin), Some(service));
        Some((cluster, assignment))
    }

    /// A cluster with everything but endpoints, balancing and TLS.
    pub(super) fn policy_cluster(&self, name: &str, effective: &Effective<'_>, protocol: Protocol) -> Cluster {
        let none = ConnectionPool::default();
        let pool = effective.pool.unwrap_or(&none);
        let timeout = pool.connect_timeout.unwrap_or_else(|| self.mesh.config().connect_timeout);
        let mut cluster = Cluster {
            name: name.to_owned(),
            connect_timeout: wire::duration(timeout),
            circuit_breakers: Some(limits(pool, effective.budget)),
            outlier_detection: effective.outlier.map(outlier),
            upstream_connection_options: keepalive(pool),
            typed_extension_protocol_options: http_options(pool, protocol),
            ..Cluster::default()
        };
        if let Some(outlier) = effective.outlier {
            let share = outlier.min_health_percent.unwrap_or_default();
            cluster.common_lb_config = Some(CommonLbConfig {
                healthy_panic_threshold: Some(Percent { value: f64::from(share) }),
                ..CommonLbConfig::default()
            });
        }
        cluster
    }

    fn place(
        &self,
        cluster: &mut Cluster,
        service: &Service,
        port: &ServicePort,
        effective: &Effective<'_>,
    ) -> Option<ClusterLoadAssignment> {
        let preference = self.preference(effective);
        preference.mark(cluster);
        let mut assignment =
            endpoints::assignment(self.mesh, &cluster.name, (service, port), effective.labels, preference);
        let kind = match (service.resolution, self.options.delivery) {
            (Resolution::Dns, _) => DiscoveryType::StrictDns,
            (Resolution::DnsRoundRobin, _) => DiscoveryType::LogicalDns,
            (_, Delivery::Static) => DiscoveryType::Static,
            (_, Delivery::Ads) => DiscoveryType::Eds,
        };
        if matches!(kind, DiscoveryType::StrictDns | DiscoveryType::LogicalDns) {
            if assignment.endpoints.is_empty() && effective.labels.is_none() {
                assignment = endpoints::single(&cluster.name, endpoints::socket(&service.hostname, port.number));
            }
            cluster.dns_lookup_family = DnsLookupFamily::All.into();
        }
        cluster.cluster_discovery_type = Some(ClusterDiscoveryType::Type(kind.into()));
        if kind != DiscoveryType::Eds {
            cluster.load_assignment = Some(assignment);
            return None;
        }
        cluster.eds_cluster_config =
            Some(EdsClusterConfig { eds_config: Some(ads()), service_name: cluster.name.clone() });
        Some(assignment)
    }

    /// What the caller prefers: as the destination says, or else the mesh.
    fn preference<'p>(&'p self, effective: &Effective<'p>) -> Preference<'p> {
        let own = effective.balancer.and_then(|balancer| balancer.locality.as_ref());
        Preference {
            setting: own.unwrap_or_else(|| &self.mesh.config().locality),
            place: &self.workload.locality,
            labels: &self.workload.labels,
            watched: effective.outlier.is_some(),
        }
    }

    fn secure(
        &self,
        cluster: &mut Cluster,
        target: &Target,
        service: &Service,
        port: &ServicePort,
        effective: &Effective<'_>,
    ) {
        let upgraded = effective.pool.is_some_and(|pool| pool.h2_upgrade == Some(true));
        let alpn = tls::client_alpn(port.protocol, upgraded);
        let mesh = || {
            let names = match effective.tls {
                Some(tls) if !tls.subject_alt_names.is_empty() => tls.subject_alt_names.iter().cloned().collect(),
                _ => self.mesh.server_names(service, port),
            };
            let sni = effective.tls.and_then(|tls| tls.sni.clone()).unwrap_or_else(|| target.sni());
            tls::mesh_client(&self.options.secrets, sni, &names, alpn.clone())
        };
        match effective.tls.map(|tls| (tls, tls.mode)) {
            Some((_, TlsMode::Disable)) => {}
            Some((_, TlsMode::IstioMutual)) => cluster.transport_socket = Some(mesh()),
            Some((own, TlsMode::Simple | TlsMode::Mutual)) => {
                let outside = service.location == Location::MeshExternal && !service.hostname.starts_with('*');
                let default = if outside { service.hostname.as_str() } else { "" };
                let sni = own.sni.as_deref().unwrap_or(default);
                let http2 = upgraded || matches!(port.protocol, Protocol::Http2 | Protocol::Grpc);
                let alpn = if http2 { vec!["h2".to_owned()] } else { Vec::new() };
                cluster.transport_socket = Some(tls::own_client(own, sni, alpn));
                origin::keep_alpn(&mut cluster.metadata);
            }
            None if self.auto_mtls(service) => {
                cluster.transport_socket_matches = vec![
                    socket_match("tlsMode-istio", Some("istio"), mesh()),
                    socket_match("tlsMode-disabled", None, tls::plaintext()),
                ];
            }
            None => {}
        }
    }

    fn auto_mtls(&self, service: &Service) -> bool {
        // A client without identity has nothing to present.
        self.workload.meshed && self.mesh.config().auto_mtls && service.location == Location::MeshInternal
    }

    /// Where the proxy's outbound connections leave from: marked past the redirection, or from the workload's
    /// own address so that peers see it. From a loopback address nothing outside of the mesh can be reached.
    fn leaves_from(&self, location: Location) -> Option<BindConfig> {
        if self.redirected() {
            return Some(BindConfig { socket_options: vec![mark()], ..BindConfig::default() });
        }
        let addresses = &self.workload.addresses;
        let first = addresses.first()?;
        if location == Location::MeshExternal && first.is_loopback() {
            return None;
        }
        let other_family = addresses.iter().find(|address| address.is_ipv4() != first.is_ipv4());
        let source = |address: &std::net::IpAddr| Some(endpoints::socket_address(&address.to_string(), 0));
        let extra = |address| ExtraSourceAddress { address: source(address), ..ExtraSourceAddress::default() };
        Some(BindConfig {
            source_address: source(first),
            extra_source_addresses: other_family.map(extra).into_iter().collect(),
            ..BindConfig::default()
        })
    }

    /// The cluster of the workload's own program behind a port.
    pub(super) fn inbound_cluster(&self, port: &InboundPort<'_>) -> Cluster {
        let name = inbound_name(port.number);
        let address = match port.app {
            Some(AppAddress::Socket(at)) => endpoints::socket(&at.ip().to_string(), at.port()),
            Some(AppAddress::Unix(path)) => endpoints::pipe(path),
            None => endpoints::socket("127.0.0.1", port.number),
        };
        let origin = port.service.map_or(&self.workload.origin, |(service, _)| &service.origin);
        Cluster {
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
            load_assignment: Some(endpoints::single(&name, address)),
            connect_timeout: wire::duration(self.mesh.config().connect_timeout),
            circuit_breakers: Some(limits(&ConnectionPool::default(), None)),
            upstream_bind_config: self.to_program(port),
            typed_extension_protocol_options: http_options(&ConnectionPool::default(), port.protocol),
            metadata: origin::of_service(origin, port.service.map(|(service, _)| service)),
            name,
            ..Cluster::default()
        }
    }

    /// How the proxy comes to its own program: marked past the redirection, or in the program's network namespace.
    fn to_program(&self, port: &InboundPort<'_>) -> Option<BindConfig> {
        match (&self.workload.interception, port.app) {
            (Interception::Redirect, _) => Some(BindConfig { socket_options: vec![mark()], ..BindConfig::default() }),
            (Interception::Explicit { .. }, _) | (Interception::Namespace { .. }, Some(AppAddress::Unix(_))) => None,
            (Interception::Namespace { path }, app) => {
                let v6 = matches!(app, Some(AppAddress::Socket(at)) if at.is_ipv6());
                let source = SocketAddress {
                    network_namespace_filepath: path.clone(),
                    ..endpoints::socket_address(if v6 { "::" } else { "0.0.0.0" }, 0)
                };
                Some(BindConfig { source_address: Some(source), ..BindConfig::default() })
            }
        }
    }

    /// A cluster that goes where the caller wanted to go.
    pub(super) fn passthrough_cluster(&self, name: &str) -> Cluster {
        let mut cluster = self.policy_cluster(name, &Effective::default(), Protocol::Auto);
        cluster.upstream_bind_config = self.leaves_from(Location::MeshExternal);
        original_destination(&mut cluster);
        cluster
    }

    /// A cluster without endpoints.
    pub(super) fn black_hole_cluster(&self) -> Cluster {
        Cluster {
            name: BLACK_HOLE.to_owned(),
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
            connect_timeout: wire::duration(self.mesh.config().connect_timeout),
            ..Cluster::default()
        }
    }
}

/// `inbound|8080||`.
pub(crate) fn inbound_name(port: u16) -> String {
    format!("inbound|{port}||")
}

/// The aggregated stream as the source of a resource.
pub(crate) fn ads() -> ConfigSource {
    ConfigSource {
        resource_api_version: ApiVersion::V3.into(),
        initial_fetch_timeout: wire::seconds(0),
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..ConfigSource::default()
    }
}

fn original_destination(cluster: &mut Cluster) {
    cluster.cluster_discovery_type = Some(ClusterDiscoveryType::Type(DiscoveryType::OriginalDst.into()));
    cluster.lb_policy = LbPolicy::ClusterProvided.into();
}

fn mark() -> SocketOption {
    SocketOption {
        description: "past the redirection".to_owned(),
        level: SO_MARK.0,
        name: SO_MARK.1,
        value: Some(socket_option::Value::IntValue(SOCKET_MARK)),
        state: socket_option::SocketState::StatePrebind.into(),
        ..SocketOption::default()
    }
}

fn socket_match(
    name: &str,
    tls_mode: Option<&str>,
    socket: proto::envoy::config::core::v3::TransportSocket,
) -> TransportSocketMatch {
    TransportSocketMatch {
        name: name.to_owned(),
        r#match: Some(wire::object(tls_mode.map(|mode| ("tlsMode", mode)))),
        transport_socket: Some(socket),
    }
}

/// Istio's limits: none that a DestinationRule does not set.
fn limits(pool: &ConnectionPool, budget: Option<RetryBudget>) -> CircuitBreakers {
    let budget = budget.map(|budget| thresholds::RetryBudget {
        budget_percent: Some(Percent { value: f64::from(budget.share) / 1000.0 }),
        min_retry_concurrency: wire::uint32(budget.minimum),
        ..thresholds::RetryBudget::default()
    });
    let limit = |set: Option<u32>| wire::uint32(set.unwrap_or(u32::MAX));
    CircuitBreakers {
        thresholds: vec![Thresholds {
            max_connections: limit(pool.max_connections),
            max_pending_requests: limit(pool.max_pending),
            max_requests: limit(pool.max_requests),
            max_retries: limit(pool.max_retries),
            retry_budget: budget,
            track_remaining: true,
            ..Thresholds::default()
        }],
        ..CircuitBreakers::default()
    }
}

fn outlier(policy: &OutlierPolicy) -> OutlierDetection {
    let enforced = |count: Option<u32>| count.map(|count| if count > 0 { 100 } else { 0 }).and_then(wire::uint32);
    let positive = |count: Option<u32>| count.filter(|count| *count > 0).and_then(wire::uint32);
    let consecutive_5xx = policy.consecutive_5xx.or(Some(5));
    let mut detection = OutlierDetection {
        consecutive_5xx: positive(consecutive_5xx),
        enforcing_consecutive_5xx: enforced(consecutive_5xx),
        consecutive_gateway_failure: positive(policy.consecutive_gateway_errors),
        enforcing_consecutive_gateway_failure: wire::uint32(
            if policy.consecutive_gateway_errors.is_some_and(|count| count > 0) { 100 } else { 0 },
        ),
        interval: wire::duration(policy.interval.unwrap_or(Duration::from_secs(10))),
        base_ejection_time: wire::duration(policy.base_ejection_time.unwrap_or(Duration::from_secs(30))),
        max_ejection_percent: wire::uint32(policy.max_ejection_percent.unwrap_or(10)),
        // Istio judges by consecutive errors alone.
        enforcing_success_rate: wire::uint32(0),
        ..OutlierDetection::default()
    };
    if policy.split_external_local_origin {
        let local = policy.consecutive_local_origin.or(Some(5));
        detection.split_external_local_origin_errors = true;
        detection.consecutive_local_origin_failure = positive(local);
        detection.enforcing_consecutive_local_origin_failure = enforced(local);
        detection.enforcing_local_origin_success_rate = wire::uint32(0);
    }
    detection
}

fn keepalive(pool: &ConnectionPool) -> Option<UpstreamConnectionOptions> {
    let wanted = pool.keepalive.as_ref()?;
    let whole = |time: Option<Duration>| time.and_then(|time| u32::try_from(time.as_secs()).ok());
    Some(UpstreamConnectionOptions {
        tcp_keepalive: Some(TcpKeepalive {
            keepalive_probes: wanted.probes.and_then(wire::uint32),
            keepalive_time: whole(wanted.time).and_then(wire::uint32),
            keepalive_interval: whole(wanted.interval).and_then(wire::uint32),
        }),
        ..UpstreamConnectionOptions::default()
    })
}

/// Which HTTP is spoken: HTTP/2 where it is known or asked for, the client's where nothing is known.
fn http_options(pool: &ConnectionPool, protocol: Protocol) -> HashMap<String, proto::google::protobuf::Any> {
    let http2 = Http2ProtocolOptions {
        max_concurrent_streams: wire::uint32(pool.max_concurrent_streams.unwrap_or(MAX_STREAMS)),
        ..Http2ProtocolOptions::default()
    };
    let http1 = Http1ProtocolOptions::default();
    let explicit =
        |config| UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig { protocol_config: Some(config) });
    let keep = pool.use_client_protocol == Some(true);
    let upgrade = pool.h2_upgrade == Some(true);
    let options = match protocol {
        Protocol::Tcp | Protocol::Tls | Protocol::Https => return HashMap::new(),
        Protocol::Http2 | Protocol::Grpc => explicit(ProtocolConfig::Http2ProtocolOptions(http2)),
        Protocol::Http if upgrade => explicit(ProtocolConfig::Http2ProtocolOptions(http2)),
        Protocol::Http if !keep => explicit(ProtocolConfig::HttpProtocolOptions(http1)),
        Protocol::Http | Protocol::Auto => {
            UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
                http_protocol_options: Some(http1),
                http2_protocol_options: Some(http2),
                ..UseDownstreamHttpConfig::default()
            })
        }
    };
    let common = CommonHttpOptions {
        idle_timeout: wire::duration(pool.http_idle_timeout.unwrap_or(IDLE_TIMEOUT)),
        max_connection_duration: pool.max_connection_duration.and_then(wire::duration),
        max_requests_per_connection: pool.max_requests_per_connection.filter(|most| *most > 0).and_then(wire::uint32),
        ..CommonHttpOptions::default()
    };
    let message = HttpProtocolOptions {
        common_http_protocol_options: Some(common),
        upstream_protocol_options: Some(options),
        ..HttpProtocolOptions::default()
    };
    HashMap::from([(
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned(),
        wire::any(&message, &wire::FLAT),
    )])
}

fn slow_start(warmup: Warmup) -> SlowStartConfig {
    let steep = warmup.aggression != Warmup::LINEAR.aggression;
    SlowStartConfig {
        slow_start_window: wire::duration(warmup.duration),
        aggression: steep.then(|| RuntimeDouble {
            default_value: f64::from(warmup.aggression) / 1000.0,
            // Envoy wants a name by which an operator could change it.
            runtime_key: "upstream.slow_start_aggression".to_owned(),
        }),
        min_weight_percent: Some(Percent { value: f64::from(warmup.minimum) / 1000.0 }),
    }
}

fn balance(cluster: &mut Cluster, balancer: Option<&LoadBalancer>) {
    let slow_start = balancer.and_then(|balancer| balancer.warmup).map(slow_start);
    let kind = balancer.map_or(&BalancerKind::LeastRequest, |balancer| &balancer.kind);
    let (policy, config) = match kind {
        BalancerKind::LeastRequest | BalancerKind::Passthrough => {
            let config = slow_start.map(|slow_start| {
                let slow_start_config = Some(slow_start);
                LbConfig::LeastRequestLbConfig(LeastRequestLbConfig {
                    slow_start_config,
                    ..LeastRequestLbConfig::default()
                })
            });
            (LbPolicy::LeastRequest, config)
        }
        BalancerKind::RoundRobin => {
            let config = slow_start.map(|slow_start| {
                LbConfig::RoundRobinLbConfig(RoundRobinLbConfig { slow_start_config: Some(slow_start) })
            });
            (LbPolicy::RoundRobin, config)
        }
        BalancerKind::Random => (LbPolicy::Random, None),
        BalancerKind::ConsistentHash { table: HashTable::Ring { minimum }, .. } => {
            let config = RingHashLbConfig {
                minimum_ring_size: wire::uint64((*minimum).min(LARGEST_RING)),
                ..RingHashLbConfig::default()
            };
            (LbPolicy::RingHash, Some(LbConfig::RingHashLbConfig(config)))
        }
        BalancerKind::ConsistentHash { table: HashTable::Maglev { size }, .. } => {
            let config = MaglevLbConfig { table_size: wire::uint64(*size) };
            (LbPolicy::Maglev, Some(LbConfig::MaglevLbConfig(config)))
        }
    };
    cluster.lb_policy = policy.into();
    cluster.lb_config = config;
}
