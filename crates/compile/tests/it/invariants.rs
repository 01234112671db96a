//! What holds for everything that is encoded.

use compile::{Ads, AdsServer, EncodeOptions, Mode, Snapshot, WorkloadKey, bootstrap, encode, proxyless};

use crate::world::{SHOP, shop};

const EVERYTHING: &str = r#"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: catalog, namespace: shop}
spec:
  hosts: [catalog]
  http:
    - match: [{uri: {exact: /a}}, {headers: {x: {regex: "a+"}}, withoutHeaders: {y: {exact: "1"}}, queryParams: {q: {prefix: p}}}]
      route: [{destination: {host: catalog, subset: v1}, weight: 1, headers: {request: {set: {x-b: "100%%"}}}}, {destination: {host: catalog, subset: v2}, weight: 2}]
      retries: {attempts: 3, perTryTimeout: 1s, retryOn: "5xx,429"}
      timeout: 2s
      fault: {delay: {fixedDelay: 1s, percentage: {value: 0.5}}, abort: {httpStatus: 503, percentage: {value: 1}}}
      mirrors: [{destination: {host: ledger.bank.svc.cluster.local}, percentage: {value: 5}}]
      corsPolicy: {allowOrigins: [{exact: "*"}], allowMethods: [GET], maxAge: 1h}
      headers: {request: {remove: [x-c]}, response: {add: {x-d: d}}}
      rewrite: {uri: /b, authority: other}
    - match: [{uri: {prefix: /r}}]
      redirect: {uri: /s, redirectCode: 307}
    - directResponse: {status: 404, body: {string: none}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: catalog, namespace: shop}
spec:
  host: catalog
  trafficPolicy:
    loadBalancer: {consistentHash: {httpCookie: {name: c, ttl: 1s}}}
    outlierDetection: {consecutive5xxErrors: 3, interval: 1s, baseEjectionTime: 5s, maxEjectionPercent: 100}
    connectionPool: {tcp: {maxConnections: 10, connectTimeout: 1s, tcpKeepalive: {time: 60s}}, http: {http1MaxPendingRequests: 3, maxRequestsPerConnection: 5}}
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: a, namespace: shop}
spec:
  rules:
    - from: [{source: {namespaces: [shop], notIpBlocks: [10.0.0.0/8]}}, {source: {serviceAccounts: [bank/batch]}}]
      to: [{operation: {hosts: ["*.shop"], paths: ["/x/{*}", /y*], notMethods: [PUT], ports: ["8080"]}}]
      when: [{key: "request.headers[x-a]", values: [b]}, {key: source.ip, notValues: [192.0.2.1]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: d, namespace: shop, annotations: {istio.io/dry-run: "true"}}
spec: {action: DENY, rules: [{to: [{operation: {paths: [/z]}}]}]}
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: login, namespace: istio-system}
spec:
  jwtRules:
    - {issuer: https://login.test, jwksUri: https://login.test/keys, audiences: [a, b], fromParams: [t], outputClaimToHeaders: [{header: x-u, claim: sub}]}
    - {issuer: inside, jwks: '{"keys": [{"kty": "oct", "k": "eA"}]}', forwardOriginalToken: true}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: e, namespace: shop}
spec: {action: CUSTOM, provider: {name: guard}, rules: [{to: [{operation: {paths: [/e*]}}]}]}
---
apiVersion: mesh.istio.io/v1alpha1
kind: MeshConfig
extensionProviders: [{name: guard, envoyExtAuthzGrpc: {service: catalog.shop.svc.cluster.local, port: 80, includeRequestBodyInCheck: {maxRequestBytes: 9}}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: u, namespace: istio-system}
spec: {action: AUDIT, rules: [{}]}
---
apiVersion: v1
kind: Service
metadata: {name: auto, namespace: shop}
spec: {selector: {app: catalog}, ports: [{name: x, port: 81, targetPort: 8081}, {name: tls-a, port: 443}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: outside, namespace: shop}
spec:
  hosts: [api.example.com]
  location: MESH_EXTERNAL
  resolution: DNS
  ports: [{number: 443, name: tls, protocol: TLS}, {number: 80, name: http, protocol: HTTP}]
---
apiVersion: tulle.dev/v1alpha1
kind: Workload
metadata: {name: pod-1, namespace: shop, labels: {app: catalog, version: v1}}
spec: {serviceAccount: catalog, addresses: [10.1.0.9], ports: [{name: http, number: 8080}, {name: tcp, number: 9001}]}
---
apiVersion: mesh.istio.io/v1alpha1
kind: MeshConfig
accessLogFile: /dev/stdout
accessLogEncoding: JSON
"#;

fn lists(snapshot: &Snapshot) -> [&[std::sync::Arc<compile::Resource>]; 4] {
    [&snapshot.listeners, &snapshot.routes, &snapshot.clusters, &snapshot.endpoints]
}

#[test]
fn equal_meshes_have_equal_bytes() {
    let (one, two) = (shop(EVERYTHING), shop(EVERYTHING));
    for key in one.workload_keys() {
        let options = EncodeOptions::default();
        let (a, b) = (encode(&one, key, &options), encode(&two, key, &options));
        assert_eq!(a, b, "{key}");
        assert!(lists(&a).into_iter().all(|list| list.is_sorted_by(|a, b| a.name < b.name)));
    }
}

#[test]
fn the_proxy_refuses_nothing_of_what_is_encoded() {
    let mesh = shop(EVERYTHING);
    for key in mesh.workload_keys() {
        let snapshot = encode(&mesh, key, &EncodeOptions::default());
        assert!(!snapshot.listeners.is_empty() || key.name.starts_with("ledger"), "{key}");
        for resource in lists(&snapshot).into_iter().flatten() {
            let findings = proto::surface::check(&resource.body);
            assert!(findings.is_acceptable(), "{key} {}: {:?}", resource.name, findings.refusal());
        }
    }
}

#[test]
fn a_bootstrap_reads_back_as_it_was() {
    let mesh = shop(EVERYTHING);
    let ads = Ads { server: AdsServer::Unix("/run/xds.sock".to_owned()), delta: true };
    let modes = [
        Mode::Static { certs_dir: "/certs".to_owned(), admin: None },
        Mode::Dynamic { admin: None, ads, sds_path: "/run/sds.sock".to_owned() },
    ];
    for mode in &modes {
        let key: WorkloadKey = "pod-1.shop".parse().unwrap();
        let made = bootstrap(&mesh, &key, mode).unwrap();
        let (read, _) = proto::json::parse_bootstrap(&proto::json::to_yaml(&made), proto::json::Format::Yaml).unwrap();
        // Maps have no order, so the messages are compared as JSON.
        assert_eq!(proto::json::to_json(&read), proto::json::to_json(&made));
    }
    assert!(bootstrap(&mesh, &WorkloadKey::new("shop", "nobody"), &modes[0]).is_none());
}

#[test]
fn every_named_route_and_cluster_of_a_proxy_is_delivered() {
    let mesh = shop(EVERYTHING);
    for key in mesh.workload_keys() {
        let snapshot = encode(&mesh, key, &EncodeOptions::default());
        for cluster in &snapshot.clusters {
            let json = proto::json::any_to_json(&cluster.body);
            if json["type"] == "EDS" {
                assert!(snapshot.endpoints.iter().any(|found| found.name == cluster.name), "{}", cluster.name);
            }
        }
        for listener in &snapshot.listeners {
            let text = proto::json::any_to_json(&listener.body).to_string();
            let named = text.split("\"route_config_name\":\"").skip(1).filter_map(|rest| rest.split('"').next());
            for name in named {
                assert!(snapshot.routes.iter().any(|found| found.name == name), "{name}");
            }
        }
    }
}

#[test]
fn a_workload_gets_only_its_own_policies_and_what_is_exported_to_it() {
    let hidden = r#"
apiVersion: v1
kind: Service
metadata: {name: vault, namespace: bank, annotations: {networking.istio.io/exportTo: "."}}
spec: {selector: {app: ledger}, ports: [{name: http, port: 80}]}
"#;
    let mesh = shop(&format!("{EVERYTHING}\n---\n{hidden}"));
    let clusters = |key: &str| {
        let snapshot = encode(&mesh, &key.parse().unwrap(), &EncodeOptions::default());
        snapshot.clusters.iter().map(|cluster| cluster.name.clone()).collect::<Vec<_>>()
    };
    assert!(!clusters("pod-1.shop").iter().any(|name| name.contains("vault")), "{:?}", clusters("pod-1.shop"));
    let ledger = crate::world::whole(&mesh, "ledger-1.bank");
    let inbound = crate::world::resource(&ledger.listeners, "inbound|9000||").to_string();
    assert!(inbound.contains("ns[istio-system]-policy[u]") && !inbound.contains("ns[shop]"), "{inbound}");
}

#[test]
fn a_proxyless_program_dials_services_by_all_their_names() {
    let mesh = shop(EVERYTHING);
    let snapshot = proxyless(&mesh, &"web-1.shop".parse().unwrap());
    let names: Vec<&str> = snapshot.listeners.iter().map(|listener| listener.name.as_str()).collect();
    for name in ["catalog:80", "catalog.shop:80", "catalog.shop.svc:80", "catalog.shop.svc.cluster.local:80"] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    assert!(!names.iter().any(|name| name.contains("ledger")), "no opaque ports");
    assert!(snapshot.endpoints.iter().any(|found| found.name == "outbound|80|v2|catalog.shop.svc.cluster.local"));
}

#[test]
fn an_undeclared_workload_gets_nothing() {
    let (mesh, _) = compile::Mesh::compile(&crate::world::entries(SHOP));
    let nobody = WorkloadKey::new("shop", "nobody");
    assert_eq!(encode(&mesh, &nobody, &EncodeOptions::default()), Snapshot::default());
    assert_eq!(proxyless(&mesh, &nobody), Snapshot::default());
}

#[test]
fn an_address_range_shares_its_port_with_http() {
    let ranges = r#"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: ranges, namespace: shop}
spec:
  hosts: [ranges.example]
  addresses: [192.0.2.0/24]
  location: MESH_EXTERNAL
  resolution: STATIC
  endpoints: [{address: 192.0.2.7}]
  ports: [{number: 80, name: tcp, protocol: TCP}]
"#;
    let mesh = shop(&format!("{EVERYTHING}\n---\n{ranges}\n---\n{}", ranges.replace("ranges", "again")));
    let snapshot = encode(&mesh, &"pod-1.shop".parse().unwrap(), &EncodeOptions::default());
    let listener = crate::world::resource(&snapshot.listeners, "0.0.0.0_80");
    let chains = listener["filter_chains"].as_array().unwrap();
    let ranges = chains.iter().filter(|chain| !chain["filter_chain_match"]["prefix_ranges"].is_null()).count();
    assert_eq!((chains.len(), ranges), (2, 1), "{listener:#}");
}
