//! What comes before an answer, and copies of what comes before it.

use std::future::Future;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use crate::backend::Backend;
use crate::world::{HTTP2, LIMIT, World, cluster, connect, http_with, read_reply};

const ROUTE: &str = "{match: {prefix: /}, route: {cluster: a}}";
const HINTS: &[u8] = b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\nconnection: x\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// A server that does this to its one connection once a head has come.
fn server(deed: impl FnOnce(&mut TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        deed(&mut stream);
        let _ = stream.read(&mut [0; 1024]);
    });
    address
}

fn world(manager: &str, server: SocketAddr) -> World {
    World::start(&http_with("", manager, ROUTE, &cluster("a", &[server], "")))
}

/// Reads until `end`: what came must be two hints with their links, and an answer.
fn assert_two_hints_and_an_answer(client: &mut TcpStream, end: &[u8]) {
    let mut all = Vec::new();
    while !all.ends_with(end) {
        let mut buffer = [0; 1024];
        let count = client.read(&mut buffer).unwrap();
        assert!(count > 0, "{}", String::from_utf8_lossy(&all));
        all.extend_from_slice(&buffer[..count]);
    }
    let hint = b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n";
    assert!(all.starts_with(&[hint, hint, &b"HTTP/1.1 200 OK\r\n"[..]].concat()), "{}", String::from_utf8_lossy(&all));
}

#[test]
fn hints_of_a_program_reach_the_client_where_that_is_wanted() {
    let hinting = || {
        server(|stream| {
            stream.write_all(HINTS).unwrap();
            std::thread::sleep(Duration::from_millis(50));
            stream.write_all(&[HINTS, OK].concat()).unwrap();
        })
    };
    let relaying = world("proxy_100_continue: true,", hinting());
    let mut client = connect(relaying.address("in"));
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    assert_two_hints_and_an_answer(&mut client, b"ok");

    let usual = world("", hinting());
    let mut client = connect(usual.address("in"));
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    assert_eq!(read_reply(&mut client).status, 200, "they end at the proxy");
}

#[test]
fn the_program_gives_leave_to_send() {
    let (asked, proxy_asks) = mpsc::channel();
    let careful = server(move |stream| {
        proxy_asks.recv().unwrap();
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
        stream.read_exact(&mut [0; 3]).unwrap();
        stream.write_all(OK).unwrap();
    });
    let world = world("proxy_100_continue: true,", careful);
    let mut client = connect(world.address("in"));
    client.write_all(b"POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n").unwrap();
    client.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(client.read(&mut [0; 1]).is_err(), "nothing comes before the program has spoken");
    client.set_read_timeout(Some(LIMIT)).unwrap();
    asked.send(()).unwrap();
    assert_eq!(read_reply(&mut client).status, 100);
    client.write_all(b"abc").unwrap();
    assert_eq!(read_reply(&mut client).status, 200);
}

/// An HTTP/2 server that gives so many hints before each answer.
fn http2_server(hints: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        // It ends with its connection, or is left behind by who asked.
        let _ = block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                for _ in 0..hints {
                    let hint = http::Response::builder().status(103).header("link", "</a.css>").body(()).unwrap();
                    respond.send_informational(hint).unwrap();
                }
                let mut send = respond.send_response(http::Response::new(()), false).unwrap();
                send.send_data("ok".into(), true).unwrap();
            }
        });
    });
    address
}

/// What comes on one HTTP/2 stream: statuses of interim answers, the answer's, and whether each hint has its link.
async fn statuses_over_http2(at: SocketAddr) -> (Vec<u16>, u16, bool) {
    let stream = tokio::net::TcpStream::connect(at).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get(format!("http://a:{}/", at.port())).body(()).unwrap();
    let (mut answer, _) = client.ready().await.unwrap().send_request(request, true).unwrap();
    let (mut interim, mut linked) = (Vec::new(), true);
    while let Some(Ok(hint)) = std::future::poll_fn(|cx| answer.poll_informational(cx)).await {
        interim.push(hint.status().as_u16());
        linked &= hint.headers().get("link").is_some_and(|link| link == "</a.css>");
    }
    (interim, answer.await.unwrap().status().as_u16(), linked)
}

/// `None`: it took too long.
fn block_on<F: Future>(future: F) -> Option<F::Output> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(LIMIT, future).await.ok() })
}

#[test]
fn hints_pass_over_http2_on_either_side() {
    let hinting = server(|stream| stream.write_all(&[HINTS, HINTS, OK].concat()).unwrap());
    let onward = world("proxy_100_continue: true,", hinting);
    assert_eq!(block_on(statuses_over_http2(onward.address("in"))), Some((vec![103, 103], 200, true)), "to HTTP/1");

    let relaying = http_with("", "proxy_100_continue: true,", ROUTE, &cluster("a", &[http2_server(2)], HTTP2));
    let relaying = World::start(&relaying);
    assert_eq!(block_on(statuses_over_http2(relaying.address("in"))), Some((vec![103, 103], 200, true)), "to HTTP/2");
    let mut client = connect(relaying.address("in"));
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    assert_two_hints_and_an_answer(&mut client, b"0\r\n\r\n");

    let usual = World::start(&http_with("", "", ROUTE, &cluster("a", &[http2_server(2)], HTTP2)));
    assert_eq!(block_on(statuses_over_http2(usual.address("in"))), Some((vec![], 200, true)), "they end at the proxy");
}

#[test]
fn who_gives_hints_without_end_is_not_waited_for() {
    let endless = http_with("", "proxy_100_continue: true,", ROUTE, &cluster("a", &[http2_server(5_000)], HTTP2));
    let endless = World::start(&endless);
    let answered = block_on(statuses_over_http2(endless.address("in")));
    assert_eq!(answered.map(|(_, status, _)| status), Some(502));
}

#[test]
fn a_body_larger_than_any_buffer_is_copied_while_it_comes() {
    const PIECE: usize = 64 << 10;
    const PIECES: usize = 48;
    // The client is never more than a few pieces ahead of the copy.
    const AHEAD: usize = 4;
    let (told, copied) = mpsc::channel();
    let mirror = server(move |stream| {
        let mut piece = vec![0; PIECE];
        for _ in 0..PIECES {
            stream.read_exact(&mut piece).unwrap();
            told.send(piece.iter().all(|byte| *byte == b'x')).unwrap();
        }
        stream.write_all(OK).unwrap();
    });
    let honest = Backend::start();
    let route = "{match: {prefix: /}, route: {cluster: a, request_mirror_policies: [{cluster: m}]}}";
    let clusters = [cluster("a", &[honest.address], ""), cluster("m", &[mirror], "")].concat();
    let world = World::start(&http_with("", "", route, &clusters));
    let mut client = connect(world.address("in"));
    let size = PIECE * PIECES;
    client.write_all(format!("POST /up HTTP/1.1\r\nhost: a\r\ncontent-length: {size}\r\n\r\n").as_bytes()).unwrap();
    for sent in 0..PIECES {
        if sent >= AHEAD {
            assert!(copied.recv_timeout(LIMIT).unwrap(), "the copy comes with piece {sent}");
        }
        client.write_all(&vec![b'x'; PIECE]).unwrap();
    }
    let reply = read_reply(&mut client);
    assert_eq!((reply.status, reply.body.len()), (200, size));
    for _ in 0..AHEAD {
        assert!(copied.recv_timeout(LIMIT).unwrap(), "the copy is whole");
    }
}
