//! One of each kind, with every field, lowered.

use model::{Declaration, Entry};

use crate::{codes, parse};

const GOOD: &str = include_str!("good.yaml");

fn entry(kind: &str, name: &str) -> Entry {
    let parsed = parse(GOOD);
    let found = parsed.entries.iter().find(|entry| entry.key.kind == kind && entry.key.name == name);
    found.unwrap_or_else(|| panic!("{kind} {name} among {:?}", parsed.entries)).clone()
}

/// What an entry declares, as YAML without the places.
fn lowered(kind: &str, name: &str) -> serde_json::Value {
    let mut value = serde_json::to_value(entry(kind, name).declarations).unwrap();
    strip(&mut value);
    value
}

/// Leaves out empty values and origins, which have tests of their own.
fn strip(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(map) => {
            map.remove("origin");
            map.values_mut().for_each(strip);
            map.retain(|_, value| match value {
                serde_json::Value::Null => false,
                serde_json::Value::Array(items) => !items.is_empty(),
                serde_json::Value::Object(map) => !map.is_empty(),
                serde_json::Value::String(text) => !text.is_empty(),
                _ => true,
            });
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(strip),
        _ => {}
    }
}

#[test]
fn nothing_is_wrong_with_the_good_file() {
    assert_eq!(codes(GOOD), Vec::<String>::new());
    assert_eq!(parse(GOOD).entries.len(), GOOD.matches("\n---\n").count() + 1);
}

#[test]
fn routes() {
    insta::assert_yaml_snapshot!(lowered("VirtualService", "catalog"), @r#"
    - Routes:
        namespace: shop
        hosts:
          - catalog
          - "*.example.com"
          - 10.0.0.1
        export_to:
          - shop
          - other
        http:
          - name: canary
            matches:
              - uri:
                  prefix: /v2
                ignore_uri_case: true
                scheme:
                  exact: http
                method:
                  exact: GET
                authority:
                  prefix: catalog
                headers:
                  - - x-user
                    - exact: amy
                  - - cookie
                    - present
                without_headers:
                  - - x-bot
                    - regex: ".+"
                query:
                  - - debug
                    - exact: "1"
                port: 80
                source_labels:
                  app: web
                source_namespace: shop
            action:
              Route:
                - destination:
                    host: catalog
                    subset: v2
                    port: 80
                  weight: 100
                  headers:
                    response:
                      set:
                        - - x-canary
                          - "yes"
            timeout:
              secs: 1
              nanos: 500000000
            retries:
              attempts: 3
              per_try_timeout:
                secs: 0
                nanos: 500000000
              retry_on:
                - 5xx
                - reset
                - "503"
              retry_remote_localities: true
              backoff:
                secs: 0
                nanos: 10000000
            fault:
              delay:
                fixed:
                  secs: 2
                  nanos: 0
                millionths: 125000
              abort:
                with:
                  Grpc: 14
                millionths: 100
            mirrors:
              - destination:
                  host: shadow
                millionths: 500000
            rewrite:
              uri: /
            cors:
              allow_origins:
                - exact: "https://shop.test"
                - regex: "https://.*"
              allow_methods:
                - GET
                - POST
              allow_headers:
                - x-token
              expose_headers:
                - x-trace
              max_age:
                secs: 86400
                nanos: 0
              allow_credentials: true
              forward_unmatched_preflights: false
            headers:
              request:
                set:
                  - - x-from
                    - "%DOWNSTREAM_REMOTE_ADDRESS%"
                add:
                  - - x-percent
                    - 100%%
                remove:
                  - x-secret
          - matches:
              - uri:
                  exact: /old
                ignore_uri_case: false
            action:
              Redirect:
                uri: /new
                authority: shop.test
                port: FromRequestPort
                scheme: https
                code: 308
          - matches:
              - uri:
                  exact: /hello
                ignore_uri_case: false
            action:
              DirectResponse:
                status: 418
                body:
                  - 116
                  - 101
                  - 97
                  - 112
                  - 111
                  - 116
          - matches:
              - uri:
                  prefix: /admin
                ignore_uri_case: false
            action:
              Delegate:
                name: admin
                namespace: admin
          - action:
              Route:
                - destination:
                    host: catalog
                    subset: v1
                  weight: 90
                - destination:
                    host: catalog
                    subset: v2
                  weight: 10
            rewrite:
              uri_regex:
                - ^/a/(.*)$
                - "/b/\\1"
        tcp:
          - matches:
              - destination_subnets:
                  - 10.0.0.0/8
                port: 9000
            destinations:
              - destination:
                  host: catalog
                weight: 100
        tls:
          - matches:
              - sni_hosts:
                  - a.example.com
                port: 443
            destinations:
              - destination:
                  host: catalog
                weight: 100
        created: "2026-01-01T00:00:00Z"
    "#);
}

#[test]
fn destination_policy() {
    insta::assert_yaml_snapshot!(lowered("DestinationRule", "catalog"), @r#"
    - Destination:
        namespace: shop
        host: catalog
        traffic:
          load_balancer:
            kind:
              ConsistentHash:
                "on":
                  Cookie:
                    name: session
                    path: /
                    ttl:
                      secs: 0
                      nanos: 0
                    attributes:
                      - - SameSite
                        - Lax
                table:
                  Maglev:
                    size: 7
            locality:
              "off": false
              failover:
                - - eu
                  - us
              failover_priority:
                - key: rack
                - key: cell
                  value: a
          connection_pool:
            max_connections: 100
            connect_timeout:
              secs: 0
              nanos: 30000000
            tcp_idle_timeout:
              secs: 3600
              nanos: 0
            max_connection_duration:
              secs: 3600
              nanos: 0
            keepalive:
              probes: 3
              time:
                secs: 7200
                nanos: 0
              interval:
                secs: 75
                nanos: 0
            max_pending: 10
            max_requests: 1000
            max_requests_per_connection: 10
            max_retries: 3
            http_idle_timeout:
              secs: 30
              nanos: 0
            h2_upgrade: true
            max_concurrent_streams: 100
          outlier:
            consecutive_5xx: 7
            consecutive_gateway_errors: 5
            consecutive_local_origin: 3
            split_external_local_origin: true
            interval:
              secs: 300
              nanos: 0
            base_ejection_time:
              secs: 900
              nanos: 0
            max_ejection_percent: 50
            min_health_percent: 20
          tls:
            mode: IstioMutual
            insecure: false
          retry_budget:
            share: 12500
            minimum: 3
          ports:
            - - 443
              - tls:
                  mode: Simple
                  ca: /ca.pem
                  subject_alt_names:
                    - catalog.test
                  sni: catalog.test
                  insecure: false
        subsets:
          - name: v1
            labels:
              version: v1
          - name: v2
            labels:
              version: v2
            traffic:
              load_balancer:
                kind: RoundRobin
                warmup:
                  duration:
                    secs: 30
                    nanos: 0
                  minimum: 2500
                  aggression: 1500
        client_selector:
          app: web
    "#);
}

#[test]
fn service_entry() {
    insta::assert_yaml_snapshot!(lowered("ServiceEntry", "outside"), @r#"
    - Service:
        hostname: a.outside.test
        name: a.outside.test
        namespace: shop
        addresses:
          - 240.0.0.1
        ports:
          - name: tls
            number: 443
            target:
              Number: 8443
            protocol: tls
        resolution: Static
        location: MeshExternal
        endpoints:
          - address:
              Ip: 192.0.2.1
            ports:
              - - tls
                - 8443
            labels:
              version: v1
            weight: 3
            locality:
              region: eu
              zone: a
              sub_zone: "1"
        subject_alt_names:
          - a.outside.test
    - Service:
        hostname: b.outside.test
        name: b.outside.test
        namespace: shop
        addresses:
          - 240.0.0.1
        ports:
          - name: tls
            number: 443
            target:
              Number: 8443
            protocol: tls
        resolution: Static
        location: MeshExternal
        endpoints:
          - address:
              Ip: 192.0.2.1
            ports:
              - - tls
                - 8443
            labels:
              version: v1
            weight: 3
            locality:
              region: eu
              zone: a
              sub_zone: "1"
        subject_alt_names:
          - a.outside.test
    "#);
}

#[test]
fn workload_entry() {
    insta::assert_yaml_snapshot!(lowered("WorkloadEntry", "vm-1"), @r#"
    - Workload:
        name: vm-1
        namespace: shop
        service_account: vm
        labels:
          app: vm
          security.istio.io/tlsMode: istio
        workload_name: vm-1
        addresses:
          - 10.1.2.3
        ports:
          - name: http
            number: 8080
        meshed: true
        weight: 1
        interception: Redirect
    "#);
}

#[test]
fn peer_authentication() {
    insta::assert_yaml_snapshot!(lowered("PeerAuthentication", "catalog"), @r#"
    - PeerAuthentication:
        namespace: shop
        selector:
          app: catalog
        mode: STRICT
        ports:
          - - 8080
            - PERMISSIVE
    "#);
}

#[test]
fn authorization() {
    insta::assert_yaml_snapshot!(lowered("AuthorizationPolicy", "catalog"), @r#"
    - Authorization:
        namespace: shop
        name: catalog
        selector:
          app: catalog
        action: DENY
        rules:
          - from:
              - principals:
                  - exact: cluster.local/ns/shop/sa/web
                  - suffix: /sa/batch
                not_namespaces:
                  - prefix: other
                ip_blocks:
                  - 10.0.0.0/8
                  - 192.0.2.7/32
                not_remote_ip_blocks:
                  - "2001:db8::/32"
              - service_accounts:
                  - shop/web
                  - other/batch
            to:
              - hosts:
                  - exact: catalog
                  - prefix: "catalog:"
                ports:
                  - 8080
                methods:
                  - exact: GET
                  - present
                not_methods:
                  - exact: DELETE
                paths:
                  - Text:
                      prefix: /items/
                  - Text:
                      suffix: /info
                  - Template: "/v1/{*}/x/{**}"
            when:
              - key:
                  RequestHeader: x-role
                values:
                  - admin
                  - dev*
              - key: DestinationPort
                not_values:
                  - "9090"
              - key: SourceIp
                values:
                  - 10.0.0.0/8
          - {}
        dry_run: true
    "#);
}

#[test]
fn split() {
    insta::assert_yaml_snapshot!(lowered("TrafficSplit", "catalog"), @r#"
    - Split:
        namespace: shop
        service: catalog
        backends:
          - - catalog-v1
            - 900
          - - catalog-v2
            - 100
    "#);
}

#[test]
fn kubernetes_service() {
    insta::assert_yaml_snapshot!(lowered("Service", "catalog"), @r#"
    - Service:
        hostname: catalog.shop.svc.cluster.local
        name: catalog
        namespace: shop
        addresses:
          - 10.96.0.12
        ports:
          - name: http
            number: 80
            target:
              Number: 8080
            protocol: http
          - name: grpc-api
            number: 90
            target:
              Name: api
            protocol: grpc
          - name: db
            number: 5432
            target:
              Number: 5432
            protocol: tcp
        resolution: Static
        location: MeshInternal
        selector:
          app: catalog
    "#);
}

#[test]
fn external_name() {
    insta::assert_yaml_snapshot!(lowered("Service", "search"), @r#"
    - Service:
        hostname: search.shop.svc.cluster.local
        name: search
        namespace: shop
        resolution: Dns
        location: MeshExternal
        endpoints:
          - address:
              Dns: search.test
            weight: 1
    "#);
}

#[test]
fn namespace() {
    insta::assert_yaml_snapshot!(lowered("Namespace", "shop"), @r#"
    - Namespace:
        name: shop
        labels:
          team: shop
    "#);
}

#[test]
fn workload() {
    insta::assert_yaml_snapshot!(lowered("Workload", "catalog-1"), @r#"
    - Workload:
        name: catalog-1
        namespace: shop
        service_account: catalog
        labels:
          app: catalog
          version: v1
        workload_name: catalog
        addresses:
          - 10.88.0.6
          - "2001:db8::6"
        ports:
          - name: http
            number: 8080
            app:
              Socket: "127.0.0.1:18080"
            bind: "10.88.0.6:18081"
          - number: 9090
            app:
              Unix: /run/catalog.sock
        meshed: true
        weight: 2
        locality:
          region: eu
          zone: a
        interception:
          Explicit:
            outbound:
              - host: pricing.shop.svc.cluster.local
                port: 80
                bind: "127.0.0.1:19001"
    "#);
}

#[test]
fn mesh() {
    insta::assert_yaml_snapshot!(lowered("MeshConfig", "mesh"), @r#"
    - Mesh:
        trust_domain: demo.tulle
        trust_domain_aliases:
          - old.tulle
        root_namespace: mesh
        cluster_domain: cluster.local
        outbound_allow_any: false
        connect_timeout:
          secs: 3
          nanos: 0
        auto_mtls: false
        path_normalization: DECODE_AND_MERGE_SLASHES
        default_retry:
          attempts: 1
          retry_on:
            - connect-failure
        locality:
          "off": false
          distribute:
            - from: eu/*
              to:
                - - eu/a/*
                  - 60
                - - us
                  - 40
        access_log:
          file: /dev/stdout
          json: true
    "#);
}

#[test]
fn every_rule_knows_its_line() {
    let parsed = parse(GOOD);
    let mut lines = Vec::new();
    for entry in &parsed.entries {
        for declaration in &entry.declarations {
            match declaration {
                Declaration::Routes(table) => {
                    lines.push(table.origin.to_string());
                    lines.extend(table.http.iter().map(|rule| rule.origin.to_string()));
                    lines.extend(table.tls.iter().chain(&table.tcp).map(|rule| rule.origin.to_string()));
                }
                Declaration::Destination(policy) => {
                    lines.extend(policy.subsets.iter().map(|subset| subset.origin.to_string()));
                }
                Declaration::Authorization(policy) => {
                    lines.extend(policy.rules.iter().map(|rule| rule.origin.to_string()));
                }
                _ => {}
            }
        }
    }
    insta::assert_snapshot!(lines.join("\n"), @r#"
    VirtualService shop/catalog (mesh.yaml:2)
    VirtualService shop/catalog http[0] (mesh.yaml:12)
    VirtualService shop/catalog http[1] (mesh.yaml:61)
    VirtualService shop/catalog http[2] (mesh.yaml:63)
    VirtualService shop/catalog http[3] (mesh.yaml:65)
    VirtualService shop/catalog http[4] (mesh.yaml:67)
    VirtualService shop/catalog tls[0] (mesh.yaml:74)
    VirtualService shop/catalog tcp[0] (mesh.yaml:77)
    VirtualService admin/admin (mesh.yaml:80)
    VirtualService admin/admin http[0] (mesh.yaml:85)
    DestinationRule shop/catalog subsets[0] (mesh.yaml:131)
    DestinationRule shop/catalog subsets[1] (mesh.yaml:133)
    AuthorizationPolicy shop/catalog rules[0] (mesh.yaml:180)
    AuthorizationPolicy shop/catalog rules[1] (mesh.yaml:201)
    "#);
}

#[test]
fn json_is_read_as_well() {
    let yaml = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 80}]}\n";
    let json = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"web"},
	"spec":{"ports":[{"port":80}]}}"#;
    let declarations = |text: &str| match &parse(text).entries[0].declarations[0] {
        Declaration::Service(service) => (service.hostname.clone(), service.ports.clone()),
        other => panic!("{other:?}"),
    };
    assert_eq!(declarations(yaml), declarations(json));
    assert_eq!(declarations(json).0, "web.default.svc.cluster.local");
}

#[test]
fn defaults_come_from_the_options() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 80}]}\n";
    let options = resources::ParseOptions {
        default_namespace: "shop".to_owned(),
        cluster_domain: "mesh.test".to_owned(),
        ..resources::ParseOptions::default()
    };
    let parsed = resources::parse(text, &options);
    let Declaration::Service(service) = &parsed.entries[0].declarations[0] else { panic!("{parsed:?}") };
    assert_eq!(service.hostname, "web.shop.svc.mesh.test");
    assert_eq!(parsed.entries[0].key.namespace, "shop");
}

#[test]
fn anchors_and_merge_keys() {
    let text = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web}\nspec:\n  host: web\n  \
                subsets:\n  - &first\n    name: v1\n    labels: {version: v1}\n  - <<: *first\n    name: v2\n";
    let parsed = parse(text);
    let Declaration::Destination(policy) = &parsed.entries[0].declarations[0] else { panic!("{parsed:?}") };
    assert_eq!(policy.subsets[1].name, "v2");
    assert_eq!(policy.subsets[1].labels, policy.subsets[0].labels);
}

#[test]
fn all_versions_mean_the_same() {
    for version in ["v1", "v1beta1", "v1alpha3"] {
        let text = format!(
            "apiVersion: networking.istio.io/{version}\nkind: DestinationRule\nmetadata: {{name: web}}\nspec: {{host: web}}\n"
        );
        assert_eq!(codes(&text), Vec::<String>::new(), "{version}");
    }
    let text = "apiVersion: security.istio.io/v1alpha3\nkind: PeerAuthentication\nmetadata: {name: web}\n";
    assert_eq!(codes(text), ["TL0007"]);
}

#[test]
fn mesh_options_without_a_kind() {
    let parsed = parse("mesh:\n  trustDomain: shop.test\n");
    assert_eq!(resources::mesh_config(&parsed.entries).trust_domain, "shop.test");
    let (mesh, findings) =
        resources::parse_mesh("{\"pathNormalization\": {\"normalization\": \"NONE\"}}", &Default::default());
    assert_eq!(findings, []);
    assert_eq!(mesh.unwrap().path_normalization, model::mesh::PathNormalization::None);
    let (mesh, findings) = resources::parse_mesh("caCertificates: []", &Default::default());
    assert_eq!(mesh, None);
    assert_eq!(findings[0].code.to_string(), "TL0014");
}
