//! A panic in one exchange, put there on purpose: it ends that exchange (over HTTP/1 its connection) and nothing else.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use bytes::Bytes;
use proto::json::{Format, parse_bootstrap};

use crate::process::{Proxy, Settings};

/// The path that asks for it.
const PANIC: &str = "/injected-panic";

/// Panics for a request with that path.
pub(super) fn panic_where_asked(path: &str) {
    assert_ne!(path, PANIC, "injected");
}

const YAML: &str = r#"
static_resources:
  listeners:
  - name: in
    address: {socket_address: {address: 127.0.0.1, port_value: 0}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: fine}}}]}]}
          http_filters: [{name: r, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
"#;

fn start() -> (Proxy, SocketAddr) {
    let (bootstrap, _) = parse_bootstrap(YAML, Format::Yaml).unwrap();
    let mut settings = Settings::new(bootstrap);
    settings.drain = Duration::from_millis(200);
    let proxy = Proxy::start(settings).unwrap();
    assert!(proxy.wait_ready(Duration::from_secs(10)));
    let at = proxy.listening().first().and_then(|open| open.bound).unwrap();
    (proxy, at)
}

/// What comes of a request on a connection; empty: it was closed.
fn ask(client: &mut TcpStream, path: &str) -> String {
    client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    client.write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).unwrap();
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while !answer.ends_with(b"fine") {
        match client.read(&mut buffer) {
            Ok(count @ 1..) => answer.extend_from_slice(&buffer[..count]),
            _ => break,
        }
    }
    String::from_utf8(answer).unwrap()
}

#[test]
fn over_http1_one_connection_ends_and_the_others_go_on() {
    let (proxy, at) = start();
    let mut bystander = TcpStream::connect(at).unwrap();
    assert!(ask(&mut bystander, "/").ends_with("fine"));
    for _ in 0..20 {
        let mut victim = TcpStream::connect(at).unwrap();
        assert!(ask(&mut victim, "/").ends_with("fine"));
        assert_eq!(ask(&mut victim, PANIC), "");
    }
    assert!(ask(&mut bystander, "/").ends_with("fine"));
    assert!(ask(&mut TcpStream::connect(at).unwrap(), "/").ends_with("fine"));
    proxy.stop();
    proxy.join();
}

#[test]
fn over_http2_one_stream_ends_and_its_connection_goes_on() {
    let (proxy, at) = start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(at).await.unwrap();
        let (mut send, connection) = h2::client::Builder::new().handshake::<_, Bytes>(stream).await.unwrap();
        tokio::spawn(connection);
        let request = |path: &str| http::Request::get(format!("http://a{path}")).body(()).unwrap();
        for _ in 0..20 {
            let (panicking, _) = send.send_request(request(PANIC), true).unwrap();
            let (fine, _) = send.send_request(request("/"), true).unwrap();
            assert!(panicking.await.is_err());
            assert_eq!(fine.await.unwrap().status(), 200);
        }
    });
    proxy.stop();
    proxy.join();
}
