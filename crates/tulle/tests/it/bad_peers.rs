//! What a proxy does with peers that are wrong: the reason is logged and counted, and the others are served.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

const LIMIT: Duration = Duration::from_secs(10);
const CALLER: &str = "spiffe://mesh.test/ns/shop/sa/web";

/// An authority, and the certificates it signs.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// Chain and key.
type Pair = (String, String);

impl Authority {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for this name, and for `cart.test`, that began an hour ago.
    fn leaf(&self, uri: &str, ends: SystemTime) -> Pair {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.not_before = (SystemTime::now() - Duration::from_secs(3600)).into();
        params.not_after = ends.into();
        params.subject_alt_names =
            vec![SanType::URI(uri.try_into().unwrap()), SanType::DnsName("cart.test".try_into().unwrap())];
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

/// A proxy before a program that says `hello`; it demands certificates of one caller.
struct Proxy {
    child: Child,
    log: PathBuf,
    door: SocketAddr,
    admin: SocketAddr,
    roots: String,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn program() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello");
            });
        }
    });
    address
}

impl Proxy {
    fn start(directory: &Path, authority: &Authority) -> Self {
        let (chain, key) = authority.leaf("spiffe://mesh.test/ns/shop/sa/cart", in_an_hour());
        for (name, text) in [("chain.pem", &chain), ("key.pem", &key), ("roots.pem", &authority.pem)] {
            fs::write(directory.join(name), text).unwrap();
        }
        let (door, admin, log) = (free(), free(), directory.join("log"));
        fs::write(directory.join("proxy.yaml"), bootstrap(door, admin, program())).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_tulle"))
            .args(["proxy", "-c", "proxy.yaml", "--concurrency", "1"])
            .current_dir(directory)
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let proxy = Self { child, log, door, admin, roots: authority.pem.clone() };
        proxy.until("ready", || plain(proxy.admin, "/ready").is_some_and(|answer| answer.contains("LIVE")));
        proxy
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.door).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    }

    /// A request over TLS with this certificate, or with none: the answer, if there is one.
    fn ask(&self, pair: Option<&Pair>) -> Option<String> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.roots.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let builder = builder.with_root_certificates(roots);
        let config = match pair {
            Some((chain, key)) => builder
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_slice(chain.as_bytes()).unwrap()],
                    PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
                )
                .unwrap(),
            None => builder.with_no_client_auth(),
        };
        let connection = ClientConnection::new(Arc::new(config), "cart.test".try_into().unwrap()).unwrap();
        let mut stream = StreamOwned::new(connection, self.connect());
        stream.write_all(b"GET / HTTP/1.1\r\nhost: cart\r\n\r\n").ok()?;
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        (!answer.is_empty()).then_some(answer)
    }

    fn until(&self, what: &str, holds: impl FnMut() -> bool) {
        assert!(waited(holds), "{what} did not come; the log is\n{}", self.log());
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Whether a counter of `/stats` has a value.
    fn counts(&self, name: &str, value: u64) -> bool {
        let page = plain(self.admin, "/stats").unwrap_or_default();
        page.lines().any(|line| {
            line.split_once(": ").is_some_and(|(known, number)| known.contains(name) && number == value.to_string())
        })
    }
}

fn bootstrap(door: SocketAddr, admin: SocketAddr, program: SocketAddr) -> String {
    let at = |address: SocketAddr| {
        format!("{{socket_address: {{address: {}, port_value: {}}}}}", address.ip(), address.port())
    };
    format!(
        r#"
admin: {{address: {}}}
static_resources:
  listeners:
  - name: in
    address: {}
    listener_filters_timeout: 1s
    continue_on_listener_filters_timeout: true
    listener_filters:
    - {{name: tls, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}}}
    filter_chains:
    - filter_chain_match: {{transport_protocol: tls}}
      transport_socket:
        name: tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          common_tls_context:
            tls_certificates: [{{certificate_chain: {{filename: chain.pem}}, private_key: {{filename: key.pem}}}}]
            validation_context:
              trusted_ca: {{filename: roots.pem}}
              match_typed_subject_alt_names: [{{san_type: URI, matcher: {{exact: "{CALLER}"}}}}]
      filters:
      - name: tcp
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: in
          cluster: program
  clusters:
  - name: program
    load_assignment: {{cluster_name: program, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {}}}}}]}}]}}
"#,
        at(admin),
        at(door),
        at(program)
    )
}

fn in_an_hour() -> SystemTime {
    SystemTime::now() + Duration::from_secs(3600)
}

fn plain(to: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(to).ok()?;
    stream.set_read_timeout(Some(LIMIT)).ok()?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

fn waited(mut holds: impl FnMut() -> bool) -> bool {
    let begin = Instant::now();
    while !holds() {
        if begin.elapsed() > LIMIT {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

#[test]
fn wrong_peers_are_named_and_counted_and_hurt_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let proxy = Proxy::start(directory.path(), &ours);
    let good = ours.leaf(CALLER, in_an_hour());
    let served = |when: &str| {
        let answer = proxy.ask(Some(&good)).unwrap_or_default();
        assert!(answer.ends_with("hello"), "{when}: {answer:?}\n{}", proxy.log());
    };
    served("before all");

    // Half-open: it says nothing, and stays. The others do not wait for it.
    let mut half_open = proxy.connect();
    served("while somebody says nothing");

    let an_hour_ago = SystemTime::now() - Duration::from_secs(1800);
    for (pair, cause, counter) in [
        (Some(theirs.leaf(CALLER, in_an_hour())), "cause=unknown_ca", "ssl.fail_verify_error"),
        (Some(ours.leaf(CALLER, an_hour_ago)), "cause=expired", "ssl.fail_verify_error"),
        (
            Some(ours.leaf("spiffe://mesh.test/ns/shop/sa/else", in_an_hour())),
            "cause=san_mismatch",
            "ssl.fail_verify_san",
        ),
        (None, "cause=no_certificate", "ssl.fail_verify_no_cert"),
    ] {
        assert_eq!(proxy.ask(pair.as_ref()), None, "{cause}");
        proxy.until(cause, || {
            proxy.log().lines().any(|line| line.contains("event=tls-refused") && line.contains(cause))
        });
        proxy.until(counter, || proxy.counts(counter, if cause.ends_with("expired") { 2 } else { 1 }));
        let word = cause.trim_start_matches("cause=");
        assert!(proxy.counts(&format!(r#"handshake_failures_total{{side="downstream",cause="{word}"}}"#), 1), "{word}");
        served(cause);
    }

    // Plaintext and garbage are no TLS, which is all that this port takes.
    for (number, bytes) in [(1, &b"GET / HTTP/1.1\r\nhost: cart\r\n\r\n"[..]), (2, &[0xfe; 300])] {
        let mut stream = proxy.connect();
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty(), "{answer:?}");
        proxy.until("refused", || proxy.log().matches("it is no TLS, and TLS is required here").count() >= number);
        served("after something that is no TLS");
    }

    // Garbage that begins like TLS.
    let mut stream = proxy.connect();
    stream.write_all(&[&b"\x16\x03\x01\x01\x00"[..], &[7; 256]].concat()).unwrap();
    let _ = stream.read_to_end(&mut Vec::new());
    served("after garbage");

    let mut answer = Vec::new();
    let _ = half_open.read_to_end(&mut answer);
    assert!(answer.is_empty());
    proxy.until("the half-open one is named", || proxy.log().contains("nothing that tells its protocol came"));
    assert!(proxy.counts("downstream_pre_cx_timeout", 1), "{}", proxy.log());
    served("after all");
}
