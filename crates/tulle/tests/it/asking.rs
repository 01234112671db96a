//! `tulle explain request` and `tulle authz check`: answers of the proxies' own functions, on paper.

use std::fs;

use crate::tulle;

/// The mesh of the tests of `compile` too, with routes and policies.
const SHOP: &str = concat!(
    include_str!("../../../../tests/worlds/shop.yaml"),
    r#"---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: catalog, namespace: shop}
spec: {host: catalog, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: catalog, namespace: shop}
spec:
  hosts: [catalog]
  http:
    - match: [{headers: {x-user: {exact: amy}}}]
      route: [{destination: {host: catalog, subset: v2}}]
      timeout: 2s
    - route:
        - {destination: {host: catalog, subset: v1}, weight: 90}
        - {destination: {host: catalog, subset: v2}, weight: 10}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: callers, namespace: shop}
spec:
  selector: {matchLabels: {app: catalog}}
  rules:
    - from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]
      to: [{operation: {methods: [GET], paths: [/items*]}}]
    - to: [{operation: {paths: [/status]}}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: bank}
spec: {mtls: {mode: STRICT}}
"#
);

fn ask(question: &str) -> String {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("shop.yaml"), SHOP).expect("a file");
    tulle(directory.path(), &question.split(' ').collect::<Vec<_>>())
}

#[test]
fn a_request_is_walked_to_the_program_that_would_serve_it() {
    insta::assert_snapshot!(ask("explain request -f . --from web --to http://catalog/items -H x-user=amy"), @r#"
    exit 0
    --- stdout
     1 service   catalog is catalog.shop.svc.cluster.local, port 80 (HTTP), Service shop/catalog (./shop.yaml:1)
     2 outbound  web-1.shop's proxy, listener outbound|80||catalog.shop.svc.cluster.local
     3 route     VirtualService shop/catalog http[0] (./shop.yaml:57) → v2 of catalog.shop.svc.cluster.local:80 (timeout 2s, up to 2 retries)
     4 balance   least request among 1 endpoint: 127.77.0.3:8080
     5 mTLS      as spiffe://cluster.local/ns/shop/sa/web
     6 inbound   ALLOWED by AuthorizationPolicy shop/callers rules[0] (./shop.yaml:70), at catalog-2.shop's inbound proxy
     → would be served by catalog-2.shop
    "#);
}

#[test]
fn a_request_that_a_policy_stops_names_rule_and_reason() {
    insta::assert_snapshot!(ask("explain request -f . --from batch --to http://catalog.shop/items"), @r#"
    exit 1
    --- stdout
     1 service   catalog.shop is catalog.shop.svc.cluster.local, port 80 (HTTP), Service shop/catalog (./shop.yaml:1)
     2 outbound  batch-1.bank's proxy, listener outbound|80||catalog.shop.svc.cluster.local
     3 route     VirtualService shop/catalog http[1] (./shop.yaml:60), split v1 90 / v2 10 → v1 of catalog.shop.svc.cluster.local:80 (up to 2 retries)
     4 balance   least request among 1 endpoint: 127.77.0.2:8080
     5 mTLS      as spiffe://cluster.local/ns/bank/sa/batch
     6 inbound   DENIED by AuthorizationPolicy shop/callers (./shop.yaml:64), enforced at catalog-1.shop's inbound proxy
                   default-deny applies: 1 ALLOW policy selects catalog-1.shop, none of 2 rules matched
                     callers rule[0]  ✗ client exact "spiffe://cluster.local/ns/shop/sa/web", but the client is spiffe://cluster.local/ns/bank/sa/batch
                     callers rule[1]  ✗ path exact "/status", but it is "/items"
     → would be answered 403
    "#);
}

#[test]
fn an_opaque_connection_is_walked_too() {
    insta::assert_snapshot!(ask("explain request -f . --from web --to tcp://ledger.bank:9000"), @r#"
    exit 0
    --- stdout
     1 service   ledger.bank is ledger.bank.svc.cluster.local, port 9000 (TCP), Service bank/ledger (./shop.yaml:6)
     2 outbound  web-1.shop's proxy, listener outbound|9000||ledger.bank.svc.cluster.local
     3 route     Service bank/ledger (./shop.yaml:6) → ledger.bank.svc.cluster.local:9000
     4 balance   least request among 1 endpoint: 127.77.0.4:9000
     5 mTLS      as spiffe://cluster.local/ns/shop/sa/web
     6 inbound   ALLOWED: no policy with action ALLOW selects ledger-1.bank, and none denies this
     → would be served by ledger-1.bank
    "#);
}

#[test]
fn a_call_that_a_rule_allows_names_it() {
    insta::assert_snapshot!(ask("authz check web catalog -f . --path /items/1"), @r#"
    exit 0
    --- stdout
    ALLOWED by AuthorizationPolicy shop/callers rules[0] (./shop.yaml:70), at catalog-1.shop's inbound proxy
      caller    spiffe://cluster.local/ns/shop/sa/web
      request   GET /items/1 of catalog.shop.svc.cluster.local
    "#);
}

#[test]
fn a_denied_call_says_what_each_rule_missed() {
    insta::assert_snapshot!(ask("authz check batch catalog -f . --method POST --path /buy"), @r#"
    exit 1
    --- stdout
    DENIED by AuthorizationPolicy shop/callers (./shop.yaml:64), enforced at catalog-1.shop's inbound proxy
      default-deny applies: 1 ALLOW policy selects catalog-1.shop, none of 2 rules matched
        callers rule[0]  ✗ client exact "spiffe://cluster.local/ns/shop/sa/web", but the client is spiffe://cluster.local/ns/bank/sa/batch
        callers rule[0]  ✗ header :method exact "GET", but it is "POST"
        callers rule[1]  ✗ path exact "/status", but it is "/buy"
      caller    spiffe://cluster.local/ns/bank/sa/batch
      request   POST /buy of catalog.shop.svc.cluster.local
    "#);
}

#[test]
fn plaintext_to_a_strict_port_is_refused() {
    insta::assert_snapshot!(ask("authz check web ledger -f . --plaintext"), @r#"
    exit 1
    --- stdout
    REFUSED at ledger-1.bank's inbound proxy: inbound|9000|| does not take plaintext
      its PeerAuthentication asks for mTLS: the connection is closed before any request
      caller    web-1.shop in plaintext
    "#);
}

#[test]
fn an_unknown_caller_gets_the_known_ones() {
    insta::assert_snapshot!(ask("authz check nobody ledger -f ."), @r#"
    exit 2
    --- stderr
    error: no workload is named nobody (FROM)
     next: known are batch-1.bank, ledger-1.bank, catalog-1.shop, catalog-2.shop, web-1.shop
    "#);
}

#[test]
fn a_plan_in_short_names_policies_and_routes_by_their_lines() {
    insta::assert_snapshot!(ask("translate -q -f . --workload catalog-1.shop -o plan"), @r#"
    exit 0
    --- stdout
    catalog-1.shop, Workload shop/catalog-1 (./shop.yaml:11)
    in  127.77.0.2:8080  inbound|8080||
      inbound|8080||mtls  mesh mTLS
        allow AuthorizationPolicy shop/callers rules[0] (./shop.yaml:70)
        allow AuthorizationPolicy shop/callers rules[1] (./shop.yaml:72)
        inbound|http|8080
          default → inbound|8080||
      inbound|8080||plaintext  plaintext
        allow AuthorizationPolicy shop/callers rules[0] (./shop.yaml:70)
        allow AuthorizationPolicy shop/callers rules[1] (./shop.yaml:72)
        inbound|http|8080
          default → inbound|8080||
    clusters
      inbound|8080||  127.0.0.1:1001
    "#);
}
