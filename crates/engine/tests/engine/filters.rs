//! CORS and faults.

use std::time::Duration;

use engine::{Dice, Outcome};

use crate::world::{Ask, World};

const CORS: &str = r#"
- name: envoy.filters.http.cors
  typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}
"#;

const POLICY: &str = r#"
- name: v
  domains: ["*"]
  routes: [{match: {prefix: /}, route: {cluster: a}}]
  typed_per_filter_config:
    envoy.filters.http.cors:
      "@type": type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy
      allow_origin_string_match: [{exact: "https://ok.test"}, {safe_regex: {regex: 'https://[a-z]+\.app\.test'}}]
      allow_methods: GET,POST
      allow_headers: x-token
      expose_headers: x-seen
      max_age: "600"
      allow_credentials: true
"#;

fn pairs(headers: &[(http::HeaderName, http::HeaderValue)]) -> Vec<String> {
    headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().expect("text"))).collect()
}

#[test]
fn preflight_and_actual_requests() {
    let world = World::new(POLICY, CORS);
    let decide = |line: &str| world.decide(&Ask::new(line), &mut Dice::new(1));
    let (preflight, line) = decide("OPTIONS x/ origin=https://ok.test access-control-request-method=POST");
    assert_eq!(line, "200 cors_response");
    let Outcome::Reply(reply) = preflight.outcome else { panic!("reply") };
    assert_eq!(
        pairs(&reply.headers),
        [
            "access-control-allow-origin: https://ok.test",
            "access-control-allow-credentials: true",
            "access-control-allow-methods: GET,POST",
            "access-control-allow-headers: x-token",
            "access-control-max-age: 600"
        ]
    );
    let (actual, line) = decide("GET x/ origin=https://one.app.test");
    assert_eq!(line, "a");
    assert_eq!(
        pairs(&actual.cors),
        [
            "access-control-allow-origin: https://one.app.test",
            "access-control-allow-credentials: true",
            "access-control-expose-headers: x-seen"
        ]
    );
    assert!(decide("GET x/ origin=https://evil.test").0.cors.is_empty());
    assert_eq!(decide("OPTIONS x/ origin=https://evil.test access-control-request-method=POST").1, "a");
    assert_eq!(decide("OPTIONS x/ origin=https://ok.test").1, "a");
}

const ROUTES: &str = r#"
- name: v
  domains: ["*"]
  routes:
    - match: {prefix: /slow}
      route: {cluster: a}
      typed_per_filter_config:
        fault:
          "@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault
          delay: {fixed_delay: 0.7s, percentage: {numerator: 100}}
    - {match: {prefix: /}, route: {cluster: a}}
"#;

const FAULT: &str = r#"
- name: fault
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault
    abort: {http_status: 555, percentage: {numerator: 25}}
    headers: [{name: x-f, string_match: {exact: abort}}]
    max_active_faults: 2
"#;

#[test]
fn faults_for_a_share_of_requests() {
    let world = World::new(ROUTES, FAULT);
    let (slow, line) = world.decide(&Ask::new("GET x/slow"), &mut Dice::new(1));
    assert_eq!((line.as_str(), slow.delay), ("a", Some(Duration::from_millis(700))));
    assert_eq!(slow.flags.letters(), "DI");
    assert_eq!(world.ask("GET x/"), "a");
    let mut dice = Dice::new(3);
    let ask = Ask::new("GET x/ x-f=abort");
    let aborted = (0..4000).filter(|_| world.decide(&ask, &mut dice).1 == "555 fault_filter_abort").count();
    assert!((900..1100).contains(&aborted), "{aborted}");
    let held: Vec<_> = std::iter::repeat_with(|| world.decide(&ask, &mut dice).0)
        .filter(|decision| decision.fault.is_some())
        .take(2)
        .collect();
    assert!((0..200).all(|_| world.decide(&ask, &mut dice).1 == "a"), "no third fault while two are active");
    drop(held);
    assert!((0..200).any(|_| world.decide(&ask, &mut dice).1 != "a"));
}

#[test]
fn route_headers_on_answers_of_our_own() {
    let hosts = r#"
- name: v
  domains: ["*"]
  response_headers_to_add: [{header: {key: x-route, value: "1"}}]
  routes:
    - {match: {prefix: /direct}, direct_response: {status: 200}}
    - {match: {prefix: /none}, route: {cluster: nowhere}}
    - match: {prefix: /abort}
      route: {cluster: a}
      typed_per_filter_config:
        fault:
          "@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault
          abort: {http_status: 555, percentage: {numerator: 100}}
    - {match: {prefix: /denied}, route: {cluster: a}}
"#;
    let filters = r#"
- name: rbac
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
    rules: {action: DENY, policies: {p: {permissions: [{url_path: {path: {prefix: /denied}}}], principals: [{any: true}]}}}
- name: fault
  typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault}
"#;
    let world = World::new(hosts, filters);
    // As Envoy 1.40 answers: every one but the denial has the route's header.
    for (path, status, shaped) in
        [("/direct", 200, true), ("/none", 503, true), ("/abort", 555, true), ("/denied", 403, false)]
    {
        let (decision, line) = world.decide(&Ask::new(&format!("GET x{path}")), &mut Dice::new(1));
        assert!(line.starts_with(&status.to_string()), "{line}");
        assert_eq!(decision.shapes_response, shaped, "{path}");
    }
}
