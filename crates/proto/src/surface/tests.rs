//! The table and the walk over wire bytes.

use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::json::{Format, parse_named};
use crate::type_url;

/// Wire bytes of a message written as YAML, and what the walk finds in them.
fn findings(type_url: &str, yaml: &str) -> Findings {
    let bytes = parse_named(message_name(type_url), yaml, Format::Yaml).expect("a well-formed message");
    check_any(type_url, &bytes)
}

fn refused(type_url: &str, yaml: &str) -> Vec<String> {
    findings(type_url, yaml).refused.iter().map(FieldPath::to_string).collect()
}

#[test]
fn a_listener_of_honoured_fields_has_no_findings() {
    let yaml = "name: a\naddress: {socket_address: {address: 0.0.0.0, port_value: 1}}\nuse_original_dst: true\n";
    assert_eq!(findings(type_url::LISTENER, yaml), Findings::default());
}

#[test]
fn a_refused_field_is_found_at_any_depth() {
    let yaml = r#"
name: a
filter_chains:
- {}
- filters:
  - name: hcm
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: x
      route_config:
        virtual_hosts:
        - name: v
          routes:
          - match: {prefix: /}
            route: {cluster: c, hedge_policy: {initial_requests: 2}}
            typed_per_filter_config:
              f: {"@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, response_rate_limit: {}}
"#;
    let chain = "filter_chains[1].filters[0].typed_config";
    let route = format!("{chain}.route_config.virtual_hosts[0].routes[0]");
    let found = findings(type_url::LISTENER, yaml);
    let refused: Vec<String> = found.refused.iter().map(FieldPath::to_string).collect();
    assert_eq!(
        refused,
        [
            format!("{route}.route.hedge_policy: hedging comes later"),
            format!("{route}.typed_per_filter_config[\"f\"].response_rate_limit: not implemented"),
        ]
    );
    assert_eq!(found.ignored.len(), 1);
    assert_eq!(found.ignored[0].path, format!("{chain}.stat_prefix"));
    assert_eq!(found.refusal(), Some(refused.join("; ")));
}

#[test]
fn an_unknown_type_is_refused_unless_it_is_optional() {
    let filter = |optional: bool| {
        format!(
            "http_filters: [{{name: a, is_optional: {optional}, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua}}}}]"
        )
    };
    let manager = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let plain = findings(manager, &filter(false));
    assert_eq!(plain.refused[0].path, "http_filters[0].typed_config");
    assert!(plain.refused[0].reason.contains("envoy.extensions.filters.http.lua.v3.Lua"));
    let optional = findings(manager, &filter(true));
    assert!(optional.is_acceptable());
    assert_eq!(optional.ignored[0].path, "http_filters[0].typed_config");
}

#[test]
fn a_field_number_that_nobody_knows_is_refused() {
    let mut bytes = Vec::new();
    crate::wire::put_bytes(&mut bytes, 5000, b"x");
    let found = check_any(type_url::CLUSTER, &bytes);
    assert_eq!(found.refused[0].to_string(), "#5000: no such field is known");
}

#[test]
fn a_type_outside_the_table_is_refused() {
    assert!(!check_any("type.googleapis.com/nobody.Knows", b"").is_acceptable());
    assert!(!check_any("type.googleapis.com/envoy.config.route.v3.HedgePolicy", b"").is_acceptable());
    assert_eq!(refused(type_url::CLUSTER, "name: a\npreconnect_policy: {predictive_preconnect_ratio: 1.5}").len(), 1);
}

#[test]
fn a_wrong_wire_type_and_cut_bytes_are_refused() {
    // Cluster.name (1) as a number.
    assert_eq!(check_any(type_url::CLUSTER, b"\x08\x01").refused[0].path, "name");
    assert_eq!(check_any(type_url::CLUSTER, b"\x0a\x05a").refused[0].reason, "these bytes are not protobuf");
}

#[test]
fn what_a_typed_struct_stands_for_is_checked() {
    let filter = "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter";
    let of = |type_url: &str, value: &str| {
        let yaml = format!(
            "name: x\ntyped_config: {{\"@type\": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: {type_url}, value: {value}}}"
        );
        check_any(filter, &parse_named(filter, &yaml, Format::Yaml).expect("YAML"))
    };
    let ignored = of("type.googleapis.com/stats.PluginConfig", "{disable_host_header_fallback: true}");
    assert!(ignored.is_acceptable());
    assert_eq!(ignored.ignored[0].path, "typed_config.disable_host_header_fallback");
    let refused =
        of("type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault", "{response_rate_limit: {}}");
    assert_eq!(refused.refused[0].path, "typed_config.response_rate_limit");
    assert_eq!(of("type.googleapis.com/no.Such", "{}").refused[0].path, "typed_config");
}

#[test]
fn depth_is_bounded() {
    // Matcher inside matcher: and_match.rules.not_match...
    let mut bytes = Vec::new();
    for _ in 0..500 {
        let mut outer = Vec::new();
        crate::wire::put_bytes(&mut outer, 3, &bytes);
        bytes = outer;
    }
    let found = check_any("envoy.config.listener.v3.ListenerFilterChainMatchPredicate", &bytes);
    assert_eq!(found.refused[0].reason, "nested too deeply");
}

#[test]
fn the_page_tells_of_every_listed_message() {
    let mut asked = Coverage::default();
    let yaml = "name: a\nfilter_chains: [{filter_chain_match: {transport_protocol: tls}}]";
    asked.add(type_url::LISTENER, &parse_named(message_name(type_url::LISTENER), yaml, Format::Yaml).expect("YAML"));
    assert!(asked.has("envoy.config.listener.v3.FilterChainMatch", "transport_protocol"));
    assert_eq!(asked.count().0, 4);
    let page = reference_page(&asked);
    assert!(page.contains("## envoy.config.listener.v3.Listener\n"));
    assert!(page.contains("- `filter_chain_matcher`: the matcher API comes later; use filter_chain_match"));
    assert!(page.contains("Not implemented, so refused: "));
    assert!(page.contains("Asked: 4 of "));
}

#[test]
fn every_message_that_an_honoured_field_holds_is_in_the_table() {
    let mut missing = Vec::new();
    for message in MessageType::all().filter(|message| message.listed()) {
        for field in message.fields().filter(|field| field.status() == Status::Honoured) {
            let Kind::Message(of) = field.kind() else { continue };
            let of = if field.is_map() { of.field_numbered(2).map(FieldType::kind) } else { Some(Kind::Message(of)) };
            let Some(Kind::Message(of)) = of else { continue };
            if !of.listed() && of.special() == Special::None {
                missing.push(format!("{}.{} holds {}", message.name(), field.name(), of.name()));
            }
        }
    }
    assert!(missing.is_empty(), "listed as honoured, but nothing inside would be:\n{}", missing.join("\n"));
}

proptest! {
    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        for url in [type_url::LISTENER, type_url::CLUSTER, type_url::BOOTSTRAP, "google.protobuf.Any", ""] {
            let found = check_any(url, &bytes);
            // Whatever the typed decode cannot read, the walk refuses too.
            if url == type_url::CLUSTER && crate::envoy::config::cluster::v3::Cluster::decode(&bytes[..]).is_err() {
                prop_assert!(!found.is_acceptable());
            }
        }
    }
}
