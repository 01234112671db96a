//! What a hostile or broken client gets.

use std::io::{Read, Write};
use std::time::Duration;

use crate::backend::Backend;
use crate::world::{World, ask, cluster, connect, get, http, http_with};

fn world(backend: &Backend) -> World {
    World::start(&http("{match: {prefix: /}, route: {cluster: c}}", &cluster("c", &[backend.address], "")))
}

/// Everything that comes until the connection ends.
fn all(at: std::net::SocketAddr, bytes: &[u8]) -> String {
    let mut client = connect(at);
    client.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    client.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    let _ = client.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn ambiguous_requests_never_reach_the_backend() {
    let backend = Backend::start();
    let world = world(&backend);
    let at = world.address("in");
    let cases: &[&[u8]] = &[
        b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.0\r\nhost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +3\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nx y: 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nx: a\0b\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a b\r\n\r\n",
        b"\x16\x03\x01\x00\x05hello",
        b"\x00\x01\x02\x03\r\n\r\n",
    ];
    for case in cases {
        let answer = all(at, case);
        let shown = String::from_utf8_lossy(case);
        assert!(!answer.starts_with("HTTP/1.1 2"), "{shown:?} -> {answer:?}");
        let requests = backend.requests();
        // A body that turns out broken may have begun its way; nothing else reaches the backend.
        assert!(requests == 0 || shown.contains("ZZ"), "{shown:?} -> {requests}");
        backend.heads.lock().unwrap().clear();
    }
    assert_eq!(get(at, "/", "").status, 200);
}

#[test]
fn both_framings_are_not_forwarded_as_two_requests() {
    let backend = Backend::start();
    let world = world(&backend);
    let smuggled = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /evil HTTP/1.1\r\nhost: a\r\n\r\n";
    let answer = all(world.address("in"), smuggled);
    assert!(
        answer.starts_with("HTTP/1.1 400")
            || !backend.heads.lock().unwrap().iter().any(|head| head.contains("content-length: 6")),
        "{answer}"
    );
}

#[test]
fn too_large_heads_are_refused() {
    let backend = Backend::start();
    let world = world(&backend);
    let at = world.address("in");
    let many: String = (0..200).map(|n| format!("x-{n}: 1\r\n")).collect();
    assert_eq!(get(at, "/", &many).status, 431);
    let long = format!("x-long: {}\r\n", "a".repeat(100_000));
    assert_eq!(get(at, "/", &long).status, 431);
    assert_eq!(backend.requests(), 0);
}

#[test]
fn http_1_0_where_it_is_allowed() {
    let backend = Backend::start();
    let manager = "http_protocol_options: {accept_http_10: true, default_host_for_http_10: old.test},";
    let yaml =
        http_with("", manager, "{match: {prefix: /}, route: {cluster: c}}", &cluster("c", &[backend.address], ""));
    let world = World::start(&yaml);
    let reply = ask(world.address("in"), "GET / HTTP/1.0\r\n\r\n");
    assert_eq!(reply.status, 200);
    assert!(backend.last().contains("host: old.test"), "{}", backend.last());
}

/// Says more of a body than a filter waits for, reads the answer, and goes on saying after a time: whether the connection still
/// takes it.
fn goes_on(delayed_close: &str, after: Duration) -> bool {
    let backend = Backend::start();
    let buffer = "{name: buffer, typed_config: {\"@type\": \
        type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer, max_request_bytes: 4}},";
    let manager = format!("delayed_close_timeout: {delayed_close},");
    let clusters = cluster("c", &[backend.address], "");
    let world = World::start(&http_with(buffer, &manager, "{match: {prefix: /}, route: {cluster: c}}", &clusters));
    let mut client = connect(world.address("in"));
    client.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n0123456789").unwrap();
    assert_eq!(crate::world::read_reply(&mut client).status, 413);
    std::thread::sleep(after);
    // What comes at a closed socket is answered by a reset, of which the next write hears.
    (0..5).all(|_| {
        std::thread::sleep(Duration::from_millis(20));
        client.write_all(b"more").is_ok()
    })
}

#[test]
fn who_still_sends_is_read_from_for_as_long_as_that_is_set() {
    assert!(goes_on("5s", Duration::from_millis(600)));
    assert!(!goes_on("0.2s", Duration::from_millis(600)));
    assert!(!goes_on("0s", Duration::from_millis(100)), "not at all");
}
