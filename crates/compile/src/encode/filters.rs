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
use proto::google::protobuf::{Any, Struct, Value, value::Kind};
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

/// A filter of Istio's proxy that a plain Envoy leaves out. It comes as a `TypedStruct`, because Envoy cannot read the JSON of a
/// message it does not know.
fn istio(name: &str, type_name: &str, value: Struct) -> HttpFilter {
    let config = TypedStruct { type_url: format!("type.googleapis.com/{type_name}"), value: Some(value) };
    HttpFilter { is_optional: true, ..http(name, wire::any(&config, &wire::TYPED_STRUCT)) }
}

/// Who the peer is, for metrics.
pub(crate) fn peer_metadata() -> HttpFilter {
    istio("istio.peer_metadata", "io.istio.http.peer_metadata.Config", Struct::default())
}

/// Istio's standard metrics.
pub(crate) fn stats() -> HttpFilter {
    istio("istio.stats", "stats.PluginConfig", Struct::default())
}

/// Tells the TLS handshake of the upstream which HTTP is spoken inside. Names of the field itself stand last: what goes out of the
/// mesh has an ALPN that anybody knows.
pub(crate) fn alpn() -> HttpFilter {
    let of = |protocol: &str, names: [&str; 3]| {
        let names = wire::list(names.map(wire::text));
        wire::tree([("upstreamProtocol", wire::text(protocol)), ("alpnOverride", names)])
    };
    let all = [
        of("HTTP10", ["istio-http/1.0", "istio", "http/1.0"]),
        of("HTTP11", ["istio-http/1.1", "istio", "http/1.1"]),
        of("HTTP2", ["istio-h2", "istio", "h2"]),
    ];
    let all = all.map(|one| Value { kind: Some(Kind::StructValue(one)) });
    let config = wire::tree([("alpnOverride", wire::list(all))]);
    istio("istio.alpn", "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig", config)
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

#[cfg(test)]
mod tests {
    use prost::Message;
    use proto::istio::alpn::FilterConfig;

    use super::*;

    #[test]
    fn what_the_filter_is_told_can_be_read() {
        // An optional filter whose configuration cannot be read is left out, and nobody would notice.
        let Some(http_filter::ConfigType::TypedConfig(any)) = alpn().config_type else { panic!("a configuration") };
        let opened = proto::typed_struct::open(&any.type_url, &any.value).unwrap().unwrap();
        let config = FilterConfig::decode(opened.value.as_slice()).unwrap();
        let told: Vec<_> =
            config.alpn_override.iter().map(|one| (one.upstream_protocol, one.alpn_override.join(" "))).collect();
        let expected = ["istio-http/1.0 istio http/1.0", "istio-http/1.1 istio http/1.1", "istio-h2 istio h2"];
        assert_eq!(
            told,
            expected.iter().enumerate().map(|(n, names)| (n as i32, (*names).to_owned())).collect::<Vec<_>>()
        );
    }
}
