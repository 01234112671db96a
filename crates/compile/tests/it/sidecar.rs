//! The shape of what one sidecar gets.

use crate::world::{manager, resource, routes, shop, whole};

const SPLIT: &str = r#"
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: catalog, namespace: shop}
spec:
  host: catalog
  trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}, connectionPool: {http: {h2UpgradePolicy: UPGRADE}}}
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: catalog, namespace: shop}
spec:
  hosts: [catalog]
  http:
    - match: [{headers: {user: {exact: amy}}}]
      route: [{destination: {host: catalog, subset: v2}}]
    - route:
        - {destination: {host: catalog, subset: v1}, weight: 90}
        - {destination: {host: catalog, subset: v2}, weight: 10}
"#;

#[test]
fn a_split_becomes_a_header_route_and_weighted_clusters() {
    insta::assert_snapshot!(proto::json::value_to_yaml(&routes(
        &shop(SPLIT),
        "web-1.shop",
        "catalog.shop.svc.cluster.local"
    )));
}

#[test]
fn a_subset_is_a_cluster_of_its_endpoints_with_mesh_tls() {
    let snapshot = whole(&shop(SPLIT), "web-1.shop");
    let cluster = resource(&snapshot.clusters, "outbound|80|v2|catalog.shop.svc.cluster.local");
    insta::assert_snapshot!(proto::json::value_to_yaml(&cluster));
}

#[test]
fn an_inbound_port_takes_mesh_tls_and_plaintext_until_it_is_strict() {
    let policy = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: callers, namespace: shop}
spec:
  selector: {matchLabels: {app: catalog}}
  rules:
    - from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]
      to: [{operation: {methods: [GET], paths: [/items*]}}]
"#;
    let snapshot = whole(&shop(policy), "catalog-1.shop");
    let listener = resource(&snapshot.listeners, "inbound|8080||");
    insta::assert_snapshot!(proto::json::value_to_yaml(&listener));
    let strict = format!("{policy}---\n{}", peer_authentication("shop", "STRICT"));
    let snapshot = whole(&shop(&strict), "catalog-1.shop");
    let listener = resource(&snapshot.listeners, "inbound|8080||");
    let chains = listener["filter_chains"].as_array().unwrap();
    assert_eq!(chains.len(), 1);
    assert_eq!(chains[0]["transport_socket"]["typed_config"]["require_client_certificate"], true);
}

fn peer_authentication(namespace: &str, mode: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: default, namespace: {namespace}}}\n\
         spec: {{mtls: {{mode: {mode}}}}}\n"
    )
}

#[test]
fn an_explicit_listener_knows_its_service_under_its_own_address() {
    let snapshot = whole(&shop(""), "web-1.shop");
    let listener = resource(&snapshot.listeners, "outbound|80||catalog.shop.svc.cluster.local");
    assert_eq!(listener["address"]["socket_address"]["address"], "127.79.5.1");
    let hosts = &manager(&listener)["route_config"]["virtual_hosts"];
    let domains = hosts[0]["domains"].as_array().unwrap();
    for domain in ["catalog.shop.svc.cluster.local", "catalog.shop", "catalog", "127.79.5.1"] {
        assert!(domains.iter().any(|known| known == domain), "{domain} in {domains:?}");
    }
    let other = whole(&shop(""), "batch-1.bank");
    let listener = resource(&other.listeners, "outbound|80||catalog.shop.svc.cluster.local");
    let domains = manager(&listener)["route_config"]["virtual_hosts"][0]["domains"].clone();
    assert!(!domains.as_array().unwrap().iter().any(|known| known == "catalog"), "short names end at the namespace");
}

#[test]
fn a_disabled_peer_is_called_in_plaintext() {
    let mesh = shop(&peer_authentication("shop", "DISABLE"));
    let snapshot = whole(&mesh, "web-1.shop");
    let cluster = resource(&snapshot.clusters, "outbound|80||catalog.shop.svc.cluster.local");
    let endpoint = &cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0];
    assert!(endpoint["metadata"]["filter_metadata"]["envoy.transport_socket_match"].is_null(), "{endpoint:#}");
    let inbound = resource(&whole(&mesh, "catalog-1.shop").listeners, "inbound|8080||");
    assert!(inbound["filter_chains"][0]["transport_socket"].is_null());
}

#[test]
fn request_fields_on_an_opaque_port_deny_more_and_never_allow_more() {
    let policy = |action: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: bank}}\n\
             spec: {{action: {action}, rules: [{{to: [{{operation: {{methods: [GET]}}}}]}}]}}\n"
        )
    };
    let rules = |action: &str| {
        let snapshot = whole(&shop(&policy(action)), "ledger-1.bank");
        let listener = resource(&snapshot.listeners, "inbound|9000||");
        listener["filter_chains"][0]["filters"][0]["typed_config"]["rules"].clone()
    };
    assert_eq!(rules("ALLOW"), serde_json::json!({}), "an allow rule that cannot be judged is left out");
    let denied = rules("DENY");
    assert_eq!(denied["policies"]["ns[bank]-policy[p]-rule[0]"]["permissions"][0]["any"], true, "{denied:#}");
}

#[test]
fn a_program_in_its_own_namespace_is_redirected_there_and_reached_there() {
    let own = r#"
apiVersion: tulle.dev/v1alpha1
kind: Workload
metadata: {name: catalog-3, namespace: shop, labels: {app: catalog, version: v1}}
spec: {serviceAccount: catalog, addresses: [127.77.0.7], ports: [{name: http, number: 8080, app: "127.0.0.1:8080", bind: "127.77.0.7:15006"}], interception: {namespace: /run/c3/netns}}
---
apiVersion: v1
kind: Service
metadata: {name: queue, namespace: shop}
spec: {selector: {app: queue}, clusterIP: 240.240.0.9, ports: [{name: tcp, port: 7000}]}
"#;
    let snapshot = whole(&shop(own), "catalog-3.shop");
    let outbound = resource(&snapshot.listeners, "virtualOutbound");
    let address = &outbound["address"]["socket_address"];
    assert_eq!(address["network_namespace_filepath"], "/run/c3/netns");
    assert_eq!(address["port_value"], 15001);
    let inbound = resource(&snapshot.listeners, "inbound|8080||");
    assert_eq!(inbound["address"]["socket_address"]["address"], "127.77.0.7");
    assert!(inbound["address"]["socket_address"]["network_namespace_filepath"].is_null(), "peers reach it out here");
    let program = resource(&snapshot.clusters, "inbound|8080||");
    let source = &program["upstream_bind_config"]["source_address"];
    assert_eq!(
        (&source["address"], &source["network_namespace_filepath"]),
        (&"0.0.0.0".into(), &"/run/c3/netns".into())
    );
    let peers = resource(&snapshot.clusters, "outbound|80||catalog.shop.svc.cluster.local");
    assert_eq!(
        peers["upstream_bind_config"]["source_address"]["address"], "127.77.0.7",
        "peers see where it comes from"
    );
    let rest = resource(&snapshot.clusters, "PassthroughCluster");
    assert!(rest["upstream_bind_config"].is_null(), "from a loopback address nothing else is reached");
    let queue = resource(&snapshot.listeners, "240.240.0.9_7000");
    let services = &queue["metadata"]["filter_metadata"]["istio"]["services"];
    assert_eq!(services[0]["host"], "queue.shop.svc.cluster.local");
}
