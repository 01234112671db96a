//! Configurations that are made, not written: with few or many routes, rules and services.

use serde_json::{Value, json};

/// A configuration, and the path that is the last to match in it.
#[derive(Debug)]
pub(super) struct Made {
    /// JSON of a bootstrap, with the words of `bench/peers.toml` in it.
    pub(super) text: String,
    /// What to ask for.
    pub(super) path: &'static str,
}

/// So many routes, of which the last is asked for.
pub(super) fn routes(count: usize) -> Made {
    let routes =
        (1..count).map(|n| json!({"match": {"prefix": format!("/items/of/{n}/")}, "route": {"cluster": "backend"}}));
    let last = json!({"match": {"prefix": "/asked/"}, "route": {"cluster": "backend"}});
    let hosts = json!([{"name": "all", "domains": ["*"], "routes": routes.chain([last]).collect::<Vec<_>>()}]);
    hop(&hosts, &[], &[cluster("backend", &[next()])])
}

/// So many rules that deny others, in one filter.
pub(super) fn rules(count: usize) -> Made {
    let policies = (0..count).map(|n| {
        let permission = json!({"url_path": {"path": {"prefix": format!("/admin/{n}/")}}});
        (format!("p{n}"), json!({"permissions": [permission], "principals": [{"any": true}]}))
    });
    let policies: serde_json::Map<String, Value> = policies.collect();
    let filter = json!({"name": "envoy.filters.http.rbac", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
        "rules": {"action": "DENY", "policies": policies}}});
    hop(&everything(), &[filter], &[cluster("backend", &[next()])])
}

/// So many services: a virtual host and a cluster of ten endpoints each; all but the last are never asked for.
pub(super) fn services(count: usize) -> Made {
    let host = |n: usize| {
        let name = format!("service-{n}.shop.svc.cluster.local");
        json!({"name": name, "domains": [name, format!("{name}:8080")],
            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": format!("outbound|8080||{name}")}}]})
    };
    let known = |n: usize| {
        let ten: Vec<Value> = (0..10)
            .map(|e| json!({"address": format!("10.{}.{}.{}", n / 250, n % 250, e + 1), "port_value": 8080}))
            .collect();
        cluster(&format!("outbound|8080||service-{n}.shop.svc.cluster.local"), &ten)
    };
    let asked = json!({"name": "asked", "domains": ["*"],
        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "backend"}}]});
    let hosts: Vec<Value> = (0..count).map(host).chain([asked]).collect();
    let clusters: Vec<Value> = (0..count).map(known).chain([cluster("backend", &[next()])]).collect();
    hop(&json!(hosts), &[], &clusters)
}

fn everything() -> Value {
    json!([{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "backend"}}]}])
}

fn next() -> Value {
    json!({"address": "127.0.0.1", "port_value": "@NEXT@"})
}

fn cluster(name: &str, endpoints: &[Value]) -> Value {
    let endpoints: Vec<Value> =
        endpoints.iter().map(|address| json!({"endpoint": {"address": {"socket_address": address}}})).collect();
    json!({"name": name, "type": "STATIC", "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]}})
}

/// One HTTP/1 listener with these virtual hosts, filters and clusters.
fn hop(hosts: &Value, filters: &[Value], clusters: &[Value]) -> Made {
    let router = json!({"name": "envoy.filters.http.router", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}});
    let filters: Vec<Value> = filters.iter().cloned().chain([router]).collect();
    let manager = json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "hop", "codec_type": "HTTP1", "http_filters": filters,
        "route_config": {"name": "hop", "virtual_hosts": hosts}}});
    let address = |port: &str| json!({"socket_address": {"address": "127.0.0.1", "port_value": port}});
    let whole = json!({
        "admin": {"address": address("@ADMIN@")},
        "node": {"id": "bench", "cluster": "bench"},
        "static_resources": {
            "listeners": [{"name": "hop", "address": address("@PORT@"), "filter_chains": [{"filters": [manager]}]}],
            "clusters": clusters}});
    // The words stand for numbers, which JSON does not quote.
    let text = ["@PORT@", "@NEXT@", "@ADMIN@"]
        .iter()
        .fold(whole.to_string(), |text, word| text.replace(&format!("\"{word}\""), word));
    Made { text, path: "/asked/for" }
}
