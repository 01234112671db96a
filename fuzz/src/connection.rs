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
const LIMIT: Duration = Duration::from_secs(5);

/// Whole requests that reached the server, and those that clients sent.
static SERVED: AtomicUsize = AtomicUsize::new(0);
static SENT: AtomicUsize = AtomicUsize::new(0);
/// The server could not read what the proxy sent.
static BROKEN: AtomicUsize = AtomicUsize::new(0);

/// Sockets are files here: a million connections would use up the ports.
const BOOTSTRAP: &str = r#"
static_resources:
  listeners:
  - name: in
    address: {pipe: {path: IN}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          codec_type: HTTP1
          http_protocol_options: {accept_http_10: true, default_host_for_http_10: old.test}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - {match: {prefix: /here}, direct_response: {status: 200, body: {inline_string: here}}}
              - {match: {prefix: /}, route: {cluster: server}}
          http_filters: [{name: r, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
  clusters:
  - name: server
    connect_timeout: 5s
    load_assignment: {cluster_name: server, endpoints: [{lb_endpoints: [{endpoint: {address: {pipe: {path: SERVER}}}}]}]}
"#;

/// The bytes in pieces, then the end. The server never reads more whole requests than the bytes have, never one that it
/// cannot read, and the connection ends.
pub(crate) fn connection(data: &[u8]) {
    let Some((size, data)) = data.split_first() else { return };
    let at = world();
    let (sent, _) = probe::requests(data, usize::MAX);
    SENT.fetch_add(sent.len(), Ordering::SeqCst);
    let stream = UnixStream::connect(at).expect("the proxy takes connections");
    stream.set_read_timeout(Some(LIMIT)).expect("a limit");
    let answers = std::thread::scope(|scope| {
        scope.spawn(|| {
            for piece in data.chunks(usize::from(*size).max(data.len() / 16).max(1)) {
                if (&stream).write_all(piece).is_err() {
                    break;
                }
            }
            let _ = stream.shutdown(std::net::Shutdown::Write);
        });
        let mut answers = Vec::new();
        match (&stream).read_to_end(&mut answers) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("the connection does not end"),
            _ => answers,
        }
    });
    assert_eq!(BROKEN.load(Ordering::SeqCst), 0, "the server could not read what it got");
    let (served, all) = (SERVED.load(Ordering::SeqCst), SENT.load(Ordering::SeqCst));
    assert!(served <= all, "{served} requests reached the server, {all} were sent");
    if sent.iter().all(|request| *request.method() == Method::GET) {
        readable(&answers, sent.len());
    }
}

/// The client can read every answer, and there are no more of them than requests, and one for what is none.
fn readable(answers: &[u8], sent: usize) {
    let (read, fault) = probe::responses(answers, &Method::GET, usize::MAX);
    assert_eq!(fault, None, "{:?}", String::from_utf8_lossy(answers));
    let last = read.iter().filter(|answer| !answer.status().is_informational()).count();
    assert!(last <= sent + 1, "{last} answers to {sent} requests");
}

/// Where the proxy listens.
fn world() -> &'static Path {
    static WORLD: OnceLock<(PathBuf, Proxy)> = OnceLock::new();
    let (at, _) = WORLD.get_or_init(|| {
        let place = |name: &str| std::env::temp_dir().join(format!("tulle-fuzz-{}-{name}", std::process::id()));
        let (at, server) = (place("in"), place("server"));
        let _ = std::fs::remove_file(&server);
        let listener = UnixListener::bind(&server).expect("the server's socket");
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                std::thread::spawn(move || serve(&stream));
            }
        });
        let text = BOOTSTRAP.replace("IN", &at.display().to_string()).replace("SERVER", &server.display().to_string());
        let (bootstrap, _) = parse_bootstrap(&text, Format::Yaml).expect("the bootstrap");
        let proxy = Proxy::start(Settings::new(bootstrap)).expect("the proxy");
        assert!(proxy.wait_ready(LIMIT), "the proxy is not ready");
        (at, proxy)
    });
    at
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
