//! Listeners, filter chains and network filters.

use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use proto::envoy::config::core::v3 as core;
use proto::envoy::config::listener::v3 as xds;
use proto::envoy::extensions::filters::listener::proxy_protocol::v3 as proxy_protocol;
use proto::envoy::extensions::filters::network::{
    connection_limit::v3 as connection_limit, direct_response::v3 as direct_response, rbac::v3 as rbac,
    tcp_proxy::v3 as tcp,
};
use proto::google::protobuf::Any;

use super::access_log::access_log;
use super::value::{cidr, inline_bytes, keepalive, placed_address, runtime_flag, socket_option};
use super::{Context, fingerprint, flag, number, opened, type_name};
use crate::Address;
use crate::chains::{ChainMatch, ChainTable, SourceType};
use crate::listener::{
    ConnectionLimit, Direction, Extension, FilterChain, Listener, ListenerFilter, ListenerFilterKind, NetworkFilter,
    PortPredicate, TcpClusters, TcpProxy,
};
use crate::metadata::Metadata;
use crate::rbac::NetworkRbac;

const LISTENER_FILTERS_TIMEOUT: Duration = Duration::from_secs(15);
const TCP_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
const BUFFER_LIMIT: u32 = 1 << 20;

/// Filters that the shell knows by their type: Istio's statistics and metadata exchange.
pub(super) const SHELL_EXTENSIONS: &[&str] =
    &["stats.PluginConfig", "envoy.tcp.metadataexchange.config.MetadataExchange", "io.istio.http.peer_metadata.Config"];

#[allow(deprecated, reason = "reuse_port and deprecated_v1 are still sent")]
pub(crate) fn listener(cx: &mut Context<'_>, bytes: &[u8]) -> Option<Listener> {
    let message = match xds::Listener::decode(bytes) {
        Ok(message) => message,
        Err(error) => return cx.refuse(format!("is not a well-formed listener: {error}")),
    };
    if message.api_listener.is_some() {
        return cx.field("api_listener", |cx| cx.refuse("is for proxyless gRPC only"));
    }
    let name = cx.needed("name", &message.name);
    let own_address =
        cx.required("address", message.address.as_ref(), |cx, message| placed_address(cx, message, false));
    let (own_address, namespace) = own_address.unzip();
    let namespace = namespace.flatten();
    let additional_addresses = cx.list("additional_addresses", &message.additional_addresses, |cx, message| {
        let further =
            cx.required("address", message.address.as_ref(), |cx, message| placed_address(cx, message, false));
        match further? {
            (address, place) if place == namespace => Some(address),
            _ => cx.field("address.socket_address.network_namespace_filepath", |cx| {
                cx.refuse("must be that of the first address")
            }),
        }
    });
    let further = message.additional_addresses.iter().filter_map(|message| message.address.as_ref());
    let all: Vec<_> = message.address.iter().chain(further).collect();
    let chains = chain_table(cx, &message);
    let old_bind = message.deprecated_v1.as_ref().and_then(|old| old.bind_to_port.as_ref());
    Some(Listener {
        name: name?,
        address: own_address?,
        additional_addresses,
        namespace,
        ipv4_compat: all.iter().filter(|message| is_compatible(message)).filter_map(|one| plain(cx, one)).collect(),
        socket_modes: all.iter().filter_map(|one| mode(one).zip(plain(cx, one)).map(|(mode, at)| (at, mode))).collect(),
        bind: flag(message.bind_to_port.as_ref().or(old_bind), true),
        use_original_dst: flag(message.use_original_dst.as_ref(), false),
        direction: match message.traffic_direction {
            1 => Direction::Inbound,
            2 => Direction::Outbound,
            _ => Direction::Unspecified,
        },
        listener_filters: cx.list("listener_filters", &message.listener_filters, listener_filter),
        listener_filters_timeout: cx.limit(
            "listener_filters_timeout",
            message.listener_filters_timeout.as_ref(),
            Some(LISTENER_FILTERS_TIMEOUT),
        ),
        continue_on_timeout: message.continue_on_listener_filters_timeout,
        chains: chains?,
        buffer_limit: number(message.per_connection_buffer_limit_bytes.as_ref(), BUFFER_LIMIT),
        access_log: cx.list("access_log", &message.access_log, access_log),
        backlog: message.tcp_backlog_size.as_ref().map(|size| size.value),
        reuse_port: flag(message.enable_reuse_port.as_ref(), true),
        transparent: flag(message.transparent.as_ref(), false),
        freebind: flag(message.freebind.as_ref(), false),
        ignores_limit: message.ignore_global_conn_limit,
        bypasses_overload: message.bypass_overload_manager,
        exact_balance: matches!(
            message.connection_balance_config.as_ref().and_then(|config| config.balance_type.as_ref()),
            Some(xds::listener::connection_balance_config::BalanceType::ExactBalance(_))
        ),
        socket_options: cx.list("socket_options", &message.socket_options, socket_option),
        tcp_keepalive: message.tcp_keepalive.as_ref().map(keepalive),
        stat_prefix: cx.text(&message.stat_prefix),
        metadata: Metadata::from_proto(message.metadata.as_ref()),
        limit: limit(cx, &message.name),
        version: cx.hash,
    })
}

/// Envoy has no field for it, only a runtime key with the listener's name.
fn limit(cx: &Context<'_>, name: &str) -> Option<Arc<ConnectionLimit>> {
    let key = format!("envoy.resource_limits.listener.{name}.connection_limit");
    let max = cx.runtime().whole(&key, u64::MAX);
    (max < u64::MAX).then(|| Arc::new(ConnectionLimit::new(max, None)))
}

/// The address alone; its faults were told before.
fn plain(cx: &mut Context<'_>, message: &core::Address) -> Option<Address> {
    placed_address(cx, message, false).map(|(address, _)| address)
}

fn is_compatible(message: &core::Address) -> bool {
    matches!(&message.address, Some(core::address::Address::SocketAddress(socket)) if socket.ipv4_compat)
}

/// The file mode of a Unix socket; 0 means the usual one.
fn mode(message: &core::Address) -> Option<u32> {
    match &message.address {
        Some(core::address::Address::Pipe(pipe)) if pipe.mode != 0 => Some(pipe.mode & 0o7777),
        _ => None,
    }
}

fn chain_table(cx: &mut Context<'_>, message: &xds::Listener) -> Option<ChainTable> {
    let before = message.filter_chains.len();
    let chains = cx.list_indexed("filter_chains", &message.filter_chains, |cx, at, message| {
        let rule = match &message.filter_chain_match {
            Some(rule) => cx.field("filter_chain_match", |cx| chain_match(cx, rule)),
            None => Some(ChainMatch::default()),
        };
        let chain = filter_chain(cx, message, &format!("{at}"));
        Some((rule?, Arc::new(chain?)))
    });
    let default = match &message.default_filter_chain {
        Some(message) => cx.field("default_filter_chain", |cx| filter_chain(cx, message, "default")).map(Arc::new),
        None => None,
    };
    if before == 0 && message.default_filter_chain.is_none() {
        return cx.field("filter_chains", |cx| cx.refuse("at least one is required"));
    }
    if chains.len() < before {
        // Faults are noted; positions would be wrong below.
        return None;
    }
    match ChainTable::new(chains, default) {
        Ok(table) => Some(table),
        Err((first, second)) => cx.item("filter_chains", second, |cx| {
            cx.refuse(format!("has the same matching rules as filter_chains[{first}]"))
        }),
    }
}

fn chain_match(cx: &mut Context<'_>, message: &xds::FilterChainMatch) -> Option<ChainMatch> {
    let port = match message.destination_port.as_ref().map(|port| u16::try_from(port.value)) {
        None => None,
        Some(Ok(port)) if port > 0 => Some(port),
        Some(_) => return cx.field("destination_port", |cx| cx.refuse("must be from 1 to 65535")),
    };
    let server_names = cx.list("server_names", &message.server_names, |cx, name| {
        let lower = name.to_ascii_lowercase();
        let rest = lower.strip_prefix('*').unwrap_or(&lower);
        if rest.contains('*') || (lower.starts_with('*') && !rest.is_empty() && !rest.starts_with('.')) {
            return cx.refuse(format!("{name:?}: a wildcard stands only for the first label, as in \"*.example.com\""));
        }
        // "*" alone is every name, which is what no name at all means.
        Some(if rest.is_empty() { cx.share("") } else { cx.share(&lower) })
    });
    Some(ChainMatch {
        destination_port: port,
        destination_ranges: cx.list("prefix_ranges", &message.prefix_ranges, cidr),
        server_names,
        transport_protocol: cx.share(&message.transport_protocol),
        application_protocols: message.application_protocols.iter().map(|name| cx.share(name)).collect(),
        direct_source_ranges: cx.list("direct_source_prefix_ranges", &message.direct_source_prefix_ranges, cidr),
        source_type: match message.source_type {
            1 => SourceType::SameIpOrLoopback,
            2 => SourceType::External,
            _ => SourceType::Any,
        },
        source_ranges: cx.list("source_prefix_ranges", &message.source_prefix_ranges, cidr),
        source_ports: cx.list("source_ports", &message.source_ports, |cx, port| match u16::try_from(*port) {
            Ok(port) if port > 0 => Some(port),
            _ => cx.refuse("must be from 1 to 65535"),
        }),
    })
}

fn filter_chain(cx: &mut Context<'_>, message: &xds::FilterChain, position: &str) -> Option<FilterChain> {
    let tls = match &message.transport_socket {
        Some(socket) => cx.field("transport_socket", |cx| super::tls::downstream(cx, socket)),
        None => Some(None),
    };
    let expected = message.filters.len();
    let filters: Vec<Option<NetworkFilter>> =
        cx.list("filters", &message.filters, |cx, filter| network_filter(cx, filter));
    let complete = filters.len() == expected;
    let filters: Vec<NetworkFilter> = filters.into_iter().flatten().collect();
    if complete {
        check_order(cx, &filters);
    }
    let name = if message.name.is_empty() { cx.share(position) } else { cx.share(&message.name) };
    Some(FilterChain {
        name,
        tls: tls?,
        tls_timeout: cx.limit(
            "transport_socket_connect_timeout",
            message.transport_socket_connect_timeout.as_ref(),
            None,
        ),
        filters,
        metadata: Metadata::from_proto(message.metadata.as_ref()),
        version: fingerprint(&message.encode_to_vec()),
    })
}

/// Exactly one terminal filter, at the end.
fn check_order(cx: &mut Context<'_>, filters: &[NetworkFilter]) {
    let terminal = |filter: &NetworkFilter| {
        matches!(filter, NetworkFilter::Tcp(_) | NetworkFilter::Http(_) | NetworkFilter::DirectResponse(_))
    };
    let first = filters.iter().position(terminal);
    if first.is_none_or(|at| at + 1 != filters.len()) {
        cx.field("filters", |cx| {
            cx.fault("the last filter, and no other, must be tcp_proxy, http_connection_manager or direct_response")
        });
    }
}

fn listener_filter(cx: &mut Context<'_>, message: &xds::ListenerFilter) -> Option<ListenerFilter> {
    use xds::listener_filter::ConfigType;
    let disabled = match &message.filter_disabled {
        Some(predicate) => cx.field("filter_disabled", |cx| port_predicate(cx, predicate))?,
        None => PortPredicate::Never,
    };
    let kind = match &message.config_type {
        Some(ConfigType::TypedConfig(any)) => cx.field("typed_config", |cx| listener_filter_kind(cx, any))?,
        Some(ConfigType::ConfigDiscovery(_)) => {
            return cx.field("config_discovery", |cx| cx.refuse("is not implemented"));
        }
        None => match message.name.as_str() {
            // Old bootstraps name these filters and no more.
            "envoy.filters.listener.original_dst" => ListenerFilterKind::OriginalDst,
            "envoy.filters.listener.tls_inspector" => ListenerFilterKind::TlsInspector,
            "envoy.filters.listener.http_inspector" => ListenerFilterKind::HttpInspector,
            _ => return cx.field("typed_config", |cx| cx.refuse("is required")),
        },
    };
    Some(ListenerFilter { kind, disabled })
}

fn listener_filter_kind(cx: &mut Context<'_>, any: &Any) -> Option<ListenerFilterKind> {
    match type_name(any) {
        "envoy.extensions.filters.listener.original_dst.v3.OriginalDst" => Some(ListenerFilterKind::OriginalDst),
        "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector" => Some(ListenerFilterKind::TlsInspector),
        "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector" => Some(ListenerFilterKind::HttpInspector),
        "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol" => {
            let message: proxy_protocol::ProxyProtocol = cx.unpack(any)?;
            Some(ListenerFilterKind::ProxyProtocol { allow_without: message.allow_requests_without_proxy_protocol })
        }
        other => cx.refuse(format!("the listener filter {other} is not implemented")),
    }
}

fn port_predicate(cx: &mut Context<'_>, message: &xds::ListenerFilterChainMatchPredicate) -> Option<PortPredicate> {
    use xds::listener_filter_chain_match_predicate::Rule;
    Some(match &message.rule {
        Some(Rule::AnyMatch(true)) => PortPredicate::Always,
        Some(Rule::AnyMatch(false)) => PortPredicate::Never,
        Some(Rule::OrMatch(set)) => {
            PortPredicate::Or(cx.field("or_match", |cx| cx.list("rules", &set.rules, port_predicate)))
        }
        Some(Rule::AndMatch(set)) => {
            PortPredicate::And(cx.field("and_match", |cx| cx.list("rules", &set.rules, port_predicate)))
        }
        Some(Rule::NotMatch(inner)) => {
            PortPredicate::Not(Box::new(cx.field("not_match", |cx| port_predicate(cx, inner))?))
        }
        Some(Rule::DestinationPortRange(range)) => PortPredicate::Port {
            start: u32::try_from(range.start).unwrap_or(0),
            end: u32::try_from(range.end).unwrap_or(0),
        },
        None => return cx.refuse("a rule is required"),
    })
}

/// `Some(None)`: a filter that does nothing here.
fn network_filter(cx: &mut Context<'_>, message: &xds::Filter) -> Option<Option<NetworkFilter>> {
    use xds::filter::ConfigType;
    match &message.config_type {
        Some(ConfigType::TypedConfig(any)) => cx.field("typed_config", |cx| typed_filter(cx, &message.name, any)),
        Some(ConfigType::ConfigDiscovery(_)) => cx.field("config_discovery", |cx| cx.refuse("is not implemented")),
        None if message.name == "envoy.filters.network.sni_cluster" => Some(Some(NetworkFilter::SniCluster)),
        None => cx.field("typed_config", |cx| cx.refuse("is required")),
    }
}

fn typed_filter(cx: &mut Context<'_>, name: &str, any: &Any) -> Option<Option<NetworkFilter>> {
    let opened = opened(cx, any)?;
    let any: &Any = &opened;
    let filter = match type_name(any) {
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager" => {
            NetworkFilter::Http(Arc::new(super::http::manager(cx, any)?))
        }
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy" => NetworkFilter::Tcp(Arc::new(tcp_proxy(cx, any)?)),
        "envoy.extensions.filters.network.rbac.v3.RBAC" => NetworkFilter::Rbac(Arc::new(network_rbac(cx, any)?)),
        "envoy.extensions.filters.network.sni_cluster.v3.SniCluster" => NetworkFilter::SniCluster,
        "envoy.extensions.filters.network.direct_response.v3.Config" => {
            let message: direct_response::Config = cx.unpack(any)?;
            let bytes = cx.optional("response", message.response.as_ref(), inline_bytes).unwrap_or_default();
            NetworkFilter::DirectResponse(bytes)
        }
        "envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit" => return connection_limit(cx, any),
        "envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit" => {
            NetworkFilter::RateLimit(Arc::new(super::limit::connections(cx, any)?))
        }
        known if SHELL_EXTENSIONS.contains(&known) => NetworkFilter::Extension(extension(cx, name, any)),
        other => return cx.refuse(format!("the network filter {other} is not implemented")),
    };
    Some(Some(filter))
}

/// `Some(None)`: it is switched off.
fn connection_limit(cx: &mut Context<'_>, any: &Any) -> Option<Option<NetworkFilter>> {
    let message: connection_limit::ConnectionLimit = cx.unpack(any)?;
    let Some(max) = message.max_connections.map(|max| max.value).filter(|max| *max > 0) else {
        return cx.field("max_connections", |cx| cx.refuse("must be at least 1"));
    };
    let delay = cx.limit("delay", message.delay.as_ref(), None);
    let enabled = runtime_flag(cx, message.runtime_enabled.as_ref(), true);
    Some(enabled.then(|| NetworkFilter::ConnectionLimit(Arc::new(ConnectionLimit::new(max, delay)))))
}

fn extension(cx: &mut Context<'_>, name: &str, any: &Any) -> Extension {
    Extension { name: cx.share(name), type_url: cx.share(&any.type_url), value: any.value.clone().into() }
}

fn tcp_proxy(cx: &mut Context<'_>, any: &Any) -> Option<TcpProxy> {
    use proto::envoy::r#type::v3::hash_policy::PolicySpecifier;
    let message: tcp::TcpProxy = cx.unpack(any)?;
    let clusters = match &message.cluster_specifier {
        Some(tcp::tcp_proxy::ClusterSpecifier::Cluster(name)) => TcpClusters::One(cx.needed("cluster", name)?),
        Some(tcp::tcp_proxy::ClusterSpecifier::WeightedClusters(several)) => cx.field("weighted_clusters", |cx| {
            let clusters = cx.list("clusters", &several.clusters, |cx, cluster| {
                if cluster.weight == 0 {
                    return cx.field("weight", |cx| cx.refuse("must be at least 1"));
                }
                Some((cx.needed("name", &cluster.name)?, cluster.weight))
            });
            let total = clusters.iter().map(|(_, weight)| u64::from(*weight)).sum();
            if clusters.is_empty() {
                return cx.refuse("at least one cluster is required");
            }
            Some(TcpClusters::Weighted { clusters, total })
        })?,
        None => return cx.refuse("cluster or weighted_clusters is required"),
    };
    let attempts = number(message.max_connect_attempts.as_ref(), 1);
    if attempts == 0 {
        cx.field("max_connect_attempts", |cx| cx.fault("must be at least 1"));
    }
    Some(TcpProxy {
        stat_prefix: cx.share(&message.stat_prefix),
        clusters,
        idle_timeout: cx.limit("idle_timeout", message.idle_timeout.as_ref(), Some(TCP_IDLE_TIMEOUT)),
        max_connect_attempts: attempts,
        max_connection_duration: cx.limit(
            "max_downstream_connection_duration",
            message.max_downstream_connection_duration.as_ref(),
            None,
        ),
        hash_source_ip: message
            .hash_policy
            .iter()
            .any(|policy| matches!(policy.policy_specifier, Some(PolicySpecifier::SourceIp(_)))),
        access_log: cx.list("access_log", &message.access_log, access_log),
    })
}

fn network_rbac(cx: &mut Context<'_>, any: &Any) -> Option<NetworkRbac> {
    let message: rbac::Rbac = cx.unpack(any)?;
    let rules = super::rbac::optional_rules(cx, "rules", message.rules.as_ref());
    let shadow = super::rbac::optional_rules(cx, "shadow_rules", message.shadow_rules.as_ref());
    Some(NetworkRbac {
        rules: rules?,
        shadow: shadow?,
        stat_prefix: cx.share(&message.stat_prefix),
        shadow_stat_prefix: cx.text(&message.shadow_rules_stat_prefix),
        continuous: message.enforcement_type == rbac::rbac::EnforcementType::Continuous as i32,
        delay_deny: cx.limit("delay_deny", message.delay_deny.as_ref(), None),
    })
}
