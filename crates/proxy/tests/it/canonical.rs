//! One path and one host: what routes, policies and logs see is what goes upstream, for every byte in every position.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;

use crate::backend::Backend;
use crate::world::{World, cluster, connect, http_with, read_reply};

/// A path before, at and behind `X`, in a segment, in a query, beside dots and slashes.
const PLACES: [&str; 7] = ["/X", "/aX", "/aXb", "/a/X/b", "/a/.X./b", "/a//X", "/a?q=X"];

/// Istio's modes, and the manager's settings for each.
const MODES: [&str; 4] = [
    "normalize_path: false,",
    "normalize_path: true,",
    "normalize_path: true, merge_slashes: true,",
    "normalize_path: true, merge_slashes: true, path_with_escaped_slashes_action: UNESCAPE_AND_FORWARD,",
];

/// Every path of the test: each byte but 0 as it is and percent-encoded, in each place.
fn paths() -> Vec<Vec<u8>> {
    let mut paths = Vec::new();
    for place in PLACES {
        let (before, after) = place.split_once('X').unwrap();
        for byte in 1..=255u8 {
            for form in [vec![byte], format!("%{byte:02x}").into_bytes(), format!("%25{byte:02X}").into_bytes()] {
                paths.push([before.as_bytes(), &form, after.as_bytes()].concat());
            }
        }
    }
    paths
}

/// What the backend got, where the request got so far.
fn forwarded(at: SocketAddr, backend: &Backend, path: &[u8], number: usize) -> Option<String> {
    let before = backend.requests();
    let mut client = connect(at);
    let rest = format!(" HTTP/1.1\r\nhost: a\r\nx-case: {number}\r\n\r\n");
    client.write_all(&[b"GET ", path, rest.as_bytes()].concat()).unwrap();
    let status = read_reply(&mut client).status;
    if status != 200 {
        assert!(status == 400 || status == 403 || status == 404 || status == 426, "{path:?}: {status}");
        assert_eq!(backend.requests(), before, "{path:?}: refused and forwarded");
        return None;
    }
    assert_eq!(backend.requests(), before + 1, "{path:?}");
    Some(backend.last().split(' ').nth(1).unwrap().to_owned())
}

/// An authorization filter that lets number N pass only when the path it sees is the Nth one, and a log of what it saw.
fn only(expected: &[Option<String>]) -> String {
    let mut policies = String::new();
    for (number, path) in expected.iter().enumerate() {
        let Some(path) = path else { continue };
        let bare = path.split('?').next().unwrap();
        write!(
            policies,
            "\"{number}\": {{principals: [{{any: true}}], permissions: [{{and_rules: {{rules: [{{header: {{name: x-case, \
             string_match: {{exact: \"{number}\"}}}}}}, {{header: {{name: \":path\", string_match: {{exact: {path:?}}}}}}}, \
             {{url_path: {{path: {{exact: {bare:?}}}}}}}]}}}}]}}, "
        )
        .unwrap();
    }
    format!(
        "{{name: envoy.filters.http.rbac, typed_config: {{\"@type\": \
         type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, rules: {{action: ALLOW, policies: {{{policies}}}}}}}}},"
    )
}

/// A route for each of the numbers, matched by the exact path.
fn routes(expected: &[Option<String>]) -> String {
    let mut routes = String::new();
    for (number, path) in expected.iter().enumerate() {
        let Some(path) = path else { continue };
        let bare = path.split('?').next().unwrap();
        write!(
            routes,
            "{{match: {{path: {bare:?}, headers: [{{name: x-case, string_match: {{exact: \"{number}\"}}}}]}}, \
             route: {{cluster: c}}}}, "
        )
        .unwrap();
    }
    routes
}

#[test]
fn routes_policies_and_logs_see_what_is_forwarded() {
    let backend = Backend::start();
    let cluster = cluster("c", &[backend.address], "");
    let directory = tempfile::tempdir().unwrap();
    let paths = paths();
    for (mode, manager) in MODES.iter().enumerate() {
        let open = World::start(&http_with("", manager, "{match: {prefix: /}, route: {cluster: c}}", &cluster));
        let at = open.address("in");
        let expected: Vec<_> = paths.iter().enumerate().map(|(n, path)| forwarded(at, &backend, path, n)).collect();
        drop(open);
        let passed = expected.iter().flatten().count();
        assert!(passed > PLACES.len() * 255 * 2, "only {passed} paths were forwarded at all");

        let file = directory.path().join(format!("{mode}.log"));
        let log = format!(
            "access_log: [{{name: f, typed_config: {{\"@type\": \
             type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: {file:?}, log_format: \
             {{text_format_source: {{inline_string: \"%REQ(X-CASE)% %REQ(:PATH)%\\n\"}}}}}}}}],"
        );
        let strict =
            World::start(&http_with(&only(&expected), &format!("{manager}{log}"), &routes(&expected), &cluster));
        let at = strict.address("in");
        for (number, path) in paths.iter().enumerate() {
            assert_eq!(forwarded(at, &backend, path, number), expected[number], "{path:?} in mode {manager}");
        }
        drop(strict);
        let logged = std::fs::read_to_string(&file).unwrap();
        for (number, path) in expected.iter().enumerate().filter_map(|(n, path)| Some((n, path.as_ref()?))) {
            assert!(logged.contains(&format!("{number} {path}\n")), "{number} {path} is not in the log");
        }
    }
}

#[test]
fn what_is_canonical_stays_so() {
    let backend = Backend::start();
    let cluster = cluster("c", &[backend.address], "");
    for manager in MODES {
        let world = World::start(&http_with("", manager, "{match: {prefix: /}, route: {cluster: c}}", &cluster));
        let at = world.address("in");
        for (number, path) in paths().iter().enumerate().step_by(7) {
            if let Some(once) = forwarded(at, &backend, path, number) {
                let twice = forwarded(at, &backend, once.as_bytes(), number);
                assert_eq!(twice.as_deref(), Some(&*once), "{path:?} in mode {manager}");
            }
        }
    }
}

#[test]
fn one_host_counts() {
    let backend = Backend::start();
    let cluster = cluster("c", &[backend.address], "");
    let rbac = "{name: envoy.filters.http.rbac, typed_config: {\"@type\": \
        type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, rules: {action: DENY, policies: {secret: \
        {principals: [{any: true}], permissions: [{header: {name: \":authority\", string_match: {exact: secret.test, \
        ignore_case: true}}}]}}}}},";
    let manager = "strip_any_host_port: true, strip_trailing_host_dot: true,";
    let world = World::start(&http_with(rbac, manager, "{match: {prefix: /}, route: {cluster: c}}", &cluster));
    let ask = |request: &str| {
        let mut client = connect(world.address("in"));
        client.write_all(request.as_bytes()).unwrap();
        read_reply(&mut client).status
    };
    for host in ["secret.test", "SECRET.test", "secret.test:80", "secret.test.", "Secret.Test.:8080"] {
        assert_eq!(ask(&format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n")), 403, "{host}");
    }
    // A target in absolute form counts, whatever Host says (RFC 9112 section 3.2.2).
    assert_eq!(ask("GET http://secret.test/ HTTP/1.1\r\nhost: open.test\r\n\r\n"), 403);
    assert_eq!(ask("GET http://open.test/x HTTP/1.1\r\nhost: secret.test\r\n\r\n"), 200);
    assert!(backend.last().contains("host: open.test\r\n"), "{}", backend.last());
    assert!(!backend.last().contains("secret"), "{}", backend.last());
    for broken in ["a b", "a/b", "a,b", "a?b", "a#b", "u@a", "a\\b"] {
        assert_eq!(ask(&format!("GET / HTTP/1.1\r\nhost: {broken}\r\n\r\n")), 400, "{broken}");
    }
    assert_eq!(ask("GET / HTTP/1.1\r\nhost: open.test\r\nhost: secret.test\r\n\r\n"), 400);
    assert_eq!(backend.requests(), 1);
}
