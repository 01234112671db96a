//! Requests, answers, failures, retries.

use std::io::{Read, Write};

use crate::backend::{Backend, nobody};
use crate::world::{HTTP2, World, ask, cluster, connect, get, http, http_with, read_reply};

#[test]
fn a_request_goes_through_and_comes_back() {
    let backend = Backend::start();
    let world = World::start(&http("{match: {prefix: /}, route: {cluster: c}}", &cluster("c", &[backend.address], "")));
    let reply = get(
        world.address("in"),
        "/hello?a=b",
        "x-own: 1\r\nkeep-alive: 5\r\nconnection: keep-alive, x-hop\r\nx-hop: 1\r\n",
    );
    assert_eq!((reply.status, reply.header("x-backend")), (200, Some("yes")), "{reply:?}");
    assert_eq!(reply.header("server"), Some("envoy"));
    assert!(reply.header("x-envoy-upstream-service-time").is_some());
    assert!(reply.header("date").is_some());
    let head = backend.last();
    assert!(head.starts_with("GET /hello?a=b HTTP/1.1\r\n"), "{head}");
    for line in [
        "host: web.test\r\n",
        "x-own: 1\r\n",
        "x-forwarded-proto: http\r\n",
        "x-envoy-expected-rq-timeout-ms: 15000\r\n",
    ] {
        assert!(head.contains(line), "{line} in {head}");
    }
    assert!(head.contains("x-request-id: "), "{head}");
    for name in ["keep-alive", "x-hop", "connection"] {
        assert!(!head.to_lowercase().contains(&format!("\n{name}:")), "{name} in {head}");
    }
}

#[test]
fn connections_are_kept_on_both_sides() {
    let backend = Backend::start();
    let world = World::start(&http("{match: {prefix: /}, route: {cluster: c}}", &cluster("c", &[backend.address], "")));
    let mut client = connect(world.address("in"));
    for _ in 0..5 {
        client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
        assert_eq!(read_reply(&mut client).status, 200);
    }
    assert_eq!(backend.connections(), 1);
    assert_eq!(backend.requests(), 5);
}

#[test]
fn bodies_pass_whole() {
    let backend = Backend::start();
    let world = World::start(&http("{match: {prefix: /}, route: {cluster: c}}", &cluster("c", &[backend.address], "")));
    let at = world.address("in");
    let reply =
        ask(at, "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
    assert_eq!((reply.status, reply.body.as_str()), (200, "abcde"));
    let large = "x".repeat(3_000_000);
    let reply = ask(at, &format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{large}", large.len()));
    assert_eq!((reply.status, reply.body.len()), (200, large.len()));
    let reply = get(at, "/chunked", "");
    assert_eq!((reply.status, reply.body.as_str()), (200, "abcdefg"));
    let mut head = connect(at);
    head.write_all(b"HEAD / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    head.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
}

#[test]
fn expect_continue_is_answered() {
    let backend = Backend::start();
    let world = World::start(&http("{match: {prefix: /}, route: {cluster: c}}", &cluster("c", &[backend.address], "")));
    let mut client = connect(world.address("in"));
    client.write_all(b"POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n").unwrap();
    let reply = read_reply(&mut client);
    assert_eq!(reply.status, 100);
    client.write_all(b"ok").unwrap();
    let reply = read_reply(&mut client);
    assert_eq!((reply.status, reply.body.as_str()), (200, "ok"));
    assert!(!backend.last().contains("\nexpect:"), "{}", backend.last());
}

#[test]
fn failures_are_told_as_envoy_tells_them() {
    let backend = Backend::start();
    let routes = "{match: {prefix: /dead}, route: {cluster: dead}}, {match: {prefix: /gone}, route: {cluster: gone}}, \
        {match: {prefix: /empty}, route: {cluster: empty}}, {match: {prefix: /sleep}, route: {cluster: c, timeout: 0.1s}}, \
        {match: {prefix: /tea}, direct_response: {status: 418, body: {inline_string: tea}}}, \
        {match: {prefix: /old}, redirect: {path_redirect: /new}}, {match: {prefix: /close}, route: {cluster: c}}";
    let clusters = [cluster("c", &[backend.address], ""), cluster("dead", &[nobody()], ""), cluster("empty", &[], "")];
    let world = World::start(&http(routes, &clusters.concat()));
    let at = world.address("in");
    let dead = get(at, "/dead", "");
    assert_eq!(dead.status, 503);
    let reason = "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure";
    assert_eq!(dead.body, reason);
    let empty = get(at, "/empty", "");
    assert_eq!((empty.status, empty.body.as_str()), (503, "no healthy upstream"));
    assert_eq!(get(at, "/gone", "").status, 503);
    let slow = get(at, "/sleep/3000", "");
    assert_eq!((slow.status, slow.body.as_str()), (504, "upstream request timeout"));
    let tea = get(at, "/tea", "");
    assert_eq!((tea.status, tea.body.as_str()), (418, "tea"));
    let old = get(at, "/old", "");
    assert_eq!((old.status, old.header("location")), (301, Some("http://web.test/new")));
    let closed = get(at, "/close", "");
    assert_eq!(closed.status, 503);
    assert!(closed.body.contains("connection termination"), "{}", closed.body);
    assert_eq!(get(at, "/nothing", "").status, 404);
}

#[test]
fn retries_cure_what_the_policy_names() {
    let backend = Backend::start();
    let routes = "{match: {prefix: /fail-first}, route: {cluster: c, retry_policy: {retry_on: 5xx, num_retries: 2, \
        retry_back_off: {base_interval: 0.001s}}}}";
    let world = World::start(&http(routes, &cluster("c", &[backend.address], "")));
    let at = world.address("in");
    let body = "0123456789".repeat(100);
    let post = format!("POST /fail-first/2 HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let reply = ask(at, &post);
    assert_eq!((reply.status, reply.body), (200, body));
    assert_eq!(backend.requests(), 3);
    let reply = get(at, "/fail-first/99", "");
    assert_eq!((reply.status, backend.requests()), (503, 6));
}

#[test]
fn retries_make_no_storm() {
    let backend = Backend::start();
    let routes = "{match: {prefix: /}, route: {cluster: c, retry_policy: {retry_on: 5xx, num_retries: 3, \
        retry_back_off: {base_interval: 0.001s}}}}";
    let budget =
        "circuit_breakers: {thresholds: [{retry_budget: {budget_percent: {value: 20}, min_retry_concurrency: 1}}]},";
    let world = World::start(&http(routes, &cluster("c", &[backend.address], budget)));
    let at = world.address("in");
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                for _ in 0..8 {
                    assert_eq!(get(at, "/busy/100", "").status, 503);
                }
            });
        }
    });
    // All would be retried three times. Of 20 under way four may be retries, a quarter of the other sixteen: some 40, and more
    // where first attempts take longer.
    let retries = backend.requests() - 160;
    assert!((1..=100).contains(&retries), "{retries} retries of 160 requests");
}

#[test]
fn retries_find_another_endpoint_when_one_is_dead() {
    let backend = Backend::start();
    let routes = "{match: {prefix: /}, route: {cluster: c, retry_policy: {retry_on: connect-failure, num_retries: 4, \
        retry_host_predicate: [{name: envoy.retry_host_predicates.previous_hosts, typed_config: {\"@type\": \
        type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate}}], \
        host_selection_retry_max_attempts: 5}}}";
    let world = World::start(&http(routes, &cluster("c", &[nobody(), backend.address], "")));
    for _ in 0..6 {
        assert_eq!(get(world.address("in"), "/", "").status, 200);
    }
}

#[test]
fn an_upgrade_becomes_a_tunnel() {
    let backend = Backend::start();
    let yaml = http_with(
        "",
        "upgrade_configs: [{upgrade_type: websocket}],",
        "{match: {prefix: /}, route: {cluster: c}}",
        &cluster("c", &[backend.address], ""),
    );
    let world = World::start(&yaml);
    let mut client = connect(world.address("in"));
    client.write_all(b"GET /upgrade HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n").unwrap();
    let reply = read_reply(&mut client);
    assert_eq!((reply.status, reply.header("upgrade")), (101, Some("websocket")), "{reply:?}");
    client.write_all(b"ping").unwrap();
    let mut echo = [0; 4];
    client.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"ping");
    drop(client);
    let plain = http("{match: {prefix: /}, route: {cluster: c}}", &cluster("c", &[backend.address], ""));
    let closed = World::start(&plain);
    let reply = get(closed.address("in"), "/upgrade", "connection: upgrade\r\nupgrade: websocket\r\n");
    assert_eq!(reply.status, 403);
}

#[test]
fn a_denied_request_is_told_so() {
    let backend = Backend::start();
    let rbac = "{name: envoy.filters.http.rbac, typed_config: {\"@type\": \
        type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, rules: {action: DENY, policies: {\"no-admin\": \
        {permissions: [{url_path: {path: {prefix: /admin}}}], principals: [{any: true}]}}}}},";
    let yaml = http_with(rbac, "", "{match: {prefix: /}, route: {cluster: c}}", &cluster("c", &[backend.address], ""));
    let world = World::start(&yaml);
    let at = world.address("in");
    let denied = get(at, "/admin", "");
    assert_eq!((denied.status, denied.body.as_str()), (403, "RBAC: access denied"));
    for disguised in ["/./admin", "/x/../admin", "/%61dmin"] {
        assert_eq!(get(at, disguised, "").status, 403, "{disguised}");
    }
    assert_eq!(get(at, "/open", "").status, 200);
    assert_eq!(backend.requests(), 1);
}

#[test]
fn http2_in_and_out() {
    let backend = Backend::start();
    let world = World::start(&http("{match: {prefix: /}, route: {cluster: c}}", &cluster("c", &[backend.address], "")));
    let inner = world.address("in");
    let outer = World::start(&http("{match: {prefix: /}, route: {cluster: c}}", &cluster("c", &[inner], HTTP2)));
    let at = outer.address("in");
    for _ in 0..3 {
        let reply = ask(at, "POST /x HTTP/1.1\r\nhost: web.test\r\ncontent-length: 5\r\n\r\nhello");
        assert_eq!((reply.status, reply.body.as_str()), (200, "hello"));
    }
    assert!(backend.last().contains("host: web.test"), "{}", backend.last());
}

#[test]
fn every_copy_of_a_body_arrives() {
    let (backend, shadow) = (Backend::start(), Backend::start());
    let routes = "{match: {prefix: /}, route: {cluster: c, request_mirror_policies: [{cluster: s}]}}";
    let clusters = [cluster("c", &[backend.address], ""), cluster("s", &[shadow.address], "")].concat();
    let world = World::start(&http(routes, &clusters));
    for _ in 0..30 {
        assert_eq!(
            ask(world.address("in"), "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello").status,
            200
        );
    }
    let end = std::time::Instant::now() + crate::world::LIMIT;
    while shadow.requests() < 30 && std::time::Instant::now() < end {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!(shadow.requests(), 30);
    assert!(shadow.last().contains("host: a-shadow"), "{}", shadow.last());
}
