//! Who wins when several objects speak of the same thing, and what is said about it.

use crate::world::{codes, compiled, resource, routes, shop, whole};

fn table(name: &str, created: &str, host: &str, subset: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
         metadata: {{name: {name}, namespace: shop, creationTimestamp: \"{created}\"}}\n\
         spec: {{hosts: [{host}], http: [{{name: {name}, route: [{{destination: {{host: catalog, subset: {subset}}}}}]}}]}}\n---\n"
    )
}

const SUBSETS: &str = r#"
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: catalog, namespace: shop}
spec: {host: catalog, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
---
"#;

#[test]
fn the_oldest_table_of_a_host_wins_and_the_other_is_named() {
    let younger = table("a", "2026-05-02T00:00:00Z", "catalog", "v1");
    let older = table("b", "2026-05-01T00:00:00Z", "catalog", "v2");
    let (mesh, findings) = compiled(&format!("{SUBSETS}{younger}{older}"));
    assert_eq!(routes(&mesh, "web-1.shop", "catalog.shop.svc.cluster.local")[0]["name"], "b");
    assert_eq!(codes(&findings, "VirtualService"), ["TL0504"]);
}

#[test]
fn an_exact_host_beats_an_older_wildcard() {
    let wide = table("wide", "2026-01-01T00:00:00Z", "\"*.shop.svc.cluster.local\"", "v1");
    let exact = table("exact", "2026-05-01T00:00:00Z", "catalog", "v2");
    let mesh = shop(&format!("{SUBSETS}{wide}{exact}"));
    assert_eq!(routes(&mesh, "web-1.shop", "catalog.shop.svc.cluster.local")[0]["name"], "exact");
}

#[test]
fn a_private_table_is_not_seen_elsewhere() {
    let private =
        table("mine", "2026-04-01T00:00:00Z", "catalog", "v1").replace("spec: {", "spec: {exportTo: [\".\"], ");
    let mesh = shop(&format!("{SUBSETS}{private}"));
    let host = "catalog.shop.svc.cluster.local";
    assert_eq!(routes(&mesh, "web-1.shop", host)[0]["name"], "mine");
    assert_eq!(routes(&mesh, "batch-1.bank", host)[0]["name"], "default");
}

#[test]
fn an_undefined_subset_keeps_its_route_and_is_reported() {
    let (mesh, findings) = compiled(&table("vs", "2026-04-01T00:00:00Z", "catalog", "v9"));
    let routes = routes(&mesh, "web-1.shop", "catalog.shop.svc.cluster.local");
    assert_eq!(routes[0]["route"]["cluster"], "outbound|80|v9|catalog.shop.svc.cluster.local");
    let clusters = whole(&mesh, "web-1.shop").clusters;
    assert!(!clusters.iter().any(|cluster| cluster.name.contains("|v9|")));
    assert_eq!(codes(&findings, "VirtualService"), ["TL0502"]);
}

#[test]
fn a_rule_behind_a_catch_all_is_reported() {
    let text = r#"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: vs, namespace: shop}
spec:
  hosts: [catalog]
  http:
    - {match: [{uri: {prefix: /}}], route: [{destination: {host: catalog}}]}
    - {match: [{uri: {exact: /x}}], route: [{destination: {host: katalog}}]}
"#;
    let (_, findings) = compiled(text);
    assert_eq!(codes(&findings, "VirtualService"), ["TL0501", "TL0503"]);
    let unknown = findings.iter().find(|finding| finding.code.0 == 501).unwrap();
    assert_eq!(unknown.field, "spec.http[1].route[0].destination.host");
    assert_eq!(unknown.help.as_deref(), Some("write catalog.shop.svc.cluster.local"));
}

#[test]
fn settings_of_the_port_beat_the_host_and_the_subset_beats_both() {
    let rule = r#"
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: catalog, namespace: shop}
spec:
  host: catalog
  trafficPolicy:
    loadBalancer: {simple: RANDOM}
    connectionPool: {tcp: {maxConnections: 7}}
    portLevelSettings: [{port: {number: 80}, loadBalancer: {simple: ROUND_ROBIN}}]
  subsets: [{name: v1, labels: {version: v1}, trafficPolicy: {loadBalancer: {simple: LEAST_REQUEST}}}]
---
"#;
    let mesh = shop(&format!("{rule}{}", table("vs", "2026-04-01T00:00:00Z", "catalog", "v1")));
    let snapshot = whole(&mesh, "web-1.shop");
    let subset = resource(&snapshot.clusters, "outbound|80|v1|catalog.shop.svc.cluster.local");
    assert_eq!(subset["lb_policy"], "LEAST_REQUEST");
    // Settings of a port replace the host's as a whole: its connection limit is gone.
    assert_eq!(subset["circuit_breakers"]["thresholds"][0]["max_connections"], u32::MAX);
    let host = resource(&snapshot.clusters, "outbound|80||catalog.shop.svc.cluster.local");
    assert!(host["lb_policy"].is_null() || host["lb_policy"] == "ROUND_ROBIN");
}

#[test]
fn mtls_of_the_port_beats_the_workload_the_namespace_and_the_mesh() {
    let policy = |name: &str, namespace: &str, rest: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             spec: {{{rest}}}\n---\n"
        )
    };
    let strict = |more: &str| {
        let mesh = shop(&format!("{}{more}", policy("default", "istio-system", "mtls: {mode: STRICT}")));
        let listener = resource(&whole(&mesh, "catalog-1.shop").listeners, "inbound|8080||");
        listener["filter_chains"].as_array().unwrap().len() == 1
    };
    assert!(strict(""));
    let namespace = policy("default", "shop", "mtls: {mode: PERMISSIVE}");
    assert!(!strict(&namespace));
    let workload = policy("w", "shop", "selector: {matchLabels: {app: catalog}}, mtls: {mode: STRICT}");
    assert!(strict(&format!("{namespace}{workload}")));
    let port = policy(
        "w",
        "shop",
        "selector: {matchLabels: {app: catalog}}, mtls: {mode: STRICT}, portLevelMtls: {\"8080\": {mode: PERMISSIVE}}",
    );
    assert!(!strict(&format!("{namespace}{port}")));
}

#[test]
fn a_delegate_answers_under_the_match_that_delegates() {
    let text = r#"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: root, namespace: shop}
spec:
  hosts: [catalog]
  http:
    - {match: [{uri: {prefix: /items}}], delegate: {name: items}}
    - {route: [{destination: {host: catalog}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: items, namespace: shop}
spec:
  http:
    - {name: special, match: [{uri: {exact: /items/special}}], directResponse: {status: 204}}
    - {name: outside, match: [{uri: {prefix: /other}}], directResponse: {status: 205}}
    - {name: rest, directResponse: {status: 206}}
"#;
    let routes = routes(&shop(text), "web-1.shop", "catalog.shop.svc.cluster.local");
    let got: Vec<_> = routes.as_array().unwrap().iter().map(|route| &route["name"]).collect();
    assert_eq!(got[..2], ["special", "rest"]);
    assert_eq!(routes[1]["match"]["prefix"], "/items");
    assert_eq!(routes.as_array().unwrap().len(), 3);
}

#[test]
fn a_split_of_smi_sends_by_weight() {
    let text = r#"
apiVersion: split.smi-spec.io/v1alpha1
kind: TrafficSplit
metadata: {name: split, namespace: shop}
spec:
  service: catalog
  backends: [{service: catalog, weight: 900m}, {service: nobody, weight: 100m}]
"#;
    let (mesh, findings) = compiled(text);
    let routes = routes(&mesh, "web-1.shop", "catalog.shop.svc.cluster.local");
    let weights: Vec<_> = routes[0]["route"]["weighted_clusters"]["clusters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|cluster| cluster["weight"].as_u64().unwrap())
        .collect();
    assert_eq!(weights, [900, 100]);
    assert_eq!(codes(&findings, "TrafficSplit"), ["TL0513"]);
}
