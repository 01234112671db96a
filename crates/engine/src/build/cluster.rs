//! Clusters.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use proto::envoy::config::cluster::v3 as xds;
use proto::envoy::config::core::v3 as core;
use proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use proto::envoy::extensions::clusters::{dns::v3 as dns, original_dst::v3 as original_dst};
use proto::envoy::extensions::load_balancing_policies as lb;
use proto::envoy::extensions::upstreams::http::v3 as upstream_http;
use proto::envoy::r#type::metadata::v3::MetadataKey;
use proto::envoy::r#type::v3::Percent;
use proto::google::protobuf::{Any, Duration as ProtoDuration, UInt32Value, UInt64Value};

use super::http::{http1, http2, positive};
use super::value::{header_name, keepalive, metadata_key, placed_address, runtime_double, socket_option};
use super::{Context, flag, number, type_name};
use crate::balance::{LbPolicy, SlowStart, ZoneAware};
use crate::circuit::{Limits, RetryBudget};
use crate::cluster::{ClusterConfig, Discovery, DnsFamily, DnsOptions, LbCommon, TransportMatch, UpstreamProtocol};
use crate::listener::Address;
use crate::metadata::{Datum, Metadata};
use crate::outlier::OutlierConfig;

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
const BUFFER_LIMIT: u32 = 1 << 20;
const RING_MIN: u64 = 1024;
const RING_MAX: u64 = 8 << 20;
const MAGLEV_SIZE: u64 = 65_537;
const MAGLEV_LIMIT: u64 = 5_000_011;

/// A cluster and the endpoints that stand in it.
pub(crate) fn cluster(cx: &mut Context<'_>, bytes: &[u8]) -> Option<(ClusterConfig, Option<ClusterLoadAssignment>)> {
    let message = match xds::Cluster::decode(bytes) {
        Ok(message) => message,
        Err(error) => return cx.refuse(format!("is not a well-formed cluster: {error}")),
    };
    if message.lb_subset_config.is_some() {
        cx.field("lb_subset_config", |cx| cx.fault("is not implemented"));
    }
    let config = config(cx, &message)?;
    let inline = !matches!(config.discovery, Discovery::Eds(_) | Discovery::OriginalDst { .. });
    Some((config, message.load_assignment.filter(|_| inline)))
}

fn config(cx: &mut Context<'_>, message: &xds::Cluster) -> Option<ClusterConfig> {
    let name = cx.needed("name", &message.name)?;
    let (discovery, dns) = discovery(cx, message, &name)?;
    let mut common = lb_common(cx, message);
    let lb = lb_policy(cx, message, &mut common);
    let http = http_options(cx, message);
    let mut tls = match &message.transport_socket {
        Some(socket) => cx.field("transport_socket", |cx| super::tls::upstream(cx, socket))?,
        None => None,
    };
    if let (Some(context), Some(options)) = (&mut tls, &http.upstream) {
        let context = Arc::make_mut(context);
        context.auto_sni |= options.auto_sni;
        context.auto_sni_san_validation |= options.auto_san_validation;
    }
    let sni_header = http.upstream.as_ref().map_or("", |options| options.override_auto_sni_header.as_str());
    // Where nothing is said of ALPN, what the cluster can speak is offered (as Envoy does).
    let offered: &[&str] = match http.protocol {
        UpstreamProtocol::Auto => &["h2", "http/1.1"],
        UpstreamProtocol::Http2 => &["h2"],
        UpstreamProtocol::Http1 | UpstreamProtocol::Downstream => &[],
    };
    if let Some(context) = tls.as_mut().filter(|context| context.common.alpn.is_empty()) {
        Arc::make_mut(context).common.alpn = offered.iter().map(|protocol| cx.share(protocol)).collect();
    }
    let bind = message.upstream_bind_config.as_ref();
    let source = bind.and_then(|bind| source_address(cx, bind));
    let limits = limits(cx, message);
    let metadata = Metadata::from_proto(message.metadata.as_ref());
    Some(ClusterConfig {
        alt_stat_name: cx.text(&message.alt_stat_name),
        discovery,
        connect_timeout: cx
            .limit("connect_timeout", message.connect_timeout.as_ref(), Some(CONNECT_TIMEOUT))
            .unwrap_or(CONNECT_TIMEOUT),
        lb: lb?,
        lb_common: common,
        tls,
        transport_matches: cx.list("transport_socket_matches", &message.transport_socket_matches, transport_match),
        protocol: http.protocol,
        http1: http1(cx, http.http1.as_ref()),
        http2: http2(cx, http.http2.as_ref()),
        idle_timeout: cx.limit("idle_timeout", http.common.idle_timeout.as_ref(), Some(IDLE_TIMEOUT)),
        max_connection_duration: cx.limit(
            "max_connection_duration",
            http.common.max_connection_duration.as_ref(),
            None,
        ),
        max_stream_duration: cx.limit("max_stream_duration", http.common.max_stream_duration.as_ref(), None),
        max_requests_per_connection: positive(http.common.max_requests_per_connection.as_ref())
            .or_else(|| positive(old_max_requests(message))),
        limits: limits.0,
        limits_high: limits.1,
        per_host_connections: message
            .circuit_breakers
            .as_ref()
            .and_then(|breakers| breakers.per_host_thresholds.first())
            .and_then(|limits| limits.max_connections.as_ref())
            .map(|max| max.value),
        outlier: {
            let window = merge_window(cx, message);
            let outlier = |cx: &mut Context<'_>, found: &xds::OutlierDetection| outlier(cx, found, window);
            cx.optional("outlier_detection", message.outlier_detection.as_ref(), outlier).map(Arc::new)
        },
        health_check: super::health::checks(cx, &message.health_checks, http.protocol).map(Arc::new),
        close_on_failure: message.close_connections_on_host_health_failure,
        source_address: source.as_ref().and_then(|(address, _)| address.socket()).filter(is_chosen),
        source_namespace: source.and_then(|(_, namespace)| namespace),
        socket_options: bind.map_or_else(Vec::new, |bind| {
            cx.field("upstream_bind_config", |cx| cx.list("socket_options", &bind.socket_options, socket_option))
        }),
        keepalive: message
            .upstream_connection_options
            .as_ref()
            .and_then(|options| options.tcp_keepalive.as_ref())
            .map(keepalive),
        sni_header: match sni_header {
            "" => None,
            name => cx.field("override_auto_sni_header", |cx| header_name(cx, name)),
        },
        buffer_limit: number(message.per_connection_buffer_limit_bytes.as_ref(), BUFFER_LIMIT),
        dns,
        keeps_alpn: metadata.find("istio", ["alpn_override"]).and_then(Datum::text) == Some("false"),
        metadata,
        version: cx.hash,
        name,
    })
}

#[allow(deprecated, reason = "the old field is still sent")]
fn old_max_requests(message: &xds::Cluster) -> Option<&UInt32Value> {
    message.max_requests_per_connection.as_ref()
}

#[allow(deprecated, reason = "The old DNS fields are what files still say")]
fn discovery(cx: &mut Context<'_>, message: &xds::Cluster, name: &Arc<str>) -> Option<(Discovery, DnsOptions)> {
    use xds::cluster::ClusterDiscoveryType as Kind;
    let times = (message.dns_refresh_rate.as_ref(), message.dns_jitter.as_ref());
    let failure = message.dns_failure_refresh_rate.as_ref();
    let old = dns_options(cx, times, failure, message.respect_dns_ttl, dns_family(message.dns_lookup_family));
    let found = match &message.cluster_discovery_type {
        None | Some(Kind::Type(0)) => (Discovery::Static, old),
        Some(Kind::Type(1)) => (Discovery::StrictDns, old),
        Some(Kind::Type(2)) => (Discovery::LogicalDns, old),
        Some(Kind::Type(3)) => {
            let eds = message.eds_cluster_config.as_ref();
            cx.field("eds_cluster_config", |cx| {
                super::value::from_server(cx, "eds_config", eds.and_then(|eds| eds.eds_config.as_ref()))
            })?;
            let service = eds.map_or("", |eds| &eds.service_name);
            (Discovery::Eds(if service.is_empty() { name.clone() } else { cx.share(service) }), old)
        }
        Some(Kind::Type(4)) => {
            let settings = match &message.lb_config {
                Some(xds::cluster::LbConfig::OriginalDstLbConfig(settings)) => settings.clone(),
                _ => xds::cluster::OriginalDstLbConfig::default(),
            };
            let header = settings.use_http_header.then_some(settings.http_header_name);
            (original_dst(cx, header, settings.metadata_key.as_ref(), settings.upstream_port_override.as_ref())?, old)
        }
        Some(Kind::ClusterType(custom)) => cx.field("cluster_type.typed_config", |cx| custom_cluster(cx, custom))?,
        Some(Kind::Type(_)) => return cx.field("type", |cx| cx.refuse("is no known type")),
    };
    Some(found)
}

fn custom_cluster(cx: &mut Context<'_>, message: &xds::cluster::CustomClusterType) -> Option<(Discovery, DnsOptions)> {
    let Some(any) = &message.typed_config else { return cx.refuse("is required") };
    match type_name(any) {
        "envoy.extensions.clusters.dns.v3.DnsCluster" => {
            let message: dns::DnsCluster = cx.unpack(any)?;
            let family = match message.dns_lookup_family {
                0 | 1 => DnsFamily::Auto,
                2 => DnsFamily::V4Only,
                3 => DnsFamily::V6Only,
                4 => DnsFamily::V4Preferred,
                _ => DnsFamily::All,
            };
            let times = (message.dns_refresh_rate.as_ref(), message.dns_jitter.as_ref());
            let failure = message.dns_failure_refresh_rate.map(|rate| xds::cluster::RefreshRate {
                base_interval: rate.base_interval,
                max_interval: rate.max_interval,
            });
            let options = dns_options(cx, times, failure.as_ref(), message.respect_dns_ttl, family);
            let one = message.all_addresses_in_single_endpoint;
            Some((if one { Discovery::LogicalDns } else { Discovery::StrictDns }, options))
        }
        "envoy.extensions.clusters.original_dst.v3.OriginalDstCluster" => {
            let message: original_dst::OriginalDstCluster = cx.unpack(any)?;
            let header = message.use_http_header.then_some(message.http_header_name);
            let noted = message.metadata_key.as_ref();
            let found = original_dst(cx, header, noted, message.upstream_port_override.as_ref())?;
            Some((found, DnsOptions::default()))
        }
        other => cx.refuse(format!("the cluster type {other} is not implemented")),
    }
}

/// `times`: between lookups, and the jitter.
fn dns_options(
    cx: &mut Context<'_>,
    times: (Option<&ProtoDuration>, Option<&ProtoDuration>),
    failure: Option<&xds::cluster::RefreshRate>,
    respect_ttl: bool,
    family: DnsFamily,
) -> DnsOptions {
    let default = DnsOptions::default();
    let after_failure = cx.optional("dns_failure_refresh_rate", failure, |cx, rate| {
        let base = cx.required("base_interval", rate.base_interval.as_ref(), |_, base| Some(*base))?;
        let base = cx.duration("base_interval", Some(&base)).filter(|base| !base.is_zero());
        let max = cx.duration("max_interval", rate.max_interval.as_ref());
        let base = base.or_else(|| cx.field("base_interval", |cx| cx.refuse("must be above zero")))?;
        let max = max.unwrap_or_else(|| base.saturating_mul(10));
        if max < base { cx.refuse("max_interval must be at least base_interval") } else { Some((base, max)) }
    });
    DnsOptions {
        refresh: cx.duration("dns_refresh_rate", times.0).unwrap_or(default.refresh),
        respect_ttl,
        jitter: cx.duration("dns_jitter", times.1).unwrap_or_default(),
        after_failure,
        family,
    }
}

/// `header`: empty means the usual one.
fn original_dst(
    cx: &mut Context<'_>,
    header: Option<String>,
    noted: Option<&MetadataKey>,
    port: Option<&UInt32Value>,
) -> Option<Discovery> {
    let header = match header.as_deref() {
        None => None,
        Some("") => Some(http::HeaderName::from_static("x-envoy-original-dst-host")),
        Some(name) => Some(super::value::header_name(cx, name)?),
    };
    let port = match port.map(|port| u16::try_from(port.value)) {
        None | Some(Ok(0)) => None,
        Some(Ok(port)) => Some(port),
        Some(Err(_)) => return cx.field("upstream_port_override", |cx| cx.refuse("must be at most 65535")),
    };
    Some(Discovery::OriginalDst { header, noted: cx.optional("metadata_key", noted, metadata_key), port })
}

/// The numbering of `Cluster.DnsLookupFamily`.
const fn dns_family(number: i32) -> DnsFamily {
    match number {
        1 => DnsFamily::V4Only,
        2 => DnsFamily::V6Only,
        3 => DnsFamily::V4Preferred,
        4 => DnsFamily::All,
        _ => DnsFamily::Auto,
    }
}

fn lb_common(cx: &mut Context<'_>, message: &xds::Cluster) -> LbCommon {
    let mut common = lb_common_of(cx, message);
    let runtime = cx.runtime();
    // Envoy reads whole percents there, and replaces what cannot be a percentage by the default.
    let percent = runtime.whole("upstream.healthy_panic_threshold", u64::MAX);
    if let Some(percent) = u32::try_from(percent).ok().filter(|percent| *percent <= 100) {
        common.panic_threshold = f64::from(percent);
    }
    common
}

fn lb_common_of(cx: &mut Context<'_>, message: &xds::Cluster) -> LbCommon {
    use xds::cluster::common_lb_config::LocalityConfigSpecifier as Kind;
    let mut common = LbCommon::default();
    let Some(config) = &message.common_lb_config else { return common };
    if let Some(percent) = &config.healthy_panic_threshold {
        if (0.0..=100.0).contains(&percent.value) {
            common.panic_threshold = percent.value;
        } else {
            cx.field("common_lb_config.healthy_panic_threshold", |cx| cx.fault("must be from 0 to 100"));
        }
    }
    common.ignore_unchecked = config.ignore_new_hosts_until_first_hc;
    match &config.locality_config_specifier {
        Some(Kind::LocalityWeightedLbConfig(_)) => by_weight(&mut common),
        Some(Kind::ZoneAwareLbConfig(zone)) => {
            common.fail_on_panic = zone.fail_traffic_on_panic;
            common.zone_aware = Some(zone_aware(zone.routing_enabled.as_ref(), zone.min_cluster_size.as_ref()));
        }
        None => {}
    }
    if let Some(hashing) = &config.consistent_hashing_lb_config {
        common.hash_hostname = hashing.use_hostname_for_hashing;
        common.hash_balance = cx.field("common_lb_config.consistent_hashing_lb_config", |cx| {
            balance_factor(cx, hashing.hash_balance_factor.as_ref())
        });
    }
    common
}

/// Localities by weight and by place exclude each other.
fn by_weight(common: &mut LbCommon) {
    common.locality_weighted = true;
    common.zone_aware = None;
}

fn zone_aware(enabled: Option<&Percent>, min_size: Option<&UInt64Value>) -> ZoneAware {
    let default = ZoneAware::default();
    ZoneAware {
        enabled: enabled.map_or(default.enabled, |percent| percent.value),
        min_size: min_size.map_or(default.min_size, |size| size.value),
        ..default
    }
}

#[allow(deprecated, reason = "The old fields are what most clusters still say")]
fn lb_policy(cx: &mut Context<'_>, message: &xds::Cluster, common: &mut LbCommon) -> Option<LbPolicy> {
    use xds::cluster::{LbConfig, LbPolicy as Old};
    if let Some(policy) = &message.load_balancing_policy {
        return cx.field("load_balancing_policy", |cx| typed_lb(cx, policy, common));
    }
    let settings = message.lb_config.as_ref();
    match Old::try_from(message.lb_policy) {
        Ok(Old::RoundRobin) => {
            let slow = match settings {
                Some(LbConfig::RoundRobinLbConfig(config)) => config.slow_start_config.as_ref(),
                _ => None,
            };
            Some(LbPolicy::RoundRobin { slow_start: old_slow_start(cx, slow) })
        }
        Ok(Old::LeastRequest) => {
            let config = match settings {
                Some(LbConfig::LeastRequestLbConfig(config)) => config.clone(),
                _ => xds::cluster::LeastRequestLbConfig::default(),
            };
            Some(LbPolicy::LeastRequest {
                choices: Some(number(config.choice_count.as_ref(), 2).max(1)),
                bias: runtime_double(cx, config.active_request_bias.as_ref(), 1.0),
                slow_start: old_slow_start(cx, config.slow_start_config.as_ref()),
            })
        }
        Ok(Old::Random) => Some(LbPolicy::Random),
        Ok(Old::RingHash) => {
            let config = match settings {
                Some(LbConfig::RingHashLbConfig(config)) => *config,
                _ => xds::cluster::RingHashLbConfig::default(),
            };
            if config.hash_function != 0 {
                return cx.field("ring_hash_lb_config.hash_function", |cx| cx.refuse("only XX_HASH is implemented"));
            }
            ring(cx, config.minimum_ring_size.map(|v| v.value), config.maximum_ring_size.map(|v| v.value))
        }
        Ok(Old::Maglev) => {
            let size = match settings {
                Some(LbConfig::MaglevLbConfig(config)) => config.table_size.as_ref().map(|v| v.value),
                _ => None,
            };
            maglev(cx, size)
        }
        Ok(Old::ClusterProvided) => Some(LbPolicy::ClusterProvided),
        _ => cx.field("lb_policy", |cx| cx.refuse("is not implemented")),
    }
}

fn ring(cx: &mut Context<'_>, min: Option<u64>, max: Option<u64>) -> Option<LbPolicy> {
    let (min_size, max_size) = (min.unwrap_or(RING_MIN), max.unwrap_or(RING_MAX));
    if min_size > max_size || max_size > RING_MAX || max_size == 0 {
        return cx.refuse("the ring's sizes must be in order, above zero and at most 8388608");
    }
    Some(LbPolicy::RingHash { min_size, max_size })
}

fn maglev(cx: &mut Context<'_>, size: Option<u64>) -> Option<LbPolicy> {
    let table_size = size.unwrap_or(MAGLEV_SIZE);
    let prime = table_size > 1 && (2..).take_while(|d| d * d <= table_size).all(|d| !table_size.is_multiple_of(d));
    if table_size > MAGLEV_LIMIT || !prime {
        return cx.refuse(format!("the table's size must be a prime of at most {MAGLEV_LIMIT}"));
    }
    Some(LbPolicy::Maglev { table_size })
}

/// The first policy that is known; Envoy takes the first that it was built with.
fn typed_lb(cx: &mut Context<'_>, message: &xds::LoadBalancingPolicy, common: &mut LbCommon) -> Option<LbPolicy> {
    let configs = message.policies.iter().filter_map(|policy| policy.typed_extension_config.as_ref());
    let mut anys = configs.filter_map(|config| config.typed_config.as_ref());
    let known = anys.find(|any| type_name(any).starts_with("envoy.extensions.load_balancing_policies."));
    let Some(any) = known else { return cx.refuse("no known policy") };
    match type_name(any).strip_prefix("envoy.extensions.load_balancing_policies.").unwrap_or_default() {
        "round_robin.v3.RoundRobin" => {
            let message: lb::round_robin::v3::RoundRobin = cx.unpack(any)?;
            locality(cx, message.locality_lb_config.as_ref(), common);
            Some(LbPolicy::RoundRobin { slow_start: slow_start(cx, message.slow_start_config.as_ref()) })
        }
        "least_request.v3.LeastRequest" => {
            let message: lb::least_request::v3::LeastRequest = cx.unpack(any)?;
            locality(cx, message.locality_lb_config.as_ref(), common);
            let choices = match message.selection_method {
                0 => Some(number(message.choice_count.as_ref(), 2).max(1)),
                1 => None,
                _ => return cx.field("selection_method", |cx| cx.refuse("is no known method")),
            };
            Some(LbPolicy::LeastRequest {
                choices,
                bias: runtime_double(cx, message.active_request_bias.as_ref(), 1.0),
                slow_start: slow_start(cx, message.slow_start_config.as_ref()),
            })
        }
        "random.v3.Random" => {
            let message: lb::random::v3::Random = cx.unpack(any)?;
            locality(cx, message.locality_lb_config.as_ref(), common);
            Some(LbPolicy::Random)
        }
        "ring_hash.v3.RingHash" => {
            let message: lb::ring_hash::v3::RingHash = cx.unpack(any)?;
            if message.hash_function > 1 {
                return cx.refuse("only XX_HASH is implemented");
            }
            if message.locality_weighted_lb_config.is_some() {
                by_weight(common);
            }
            hashing(cx, message.consistent_hashing_lb_config.as_ref(), common);
            ring(cx, message.minimum_ring_size.map(|v| v.value), message.maximum_ring_size.map(|v| v.value))
        }
        "maglev.v3.Maglev" => {
            let message: lb::maglev::v3::Maglev = cx.unpack(any)?;
            if message.locality_weighted_lb_config.is_some() {
                by_weight(common);
            }
            hashing(cx, message.consistent_hashing_lb_config.as_ref(), common);
            maglev(cx, message.table_size.map(|v| v.value))
        }
        "cluster_provided.v3.ClusterProvided" => Some(LbPolicy::ClusterProvided),
        other => cx.refuse(format!("the load balancing policy {other} is not implemented")),
    }
}

fn locality(cx: &mut Context<'_>, message: Option<&lb::common::v3::LocalityLbConfig>, common: &mut LbCommon) {
    use lb::common::v3::locality_lb_config::LocalityConfigSpecifier as Kind;
    let specifier = message.and_then(|message| message.locality_config_specifier.as_ref());
    match specifier {
        Some(Kind::LocalityWeightedLbConfig(_)) => by_weight(common),
        Some(Kind::ZoneAwareLbConfig(zone)) => {
            common.fail_on_panic = zone.fail_traffic_on_panic;
            common.zone_aware = cx.field("locality_lb_config.zone_aware_lb_config", |cx| typed_zone_aware(cx, zone));
        }
        None => {}
    }
}

#[allow(deprecated, reason = "the old field is still sent")]
fn typed_zone_aware(
    cx: &mut Context<'_>,
    message: &lb::common::v3::locality_lb_config::ZoneAwareLbConfig,
) -> Option<ZoneAware> {
    let by_weight = match message.locality_basis {
        0 => false,
        1 => true,
        _ => return cx.field("locality_basis", |cx| cx.refuse("is no known basis")),
    };
    let forced = message.force_local_zone.as_ref().map(|forced| u64::from(number(forced.min_size.as_ref(), 1)));
    Some(ZoneAware {
        force_from: forced.or_else(|| message.force_locality_direct_routing.then_some(1)),
        by_weight,
        ..zone_aware(message.routing_enabled.as_ref(), message.min_cluster_size.as_ref())
    })
}

fn hashing(cx: &mut Context<'_>, message: Option<&lb::common::v3::ConsistentHashingLbConfig>, common: &mut LbCommon) {
    if let Some(message) = message {
        common.hash_hostname = message.use_hostname_for_hashing;
        cx.field("consistent_hashing_lb_config", |cx| {
            common.hash_balance = balance_factor(cx, message.hash_balance_factor.as_ref());
            if !message.hash_policy.is_empty() {
                cx.field("hash_policy", |cx| cx.fault("is not implemented"));
            }
        });
    }
}

/// Per cent of the average load.
fn balance_factor(cx: &mut Context<'_>, factor: Option<&UInt32Value>) -> Option<u32> {
    let factor = factor?.value;
    if factor < 100 { cx.field("hash_balance_factor", |cx| cx.refuse("must be at least 100")) } else { Some(factor) }
}

fn old_slow_start(cx: &mut Context<'_>, message: Option<&xds::cluster::SlowStartConfig>) -> Option<SlowStart> {
    let message = message?;
    Some(SlowStart {
        window: cx.limit("slow_start_window", message.slow_start_window.as_ref(), None)?,
        aggression: runtime_double(cx, message.aggression.as_ref(), 1.0),
        min_percent: message.min_weight_percent.as_ref().map_or(10.0, |value| value.value),
    })
}

fn slow_start(cx: &mut Context<'_>, message: Option<&lb::common::v3::SlowStartConfig>) -> Option<SlowStart> {
    let message = message?;
    Some(SlowStart {
        window: cx.limit("slow_start_window", message.slow_start_window.as_ref(), None)?,
        aggression: runtime_double(cx, message.aggression.as_ref(), 1.0),
        min_percent: message.min_weight_percent.as_ref().map_or(10.0, |value| value.value),
    })
}

fn transport_match(cx: &mut Context<'_>, message: &xds::cluster::TransportSocketMatch) -> Option<TransportMatch> {
    let criteria = match message.r#match.as_ref().map(Datum::from_struct) {
        Some(Datum::Object(members)) => members.into_iter().collect(),
        _ => Vec::new(),
    };
    let tls = cx.required("transport_socket", message.transport_socket.as_ref(), super::tls::upstream)?;
    Some(TransportMatch { name: cx.share(&message.name), criteria, tls })
}

#[derive(Default)]
struct HttpOptions {
    protocol: UpstreamProtocol,
    http1: Option<core::Http1ProtocolOptions>,
    http2: Option<core::Http2ProtocolOptions>,
    common: core::HttpProtocolOptions,
    upstream: Option<core::UpstreamHttpProtocolOptions>,
}

#[allow(deprecated, reason = "The old fields are what hand-written bootstraps still say")]
fn http_options(cx: &mut Context<'_>, message: &xds::Cluster) -> HttpOptions {
    if let Some(any) = message.typed_extension_protocol_options.get(HTTP_OPTIONS) {
        return cx.key("typed_extension_protocol_options", HTTP_OPTIONS, |cx| typed_http(cx, any)).unwrap_or_default();
    }
    if let Some((name, _)) = message.typed_extension_protocol_options.iter().next() {
        cx.key("typed_extension_protocol_options", name, |cx| cx.fault("is not implemented"));
    }
    HttpOptions {
        protocol: match (message.protocol_selection, &message.http2_protocol_options) {
            (1, _) => UpstreamProtocol::Downstream,
            (_, Some(_)) => UpstreamProtocol::Http2,
            _ => UpstreamProtocol::Http1,
        },
        http1: message.http_protocol_options.clone(),
        http2: message.http2_protocol_options.clone(),
        common: message.common_http_protocol_options.unwrap_or_default(),
        upstream: message.upstream_http_protocol_options.clone(),
    }
}

fn typed_http(cx: &mut Context<'_>, any: &Any) -> Option<HttpOptions> {
    use upstream_http::http_protocol_options::UpstreamProtocolOptions as Kind;
    use upstream_http::http_protocol_options::explicit_http_config::ProtocolConfig;
    let message: upstream_http::HttpProtocolOptions = cx.unpack(any)?;
    let (protocol, http1, http2) = match message.upstream_protocol_options {
        Some(Kind::ExplicitHttpConfig(explicit)) => match explicit.protocol_config {
            Some(ProtocolConfig::HttpProtocolOptions(http1)) => (UpstreamProtocol::Http1, Some(http1), None),
            Some(ProtocolConfig::Http2ProtocolOptions(http2)) => (UpstreamProtocol::Http2, None, Some(http2)),
            Some(ProtocolConfig::Http3ProtocolOptions(_)) => {
                return cx.field("explicit_http_config", |cx| cx.refuse("HTTP/3 is not implemented"));
            }
            None => return cx.field("explicit_http_config", |cx| cx.refuse("a protocol is required")),
        },
        Some(Kind::UseDownstreamProtocolConfig(both)) => {
            (UpstreamProtocol::Downstream, both.http_protocol_options, both.http2_protocol_options)
        }
        Some(Kind::AutoConfig(both)) => {
            (UpstreamProtocol::Auto, both.http_protocol_options, both.http2_protocol_options)
        }
        None => return cx.refuse("explicit_http_config, use_downstream_protocol_config or auto_config is required"),
    };
    Some(HttpOptions {
        protocol,
        http1,
        http2,
        common: message.common_http_protocol_options.unwrap_or_default(),
        upstream: message.upstream_http_protocol_options,
    })
}

/// The limits of the default and of the high priority.
fn limits(cx: &mut Context<'_>, message: &xds::Cluster) -> (Limits, Limits) {
    let mut both = (Limits::default(), Limits::default());
    let thresholds = message.circuit_breakers.iter().flat_map(|breakers| &breakers.thresholds);
    for (at, threshold) in thresholds.enumerate() {
        let built = cx.field("circuit_breakers", |cx| cx.item("thresholds", at, |cx| threshold_limits(cx, threshold)));
        match threshold.priority {
            1 => both.1 = built,
            _ => both.0 = built,
        }
    }
    runtime_limits(cx, &message.name, "default", &mut both.0);
    runtime_limits(cx, &message.name, "high", &mut both.1);
    both
}

/// The runtime keys of a cluster's limits.
fn runtime_limits(cx: &Context<'_>, cluster: &str, priority: &str, limits: &mut Limits) {
    let runtime = cx.runtime();
    let key = |what: &str| format!("circuit_breakers.{cluster}.{priority}.{what}");
    limits.connections = runtime.small(&key("max_connections"), limits.connections);
    limits.pending = runtime.small(&key("max_pending_requests"), limits.pending);
    limits.requests = runtime.small(&key("max_requests"), limits.requests);
    limits.retries = runtime.small(&key("max_retries"), limits.retries);
    limits.pools = runtime.small(&key("max_connection_pools"), limits.pools);
    if let Some(budget) = &mut limits.budget {
        budget.percent = runtime.number(&key("retry_budget.budget_percent"), budget.percent);
        budget.min_concurrency = runtime.small(&key("retry_budget.min_retry_concurrency"), budget.min_concurrency);
    }
}

fn threshold_limits(cx: &mut Context<'_>, message: &xds::circuit_breakers::Thresholds) -> Limits {
    let default = Limits::default();
    let budget = cx.optional("retry_budget", message.retry_budget.as_ref(), |cx, budget| {
        Some(RetryBudget {
            percent: budget.budget_percent.as_ref().map_or(20.0, |percent| percent.value),
            min_concurrency: number(budget.min_retry_concurrency.as_ref(), 3),
            interval: cx.limit("budget_interval", budget.budget_interval.as_ref(), None),
        })
    });
    Limits {
        connections: number(message.max_connections.as_ref(), default.connections),
        pending: number(message.max_pending_requests.as_ref(), default.pending),
        requests: number(message.max_requests.as_ref(), default.requests),
        retries: number(message.max_retries.as_ref(), default.retries),
        budget,
        pools: number(message.max_connection_pools.as_ref(), default.pools),
        track_remaining: message.track_remaining,
    }
}

/// How long Envoy gathers changes of endpoints' health before its workers hear of them.
fn merge_window(cx: &mut Context<'_>, message: &xds::Cluster) -> Duration {
    let window = message.common_lb_config.as_ref().and_then(|common| common.update_merge_window.as_ref());
    let window = cx.field("common_lb_config", |cx| cx.duration("update_merge_window", window));
    window.unwrap_or(Duration::from_secs(1))
}

fn outlier(cx: &mut Context<'_>, message: &xds::OutlierDetection, merge_window: Duration) -> Option<OutlierConfig> {
    let percent = |cx: &mut Context<'_>, name: &'static str, value: Option<&UInt32Value>, default: u32| {
        let value = number(value, default);
        if value > 100 {
            cx.field(name, |cx| cx.fault("must be at most 100"));
        }
        cx.runtime().small(&runtime_key(name), value)
    };
    let count = |cx: &Context<'_>, name: &str, value: Option<&UInt32Value>, default: u32| {
        cx.runtime().small(&runtime_key(name), number(value, default))
    };
    let base =
        cx.duration("base_ejection_time", message.base_ejection_time.as_ref()).unwrap_or(Duration::from_secs(30));
    let interval = cx.duration("interval", message.interval.as_ref()).unwrap_or(Duration::from_secs(10));
    if base.is_zero() || interval.is_zero() {
        cx.fault("interval and base_ejection_time must be above zero");
    }
    let max = cx.duration("max_ejection_time", message.max_ejection_time.as_ref());
    let max = max.unwrap_or(Duration::from_secs(300)).max(base);
    let jitter = cx.duration("max_ejection_time_jitter", message.max_ejection_time_jitter.as_ref()).unwrap_or_default();
    let runtime = cx.runtime();
    Some(OutlierConfig {
        merge_window,
        detect_degraded: flag(message.detect_degraded_hosts.as_ref(), false),
        consecutive_5xx: count(cx, "consecutive_5xx", message.consecutive_5xx.as_ref(), 5),
        enforcing_consecutive_5xx: percent(
            cx,
            "enforcing_consecutive_5xx",
            message.enforcing_consecutive_5xx.as_ref(),
            100,
        ),
        consecutive_gateway_failure: count(
            cx,
            "consecutive_gateway_failure",
            message.consecutive_gateway_failure.as_ref(),
            5,
        ),
        enforcing_consecutive_gateway_failure: percent(
            cx,
            "enforcing_consecutive_gateway_failure",
            message.enforcing_consecutive_gateway_failure.as_ref(),
            0,
        ),
        split_local_origin: message.split_external_local_origin_errors,
        consecutive_local_origin_failure: count(
            cx,
            "consecutive_local_origin_failure",
            message.consecutive_local_origin_failure.as_ref(),
            5,
        ),
        enforcing_consecutive_local_origin_failure: percent(
            cx,
            "enforcing_consecutive_local_origin_failure",
            message.enforcing_consecutive_local_origin_failure.as_ref(),
            100,
        ),
        interval: runtime.millis(&runtime_key("interval_ms"), interval),
        base_ejection_time: runtime.millis(&runtime_key("base_ejection_time_ms"), base),
        max_ejection_time: runtime.millis(&runtime_key("max_ejection_time_ms"), max),
        max_ejection_jitter: runtime.millis(&runtime_key("max_ejection_time_jitter_ms"), jitter),
        max_ejection_percent: percent(cx, "max_ejection_percent", message.max_ejection_percent.as_ref(), 10),
        always_eject_one: flag(message.always_eject_one_host.as_ref(), false),
        pardon: flag(message.successful_active_health_check_uneject_host.as_ref(), true),
        enforcing_success_rate: percent(cx, "enforcing_success_rate", message.enforcing_success_rate.as_ref(), 100),
        success_rate_minimum_hosts: count(
            cx,
            "success_rate_minimum_hosts",
            message.success_rate_minimum_hosts.as_ref(),
            5,
        ),
        success_rate_request_volume: count(
            cx,
            "success_rate_request_volume",
            message.success_rate_request_volume.as_ref(),
            100,
        ),
        success_rate_stdev_factor: count(
            cx,
            "success_rate_stdev_factor",
            message.success_rate_stdev_factor.as_ref(),
            1900,
        ),
        enforcing_local_origin_success_rate: percent(
            cx,
            "enforcing_local_origin_success_rate",
            message.enforcing_local_origin_success_rate.as_ref(),
            100,
        ),
        failure_percentage_threshold: percent(
            cx,
            "failure_percentage_threshold",
            message.failure_percentage_threshold.as_ref(),
            85,
        ),
        enforcing_failure_percentage: percent(
            cx,
            "enforcing_failure_percentage",
            message.enforcing_failure_percentage.as_ref(),
            0,
        ),
        enforcing_failure_percentage_local_origin: percent(
            cx,
            "enforcing_failure_percentage_local_origin",
            message.enforcing_failure_percentage_local_origin.as_ref(),
            0,
        ),
        failure_percentage_minimum_hosts: count(
            cx,
            "failure_percentage_minimum_hosts",
            message.failure_percentage_minimum_hosts.as_ref(),
            5,
        ),
        failure_percentage_request_volume: count(
            cx,
            "failure_percentage_request_volume",
            message.failure_percentage_request_volume.as_ref(),
            50,
        ),
    })
}

/// The runtime key of a setting of outlier detection.
fn runtime_key(setting: &str) -> String {
    format!("outlier_detection.{setting}")
}

/// Where connections leave from, and in which network namespace.
fn source_address(cx: &mut Context<'_>, bind: &core::BindConfig) -> Option<(Address, Option<Arc<Path>>)> {
    let source = bind.source_address.as_ref()?;
    let address = core::Address { address: Some(core::address::Address::SocketAddress(source.clone())) };
    cx.field("upstream_bind_config.source_address", |cx| placed_address(cx, &address, false))
}

/// Whether an address says anything to bind to.
fn is_chosen(address: &SocketAddr) -> bool {
    !(address.ip().is_unspecified() && address.port() == 0)
}
