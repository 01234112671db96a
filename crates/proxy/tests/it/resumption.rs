//! TLS sessions between two sidecars: resumed while nothing changed, never across a change of trust or certificates.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use identity::tls::{Credentials, KeySlot, Sessions};
use proxy::net::dial::{DialError, DialOptions, Target, Tls, dial};
use tempfile::TempDir;
use testkit::issue::Authority;
use tokio::io::AsyncReadExt;

use crate::world::{LIMIT, World, ask, cluster, connect};

const WEB: &str = "spiffe://mesh.test/ns/shop/sa/web";
const CART: &str = "spiffe://mesh.test/ns/shop/sa/cart";
const TCP: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
const RBAC: &str = "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC";
const TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";

/// The sidecar of `cart`, which takes raw bytes from `web` alone, and that of `web`.
struct Mesh {
    ca: Authority,
    files: TempDir,
    inbound: World,
    outbound: World,
}

impl Mesh {
    /// `server`, `client`: fields of the two TLS contexts, each ending in a comma.
    fn new(server: &str, client: &str) -> Self {
        let (ca, files) = (Authority::new("root").unwrap(), TempDir::new().unwrap());
        ca.write(&files.path().join("web"), WEB).unwrap();
        ca.write(&files.path().join("cart"), CART).unwrap();
        let inbound = World::start(&inbound(files.path(), server, echo()));
        let outbound = World::start(&outbound(files.path(), client, inbound.address("in")));
        Self { ca, files, inbound, outbound }
    }

    /// Says a word over a new connection; what comes back.
    fn say(&self) -> String {
        let mut stream = connect(self.outbound.address("out"));
        let mut word = [0; 5];
        // A refusal may reset the connection at any point.
        let _ = stream.write_all(b"hello").and_then(|()| stream.read_exact(&mut word));
        String::from_utf8_lossy(&word).into_owned()
    }

    /// Handshakes and resumed ones so far: at the server's sidecar, and at the client's.
    fn counted(&self) -> [(u64, u64); 2] {
        let of = |world: &World| {
            let admin = SocketAddr::from(([127, 0, 0, 1], world.proxy().admin_port().unwrap()));
            let page = ask(admin, "GET /stats HTTP/1.1\r\nhost: localhost\r\n\r\n").body;
            let sum = |end: &str| {
                let lines =
                    page.lines().filter_map(|line| line.split_once(": ")).filter(|(name, _)| name.ends_with(end));
                lines.filter_map(|(_, value)| value.trim().parse::<u64>().ok()).sum()
            };
            (sum("ssl.handshake"), sum("ssl.session_reused"))
        };
        [of(&self.inbound), of(&self.outbound)]
    }

    /// Says words until a handshake is a full one again, which is when the change of files was noticed.
    fn until_full(&self, why: &str) {
        let end = Instant::now() + LIMIT;
        loop {
            let [before, _] = self.counted();
            assert_eq!(self.say(), "hello", "{why}");
            let [after, _] = self.counted();
            if after.1 == before.1 {
                return;
            }
            assert!(Instant::now() < end, "{why}: still resumed");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Answers with what it hears.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || {
                let mut stream = stream.unwrap();
                let mut word = [0; 5];
                let _ = stream.read_exact(&mut word).and_then(|()| stream.write_all(&word));
            });
        }
    });
    at
}

fn material(files: &Path, of: &str) -> String {
    let at = |name: &str| files.join(of).join(name).display().to_string();
    format!(
        "tls_certificates: [{{certificate_chain: {{filename: \"{}\"}}, private_key: {{filename: \"{}\"}}}}], \
         validation_context: {{trusted_ca: {{filename: \"{}\"}}}}",
        at("cert-chain.pem"),
        at("key.pem"),
        at("root-cert.pem")
    )
}

fn inbound(files: &Path, server: &str, backend: SocketAddr) -> String {
    format!(
        r#"
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}
static_resources:
  listeners:
  - name: in
    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
    filter_chains:
    - transport_socket: {{name: tls, typed_config: {{"@type": {TLS}.DownstreamTlsContext, require_client_certificate: true, {server} common_tls_context: {{{material}}}}}}}
      filters:
      - {{name: rbac, typed_config: {{"@type": {RBAC}, stat_prefix: r, rules: {{action: ALLOW, policies: {{web: {{permissions: [{{any: true}}], principals: [{{authenticated: {{principal_name: {{exact: "{WEB}"}}}}}}]}}}}}}}}}}
      - {{name: tcp, typed_config: {{"@type": {TCP}, stat_prefix: in, cluster: c}}}}
  clusters: [{cluster}]
"#,
        material = material(files, "cart"),
        cluster = cluster("c", &[backend], ""),
    )
}

fn outbound(files: &Path, client: &str, peer: SocketAddr) -> String {
    let tls = format!(
        "transport_socket: {{name: tls, typed_config: {{\"@type\": {TLS}.UpstreamTlsContext, sni: cart.test, {client} common_tls_context: {{{}}}}}}},",
        material(files, "web")
    );
    format!(
        r#"
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}
static_resources:
  listeners:
  - name: out
    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
    filter_chains: [{{filters: [{{name: tcp, typed_config: {{"@type": {TCP}, stat_prefix: out, cluster: peer}}}}]}}]
  clusters: [{}]
"#,
        cluster("peer", &[peer], &tls)
    )
}

#[test]
fn sidecars_resume_their_sessions_and_the_principal_stays_known() {
    let mesh = Mesh::new("", "");
    assert_eq!([mesh.say(), mesh.say(), mesh.say()], ["hello"; 3], "resumed or not, the client is `web`");
    assert_eq!(mesh.counted(), [(3, 2); 2]);
}

#[test]
fn either_side_can_do_without_sessions() {
    for (server, client) in [("", "max_session_keys: 0,"), ("disable_stateless_session_resumption: true,", "")] {
        let mesh = Mesh::new(server, client);
        assert_eq!([mesh.say(), mesh.say()], ["hello"; 2]);
        assert_eq!(mesh.counted(), [(2, 0); 2], "{server}{client}");
    }
}

#[test]
fn a_new_certificate_or_other_trust_ends_the_sessions() {
    let mesh = Mesh::new("", "");
    assert_eq!([mesh.say(), mesh.say()], ["hello"; 2]);
    assert_eq!(mesh.counted(), [(2, 1); 2]);
    // (A file's time of change must differ for the change to be seen.)
    std::thread::sleep(Duration::from_millis(20));
    mesh.ca.write(&mesh.files.path().join("web"), WEB).unwrap();
    mesh.until_full("the client has a new certificate");
    assert_eq!(mesh.say(), "hello");
    mesh.ca.write(&mesh.files.path().join("cart"), CART).unwrap();
    mesh.until_full("the server has a new certificate");

    // The server trusts another authority: the client's session would still be good, and must not be.
    let other = Authority::new("other").unwrap();
    std::fs::write(mesh.files.path().join("cart/root-cert.pem"), other.root()).unwrap();
    let end = Instant::now() + LIMIT;
    while mesh.say() == "hello" {
        assert!(Instant::now() < end, "still served");
        std::thread::sleep(Duration::from_millis(50));
    }
    let [(before, reused), _] = mesh.counted();
    assert_ne!(mesh.say(), "hello");
    assert_eq!(mesh.counted()[0], (before, reused), "not even a handshake");
}

/// A server that goes on resuming sessions of a certificate that has ended, and has a new one for full handshakes.
#[tokio::test]
async fn a_session_does_not_outlive_the_servers_certificate() {
    let ca = Authority::new("root").unwrap();
    let credentials = |life| {
        let (chain, key) = ca.leaf(CART, Duration::from_secs(60), life).unwrap();
        Credentials::from_pem(chain.as_bytes(), key.as_bytes()).unwrap()
    };
    let life = Duration::from_secs(3);
    let keys = KeySlot::with(credentials(life));
    let ended = Instant::now() + life + Duration::from_secs(1);
    let mut server = rustls::ServerConfig::builder_with_provider(identity::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::clone(&keys) as Arc<_>);
    server.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Target::Tcp(listener.local_addr().unwrap());
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await?;
                tokio::io::AsyncWriteExt::write_all(&mut stream, b"x").await?;
                stream.read_u8().await
            });
        }
    });

    let bundle = identity::tls::TrustBundle::for_any_name(ca.root().as_bytes()).unwrap();
    let settings = identity::tls::ClientSettings { trust: vec![bundle], ..Default::default() };
    let tls = Tls {
        config: identity::tls::client_config(&settings).unwrap(),
        name: "cart.test".try_into().unwrap(),
        sessions: Sessions::new(4, None),
    };
    let go = async || {
        let options = DialOptions {
            source: None,
            namespace: None,
            options: &[],
            keepalive: None,
            timeout: LIMIT,
            tls: Some(tls.clone()),
        };
        let mut stream = dial(&target, options).await?;
        // The server's tickets come before its first byte.
        stream.read_u8().await.map_err(DialError::Tls)?;
        Ok::<_, DialError>(stream.tls().and_then(|state| state.handshake_kind()))
    };
    assert_eq!(go().await.unwrap(), Some(rustls::HandshakeKind::Full));
    assert_eq!(go().await.unwrap(), Some(rustls::HandshakeKind::Resumed));
    keys.set(vec![credentials(LIMIT * 60)]);
    tokio::time::sleep_until(ended.into()).await;
    assert_eq!(go().await.unwrap(), Some(rustls::HandshakeKind::Full), "its certificate has ended: judged anew");
    assert_eq!(go().await.unwrap(), Some(rustls::HandshakeKind::Resumed));
}
