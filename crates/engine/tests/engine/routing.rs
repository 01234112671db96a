//! Which route a request takes.

use engine::{Dice, Outcome};
use proptest::prelude::*;

use crate::world::{Ask, World};

const ROUTES: &str = r#"
- name: shop
  domains: ["shop.test", "*.shop.test"]
  routes:
    - {match: {path: /exact}, route: {cluster: a}}
    - {match: {prefix: /low, case_sensitive: false}, route: {cluster: b}}
    - {match: {path_separated_prefix: /part}, route: {cluster: c}}
    - {match: {safe_regex: {regex: "/r/[0-9]+"}}, route: {cluster: a}}
    - {match: {prefix: /h, headers: [{name: x-a, string_match: {exact: one}}, {name: x-b, present_match: true, invert_match: true}]}, route: {cluster: b}}
    - {match: {prefix: /q, query_parameters: [{name: k, string_match: {prefix: v}}]}, route: {cluster: c}}
    - {match: {prefix: /g, grpc: {}}, route: {cluster: a}}
    - {match: {prefix: /gone}, route: {cluster: nowhere}}
    - {match: {prefix: /missing}, route: {cluster: nowhere, cluster_not_found_response_code: NOT_FOUND}}
    - {match: {prefix: /by-header}, route: {cluster_header: x-cluster}}
    - {match: {prefix: /hello}, direct_response: {status: 418, body: {inline_string: short}}}
    - match:
        path_match_policy:
          name: t
          typed_config: {"@type": type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig, path_template: "/t/{x}/**"}
      route: {cluster: c}
    - {match: {connect_matcher: {}}, route: {cluster: b}}
- name: rest
  domains: ["*"]
  routes:
    - {match: {prefix: /}, route: {cluster: c}}
"#;

#[test]
fn the_first_route_that_matches() {
    World::new(ROUTES, "").check(
        "
        GET shop.test/exact -> a
        GET shop.test/exact?q -> a
        GET SHOP.test/exact -> a
        GET shop.test/Exact -> 404 route_not_found
        GET x.shop.test/LOWer -> b
        GET shop.test/part -> c
        GET shop.test/part/x -> c
        GET shop.test/party -> 404 route_not_found
        GET shop.test/r/12?x -> a
        GET shop.test/r/12x -> 404 route_not_found
        GET shop.test/h x-a=one -> b
        GET shop.test/h x-a=one x-b=1 -> 404 route_not_found
        GET shop.test/q?a=1&k=v2 -> c
        GET shop.test/q?k=w&k=v -> 404 route_not_found
        GET shop.test/g content-type=application/grpc+proto -> a
        GET shop.test/g content-type=application/grpc-web -> 404 route_not_found
        GET shop.test/gone -> 503 cluster_not_found
        GET shop.test/missing -> 404 cluster_not_found
        GET shop.test/by-header x-cluster=b -> b
        GET shop.test/by-header -> 503 cluster_not_found
        GET shop.test/hello -> 418 direct_response
        GET shop.test/t/1/2/3 -> c
        GET shop.test/t//2 -> 404 route_not_found
        CONNECT shop.test -> b
        GET other.test/exact -> c
        ",
    );
}

#[test]
fn weights_are_kept() {
    let world = World::new(
        r#"
- name: w
  domains: ["*"]
  routes:
    - match: {prefix: /}
      route: {weighted_clusters: {clusters: [{name: a, weight: 90}, {name: b, weight: 10}, {name: c, weight: 0}]}}
"#,
        "",
    );
    let mut dice = Dice::new(4);
    let ask = Ask::new("GET x/");
    let lines: Vec<String> = (0..20_000).map(|_| world.decide(&ask, &mut dice).1).collect();
    let b = lines.iter().filter(|line| *line == "b").count();
    assert!((1_850..2_150).contains(&b), "{b}");
    assert!(lines.iter().all(|line| line != "c"));
}

#[test]
fn redirects() {
    World::new(
        r#"
- name: r
  domains: ["*"]
  routes:
    - {match: {prefix: /a}, redirect: {path_redirect: /b}}
    - {match: {prefix: /host}, redirect: {host_redirect: new.test, response_code: FOUND}}
    - {match: {prefix: /tls}, redirect: {https_redirect: true, response_code: PERMANENT_REDIRECT}}
    - {match: {prefix: /port}, redirect: {port_redirect: 8443}}
    - {match: {prefix: /pre/}, redirect: {prefix_rewrite: /post/, strip_query: true}}
    - {match: {prefix: /re}, redirect: {regex_rewrite: {pattern: {regex: "^/re/(.*)$"}, substitution: '/\1/er'}}}
    - {match: {prefix: /whole}, redirect: {path_redirect: "/w?own=1"}}
- name: forced
  domains: [forced.test]
  require_tls: ALL
  routes: [{match: {prefix: /}, route: {cluster: a}}]
"#,
        "",
    )
    .check(
        "
        GET r.test/a?x=1 -> 301 direct_response http://r.test/b?x=1
        GET r.test:99/host/p -> 302 direct_response http://new.test/host/p
        GET r.test:80/tls -> 308 direct_response https://r.test/tls
        GET r.test:81/tls -> 308 direct_response https://r.test:81/tls
        GET r.test:81/port -> 301 direct_response http://r.test:8443/port
        GET r.test/pre/x?q -> 301 direct_response http://r.test/post/x
        GET r.test/re/x?q -> 301 direct_response http://r.test/x/er?q
        GET r.test/whole?q -> 301 direct_response http://r.test/w?own=1
        GET forced.test/x?y -> 301 direct_response https://forced.test/x?y
        ",
    );
}

#[test]
fn timeouts_retries_mirrors() {
    let world = World::new(
        r#"
- name: t
  domains: ["*"]
  retry_policy: {retry_on: "5xx,connect-failure", num_retries: 7}
  routes:
    - {match: {prefix: /default}, route: {cluster: a}}
    - {match: {prefix: /none}, route: {cluster: a, timeout: 0s, idle_timeout: 3s, retry_policy: {retry_on: reset}}}
    - match: {prefix: /copy}
      route:
        cluster: a
        request_mirror_policies: [{cluster: b}, {cluster: c, runtime_fraction: {default_value: {numerator: 0}}}, {cluster: nowhere}]
    - {match: {prefix: /grpc}, route: {cluster: a, max_stream_duration: {grpc_timeout_header_max: 2s}}}
"#,
        "",
    );
    let forward = |line: &str| {
        let (decision, _) = world.decide(&Ask::new(line), &mut Dice::new(1));
        match decision.outcome {
            Outcome::Forward(forward) => (forward, decision.matched.expect("matched")),
            Outcome::Reply(reply) => panic!("{reply:?}"),
        }
    };
    let seconds = |n| Some(std::time::Duration::from_secs(n));
    let (default, matched) = forward("GET x/default");
    assert_eq!(default.timeout, seconds(15));
    assert_eq!(default.idle_timeout, seconds(300));
    let retry = matched.forward().and_then(|action| action.retry.clone()).expect("the virtual host's policy");
    assert_eq!(retry.num_retries, 7);
    let (none, matched) = forward("GET x/none");
    assert_eq!((none.timeout, none.idle_timeout), (None, seconds(3)));
    assert_eq!(matched.forward().and_then(|action| action.retry.clone()).expect("own policy").num_retries, 1);
    assert_eq!(forward("GET x/default x-envoy-upstream-rq-timeout-ms=2000").0.timeout, seconds(2));
    let mirrors = forward("GET x/copy").0.mirrors;
    assert_eq!(mirrors.iter().map(|mirror| &**mirror.cluster.name()).collect::<Vec<_>>(), ["b"]);
    assert_eq!(forward("GET x/grpc grpc-timeout=9S").0.max_stream_duration, seconds(2));
}

/// Routes of all shapes over few letters, so that many overlap.
fn route() -> impl Strategy<Value = String> {
    let path = "/[ab/]{0,4}";
    prop_oneof![
        path.prop_map(|p| format!("{{prefix: {p:?}}}")),
        path.prop_map(|p| format!("{{path: {p:?}}}")),
        path.prop_map(|p| format!("{{prefix: {p:?}, case_sensitive: false}}")),
        "/[ab]{1,3}".prop_map(|p| format!("{{path_separated_prefix: {p:?}}}")),
        "/[ab]{0,2}".prop_map(|p| format!("{{safe_regex: {{regex: \"{p}.*\"}}}}")),
        path.prop_map(|p| format!("{{prefix: {p:?}, headers: [{{name: x-a, present_match: true}}]}}")),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn the_index_finds_what_trying_all_finds(
        routes in proptest::collection::vec(route(), 9..40),
        paths in proptest::collection::vec("/[abAB/]{0,5}", 20),
        header in any::<bool>(),
    ) {
        let lines: String = routes
            .iter()
            .enumerate()
            .map(|(at, rule)| format!("    - {{name: r{at}, match: {rule}, direct_response: {{status: 200}}}}\n"))
            .collect();
        let world = World::new(&format!("- name: v\n  domains: ['*']\n  routes:\n{lines}"), "");
        let manager = world.manager();
        let table = world.plan.routes_of(&manager).unwrap();
        let host = table.host("x").unwrap();
        for path in paths {
            let ask = Ask::new(&format!("GET x{path}{}", if header { " x-a=1" } else { "" }));
            let facts = ask.facts();
            let all = host.routes.iter().find(|route| route.rule.matches(&facts, &mut Dice::new(1)));
            let found = host.index.find(&host.routes, &facts, &mut Dice::new(1));
            prop_assert_eq!(all.map(|r| &r.name), found.map(|r| &r.name), "{}", path);
        }
    }
}
