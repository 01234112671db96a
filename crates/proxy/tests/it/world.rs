//! A proxy in this process, and a client that says exactly what the test wants said.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use proto::json::{Format, parse_bootstrap};
use proxy::process::{Proxy, Settings};

/// How long anything may take before a test fails.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// A running proxy; stopped when dropped.
pub(crate) struct World {
    proxy: Option<Proxy>,
}

impl World {
    /// Starts a proxy from YAML.
    pub(crate) fn start(yaml: &str) -> Self {
        Self::with(yaml, |_| {})
    }

    /// The same with other settings.
    pub(crate) fn with(yaml: &str, change: impl FnOnce(&mut Settings)) -> Self {
        let (bootstrap, _) = parse_bootstrap(yaml, Format::Yaml).unwrap_or_else(|faults| panic!("{faults:#?}"));
        let mut settings = Settings::new(bootstrap);
        settings.drain = Duration::from_millis(500);
        change(&mut settings);
        let proxy = Proxy::start(settings).unwrap_or_else(|error| panic!("{error}"));
        assert!(proxy.wait_ready(LIMIT), "the proxy is not ready");
        Self { proxy: Some(proxy) }
    }

    /// Where a listener can be reached.
    pub(crate) fn address(&self, listener: &str) -> SocketAddr {
        let listening = self.proxy.as_ref().unwrap().listening();
        let found = listening.iter().find(|open| &*open.listener == listener);
        found.and_then(|open| open.bound).unwrap_or_else(|| panic!("no {listener} in {listening:?}"))
    }

    /// The proxy itself.
    pub(crate) fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(proxy) = self.proxy.take() {
            proxy.stop();
            proxy.join();
        }
    }
}

/// A bootstrap of one plaintext HTTP listener `in`, with these routes and clusters.
pub(crate) fn http(routes: &str, clusters: &str) -> String {
    http_with("", "", routes, clusters)
}

/// The same with more HTTP filters and more manager settings (lines of a flow mapping, each ending in a comma).
pub(crate) fn http_with(filters: &str, manager: &str, routes: &str, clusters: &str) -> String {
    format!(
        r#"
static_resources:
  listeners:
  - name: in
    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config: {{
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
          stat_prefix: in,
          {manager}
          route_config: {{name: routes, validate_clusters: false, virtual_hosts: [{{name: all, domains: ["*"], routes: [{routes}]}}]}},
          http_filters: [{filters} {{name: envoy.filters.http.router, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]
        }}
  clusters: [{clusters}]
"#
    )
}

/// A static cluster with these endpoints.
pub(crate) fn cluster(name: &str, endpoints: &[SocketAddr], more: &str) -> String {
    let endpoints: Vec<String> = endpoints
        .iter()
        .map(|at| {
            let (ip, port) = (at.ip(), at.port());
            format!("{{endpoint: {{address: {{socket_address: {{address: \"{ip}\", port_value: {port}}}}}}}}}")
        })
        .collect();
    let endpoints = endpoints.join(", ");
    format!(
        "{{name: {name}, connect_timeout: 1s, {more} load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{endpoints}]}}]}}}},"
    )
}

/// For [`cluster`]: its endpoints speak HTTP/2.
pub(crate) const HTTP2: &str = r#"typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {"@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {http2_protocol_options: {}}}},"#;

/// An answer as bytes came.
#[derive(Debug)]
pub(crate) struct Reply {
    /// The status.
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    /// The body, without chunks.
    pub(crate) body: String,
}

impl Reply {
    /// The first header of this name.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Connects with time limits.
pub(crate) fn connect(at: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.set_write_timeout(Some(LIMIT)).unwrap();
    stream
}

/// Sends bytes on a new connection and reads one answer.
pub(crate) fn ask(at: SocketAddr, request: &str) -> Reply {
    let mut stream = connect(at);
    stream.write_all(request.as_bytes()).unwrap();
    read_reply(&mut stream)
}

/// `GET PATH` with a host and further header lines.
pub(crate) fn get(at: SocketAddr, path: &str, headers: &str) -> Reply {
    ask(at, &format!("GET {path} HTTP/1.1\r\nhost: web.test\r\n{headers}\r\n"))
}

/// Reads one answer.
pub(crate) fn read_reply(stream: &mut TcpStream) -> Reply {
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        more(stream, &mut bytes);
    };
    let text = String::from_utf8_lossy(&bytes[..head]).into_owned();
    let mut lines = text.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let find = |name: &str| headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    let mut body = bytes.split_off(head);
    if let Some(length) = find("content-length").map(|length| length.parse::<usize>().unwrap()) {
        while body.len() < length {
            more(stream, &mut body);
        }
    } else if find("transfer-encoding") == Some("chunked") {
        while !body.ends_with(b"0\r\n\r\n") {
            more(stream, &mut body);
        }
        body = unchunk(&body);
    }
    Reply { status, headers, body: String::from_utf8_lossy(&body).into_owned() }
}

fn more(stream: &mut TcpStream, bytes: &mut Vec<u8>) {
    let mut buffer = [0; 65536];
    let count = stream.read(&mut buffer).unwrap();
    assert!(count > 0, "closed after {:?}", String::from_utf8_lossy(bytes));
    bytes.extend_from_slice(&buffer[..count]);
}

fn unchunk(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = bytes.windows(2).position(|w| w == b"\r\n").unwrap();
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap(), 16).unwrap();
        if size == 0 {
            return body;
        }
        body.extend_from_slice(&bytes[end + 2..end + 2 + size]);
        bytes = &bytes[end + 4 + size..];
    }
}
