//! Tokens and authorizers as filters.

use serde_json::Value;

use crate::world::{codes, compiled, manager, resource, shop, whole};

fn policy(kind: &str, name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n---\n"
    )
}

fn mesh_config(providers: &str) -> String {
    format!("apiVersion: mesh.istio.io/v1alpha1\nkind: MeshConfig\nextensionProviders: {providers}\n---\n")
}

/// The HTTP filters of `catalog-1`.
fn filters(more: &str) -> Vec<Value> {
    let snapshot = whole(&shop(more), "catalog-1.shop");
    let listener = resource(&snapshot.listeners, "inbound|8080||");
    manager(&listener)["http_filters"].as_array().unwrap().clone()
}

fn names(filters: &[Value]) -> Vec<&str> {
    filters.iter().filter_map(|filter| filter["name"].as_str()).collect()
}

const KEYS: &str = r#"'{"keys": [{"kty": "oct", "k": "eA"}]}'"#;

#[test]
fn issuers_of_all_policies_that_select_the_workload_are_believed() {
    let more = policy("RequestAuthentication", "b", "shop", &format!("{{jwtRules: [{{issuer: z, jwks: {KEYS}}}]}}"))
        + &policy(
            "RequestAuthentication",
            "a",
            "istio-system",
            &format!("{{jwtRules: [{{issuer: m, jwks: {KEYS}}}]}}"),
        )
        + &policy(
            "RequestAuthentication",
            "c",
            "shop",
            &format!("{{selector: {{matchLabels: {{app: web}}}}, jwtRules: [{{issuer: not-here, jwks: {KEYS}}}]}}"),
        );
    let filters = filters(&more);
    let token =
        &filters.iter().find(|filter| filter["name"] == "envoy.filters.http.jwt_authn").unwrap()["typed_config"];
    assert_eq!(token["providers"]["origins-0"]["issuer"], "m");
    assert_eq!(token["providers"]["origins-1"]["issuer"], "z");
    assert!(token["providers"]["origins-2"].is_null());
    let any = token["rules"][0]["requires"]["requires_any"]["requirements"].as_array().unwrap();
    assert_eq!(any.len(), 3, "one of them, or none that is bad");
    assert_eq!(any[2]["requires_all"]["requirements"].as_array().unwrap().len(), 2);
    assert_eq!(token["providers"]["origins-0"]["payload_in_metadata"], "payload");
}

#[test]
fn keys_are_fetched_over_a_services_cluster_or_one_of_their_own() {
    let rules = |uri: &str| {
        policy("RequestAuthentication", "a", "shop", &format!("{{jwtRules: [{{issuer: i, jwksUri: '{uri}'}}]}}"))
    };
    let cluster = |uri: &str| {
        let snapshot = whole(&shop(&rules(uri)), "catalog-1.shop");
        let listener = resource(&snapshot.listeners, "inbound|8080||");
        let filters = manager(&listener)["http_filters"].clone();
        let token = filters.as_array().unwrap().iter().find(|f| f["name"] == "envoy.filters.http.jwt_authn").unwrap();
        let name = token["typed_config"]["providers"]["origins-0"]["remote_jwks"]["http_uri"]["cluster"].clone();
        let name = name.as_str().unwrap().to_owned();
        let cluster = resource(&snapshot.clusters, &name);
        (name, cluster)
    };
    let (name, _) = cluster("http://catalog.shop.svc.cluster.local/keys");
    assert_eq!(name, "outbound|80||catalog.shop.svc.cluster.local");
    let (name, own) = cluster("https://login.test/keys");
    assert_eq!(name, "keys|443||login.test");
    assert_eq!(own["type"], "STRICT_DNS");
    assert_eq!(own["transport_socket"]["typed_config"]["sni"], "login.test");
    let (name, own) = cluster("http://login.test:8080/keys");
    assert_eq!(name, "keys|8080||login.test");
    assert!(own["transport_socket"].is_null());
}

#[test]
fn authorizers_are_asked_first_and_must_be_known() {
    let custom = policy(
        "AuthorizationPolicy",
        "ask",
        "shop",
        "{action: CUSTOM, provider: {name: guard}, rules: [{to: [{operation: {paths: [/a*]}}]}]}",
    );
    let others =
        policy("AuthorizationPolicy", "no", "shop", "{action: DENY, rules: [{to: [{operation: {paths: [/b]}}]}]}")
            + &policy("RequestAuthentication", "r", "shop", &format!("{{jwtRules: [{{issuer: z, jwks: {KEYS}}}]}}"));
    let known = mesh_config("[{name: guard, envoyExtAuthzHttp: {service: catalog.shop.svc.cluster.local, port: 80}}]");
    let all = filters(&format!("{known}{custom}{others}"));
    let wanted = [
        "istio.peer_metadata",
        "envoy.filters.http.rbac",
        "envoy.filters.http.ext_authz",
        "envoy.filters.http.jwt_authn",
        "envoy.filters.http.rbac",
        "istio.stats",
        "envoy.filters.http.router",
    ];
    assert_eq!(names(&all), wanted);
    let find = &all[1]["typed_config"];
    assert!(find["rules"].is_null(), "the first only finds");
    let name = "istio-ext-authz-guard-ns[shop]-policy[ask]-rule[0]";
    assert!(!find["shadow_rules"]["policies"][name].is_null(), "{find:#}");
    let ask = &all[2]["typed_config"];
    assert_eq!(ask["http_service"]["server_uri"]["cluster"], "outbound|80||catalog.shop.svc.cluster.local");
    let prefix = &ask["filter_enabled_metadata"]["value"]["string_match"]["prefix"];
    assert_eq!(prefix, "istio-ext-authz-guard-ns[");
    // Without the provider, and with one whose service is not there, the rules refuse.
    let lost = mesh_config("[{name: guard, envoyExtAuthzHttp: {service: gone.shop.svc.cluster.local, port: 80}}]");
    for more in [custom.clone(), format!("{lost}{custom}")] {
        let all = filters(&more);
        assert_eq!(names(&all)[1..3], ["envoy.filters.http.rbac", "istio.stats"]);
        let policies = &all[1]["typed_config"]["rules"]["policies"];
        assert!(!policies[format!("{name}-deny-due-to-bad-CUSTOM-action")].is_null(), "{policies:#}");
        let (_, findings) = compiled(&more);
        assert!(codes(&findings, "AuthorizationPolicy").contains(&"TL0517".to_owned()));
    }
}

#[test]
fn connections_that_an_authorizer_would_be_asked_about_are_refused() {
    let rules = |rule: &str| {
        let custom = policy(
            "AuthorizationPolicy",
            "ask",
            "bank",
            &format!("{{action: CUSTOM, provider: {{name: guard}}, rules: [{rule}]}}"),
        );
        let snapshot = whole(&shop(&custom), "ledger-1.bank");
        let listener = resource(&snapshot.listeners, "inbound|9000||");
        listener["filter_chains"][0]["filters"][0]["typed_config"]["rules"].clone()
    };
    assert_eq!(rules("{}")["action"], "DENY");
    assert!(rules("{to: [{operation: {paths: [/a]}}]}").is_null(), "a rule about requests means no bytes");
}

#[test]
fn policies_that_need_a_token_too_early_are_named() {
    let custom = policy(
        "AuthorizationPolicy",
        "ask",
        "shop",
        r#"{action: CUSTOM, provider: {name: guard}, rules: [{from: [{source: {requestPrincipals: ["*"]}}]}]}"#,
    );
    let (_, findings) = compiled(&custom);
    assert!(codes(&findings, "AuthorizationPolicy").contains(&"TL0410".to_owned()));
}
