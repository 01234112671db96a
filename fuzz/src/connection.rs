//! A client's bytes on a real connection: read, decided, passed on to a server and answered, by a whole proxy in this process.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Method;
use proto::json::{Format, parse_bootstrap};
use proxy::h1::probe;
use proxy::process::{Proxy, Settings};

/// A connection that its client has ended does not live longer than this.
const LIMIT: Duration = Duration::from_secs(20);

/// Bytes that a socket holds of what nobody reads: who says no more needs no second thread to listen.
const HELD: usize = 32 << 10;

/// Whole requests that reached the server, and those that clients sent.
static SERVED: AtomicUsize = AtomicUsize::new(0);
static SENT: AtomicUsize = AtomicUsize::new(0);
/// The server could not read what the proxy sent.
static BROKEN: AtomicUsize = AtomicUsize::new(0);
/// Panics of the proxy's workers.
static PANICS: AtomicUsize = AtomicUsize::new(0);

/// Sockets are files here: a million connections would use up the ports.
const LISTENER: &str = r#"
  - name: CODEC
    address: {pipe: {path: PLACE}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          codec_type: CODEC
          http_protocol_options: {accept_http_10: true, default_host_for_http_10: old.test}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - {match: {prefix: /here}, direct_response: {status: 200, body: {inline_string: here}}}
              - {match: {prefix: /}, route: {cluster: server}}
          http_filters: [{name: r, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
"#;
const CLUSTER: &str = r"
  - name: server
    connect_timeout: 5s
    load_assignment: {cluster_name: server, endpoints: [{lb_endpoints: [{endpoint: {address: {pipe: {path: PLACE}}}}]}]}
";

/// HTTP/1: the bytes in pieces, then the end.
pub(crate) fn http1(data: &[u8]) {
    let Some((size, data)) = data.split_first() else { return };
    let (sent, _) = probe::requests(data, usize::MAX);
    SENT.fetch_add(sent.len(), Ordering::SeqCst);
    let answers = exchange(&world().http1, *size, data);
    if sent.iter().all(|request| *request.method() == Method::GET) {
        readable(&answers, sent.len());
    }
}

/// HTTP/2: frames behind a preface and settings.
pub(crate) fn http2(data: &[u8]) {
    let Some((size, data)) = data.split_first() else { return };
    SENT.fetch_add(heads(data), Ordering::SeqCst);
    let before: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    exchange(&world().http2, *size, &[before, data].concat());
}

/// HEADERS frames, each of which may be a request.
fn heads(mut frames: &[u8]) -> usize {
    let mut count = 0;
    while let [a, b, c, kind, ..] = *frames {
        count += usize::from(kind == 1);
        let length = 9 + usize::from(a) * 65536 + usize::from(b) * 256 + usize::from(c);
        frames = frames.get(length..).unwrap_or_default();
    }
    count
}

/// Says the bytes and reads all that comes. The server never reads more whole requests than the bytes have, never one that it
/// cannot read; the connection ends; and nothing panics, on whatever thread.
fn exchange(at: &Path, size: u8, data: &[u8]) -> Vec<u8> {
    let stream = UnixStream::connect(at).expect("the proxy takes connections");
    stream.set_read_timeout(Some(LIMIT)).expect("a limit");
    let say = || {
        for piece in data.chunks(usize::from(size).max(data.len() / 16).max(1)) {
            if (&stream).write_all(piece).is_err() {
                break;
            }
        }
        let _ = stream.shutdown(std::net::Shutdown::Write);
    };
    let hear = || {
        let mut answers = Vec::new();
        match (&stream).read_to_end(&mut answers) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("the connection does not end"),
            _ => answers,
        }
    };
    let answers = if data.len() <= HELD {
        say();
        hear()
    } else {
        std::thread::scope(|scope| {
            scope.spawn(say);
            hear()
        })
    };
    assert_eq!(PANICS.load(Ordering::SeqCst), 0, "the proxy panicked");
    assert_eq!(BROKEN.load(Ordering::SeqCst), 0, "the server could not read what it got");
    let (served, all) = (SERVED.load(Ordering::SeqCst), SENT.load(Ordering::SeqCst));
    assert!(served <= all, "{served} requests reached the server, {all} were sent");
    answers
}

/// The client can read every answer, and there are no more of them than requests, and one for what is none.
fn readable(answers: &[u8], sent: usize) {
    let (read, fault) = probe::responses(answers, &Method::GET, usize::MAX);
    assert_eq!(fault, None, "{:?}", String::from_utf8_lossy(answers));
    let last = read.iter().filter(|answer| !answer.status().is_informational()).count();
    assert!(last <= sent + 1, "{last} answers to {sent} requests");
}

struct World {
    http1: PathBuf,
    http2: PathBuf,
    _proxy: Proxy,
}

/// The one proxy of this process, and where it listens.
fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        // A panic on a worker ends only its connection, which nobody would notice here.
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if std::thread::current().name().is_some_and(|name| name.starts_with("worker-")) {
                PANICS.fetch_add(1, Ordering::SeqCst);
            }
            hook(panic);
        }));
        let place = |name: &str| std::env::temp_dir().join(format!("tulle-fuzz-{}-{name}", std::process::id()));
        let (http1, http2, server) = (place("in1"), place("in2"), place("server"));
        let _ = std::fs::remove_file(&server);
        let open = UnixListener::bind(&server).expect("the server's socket");
        std::thread::spawn(move || {
            for stream in open.incoming().map_while(Result::ok) {
                std::thread::spawn(move || serve(&stream));
            }
        });
        let at = |text: &str, place: &Path| text.replace("PLACE", &place.display().to_string());
        let listener = |codec: &str, place: &Path| at(LISTENER, place).replace("CODEC", codec);
        let listeners = listener("HTTP1", &http1) + &listener("HTTP2", &http2);
        let text = format!("static_resources:\n  listeners:{listeners}  clusters:{}", at(CLUSTER, &server));
        let (bootstrap, _) = parse_bootstrap(&text, Format::Yaml).expect("the bootstrap");
        let proxy = Proxy::start(Settings::new(bootstrap)).expect("the proxy");
        assert!(proxy.wait_ready(LIMIT), "the proxy is not ready");
        World { http1, http2, _proxy: proxy }
    })
}

/// Answers everything that it can read, and reads with little patience.
fn serve(stream: &UnixStream) {
    let mut reader = BufReader::new(stream);
    loop {
        match request(&mut reader) {
            Ok(true) => {
                SERVED.fetch_add(1, Ordering::SeqCst);
                if (&mut &*stream).write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").is_err() {
                    return;
                }
            }
            Ok(false) => return,
            Err(what) => {
                eprintln!("the server: {what}");
                BROKEN.fetch_add(1, Ordering::SeqCst);
                return;
            }
        }
    }
}

/// Reads one request; false: the connection has ended.
fn request(reader: &mut impl BufRead) -> Result<bool, String> {
    let (mut length, mut chunked, mut first) = (0, false, true);
    loop {
        let Some(line) = line(reader) else { return Ok(false) };
        let text = line.strip_suffix("\r\n").ok_or_else(|| format!("no line: {line:?}"))?;
        if text.is_empty() {
            break;
        }
        if std::mem::take(&mut first) {
            let words: Vec<&str> = text.split(' ').collect();
            if words.len() != 3 || words.last() != Some(&"HTTP/1.1") {
                return Err(format!("no request: {text:?}"));
            }
            continue;
        }
        let (name, value) = text.split_once(": ").ok_or_else(|| format!("no header: {text:?}"))?;
        match name.to_ascii_lowercase().as_str() {
            "content-length" if length == 0 => length = value.parse().map_err(|_| format!("no length: {value:?}"))?,
            "content-length" => return Err("two lengths".to_owned()),
            "transfer-encoding" if value == "chunked" => chunked = true,
            "transfer-encoding" => return Err(format!("no coding: {value:?}")),
            _ => {}
        }
    }
    if chunked && length > 0 {
        return Err("two framings".to_owned());
    }
    if chunked { chunks(reader) } else { Ok(pass(reader, length)) }
}

fn chunks(reader: &mut impl BufRead) -> Result<bool, String> {
    loop {
        let Some(size) = line(reader) else { return Ok(false) };
        let size = u64::from_str_radix(size.trim_end_matches("\r\n"), 16).map_err(|_| format!("no size: {size:?}"))?;
        if size == 0 {
            break;
        }
        if !pass(reader, size) {
            return Ok(false);
        }
        match line(reader).as_deref() {
            None => return Ok(false),
            Some("\r\n") => {}
            Some(other) => return Err(format!("behind a chunk: {other:?}")),
        }
    }
    loop {
        match line(reader).as_deref() {
            None => return Ok(false),
            Some("\r\n") => return Ok(true),
            Some(trailer) if trailer.contains(": ") => {}
            Some(other) => return Err(format!("no trailer: {other:?}")),
        }
    }
}

/// A whole line; `None`: the connection ended before or within it.
fn line(reader: &mut impl BufRead) -> Option<String> {
    let mut line = Vec::new();
    let _ = reader.read_until(b'\n', &mut line).ok()?;
    line.ends_with(b"\n").then(|| String::from_utf8_lossy(&line).into_owned())
}

/// Whether so many bytes came.
fn pass(reader: &mut impl BufRead, length: u64) -> bool {
    std::io::copy(&mut reader.take(length), &mut std::io::sink()).is_ok_and(|read| read == length)
}
