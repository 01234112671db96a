//! HTTP/1 framing: bytes in, and what the backend gets. Whatever a client sends, requests upstream are framed by the proxy.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::backend::Backend;
use crate::world::{LIMIT, World, cluster, connect, get, http, http_with, read_reply};

/// A backend that keeps every byte of each connection, and answers each head with what it is told to say.
struct Raw {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Raw {
    fn start(answer: &'static [u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::<Mutex<Vec<Vec<u8>>>>::default();
        let keep = Arc::clone(&seen);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let keep = Arc::clone(&keep);
                std::thread::spawn(move || Self::serve(stream, answer, &keep));
            }
        });
        Self { address, seen }
    }

    fn serve(mut stream: TcpStream, answer: &[u8], seen: &Mutex<Vec<Vec<u8>>>) {
        let number = {
            let mut seen = seen.lock().unwrap();
            seen.push(Vec::new());
            seen.len() - 1
        };
        let mut buffer = [0; 65536];
        let mut answered = 0;
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            let heads = {
                let mut seen = seen.lock().unwrap();
                seen[number].extend_from_slice(&buffer[..count]);
                seen[number].windows(4).filter(|window| window == b"\r\n\r\n").count()
            };
            if heads > answered {
                answered = heads;
                if stream.write_all(answer).is_err() {
                    return;
                }
            }
        }
    }

    fn all(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap().concat()).into_owned()
    }
}

fn plain(address: SocketAddr, manager: &str) -> World {
    let cluster = cluster("c", &[address], "");
    World::start(&http_with("", manager, "{match: {prefix: /}, route: {cluster: c}}", &cluster))
}

/// Everything that comes until the connection ends or is silent for long.
fn all(at: SocketAddr, bytes: &[u8]) -> String {
    let mut client = connect(at);
    client.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let _ = client.write_all(bytes);
    rest(&mut client)
}

fn rest(client: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let _ = client.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn statuses(answers: &str) -> Vec<&str> {
    answers.lines().filter_map(|line| line.strip_prefix("HTTP/1.1 ")).map(|line| &line[..3]).collect()
}

#[test]
fn bodies_get_new_frames() {
    let backend = Backend::start();
    let world = plain(backend.address, "");
    let at = world.address("in");
    let post = |more: &str| format!("POST / HTTP/1.1\r\nhost: a\r\n{more}");
    let answer = all(at, post("content-length: 0003\r\n\r\nabc").as_bytes());
    assert!(answer.ends_with("\r\n\r\nabc"), "{answer}");
    assert!(backend.last().contains("\ncontent-length: 3\r\n"), "{}", backend.last());
    // Extensions and the client's cut of the chunks end here.
    let chunked = "transfer-encoding:\tChunked\r\n\r\n0001;a=\"b;c\"\r\na\r\n2 ;d\r\nbc\r\n000\r\n\r\n";
    let answer = all(at, post(chunked).as_bytes());
    assert!(answer.ends_with("\r\n\r\nabc"), "{answer}");
    assert!(backend.last().contains("\ntransfer-encoding: chunked\r\n"), "{}", backend.last());
    assert_eq!(backend.last().matches("chunked").count(), 1, "{}", backend.last());
    // A body that looks like a request is a body.
    let inner = "GET /inner HTTP/1.1\r\nhost: a\r\n\r\n";
    let two = post(&format!("content-length: {}\r\n\r\n{inner}GET /second HTTP/1.1\r\nhost: a\r\n\r\n", inner.len()));
    let answer = all(at, two.as_bytes());
    assert_eq!(statuses(&answer), ["200", "200"], "{answer}");
    let heads = backend.heads.lock().unwrap();
    assert!(!heads.iter().any(|head| head.contains("/inner")), "{heads:?}");
}

#[test]
fn trailers_pass_where_both_sides_say_so() {
    const ANSWER: &[u8] =
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-down: 2\r\nhost: no\r\n\r\n";
    let request =
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-up: 1\r\nhost: no\r\n\r\n";
    for (down, up) in [(false, false), (false, true), (true, false), (true, true)] {
        let backend = Raw::start(ANSWER);
        let option = |on: bool| format!("http_protocol_options: {{enable_trailers: {on}}},");
        let cluster = cluster("c", &[backend.address], &option(up));
        let routes = "{match: {prefix: /}, route: {cluster: c}}";
        let world = World::start(&http_with("", &option(down), routes, &cluster));
        let answer = all(world.address("in"), request.as_bytes());
        let both = down && up;
        let end = |line: &str| if both { format!("\r\n0\r\n{line}\r\n\r\n") } else { "\r\n0\r\n\r\n".to_owned() };
        assert!(answer.ends_with(&end("x-down: 2")), "{down} {up}: {answer}");
        let patience = Instant::now() + Duration::from_secs(5);
        while !backend.all().ends_with(&end("x-up: 1")) {
            assert!(Instant::now() < patience, "{down} {up}: {}", backend.all());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn what_has_two_lengths_has_none() {
    let backend = Raw::start(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    let world = plain(backend.address, "http_protocol_options: {accept_http_10: true},");
    let at = world.address("in");
    let cases = [
        "content-length: +3\r\n\r\nabc",
        "content-length: -3\r\n\r\nabc",
        "content-length: 0x3\r\n\r\nabc",
        "content-length: 3 3\r\n\r\nabc",
        "content-length: 3, 3\r\n\r\nabc",
        "content-length:\r\n\r\nGET /evil HTTP/1.1\r\nhost: a\r\n\r\n",
        "content-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        "content-length : 3\r\n\r\nabc",
        "content-length: 99999999999999999999\r\n\r\nabc",
        "transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        "transfer-encoding: identity\r\n\r\nabc",
        "transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "transfer-encoding : chunked\r\n\r\n0\r\n\r\n",
        "transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        "x: y\r\n transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\nabc",
    ];
    for case in cases {
        for version in ["1.1", "1.0"] {
            let answer = all(at, format!("POST / HTTP/{version}\r\nhost: a\r\n{case}").as_bytes());
            let refused = ["HTTP/1.1 400", "HTTP/1.1 501", "HTTP/1.0 400", "HTTP/1.0 501"];
            assert!(refused.iter().any(|start| answer.starts_with(start)), "{case:?} -> {answer:?}");
            assert_eq!(backend.all(), "", "{case:?} was forwarded");
        }
    }
    let old = all(at, b"POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
    assert!(old.contains(" 400 ") && backend.all().is_empty(), "{old}");
    // Both lengths: refused, or read as chunks alone and never again on this connection.
    let both = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /evil HTTP/1.1\r\nhost: a\r\n\r\n";
    let answer = all(at, both.as_bytes());
    assert_eq!(statuses(&answer).len(), 1, "{answer}");
    assert!(!backend.all().contains("/evil") && !backend.all().contains("content-length: 6"), "{}", backend.all());
}

#[test]
fn chunks_are_read_strictly() {
    let backend = Raw::start(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    let world = plain(backend.address, "");
    let at = world.address("in");
    let bodies = [
        "+3\r\nabc\r\n0\r\n\r\n",
        "-1\r\nabc\r\n0\r\n\r\n",
        "0x3\r\nabc\r\n0\r\n\r\n",
        "3_\r\nabc\r\n0\r\n\r\n",
        "10000000000000003\r\nabc\r\n0\r\n\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "3\r\nabc0\r\n\r\n",
        "3\nabc\n0\n\n",
        "3\rabc\r\n0\r\n\r\n",
        "3;a\nb\r\nabc\r\n0\r\n\r\n",
        "\r\nabc\r\n0\r\n\r\n",
        "3\r\nabc\r\n0\r\nx y: 1\r\n\r\n",
        "3\r\nabc\r\n0\r\nno colon\r\n\r\n",
    ];
    for body in bodies {
        let request = format!("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{body}");
        all(at, request.as_bytes());
        // It may have been on its way before it broke; it is never finished.
        let seen = backend.all();
        assert!(!seen.contains("\r\n0\r\n"), "{body:?} -> {seen:?}");
        backend.seen.lock().unwrap().iter_mut().for_each(Vec::clear);
    }
    // A body cut off is never finished either.
    let mut client = connect(at);
    client.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n").unwrap();
    std::thread::sleep(Duration::from_millis(100));
    drop(client);
    std::thread::sleep(Duration::from_millis(100));
    assert!(!backend.all().contains("\r\n0\r\n"), "{:?}", backend.all());
}

#[test]
fn nothing_is_read_behind_what_is_no_body() {
    let backend = Backend::start();
    let world = plain(backend.address, "");
    let request = "POST /first HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nno trailer\r\n\r\n\
        as: trailer\r\n\r\nGET /second HTTP/1.1\r\nhost: a\r\n\r\n";
    let mut client = connect(world.address("in"));
    client.write_all(request.as_bytes()).unwrap();
    let answers = rest(&mut client);
    assert_eq!(statuses(&answers), ["400"], "{answers}");
    assert!(!backend.heads.lock().unwrap().iter().any(|head| head.contains("second")));
}

#[test]
fn no_byte_of_a_head_begins_another_line() {
    let backend = Backend::start();
    let world = plain(backend.address, "");
    let at = world.address("in");
    for byte in 0..=255u8 {
        let places: [(&str, Vec<u8>); 5] = [
            ("value", [b"GET / HTTP/1.1\r\nhost: a\r\nx-a: b", &[byte][..], b"evil: 1\r\n\r\n"].concat()),
            ("name", [b"GET / HTTP/1.1\r\nhost: a\r\nx", &[byte][..], b"evil: 1\r\n\r\n"].concat()),
            ("method", [b"G", &[byte][..], b"ET / HTTP/1.1\r\nhost: a\r\n\r\n"].concat()),
            ("version", [b"GET / HTTP/1.", &[byte][..], b"\r\nhost: a\r\n\r\n"].concat()),
            ("host", [b"GET / HTTP/1.1\r\nhost: a", &[byte][..], b"evil: 1\r\n\r\n"].concat()),
        ];
        for (place, request) in places {
            backend.heads.lock().unwrap().clear();
            let answer = all_once(at, &request);
            let heads = backend.heads.lock().unwrap().clone();
            let shown = format!("{byte:#x} in {place}: {answer:?} {heads:?}");
            match heads.as_slice() {
                [] => assert!(!answer.starts_with("HTTP/1.1 2"), "{shown}"),
                [head] => {
                    let names = head.lines().skip(1).filter_map(|line| line.split_once(':')).map(|(name, _)| name);
                    assert!(!names.into_iter().any(|name| name.eq_ignore_ascii_case("evil")), "{shown}");
                    assert!(!head.contains('\0') && !head.replace("\r\n", "").contains(['\r', '\n']), "{shown}");
                }
                _ => panic!("{shown}"),
            }
        }
    }
}

/// One answer, without waiting for more.
fn all_once(at: SocketAddr, request: &[u8]) -> String {
    let mut client = connect(at);
    client.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let _ = client.write_all(request);
    let mut buffer = [0; 4096];
    let count = client.read(&mut buffer).unwrap_or(0);
    String::from_utf8_lossy(&buffer[..count]).into_owned()
}

#[test]
fn an_early_answer_leaves_nothing_behind() {
    let backend = Backend::start();
    let rbac = "{name: envoy.filters.http.rbac, typed_config: {\"@type\": \
        type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, rules: {action: DENY, policies: {all: \
        {permissions: [{url_path: {path: {prefix: /no}}}], principals: [{any: true}]}}}}},";
    let cluster = cluster("c", &[backend.address], "");
    let world = World::start(&http_with(rbac, "", "{match: {prefix: /}, route: {cluster: c}}", &cluster));
    let inner = "GET /evil HTTP/1.1\r\nhost: a\r\n\r\n";
    for late in [false, true] {
        let mut client = connect(world.address("in"));
        client.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let head = format!("POST /no HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", inner.len());
        client.write_all(head.as_bytes()).unwrap();
        if late {
            assert_eq!(read_reply(&mut client).status, 403);
        }
        let _ = client.write_all(inner.as_bytes());
        let answers = rest(&mut client);
        assert_eq!(statuses(&answers).len(), usize::from(!late), "late {late}: {answers}");
        assert_eq!(backend.requests(), 0, "late {late}");
    }
}

#[test]
fn a_tunnel_begins_with_the_servers_word() {
    let upgrade = "GET /x HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    let manager = "upgrade_configs: [{upgrade_type: websocket}],";
    // A server that does not switch: what came after the head is the next request, decided upon like any other.
    let backend = Raw::start(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    let world = plain(backend.address, manager);
    let answers = all(world.address("in"), format!("{upgrade}raw bytes for the server\r\n\r\n").as_bytes());
    assert!(!backend.all().contains("raw bytes"), "{}", backend.all());
    assert_eq!(statuses(&answers).first(), Some(&"200"), "{answers}");
    // One that says nothing yet: not a byte.
    let silent = Raw::start(b"");
    let world = plain(silent.address, manager);
    all(world.address("in"), format!("{upgrade}raw bytes for the server").as_bytes());
    assert!(silent.all().contains("upgrade: websocket") && !silent.all().contains("raw bytes"), "{}", silent.all());
    // One that switches: then they come.
    let switching = Raw::start(b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
    let world = plain(switching.address, manager);
    let answers = all(world.address("in"), format!("{upgrade}raw bytes for the server").as_bytes());
    assert!(answers.starts_with("HTTP/1.1 101"), "{answers}");
    assert!(switching.all().contains("raw bytes"), "{}", switching.all());
}

#[test]
fn a_hostile_server_harms_no_other_client() {
    // It answers once more than it was asked.
    let twice = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil";
    // Then statuses that are none, lengths that are two, lines that end early.
    let cases: [(&'static [u8], &[u16]); 9] = [
        (twice, &[200]),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 5\r\n\r\nok", &[502, 503]),
        (b"HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\nok", &[502, 503]),
        (b"HTTP/1.1 200 OK\r\nx: a\0b\r\ncontent-length: 2\r\n\r\nok", &[502, 503]),
        (b"HTTP/1.1 20 OK\r\n\r\n", &[502, 503]),
        (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", &[502, 503]),
        (b"HTTP/3.0 200 OK\r\n\r\n", &[502, 503]),
        (b"\x15\x03\x01\x00\x02\x02\x28 this is TLS\r\n\r\n", &[502, 503]),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", &[200]),
    ];
    for (answer, allowed) in cases {
        let backend = Raw::start(answer);
        let world = plain(backend.address, "");
        for number in 0..3 {
            let mut client = connect(world.address("in"));
            client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
            let answers = rest(&mut client);
            let last = statuses(&answers).last().and_then(|status| status.parse::<u16>().ok());
            assert!(last.is_some_and(|status| allowed.contains(&status)), "{number}: {answers:?}");
            assert!(!answers.contains("evil"), "{number}: {answers:?}");
        }
    }
}

#[test]
fn endless_interim_answers_end_with_the_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let end = std::time::Instant::now() + Duration::from_secs(5);
                while std::time::Instant::now() < end && stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").is_ok() {}
            });
        }
    });
    let routes = "{match: {prefix: /}, route: {cluster: c, timeout: 0.3s}}";
    let world = World::start(&http(routes, &cluster("c", &[address], "")));
    let before = std::time::Instant::now();
    let reply = get(world.address("in"), "/", "");
    assert!(matches!(reply.status, 502..=504), "{reply:?}");
    assert!(before.elapsed() < LIMIT);
}

#[test]
fn what_cannot_be_read_is_logged() {
    let backend = Backend::start();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("access.log");
    let log = format!(
        "access_log: [{{name: f, typed_config: {{\"@type\": \
         type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: {file:?}, log_format: \
         {{text_format_source: {{inline_string: \"%REQ(:METHOD)% %REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_FLAGS% \
         %RESPONSE_CODE_DETAILS%\\n\"}}}}}}}}],"
    );
    let world = plain(backend.address, &log);
    let at = world.address("in");
    let head = "POST / HTTP/1.1\r\nhost: a\r\n";
    let cases = [
        ("GET / HTTP/1.1\r\nhost: a\r\nx y: 1\r\n\r\n".to_owned(), "- - 400 DPE http1.codec_error"),
        (
            format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "a".repeat(70_000)),
            "- - 431 DPE http1.headers_too_large",
        ),
        ("GET / HTTP/1.0\r\nhost: a\r\n\r\n".to_owned(), "GET - 426 DPE low_version"),
        ("GET / HTTP/1.1\r\nhost: a b\r\n\r\n".to_owned(), "GET - 400 DPE http.invalid_authority"),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), "GET - 400 - missing_host_header"),
        (format!("{head}content-length: +1\r\n\r\na"), "- - 400 DPE http1.codec_error"),
        (format!("{head}transfer-encoding: chunked\r\n\r\nzz\r\n\r\n"), "POST / 400 DPE http1.codec_error"),
    ];
    let mut expected = String::new();
    for (request, line) in cases {
        assert!(all(at, request.as_bytes()).get(8..10) == Some(" 4"), "{line}");
        expected.push_str(line);
        expected.push('\n');
    }
    drop(world);
    let logged = std::fs::read_to_string(&file).unwrap();
    assert_eq!(logged, expected);
}
