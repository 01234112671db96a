//! How resources become plans: all or nothing, warming, sharing, errors with paths.

use std::sync::Arc;

use engine::{Store, Update};
use proptest::prelude::*;
use proto::envoy::config::{
    endpoint::v3::ClusterLoadAssignment, listener::v3::Listener, route::v3::RouteConfiguration,
};
use proto::type_url::{CLUSTER, ENDPOINTS, LISTENER, ROUTE, SECRET};

use crate::world::{cluster, connection, listener, update};

const RDS: &str = r#"
name: in
address: {socket_address: {address: 0.0.0.0, port_value: 8080}}
bind_to_port: false
filter_chains:
  - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          rds: {route_config_name: "8080", config_source: {ads: {}}}
          http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
"#;

fn eds_cluster(name: &str) -> Update {
    let text =
        format!("name: {name}\ntype: EDS\neds_cluster_config: {{service_name: s-{name}, eds_config: {{ads: {{}}}}}}");
    update::<proto::envoy::config::cluster::v3::Cluster>(CLUSTER, name, &text)
}

fn assignment(name: &str, last: u8) -> Update {
    let text = format!(
        "cluster_name: {name}\nendpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 10.0.0.{last}, port_value: 80}}}}}}}}]}}]"
    );
    update::<ClusterLoadAssignment>(ENDPOINTS, name, &text)
}

fn all_good(store: &mut Store, updates: &[Update]) {
    for outcome in store.apply(updates) {
        outcome.unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn listeners_wait_for_routes_and_clusters_for_endpoints() {
    let mut store = Store::new();
    all_good(&mut store, &[eds_cluster("a"), update::<Listener>(LISTENER, "in", RDS)]);
    assert_eq!(store.wanted_routes(), [Arc::from("8080")]);
    assert_eq!(store.wanted_endpoints(), [Arc::from("s-a")]);
    assert!(store.plan().cluster("a").is_none() && store.plan().listener("in").is_none());
    assert_eq!(store.warming().len(), 2);
    all_good(&mut store, &[assignment("s-a", 1)]);
    assert_eq!(store.plan().cluster("a").expect("cluster").endpoints.len(), 1);
    all_good(&mut store, &[update::<RouteConfiguration>(ROUTE, "8080", "name: '8080'")]);
    let plan = store.plan();
    assert!(plan.listener_for("10.1.2.3:8080".parse().expect("address")).is_some());
    assert!(plan.listener_for("10.1.2.3:8081".parse().expect("address")).is_none());
    assert!(store.warming().is_empty());
}

#[test]
fn waiting_ends_when_the_caller_says_so() {
    let mut store = Store::new();
    all_good(&mut store, &[eds_cluster("a"), update::<Listener>(LISTENER, "in", RDS)]);
    store.stop_waiting();
    let plan = store.plan();
    assert!(plan.cluster("a").expect("cluster").endpoints.is_empty());
    assert!(plan.listener("in").is_some() && store.warming().is_empty());
}

const SEALED_LISTENER: &str = r#"
name: sealed
address: {socket_address: {address: 0.0.0.0, port_value: 9000}}
filter_chains:
  - filters:
      - name: tcp
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: in
          cluster: sealed
    transport_socket:
      name: tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
        common_tls_context:
          tls_certificate_sds_secret_configs:
            - {name: own, sds_config: {path_config_source: {path: /run/own.yaml}, resource_api_version: V3}}
"#;

const SEALED_CLUSTER: &str = r#"
name: sealed
type: STATIC
load_assignment:
  cluster_name: sealed
  endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 10.0.0.1, port_value: 80}}}}]}]
transport_socket:
  name: tls
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
    common_tls_context:
      validation_context_sds_secret_config: {name: roots, sds_config: {ads: {}, resource_api_version: V3}}
"#;

#[test]
fn nothing_comes_into_force_before_its_secrets() {
    use proto::envoy::config::cluster::v3::Cluster;
    use proto::envoy::extensions::transport_sockets::tls::v3::Secret;
    let mut store = Store::new();
    let listener = update::<Listener>(LISTENER, "sealed", SEALED_LISTENER);
    all_good(&mut store, &[listener, update::<Cluster>(CLUSTER, "sealed", SEALED_CLUSTER)]);
    assert_eq!(store.wanted_secrets(), [Arc::from("roots")]);
    assert_eq!(store.secrets().len(), 2);
    assert!(store.plan().cluster("sealed").is_none() && store.plan().listener("sealed").is_none());
    let own = store.secrets().into_iter().find(|secret| *secret.name == *"own").expect("the listener's own");
    store.delivered(&own);
    assert!(store.plan().listener("sealed").is_none(), "the first listener waits for the cluster too");
    let roots = "name: roots\nvalidation_context: {trusted_ca: {inline_string: roots}}";
    all_good(&mut store, &[update::<Secret>(SECRET, "roots", roots)]);
    assert!(store.plan().cluster("sealed").is_some() && store.plan().listener("sealed").is_some());
    assert!(store.warming().is_empty());
    // A new version with another secret: the old one serves until that has come, or until it is let go.
    let before = store.plan().listener("sealed").expect("listener").version;
    let next = SEALED_LISTENER.replace("own.yaml", "other.yaml");
    all_good(&mut store, &[update::<Listener>(LISTENER, "sealed", &next)]);
    assert_eq!(store.plan().listener("sealed").expect("listener").version, before);
    assert_eq!(store.warming(), [(Arc::from(LISTENER), Arc::from("sealed"))]);
    let warming = store.warming();
    store.release(&warming);
    assert_ne!(store.plan().listener("sealed").expect("listener").version, before);
}

#[test]
fn what_did_not_change_is_shared() {
    let mut store = Store::new();
    let world = listener("- {name: v, domains: ['*']}", "", "");
    all_good(
        &mut store,
        &[cluster("a", ""), eds_cluster("e"), assignment("s-e", 1), update::<Listener>(LISTENER, "in", &world)],
    );
    let before = store.plan();
    let counter = before.cluster("e").expect("cluster").endpoints.iter().next().expect("one").state.clone();
    all_good(&mut store, &[cluster("a", ""), assignment("s-e", 1), update::<Listener>(LISTENER, "in", &world)]);
    let after = store.plan();
    assert!(Arc::ptr_eq(before.cluster("a").expect("a"), after.cluster("a").expect("a")));
    assert!(Arc::ptr_eq(before.cluster("e").expect("e"), after.cluster("e").expect("e")));
    assert!(Arc::ptr_eq(before.listener("in").expect("in"), after.listener("in").expect("in")));
    all_good(&mut store, &[assignment("s-e", 2), assignment("s-e", 1)]);
    all_good(&mut store, &[assignment("s-e", 2)]);
    all_good(&mut store, &[cluster("a", "metadata: {filter_metadata: {tulle: {origin: x}}}")]);
    let changed = store.plan();
    assert!(!Arc::ptr_eq(before.cluster("a").expect("a"), changed.cluster("a").expect("a")));
    assert!(Arc::ptr_eq(&before.cluster("a").expect("a").state, &changed.cluster("a").expect("a").state));
    assert_eq!(changed.cluster("a").expect("a").config.metadata.origin().map(|o| &**o), Some("x"));
    drop(counter);
}

#[test]
fn an_endpoint_keeps_its_state_over_updates() {
    let mut store = Store::new();
    all_good(&mut store, &[eds_cluster("e"), assignment("s-e", 1)]);
    let first = store.plan().cluster("e").expect("e").endpoints.iter().next().expect("one").clone();
    let two = "cluster_name: s-e\nendpoints: [{lb_endpoints: [
      {endpoint: {address: {socket_address: {address: 10.0.0.1, port_value: 80}}}, load_balancing_weight: 2},
      {endpoint: {address: {socket_address: {address: 10.0.0.2, port_value: 80}}}}]}]";
    all_good(&mut store, &[update::<ClusterLoadAssignment>(ENDPOINTS, "s-e", two)]);
    let plan = store.plan();
    let again = plan.cluster("e").expect("e").endpoints.iter().next().expect("one").clone();
    assert!(!Arc::ptr_eq(&first, &again) && Arc::ptr_eq(&first.state, &again.state));
}

#[test]
fn a_bad_resource_leaves_the_last_good_one() {
    let mut store = Store::new();
    all_good(&mut store, &[cluster("a", "")]);
    let bad = cluster("a", "outlier_detection: {max_ejection_percent: 200}");
    let results = store.apply(&[bad, cluster("b", "")]);
    let error = results[0].as_ref().expect_err("refused").to_string();
    assert_eq!(error, r#"Cluster "a": outlier_detection.max_ejection_percent: must be at most 100"#);
    assert!(results[1].is_ok());
    assert!(store.plan().cluster("a").expect("a").config.outlier.is_none());
    assert!(store.plan().cluster("b").is_some());
}

#[test]
fn every_fault_has_its_path() {
    let hosts = r#"
- name: v
  domains: ["x", "x"]
  routes:
    - {match: {safe_regex: {regex: "("}}, route: {cluster: a}}
    - {match: {prefix: /}, route: {cluster: a, retry_policy: {retry_on: "5xx,nonsense"}}}
"#;
    let mut store = Store::new();
    let error =
        store.apply(&[update::<Listener>(LISTENER, "in", &listener(hosts, "", ""))]).remove(0).expect_err("refused");
    let paths: Vec<&str> = error.faults.iter().map(|fault| fault.path.as_str()).collect();
    let table = "filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0]";
    assert_eq!(
        paths,
        [
            format!("{table}.routes[0].match.safe_regex.regex"),
            format!("{table}.routes[1].route.retry_policy.retry_on"),
            format!("{table}.domains[1]"),
        ]
    );
    assert!(store.plan().listener("in").is_none());
}

#[test]
fn clusters_must_exist_where_that_is_asked() {
    let text = listener("- {name: v, domains: ['*'], routes: [{match: {prefix: /}, route: {cluster: none}}]}", "", "");
    let strict = text.replace("validate_clusters: false", "validate_clusters: true");
    let error = Store::new().apply(&[update::<Listener>(LISTENER, "in", &strict)]).remove(0).expect_err("refused");
    assert!(error.to_string().contains(r#"virtual_hosts[0].routes[0]: there is no cluster "none""#), "{error}");
}

#[test]
fn names_are_resolved_by_the_caller() {
    let text = "name: d\ntype: STRICT_DNS\nload_assignment:\n  cluster_name: d\n  endpoints:\n    - lb_endpoints:\n        - endpoint: {address: {socket_address: {address: svc.test, port_value: 80}}}";
    let mut store = Store::new();
    all_good(&mut store, &[update::<proto::envoy::config::cluster::v3::Cluster>(CLUSTER, "d", text)]);
    assert_eq!(store.names_to_resolve(), [(Arc::from("d"), Arc::from("svc.test"), 80)]);
    assert!(store.plan().cluster("d").is_none());
    let addresses = ["10.0.0.1:80".parse().expect("address"), "10.0.0.2:80".parse().expect("address")];
    store.resolved("d", "svc.test", 80, &addresses);
    let plan = store.plan();
    let endpoints: Vec<_> = plan
        .cluster("d")
        .expect("d")
        .endpoints
        .iter()
        .map(|e| (e.address.to_string(), e.hostname.to_string()))
        .collect();
    assert_eq!(
        endpoints,
        [("10.0.0.1:80".into(), "svc.test".into()), ("10.0.0.2:80".to_string(), "svc.test".to_string())]
    );
    store.resolved("d", "svc.test", 80, &[]);
    assert_eq!(store.plan().cluster("d").expect("d").endpoints.len(), 2, "a failed lookup changes nothing");
}

#[test]
fn chains_are_chosen_in_envoys_order() {
    let tcp = |name: &str, rule: &str| {
        format!(
            "  - name: {name}\n    filter_chain_match: {rule}\n    filters: [{{name: t, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: a}}}}]\n"
        )
    };
    let chains: String = [
        ("port", "{destination_port: 81}"),
        ("port-alpn", "{destination_port: 82, application_protocols: [istio]}"),
        ("wide", "{prefix_ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}]}"),
        ("narrow", "{prefix_ranges: [{address_prefix: 10.9.0.0, prefix_len: 16}], server_names: [only.test]}"),
        ("exact-name", "{server_names: [www.a.test]}"),
        ("wild-name", "{server_names: ['*.a.test']}"),
        ("tls", "{transport_protocol: tls}"),
        ("alpn", "{transport_protocol: tls, application_protocols: [h2]}"),
        ("local", "{source_type: SAME_IP_OR_LOOPBACK}"),
        ("from", "{source_prefix_ranges: [{address_prefix: 198.51.100.0, prefix_len: 24}]}"),
        ("from-port", "{source_prefix_ranges: [{address_prefix: 198.51.100.0, prefix_len: 24}], source_ports: [7]}"),
        ("rest", "{}"),
    ]
    .iter()
    .map(|(name, rule)| tcp(name, rule))
    .collect();
    let text =
        format!("name: in\naddress: {{socket_address: {{address: 0.0.0.0, port_value: 1}}}}\nfilter_chains:\n{chains}");
    let mut store = Store::new();
    all_good(&mut store, &[update::<Listener>(LISTENER, "in", &text)]);
    let plan = store.plan();
    let table = &plan.listener("in").expect("in").chains;
    let pick = |change: &dyn Fn(&mut engine::ConnectionFacts)| {
        let mut facts = connection();
        facts.local = "172.16.0.1:80".parse().expect("address");
        change(&mut facts);
        table.pick(&facts).map(|chain| chain.name.to_string())
    };
    let is = |name: &str| Some(name.to_owned());
    assert_eq!(pick(&|f| f.local.set_port(81)), is("port"));
    assert_eq!(pick(&|f| f.local.set_port(82)), None, "a port that has chains never falls back");
    assert_eq!(pick(&|f| f.local = "10.1.1.1:80".parse().expect("address")), is("wide"));
    assert_eq!(pick(&|f| f.local = "10.9.1.1:80".parse().expect("address")), None);
    assert_eq!(pick(&|f| f.server_name = Some("www.a.test".into())), is("exact-name"));
    assert_eq!(pick(&|f| f.server_name = Some("x.y.a.test".into())), is("wild-name"));
    assert_eq!(pick(&|f| f.server_name = Some("a.test".into())), is("rest"));
    assert_eq!(pick(&|f| f.tls = true), is("tls"));
    assert_eq!(pick(&|f| (f.tls, f.application_protocols) = (true, vec!["h3".into(), "h2".into()])), is("alpn"));
    assert_eq!(pick(&|f| f.remote = "127.0.0.1:9".parse().expect("address")), is("local"));
    assert_eq!(pick(&|f| f.remote = "198.51.100.4:8".parse().expect("address")), is("from"));
    assert_eq!(pick(&|f| f.remote = "198.51.100.4:7".parse().expect("address")), is("from-port"));
    assert_eq!(pick(&|_| ()), is("rest"));
    let twice = format!("{text}{}", tcp("again", "{destination_port: 81}"));
    let error = Store::new().apply(&[update::<Listener>(LISTENER, "in", &twice)]).remove(0).expect_err("refused");
    assert!(
        error.to_string().contains("filter_chains[12]: has the same matching rules as filter_chains[0]"),
        "{error}"
    );
}

proptest! {
    #[test]
    fn garbage_never_panics(kind in 0usize..5, bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let type_url = [LISTENER, CLUSTER, ROUTE, ENDPOINTS, SECRET][kind];
        let update = Update { type_url: type_url.into(), name: "x".into(), body: Some(bytes.into()) };
        let _ = Store::new().apply(&[update]);
    }

    #[test]
    fn damaged_resources_never_panic(at in 0usize..2000, byte in any::<u8>()) {
        let mut update = update::<Listener>(LISTENER, "in", &listener(
            "- {name: v, domains: ['a.*', '*'], routes: [{match: {prefix: /}, route: {cluster: a, retry_policy: {retry_on: 5xx}}}]}", "", ""));
        let mut bytes = update.body.take().expect("body").to_vec();
        let at = at % bytes.len();
        bytes[at] = byte;
        update.body = Some(bytes.into());
        let mut store = Store::new();
        let _ = store.apply(&[update]);
        let _ = store.plan().listeners().count();
    }
}

#[test]
fn a_network_namespace_is_for_listeners_and_sources_and_nothing_else() {
    let mut store = Store::new();
    let placed = RDS.replace("port_value: 8080}}", "port_value: 8080, network_namespace_filepath: /run/a/netns}}");
    let bound = "name: a\nupstream_bind_config: {source_address: {address: 0.0.0.0, port_value: 0, network_namespace_filepath: /run/a/netns}}";
    all_good(
        &mut store,
        &[
            update::<proto::envoy::config::cluster::v3::Cluster>(CLUSTER, "a", bound),
            update::<Listener>(LISTENER, "in", &placed),
            update::<RouteConfiguration>(ROUTE, "8080", "name: '8080'"),
        ],
    );
    let (plan, file) = (store.plan(), std::path::Path::new("/run/a/netns"));
    assert_eq!(plan.listener("in").expect("listener").namespace.as_deref(), Some(file));
    let config = &plan.cluster("a").expect("cluster").config;
    assert_eq!((config.source_namespace.as_deref(), config.source_address), (Some(file), None));

    let several = placed.replace(
        "bind_to_port",
        "additional_addresses: [{address: {socket_address: {address: 127.0.0.2, port_value: 8080}}}]\nbind_to_port",
    );
    let refused = |update: Update| Store::new().apply(&[update]).remove(0).expect_err("refused").to_string();
    let error = refused(update::<Listener>(LISTENER, "in", &several));
    assert!(error.contains("additional_addresses[0].address.socket_address.network_namespace_filepath"), "{error}");
    let endpoint = "name: a\nload_assignment: {cluster_name: a, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 10.0.0.1, port_value: 80, network_namespace_filepath: /run/a/netns}}}}]}]}";
    let error = refused(update::<proto::envoy::config::cluster::v3::Cluster>(CLUSTER, "a", endpoint));
    assert!(error.contains("address.socket_address.network_namespace_filepath"), "{error}");
}
