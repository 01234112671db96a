//! What routes do to heads, and the hash of a request.

use engine::format::RequestValues;
use engine::shape::{self, RequestHead};
use engine::{Dice, Outcome};
use http::{HeaderMap, HeaderValue};

use crate::world::{Ask, World};

fn shaped(world: &World, line: &str) -> RequestHead {
    let ask = Ask::new(line);
    let (decision, _) = world.decide(&ask, &mut Dice::new(1));
    let matched = decision.matched.expect("a route");
    let facts = ask.facts();
    let values = RequestValues::of(&facts, Some(&matched));
    let mut head =
        RequestHead { path: facts.path.into(), authority: facts.authority.into(), headers: ask.headers().clone() };
    shape::request(&matched, &facts, &values, &mut head);
    head
}

#[test]
fn paths_and_hosts_are_rewritten() {
    let world = World::new(
        r#"
- name: v
  domains: ["*"]
  routes:
    - {match: {prefix: /old}, route: {cluster: a, prefix_rewrite: /new}}
    - {match: {path: /whole}, route: {cluster: a, prefix_rewrite: /other, host_rewrite_literal: in.test, append_x_forwarded_host: true}}
    - {match: {prefix: /re}, route: {cluster: a, regex_rewrite: {pattern: {regex: "^/re/([^/]+)(/.*)$"}, substitution: '\2/of/\1'}}}
    - {match: {prefix: /by}, route: {cluster: a, host_rewrite_header: x-host}}
    - {match: {prefix: /as}, route: {cluster: a, host_rewrite_path_regex: {pattern: {regex: "^/as/(.+)$"}, substitution: '\1.test'}}}
"#,
        "",
    );
    let old = shaped(&world, "GET h.test/older?q=1");
    assert_eq!(old.path, "/newer?q=1");
    assert_eq!(old.headers["x-envoy-original-path"], "/older?q=1");
    let whole = shaped(&world, "GET h.test/whole");
    assert_eq!((whole.path.as_str(), whole.authority.as_str()), ("/other", "in.test"));
    assert_eq!(whole.headers["x-forwarded-host"], "h.test");
    assert_eq!(shaped(&world, "GET h.test/re/x/y?z").path, "/y/of/x?z");
    assert_eq!(shaped(&world, "GET h.test/by x-host=o.test").authority, "o.test");
    assert_eq!(shaped(&world, "GET h.test/by").authority, "h.test");
    assert_eq!(shaped(&world, "GET h.test/as/svc").authority, "svc.test");
}

#[test]
fn headers_change_from_the_route_up() {
    let world = World::new(
        r#"
- name: v
  domains: ["*"]
  request_headers_to_add: [{header: {key: x-level, value: host}}]
  request_headers_to_remove: [x-gone]
  response_headers_to_add: [{header: {key: x-r, value: host}}]
  routes:
    - name: the-route
      match: {prefix: /}
      route: {cluster: a}
      request_headers_to_add:
        - {header: {key: x-level, value: route}}
        - {header: {key: x-set, value: new}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}
        - {header: {key: x-if, value: new}, append_action: ADD_IF_ABSENT}
        - {header: {key: x-only, value: new}, append_action: OVERWRITE_IF_EXISTS}
        - {header: {key: x-who, value: "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %REQ(X-SET)% %ROUTE_NAME% 100%%"}}
        - {header: {key: x-empty, value: "%REQ(X-NONE)%"}}
      response_headers_to_add: [{header: {key: x-r, value: route}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}]
      response_headers_to_remove: [x-secret]
"#,
        "",
    );
    let head = shaped(&world, "GET h/ x-set=old x-if=kept x-gone=1");
    let all = |name: &str| head.headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(all("x-level"), ["route", "host"]);
    assert_eq!(all("x-set"), ["new"]);
    assert_eq!(all("x-if"), ["kept"]);
    assert_eq!(all("x-who"), ["192.0.2.1 old the-route 100%"]);
    assert!(["x-only", "x-gone", "x-empty"].iter().all(|name| all(name).is_empty()));
    let ask = Ask::new("GET h/");
    let (decision, _) = world.decide(&ask, &mut Dice::new(1));
    let facts = ask.facts();
    let values = RequestValues::of(&facts, None);
    let mut headers = HeaderMap::new();
    headers.insert("x-secret", HeaderValue::from_static("1"));
    headers.insert("x-r", HeaderValue::from_static("upstream"));
    shape::response(&decision, decision.matched.as_ref(), &values, &mut headers);
    assert_eq!(headers.get_all("x-r").iter().collect::<Vec<_>>(), ["route", "host"]);
    assert!(!headers.contains_key("x-secret"));
}

#[test]
fn hashes_are_envoys() {
    let world = World::new(
        r#"
- name: v
  domains: ["*"]
  routes:
    - {match: {prefix: /h}, route: {cluster: a, hash_policy: [{header: {header_name: x-user}, terminal: true}, {connection_properties: {source_ip: true}}]}}
    - {match: {prefix: /q}, route: {cluster: a, hash_policy: [{query_parameter: {name: k}}]}}
    - {match: {prefix: /c}, route: {cluster: a, hash_policy: [{cookie: {name: sid, ttl: 60s, path: /p}}]}}
"#,
        "",
    );
    let decide = |line: &str| world.decide(&Ask::new(line), &mut Dice::new(1)).0;
    let hash = |line: &str| match decide(line).outcome {
        Outcome::Forward(forward) => forward.hash,
        Outcome::Reply(reply) => panic!("{reply:?}"),
    };
    // xxHash64 of "abc" with seed 0.
    assert_eq!(hash("GET x/h x-user=abc"), Some(0x44bc_2cf5_ad77_0999));
    assert_eq!(hash("GET x/q?k=abc"), Some(0x44bc_2cf5_ad77_0999));
    assert_eq!(hash("GET x/q?j=abc"), None);
    assert_ne!(hash("GET x/h"), None);
    assert_eq!(hash("GET x/c cookie=a=1;sid=abc"), Some(0x44bc_2cf5_ad77_0999));
    let made = decide("GET x/c").set_cookie.expect("a cookie");
    let made = made.to_str().expect("text");
    assert!(made.starts_with("sid=\"") && made.ends_with("\"; Max-Age=60; Path=/p; HttpOnly"), "{made}");
    assert!(decide("GET x/c cookie=sid=abc").set_cookie.is_none());
}
