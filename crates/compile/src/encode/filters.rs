//! Filters by name, wrapped as listeners and HTTP connection managers take them.

use proto::envoy::config::listener::v3::{
    Filter, ListenerFilter, ListenerFilterChainMatchPredicate, filter, listener_filter,
    listener_filter_chain_match_predicate::{MatchSet, Rule},
};
use proto::envoy::extensions::filters::http::cors::v3::Cors;
use proto::envoy::extensions::filters::http::fault::v3::HttpFault;
use proto::envoy::extensions::filters::http::router::v3::Router;
use proto::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use proto::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
use proto::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use proto::envoy::extensions::filters::network::http_connection_manager::v3::{HttpFilter, http_filter};
use proto::envoy::r#type::v3::Int32Range;
use proto::google::protobuf::{Any, Struct};
use proto::istio::typed_struct::TypedStruct;

use super::wire;

/// A network filter.
pub(crate) fn network(name: &str, config: Any) -> Filter {
    Filter { name: name.to_owned(), config_type: Some(filter::ConfigType::TypedConfig(config)) }
}

/// An HTTP filter.
pub(crate) fn http(name: &str, config: Any) -> HttpFilter {
    HttpFilter {
        name: name.to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(config)),
        ..HttpFilter::default()
    }
}

/// A filter of Istio's proxy that a plain Envoy leaves out; its configuration is empty: all by default. It comes as
/// a `TypedStruct`, because Envoy cannot read the JSON of a message it does not know.
fn istio(name: &str, type_name: &str) -> HttpFilter {
    let config = TypedStruct { type_url: format!("type.googleapis.com/{type_name}"), value: Some(Struct::default()) };
    HttpFilter { is_optional: true, ..http(name, wire::any(&config, &wire::FLAT)) }
}

/// Who the peer is, for metrics.
pub(crate) fn peer_metadata() -> HttpFilter {
    istio("istio.peer_metadata", "io.istio.http.peer_metadata.Config")
}

/// Istio's standard metrics.
pub(crate) fn stats() -> HttpFilter {
    istio("istio.stats", "stats.PluginConfig")
}

/// Tells the TLS handshake of the upstream which HTTP is spoken inside.
pub(crate) fn alpn() -> HttpFilter {
    istio("istio.alpn", "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig")
}

/// Cross-origin rules of routes.
pub(crate) fn cors() -> HttpFilter {
    http("envoy.filters.http.cors", wire::any(&Cors {}, &wire::FLAT))
}

/// Faults of routes.
pub(crate) fn fault() -> HttpFilter {
    http("envoy.filters.http.fault", wire::any(&HttpFault::default(), &wire::FLAT))
}

/// The last filter.
pub(crate) fn router() -> HttpFilter {
    http("envoy.filters.http.router", wire::any(&Router::default(), &wire::FLAT))
}

/// Finds TLS and its server and protocol names; not on `except` ports.
pub(crate) fn tls_inspector(except: &[u16]) -> ListenerFilter {
    listener("envoy.filters.listener.tls_inspector", wire::any(&TlsInspector::default(), &wire::FLAT), except)
}

/// Finds HTTP; not on `except` ports.
pub(crate) fn http_inspector(except: &[u16]) -> ListenerFilter {
    listener("envoy.filters.listener.http_inspector", wire::any(&HttpInspector {}, &wire::FLAT), except)
}

/// Finds where a redirected connection was going.
pub(crate) fn original_dst() -> ListenerFilter {
    listener("envoy.filters.listener.original_dst", wire::any(&OriginalDst {}, &wire::FLAT), &[])
}

fn listener(name: &str, config: Any, except: &[u16]) -> ListenerFilter {
    let port = |port: &u16| {
        let start = i32::from(*port);
        Rule::DestinationPortRange(Int32Range { start, end: start + 1 })
    };
    let predicate = |rule| ListenerFilterChainMatchPredicate { rule: Some(rule) };
    let filter_disabled = match except {
        [] => None,
        [only] => Some(predicate(port(only))),
        several => {
            let rules = several.iter().map(|number| predicate(port(number))).collect();
            Some(predicate(Rule::OrMatch(MatchSet { rules })))
        }
    };
    ListenerFilter {
        name: name.to_owned(),
        filter_disabled,
        config_type: Some(listener_filter::ConfigType::TypedConfig(config)),
    }
}
