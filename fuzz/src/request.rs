//! Requests: the head as HTTP/1 brings it, made canonical, and the path alone.

use std::cell::RefCell;
use std::sync::{Arc, OnceLock};

use engine::path::{Canonical, EscapedSlashes, PathOptions};
use engine::{ConnectionFacts, Dice, HttpManager, NetworkFilter, Plan, Store};
use http::{Method, Request, StatusCode, header};
use proto::json::{Format, parse_bootstrap};
use proxy::h1::probe::{self, Body};
use proxy::http::arrive::{self, Client};
use proxy::report::record::Downstream;

/// An edge's manager: strict, with everything switched on that changes a head.
const EDGE: &str = r#"
static_resources:
  listeners:
  - name: in
    address: {socket_address: {address: 127.0.0.1, port_value: 8080}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          use_remote_address: true
          merge_slashes: true
          path_with_escaped_slashes_action: UNESCAPE_AND_FORWARD
          strip_matching_host_port: true
          strip_trailing_host_dot: true
          via: fuzz
          upgrade_configs: [{upgrade_type: websocket}]
          http_protocol_options: {accept_http_10: true, default_host_for_http_10: old.test}
          common_http_protocol_options: {headers_with_underscores_action: DROP_HEADER}
          route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, direct_response: {status: 200}}]}]}
          http_filters: [{name: r, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
"#;

struct Edge {
    plan: Arc<Plan>,
    manager: Arc<HttpManager>,
    downstream: Downstream,
}

fn edge() -> &'static Edge {
    static EDGE_OF_ALL: OnceLock<Edge> = OnceLock::new();
    EDGE_OF_ALL.get_or_init(|| {
        let (bootstrap, _) = parse_bootstrap(EDGE, Format::Yaml).expect("the edge's bootstrap");
        let mut store = Store::new();
        store.bootstrap(&bootstrap).expect("the edge's resources");
        let plan = store.plan();
        let listener = Arc::clone(plan.listener("in").expect("the edge's listener"));
        let chain = Arc::clone(listener.chains.iter().next().expect("its chain"));
        let manager = chain.filters.iter().find_map(|filter| match filter {
            NetworkFilter::Http(manager) => Some(Arc::clone(manager)),
            _ => None,
        });
        let downstream = Downstream { facts: stranger(), listener, chain: Some(chain), own_uri: None };
        Edge { plan, manager: manager.expect("its manager"), downstream }
    })
}

/// A plaintext client from outside.
fn stranger() -> ConnectionFacts {
    ConnectionFacts::between(([192, 0, 2, 7], 40_000).into(), ([127, 0, 0, 1], 8080).into(), 1)
}

/// A client's bytes: every head made canonical; what was read means the same when it is framed anew, and when it comes
/// in pieces.
pub(crate) fn http1(data: &[u8]) {
    let (requests, fault) = probe::requests(data, usize::MAX);
    // A head has at least a request line and an empty line: more heads than lines were never sent.
    assert!(requests.len() <= data.split(|byte| *byte == b'\n').count());
    for size in sizes(data) {
        let (pieces, late) = probe::requests(data, size);
        assert_eq!((pieces.len(), late), (requests.len(), fault), "in pieces of {size}");
        requests.iter().zip(&pieces).for_each(|(first, second)| same(first, second));
    }
    let mut again = Vec::new();
    for request in &requests {
        write(&mut again, request);
    }
    let (second, refused) = probe::requests(&again, usize::MAX);
    assert_eq!((second.len(), refused.is_none()), (requests.len(), true), "{:?}", String::from_utf8_lossy(&again));
    for (first, second) in requests.iter().zip(&second) {
        assert_eq!((first.method(), first.uri()), (second.method(), second.uri()));
        assert_eq!(first.body().data, second.body().data);
    }
    for request in requests {
        judge(request);
    }
}

/// Into which pieces some bytes are cut: single ones, and some of a length that the bytes choose.
fn sizes(data: &[u8]) -> [usize; 2] {
    [1, data.iter().fold(2, |sum: usize, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte))) % 64 + 2]
}

fn same(first: &Request<Body>, second: &Request<Body>) {
    assert_eq!((first.method(), first.uri(), first.version()), (second.method(), second.uri(), second.version()));
    assert_eq!((first.headers(), first.body()), (second.headers(), second.body()));
}

/// A request in framing of our own, in no more lines than it had: there may have been as many as there can be.
fn write(out: &mut Vec<u8>, request: &Request<Body>) {
    out.extend(format!("{} {} HTTP/1.1\r\n", request.method(), request.uri()).bytes());
    for (name, value) in request.headers() {
        if *name != header::CONTENT_LENGTH && *name != header::TRANSFER_ENCODING {
            out.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
        }
    }
    let framing = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING];
    if framing.iter().any(|name| request.headers().contains_key(name)) {
        out.extend(format!("content-length: {}\r\n", request.body().data.len()).bytes());
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(&request.body().data);
}

/// A server's bytes, as the answer to some method.
pub(crate) fn answer(data: &[u8]) {
    let Some((method, data)) = data.split_first() else { return };
    let method = [Method::GET, Method::HEAD, Method::CONNECT][usize::from(*method) % 3].clone();
    let (answers, fault) = probe::responses(data, &method, usize::MAX);
    for size in sizes(data) {
        let (pieces, late) = probe::responses(data, &method, size);
        assert_eq!((pieces.len(), late), (answers.len(), fault), "in pieces of {size}");
        for (first, second) in answers.iter().zip(&pieces) {
            assert_eq!((first.status(), first.headers()), (second.status(), second.headers()));
            assert_eq!(first.body(), second.body());
        }
    }
    for answer in answers {
        let bare =
            method == Method::HEAD || answer.status().is_informational() || answer.status() == StatusCode::NO_CONTENT;
        assert!(!bare || answer.body().data.is_empty());
        let said =
            answer.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
        let whole = bare
            || answer.status() == StatusCode::NOT_MODIFIED
            || method == Method::CONNECT
            || answer.status() == StatusCode::SWITCHING_PROTOCOLS;
        assert!(whole || said.is_none_or(|said| said == answer.body().data.len()));
    }
}

/// What must hold of every head that is served.
fn judge(request: Request<Body>) {
    let edge = edge();
    let mut dice = Dice::new(1);
    let (parts, _) = request.into_parts();
    let host = RefCell::new("".into());
    let client = Client { manager: &edge.manager, downstream: &edge.downstream, certificate: None, host: &host };
    let Ok(head) = arrive::canonical(client, parts, &mut dice) else { return };
    assert!(!head.internal, "a stranger is internal");
    assert_eq!(head.remote, stranger().remote.ip(), "a stranger names its own address");
    assert_eq!(head.headers.get("x-envoy-external-address").and_then(|value| value.to_str().ok()), Some("192.0.2.7"));
    assert!(!head.authority.bytes().any(|byte| byte <= b' ' || matches!(byte, b'/' | b'\\' | b'@' | b',' | b'#')));
    assert!(head.path.bytes().all(|byte| byte > b' ' && byte != 0x7f), "{:?}", head.path);
    for name in [
        "host",
        "connection",
        "transfer-encoding",
        "keep-alive",
        "x-envoy-internal",
        "x-envoy-retry-on",
        "x-envoy-original-path",
    ] {
        assert!(!head.headers.contains_key(name), "{name} is left");
    }
    assert!(head.headers.keys().all(|name| !name.as_str().contains('_')));
    if head.method != Method::CONNECT {
        assert!(head.path.starts_with('/') || &*head.path == "*", "{:?}", head.path);
        assert_eq!(engine::path::canonical(&head.path, &edge.manager.path), Canonical::Same, "{:?}", head.path);
    }
    let facts = engine::Facts {
        connection: &edge.downstream.facts,
        method: head.method.as_str(),
        path: &head.path,
        authority: &head.authority,
        scheme: head.scheme,
        headers: &head.headers,
        protocol: engine::facts::Protocol::Http11,
        remote: head.remote,
        started: std::time::SystemTime::UNIX_EPOCH,
        metadata: None,
    };
    let now = engine::Moment::at(std::time::Duration::ZERO);
    let _ = engine::decide(&edge.plan, &edge.manager, &facts, now, &mut dice);
}

/// What is canonical stays canonical, in every mode.
pub(crate) fn path(data: &[u8]) {
    let Some((mode, rest)) = data.split_first() else { return };
    let path = format!("/{}", String::from_utf8_lossy(rest));
    let options = PathOptions {
        normalize: mode & 1 != 0,
        merge_slashes: mode & 2 != 0,
        escaped_slashes: match mode >> 2 & 3 {
            0 => EscapedSlashes::Keep,
            1 => EscapedSlashes::Reject,
            2 => EscapedSlashes::Redirect,
            _ => EscapedSlashes::Forward,
        },
        strip_matching_port: mode & 16 != 0,
        strip_any_port: mode & 32 != 0,
        strip_trailing_dot: mode & 64 != 0,
    };
    match engine::path::canonical(&path, &options) {
        Canonical::Changed(changed) | Canonical::Redirect(changed) => {
            assert_eq!(engine::path::canonical(&changed, &options), Canonical::Same, "{path:?} -> {changed:?}");
            assert!(changed.starts_with('/'), "{changed:?}");
            if options.normalize {
                let bare = changed.split('?').next().unwrap_or_default();
                assert!(!bare.split('/').any(|part| part == ".." || part == "."), "{changed:?}");
            }
        }
        Canonical::Same | Canonical::Reject(_) => {}
    }
    let authority = engine::path::authority(&path, &options, 8080).into_owned();
    let again = engine::path::authority(&authority, &options, 8080).into_owned();
    assert!(again.len() <= authority.len());
}
