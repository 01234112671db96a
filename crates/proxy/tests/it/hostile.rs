//! Servers that lie, ramble, or never come to an end: no client but the one that asked them is harmed.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::backend::Backend;
use crate::world::{HTTP2, World, cluster, connect, get, http, read_reply};

/// A server that does the same to each connection, once something was read; it is told the connection's number.
fn server(deed: impl Fn(usize, TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (deed, count) = (Arc::new(deed), AtomicUsize::new(0));
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (deed, number) = (Arc::clone(&deed), count.fetch_add(1, Ordering::SeqCst));
            std::thread::spawn(move || {
                let mut stream = stream;
                stream.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
                let mut buffer = [0; 4096];
                if matches!(stream.read(&mut buffer), Ok(1..)) {
                    deed(number, stream);
                }
            });
        }
    });
    address
}

/// A server that answers with these bytes and closes.
fn saying(bytes: impl Into<Vec<u8>>) -> SocketAddr {
    let bytes = bytes.into();
    server(move |_, mut stream| {
        let _ = stream.write_all(&bytes);
    })
}

/// A proxy with a hostile cluster under `/hostile` and an honest one elsewhere.
fn world(hostile: SocketAddr, honest: &Backend, more: &str) -> World {
    let routes = "{match: {prefix: /hostile}, route: {cluster: hostile, timeout: 2s}}, {match: {prefix: /}, route: {cluster: honest}}";
    let clusters = [cluster("hostile", &[hostile], more), cluster("honest", &[honest.address], "")].concat();
    World::start(&http(routes, &clusters))
}

/// The status for the client that asked, and that others are served as before.
fn status(hostile: SocketAddr, more: &str) -> u16 {
    let honest = Backend::start();
    let world = world(hostile, &honest, more);
    let at = world.address("in");
    let begun = Instant::now();
    let status = get(at, "/hostile", "").status;
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert_eq!(get(at, "/other", "").status, 200);
    status
}

#[test]
fn informational_answers_are_passed_over_and_never_end() {
    let storm = "HTTP/1.1 102 Processing\r\n\r\n".repeat(500);
    assert_eq!(status(saying(format!("{storm}HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")), ""), 200);
    let endless = server(|_, mut stream| while stream.write_all(b"HTTP/1.1 103 Early Hints\r\n\r\n").is_ok() {});
    assert_eq!(status(endless, ""), 502, "an endless one is cut off long before its time is over");
}

#[test]
fn answers_that_are_no_http_are_gateway_errors() {
    let long = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "a".repeat(2_000_000));
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(100_000));
    let cases: [(&str, Vec<u8>); 9] = [
        ("nothing", Vec::new()),
        ("garbage", b"\x00\x01\x02 not http\r\n\r\n".to_vec()),
        ("a long header", long.into_bytes()),
        ("many headers", many.into_bytes()),
        ("half a head", b"HTTP/1.1 200 OK\r\nx: y".to_vec()),
        ("two lengths", b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab".to_vec()),
        ("a length that is none", b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\nab".to_vec()),
        ("a NUL in a value", b"HTTP/1.1 200 OK\r\nx: a\0b\r\ncontent-length: 0\r\n\r\n".to_vec()),
        ("an HTTP/2 preface", b"\0\0\0\x04\0\0\0\0\0".to_vec()),
    ];
    for (what, bytes) in cases {
        let status = status(saying(bytes), "");
        assert!(matches!(status, 502..=504), "{what}: {status}");
    }
}

#[test]
fn an_answer_behind_an_answer_reaches_nobody() {
    let honest = Backend::start();
    let split = server(|_, mut stream| {
        let two = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil";
        let _ = stream.write_all(two);
        let _ = stream.read(&mut [0; 1024]);
    });
    let world = world(split, &honest, "");
    let at = world.address("in");
    let mut client = connect(at);
    for _ in 0..10 {
        client.write_all(b"GET /hostile HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
        assert_eq!(read_reply(&mut client).body, "ok");
        assert_eq!(get(at, "/hostile", "").body, "ok");
    }
}

#[test]
fn a_body_of_another_length_than_said_is_never_whole() {
    let honest = Backend::start();
    let short = saying(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nfour".to_vec());
    let world = world(short, &honest, "");
    let mut client = connect(world.address("in"));
    client.write_all(b"GET /hostile HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = client.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    // The connection is closed before the length that was promised, or before anything: no client takes it for whole.
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    assert!(head.is_empty() || (head.contains("content-length: 10") && body.len() < 10), "{answer}");
    let broken = saying(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nfour\r\nZZ\r\n".to_vec());
    let world = self::world(broken, &honest, "");
    let mut client = connect(world.address("in"));
    client.write_all(b"GET /hostile HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = client.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    assert!(!answer.ends_with("0\r\n\r\n"), "{answer}");
    assert_eq!(get(world.address("in"), "/other", "").status, 200);
}

#[test]
fn an_upgrade_that_nobody_asked_for_is_no_tunnel() {
    let upgrade = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nevil".to_vec();
    let status = status(saying(upgrade), "");
    assert!(status >= 500, "{status}");
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

#[test]
fn http2_servers_that_break_the_rules() {
    let settings = frame(4, 0, 0, &[]);
    // GOAWAY for everything and settings at once (what once brought Envoy down).
    let goodbye = [settings.clone(), frame(7, 0, 0, &[0; 8]), frame(4, 0, 0, &[0, 4, 0, 0, 0, 0])].concat();
    let garbage = [settings.clone(), vec![0xff; 4096]].concat();
    let push = [settings.clone(), frame(5, 4, 1, &[0, 0, 0, 2, 0x82])].concat();
    let to_none = [settings.clone(), frame(0, 1, 7, b"x")].concat();
    let no_status = [settings.clone(), frame(1, 5, 1, &[0, 1, b'x', 1, b'y'])].concat();
    let cases =
        [("GOAWAY", goodbye), ("garbage", garbage), ("a push", push), ("no stream", to_none), ("no status", no_status)];
    for (what, bytes) in cases {
        let status = status(saying(bytes), HTTP2);
        assert!(matches!(status, 502..=504), "{what}: {status}");
    }
}

#[test]
fn http2_servers_that_flood() {
    for (kind, payload) in [(6, &b"12345678"[..]), (4, &[][..]), (8, &[0, 0, 0, 1][..]), (2, &[0, 0, 0, 0, 1][..])] {
        let stream = if kind == 2 { 3 } else { 0 };
        let block = frame(kind, 0, stream, payload).repeat(100);
        let ended = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&ended);
        let flood = server(move |_, mut stream| {
            let _ = stream.write_all(&frame(4, 0, 0, &[]));
            let mut drain = stream.try_clone().unwrap();
            std::thread::spawn(move || while matches!(drain.read(&mut [0; 65536]), Ok(1..)) {});
            while stream.write_all(&block).is_ok() {}
            count.fetch_add(1, Ordering::SeqCst);
        });
        let status = status(flood, HTTP2);
        assert!(matches!(status, 502..=504), "kind {kind}: {status}");
        std::thread::sleep(Duration::from_millis(200));
        assert!(ended.load(Ordering::SeqCst) > 0, "kind {kind}: the connection goes on");
    }
}
