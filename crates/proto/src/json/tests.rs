//! Messages from text and back, and the places of faults.

use proptest::prelude::*;
use prost::Message;
use serde_json::json;

use super::*;
use crate::envoy::config::core::v3::Node;
use crate::envoy::config::route::v3::{Route, RouteConfiguration, route, route_action};
use crate::envoy::extensions::filters::http::fault::v3::HttpFault;
use crate::envoy::extensions::transport_sockets::tls::v3::Secret;
use crate::istio::stats::PluginConfig;

const BOOTSTRAP: &str = r#"
node: {id: "sidecar~10.0.0.1~web.shop~shop.svc.cluster.local", cluster: web.shop, metadata: {LABELS: {app: web}, PORTS: [1, 2.5, "3"], MESHED: true, NONE: null}}
admin:
  address: {socket_address: {address: 127.0.0.1, port_value: 15000}}
static_resources:
  listeners:
  - name: inbound
    address: &any {socket_address: {address: 0.0.0.0, port_value: 15006}}
    per_connection_buffer_limit_bytes: 32768
    filter_chains:
    - filter_chain_match: {destination_port: 8080, application_protocols: [istio, istio-h2]}
      filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: inbound
          codecType: HTTP1
          stream_idle_timeout: 0.25s
          normalize_path: true
          route_config:
            name: local
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {prefix: /}
                route: {cluster: app, timeout: 15s, retry_policy: {retry_on: 5xx, num_retries: 2}}
                typed_per_filter_config:
                  envoy.filters.http.fault:
                    "@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault
                    abort: {http_status: 503, percentage: {numerator: 10, denominator: HUNDRED}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
  - name: app
    type: STATIC
    connect_timeout: 1s
    load_assignment:
      cluster_name: app
      endpoints:
      - lb_endpoints:
        - endpoint: {address: *any}
          load_balancing_weight: 3
"#;

#[test]
fn a_bootstrap_round_trips_through_yaml_and_json() {
    let (bootstrap, ignored) = parse_bootstrap(BOOTSTRAP, Format::Yaml).expect("a good bootstrap");
    assert_eq!(ignored.len(), 1, "{ignored:?}");
    assert_eq!(ignored[0].path, "static_resources.listeners[0].filter_chains[0].filters[0].typed_config.stat_prefix");
    let yaml = to_yaml(&bootstrap);
    assert_eq!(parse::<Bootstrap>(&yaml, Format::Yaml).as_ref(), Ok(&bootstrap), "{yaml}");
    let json = to_json(&bootstrap).to_string();
    assert_eq!(parse::<Bootstrap>(&json, Format::Json), Ok(bootstrap));
}

#[test]
fn keys_of_any_length_are_read_again() {
    for length in [1, 900, 1000, 1023, 1024, 5000] {
        let key = "k".repeat(length);
        let value = json!({"id": "a", "metadata": {&key: 1, "z": {&key: [1, {&key: {"x": 2}}], "y": {&key: {}}}}});
        let node: Node = parse(&value.to_string(), Format::Json).expect("a node");
        let yaml = to_yaml(&node);
        assert_eq!(parse::<Node>(&yaml, Format::Yaml), Ok(node), "{yaml}");
    }
}

#[test]
fn values_take_their_canonical_form() {
    let (bootstrap, _) = parse_bootstrap(BOOTSTRAP, Format::Yaml).expect("a good bootstrap");
    let json = to_json(&bootstrap);
    let metadata = &json["node"]["metadata"];
    // As Envoy: an unquoted word with a fraction is text where anything may stand.
    assert_eq!(*metadata, json!({"LABELS": {"app": "web"}, "PORTS": [1, "2.5", "3"], "MESHED": true, "NONE": null}));
    let manager = &json["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"];
    assert_eq!(manager["codec_type"], "HTTP1");
    assert_eq!(manager["stream_idle_timeout"], "0.250s");
    assert_eq!(manager["normalize_path"], true);
    let fault = &manager["route_config"]["virtual_hosts"][0]["routes"][0]["typed_per_filter_config"];
    assert_eq!(fault["envoy.filters.http.fault"]["abort"]["http_status"], 503);
    // A default in a oneof or wrapper is written, elsewhere it is not.
    assert!(fault["envoy.filters.http.fault"]["abort"]["percentage"]["denominator"].is_null());
    assert_eq!(
        json["static_resources"]["clusters"][0]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["load_balancing_weight"],
        3
    );
}

#[test]
fn numbers_in_json_stay_numbers() {
    let node: Node = parse(r#"{"metadata": {"a": 2.5, "b": 1}}"#, Format::Json).expect("good");
    assert_eq!(to_json(&node), json!({"metadata": {"a": 2.5, "b": 1}}));
}

fn faults<M: Message + Name + Default>(text: &str) -> Vec<String> {
    parse::<M>(text, Format::Yaml).map_or_else(|faults| faults.iter().map(Fault::to_string).collect(), |_| vec![])
}

#[test]
fn every_fault_is_named_with_its_path_and_place() {
    let text = "name: a\nmatch: {prefx: /}\nroute:\n  cluster: c\n  cluster_header: h\n  timeout: 5\n  retry_policy:\n    num_retries: -1\n    retriable_status_codes: 503\n";
    assert_eq!(
        faults::<Route>(text),
        [
            "2:9: match.prefx: envoy.config.route.v3.RouteMatch has no field `prefx`; did you mean `prefix`?",
            "5:3: route.cluster_header: only one of `cluster` and `cluster_header` can be set",
            "6:12: route.timeout: expected seconds as in `0.25s`, found `5`",
            "8:18: route.retry_policy.num_retries: expected an integer from 0 to 4294967295, found `-1`",
            "9:29: route.retry_policy.retriable_status_codes: expected a list, found `503`",
        ]
    );
}

#[test]
fn faults_inside_any_and_maps_keep_their_path() {
    let text = r#"
match: {prefix: /}
non_forwarding_action: {}
typed_per_filter_config:
  fault:
    "@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault
    abort: {percentage: {denominator: HUNDREDS}}
  other: {"@type": type.googleapis.com/envoy.filters.HTTPFault}
  third: {abort: {}}
"#;
    assert_eq!(
        faults::<Route>(text),
        [
            "7:39: typed_per_filter_config[\"fault\"].abort.percentage.denominator: `HUNDREDS` is none of the values of \
             envoy.type.v3.FractionalPercent.DenominatorType: HUNDRED, TEN_THOUSAND, MILLION",
            "8:20: typed_per_filter_config[\"other\"]: no message type is called `envoy.filters.HTTPFault`; did you mean \
             `envoy.extensions.filters.http.fault.v3.HTTPFault`?",
            "9:10: typed_per_filter_config[\"third\"]: `@type` is missing: it names the message these fields are of",
        ]
    );
}

#[test]
fn syntax_errors_have_a_place() {
    let yaml = parse::<Node>("id: a\ncluster: [b\n", Format::Yaml).expect_err("not closed");
    assert!(yaml[0].line >= 2 && yaml[0].path.is_empty(), "{yaml:?}");
    let json = parse::<Node>("{\"id\": \"a\",\n \"cluster\" }", Format::Json).expect_err("no colon");
    assert_eq!((json[0].line, json[0].column), (2, 12), "{json:?}");
    let json = parse::<Node>("\n{\"id\": \"é\", \"nope\": 1, \"neither\": 2}", Format::Json).expect_err("unknown");
    let places: Vec<_> = json.iter().map(|fault| (fault.line, fault.column)).collect();
    assert_eq!(places, [(2, 13), (2, 24)], "{json:?}");
    assert_eq!(faults::<Node>("id: a\n---\nid: b\n"), ["2:1: a second document: one is expected"]);
    assert_eq!(faults::<Node>("id: a\nid: b\n"), ["2:1: id: this field was given before"]);
    assert_eq!(faults::<Node>("id: 12\n"), ["1:5: id: expected a text, found `12`: put it in quotes"]);
}

#[test]
fn aliases_cannot_grow_without_bound() {
    let mut text = "metadata:\n  a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let before = format!("*a{}", level - 1);
        text += &format!("  a{level}: &a{level} [{}]\n", vec![before; 10].join(", "));
    }
    let faults = faults::<Node>(&text);
    assert!(faults[0].ends_with("too many values"), "{faults:?}");
}

#[test]
fn a_refused_field_of_a_bootstrap_is_named_with_its_place() {
    let text =
        "static_resources:\n  clusters:\n  - name: a\n    health_checks:\n    - custom_health_check: {name: x}\n";
    let faults = parse_bootstrap(text, Format::Yaml).expect_err("other checks are refused");
    assert_eq!(faults.len(), 1);
    assert_eq!(faults[0].path, "static_resources.clusters[0].health_checks[0].custom_health_check");
    assert_eq!((faults[0].line, faults[0].column), (5, 7));
}

#[test]
fn secrets_are_redacted_on_request() {
    let text = "name: default\ntls_certificate: {certificate_chain: {inline_string: PUBLIC}, private_key: {inline_string: PRIVATE}}\n";
    let secret: Secret = parse(text, Format::Yaml).expect("good");
    let shown = to_json_redacted(&secret).to_string();
    assert!(shown.contains("PUBLIC") && shown.contains("[redacted]") && !shown.contains("PRIVATE"), "{shown}");
    assert!(to_json(&secret).to_string().contains("PRIVATE"));
}

#[test]
fn istio_messages_have_json_too() {
    let any = crate::pack_any(PluginConfig { disable_host_header_fallback: true, ..PluginConfig::default() });
    let json = any_to_json(&any);
    assert_eq!(json, json!({"@type": "type.googleapis.com/stats.PluginConfig", "disable_host_header_fallback": true}));
    let back = parse_named("google.protobuf.Any", &json.to_string(), Format::Json).expect("good");
    assert_eq!(back, any.encode_to_vec());
}

#[test]
fn an_unknown_message_in_any_is_shown_as_bytes() {
    let any = Any { type_url: "type.googleapis.com/nobody.Knows".to_owned(), value: b"\x08\x01".to_vec() };
    assert_eq!(any_to_json(&any), json!({"@type": "type.googleapis.com/nobody.Knows", "@bytes": "CAE="}));
}

#[test]
fn oneof_members_keep_their_default_value() {
    let route: Route = parse("match: {prefix: ''}\nroute: {cluster: ''}", Format::Yaml).expect("good");
    let Some(route::Action::Route(action)) = route.action else { panic!("a route") };
    assert_eq!(action.cluster_specifier, Some(route_action::ClusterSpecifier::Cluster(String::new())));
}

proptest! {
    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = to_json_named("envoy.config.bootstrap.v3.Bootstrap", &bytes);
        let _ = to_json_named("google.protobuf.Any", &bytes);
        let text = String::from_utf8_lossy(&bytes);
        let _ = parse::<RouteConfiguration>(&text, Format::Yaml);
        let _ = parse::<RouteConfiguration>(&text, Format::Json);
    }

    #[test]
    fn broken_bootstraps_never_panic(at in 0..BOOTSTRAP.len(), junk in "[ -~\n]{0,6}") {
        let mut text = BOOTSTRAP.to_owned();
        text.replace_range(at..(at + 1), &junk);
        if let Err(faults) = parse_bootstrap(&text, Format::Yaml) {
            prop_assert!(!faults.is_empty());
        }
    }

    #[test]
    fn texts_survive_yaml(text in any::<String>()) {
        let node = Node { id: text, ..Node::default() };
        prop_assert_eq!(parse::<Node>(&to_yaml(&node), Format::Yaml), Ok(node));
    }

    #[test]
    fn what_is_read_is_what_was_written(status in 200_u32..600, delay in 0_u32..100_000, header in "[a-z-]{1,8}") {
        let text = format!("delay: {{fixed_delay: {}.{:03}s}}\nabort: {{http_status: {status}}}\nheaders: [{{name: {header:?}, string_match: {{exact: x}}}}]", delay / 1000, delay % 1000);
        let fault: HttpFault = parse(&text, Format::Yaml).map_err(|faults| TestCaseError::fail(format!("{faults:?}")))?;
        prop_assert_eq!(parse::<HttpFault>(&to_json(&fault).to_string(), Format::Json), Ok(fault));
    }
}
