//! The real Envoy as the agent's SDS client, in mutual TLS with our rustls in both directions, across rotations.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use identity::agent::{Agent, AgentHandle, AgentSettings};
use identity::tls::{self, ClientAuth, ClientSettings, NameCheck, SanMatcher, ServerSettings, Sessions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::world::World;

const WEB: &str = "spiffe://mesh.test/ns/shop/sa/web";
const CART: &str = "spiffe://mesh.test/ns/shop/sa/cart";
const SNI: &str = "outbound_.8080_._.cart.shop.svc.cluster.local";

/// A running Envoy; ends with the value.
struct Envoy {
    child: Child,
    admin: PathBuf,
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Envoy {
    fn start(dir: &Path, bootstrap: &str) -> Self {
        let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/python/bin/envoy");
        let program = if installed.exists() { installed } else { PathBuf::from("envoy") };
        let file = dir.join("envoy.yaml");
        std::fs::write(&file, bootstrap).unwrap();
        let log = std::fs::File::create(dir.join("envoy.log")).unwrap();
        let child = Command::new(program)
            .arg("-c")
            .arg(&file)
            .args(["--disable-hot-restart", "--concurrency", "1", "-l", "info"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("Envoy is installed: cargo xtask setup");
        Self { child, admin: dir.join("admin.sock") }
    }

    fn admin(&self, path: &str) -> Option<String> {
        let mut stream = UnixStream::connect(&self.admin).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.starts_with("HTTP/1.1 200").then(|| answer.split_once("\r\n\r\n").unwrap_or_default().1.to_owned())
    }

    /// The addresses of its listeners by name, when it is ready.
    async fn listeners(&self) -> std::collections::HashMap<String, SocketAddr> {
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(20) {
            if self.admin("/ready").is_some_and(|text| text.contains("LIVE"))
                && let Some(text) = self.admin("/listeners")
            {
                let parse = |line: &str| {
                    let (name, address) = line.split_once("::")?;
                    Some((name.to_owned(), address.parse().ok()?))
                };
                return text.lines().filter_map(parse).collect();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let log = std::fs::read_to_string(self.admin.with_file_name("envoy.log")).unwrap_or_default();
        panic!("Envoy is not ready:\n{log}");
    }
}

/// Envoy as `cart`: a door with mutual TLS (secrets by state-of-the-world SDS) that answers with the client's identity,
/// and a plain door that leads to `upstream` with mutual TLS (secrets by delta SDS).
fn bootstrap(dir: &Path, sds: &Path, upstream: SocketAddr) -> String {
    let secret = |name: &str, api: &str| {
        format!(
            "{{ name: {name}, sds_config: {{ resource_api_version: V3, api_config_source: {{ api_type: {api}, \
             transport_api_version: V3, grpc_services: [ {{ envoy_grpc: {{ cluster_name: sds-grpc }} }} ] }} }} }}"
        )
    };
    let (key, root) = (secret("default", "GRPC"), secret("ROOTCA", "GRPC"));
    let (delta_key, delta_root) = (secret("default", "DELTA_GRPC"), secret("ROOTCA", "DELTA_GRPC"));
    let hcm = "\"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let router = "http_filters: [ { name: router, typed_config: { \"@type\": \
                  type.googleapis.com/envoy.extensions.filters.http.router.v3.Router } } ]";
    let (admin, sds, port) = (dir.join("admin.sock"), sds.display(), upstream.port());
    let admin = admin.display();
    format!(
        r#"
node: {{ id: sidecar~127.0.0.1~cart.shop~shop.svc.cluster.local, cluster: cart }}
admin: {{ address: {{ pipe: {{ path: "{admin}" }} }} }}
static_resources:
  listeners:
  - name: inbound
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: 0 }} }}
    filter_chains:
    - transport_socket:
        name: tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          common_tls_context:
            alpn_protocols: [ http/1.1 ]
            tls_certificate_sds_secret_configs: [ {key} ]
            combined_validation_context:
              default_validation_context:
                match_typed_subject_alt_names: [ {{ san_type: URI, matcher: {{ exact: "{WEB}" }} }} ]
              validation_context_sds_secret_config: {root}
      filters:
      - name: hcm
        typed_config:
          {hcm}
          stat_prefix: inbound
          route_config:
            virtual_hosts:
            - name: all
              domains: [ "*" ]
              response_headers_to_add: [ {{ header: {{ key: x-peer, value: "%DOWNSTREAM_PEER_URI_SAN%" }} }} ]
              routes: [ {{ match: {{ prefix: / }}, direct_response: {{ status: 200 }} }} ]
          {router}
  - name: outbound
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: 0 }} }}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          {hcm}
          stat_prefix: outbound
          route_config:
            virtual_hosts:
            - name: all
              domains: [ "*" ]
              routes: [ {{ match: {{ prefix: / }}, route: {{ cluster: upstream }} }} ]
          {router}
  clusters:
  - name: sds-grpc
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{ http2_protocol_options: {{}} }}
    load_assignment:
      cluster_name: sds-grpc
      endpoints: [ {{ lb_endpoints: [ {{ endpoint: {{ address: {{ pipe: {{ path: "{sds}" }} }} }} }} ] }} ]
  - name: upstream
    type: STATIC
    load_assignment:
      cluster_name: upstream
      endpoints: [ {{ lb_endpoints: [ {{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }} }} ] }} ]
    transport_socket:
      name: tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        sni: {SNI}
        max_session_keys: 4
        common_tls_context:
          tls_params: {{ tls_maximum_protocol_version: TLSv1_3 }}
          alpn_protocols: [ istio ]
          tls_certificate_sds_secret_configs: [ {delta_key} ]
          combined_validation_context:
            default_validation_context:
              match_typed_subject_alt_names: [ {{ san_type: URI, matcher: {{ exact: "{WEB}" }} }} ]
            validation_context_sds_secret_config: {delta_root}
"#
    )
}

/// Our side, as `web`: a TLS server that answers with the client's identity. Counts failed handshakes.
async fn our_server(agent: &AgentHandle) -> (SocketAddr, Arc<AtomicU64>) {
    let material = agent.ready(Duration::from_secs(10)).await.unwrap();
    let config = tls::server_config(&ServerSettings {
        keys: agent.keys(),
        client_auth: ClientAuth::Require,
        trust: vec![material.bundle.clone()],
        names: NameCheck::OneOf(vec![SanMatcher::uri(CART)]),
        alpn: vec![b"istio".to_vec()],
        tickets: Some(Duration::from_secs(3600)),
        ..ServerSettings::default()
    })
    .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let failed = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&failed);
    tokio::spawn(async move {
        let acceptor = TlsAcceptor::from(config);
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, count) = (acceptor.clone(), Arc::clone(&count));
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    count.fetch_add(1, Ordering::Relaxed);
                    return;
                };
                let peer = tls::facts(stream.get_ref().1, SystemTime::now()).unwrap().unwrap();
                assert_eq!(stream.get_ref().1.server_name(), Some(SNI));
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nx-peer: {}\r\nx-serial: {}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
                    peer.identity.unwrap(),
                    peer.serial
                );
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    (address, failed)
}

/// Reads up to the end of the head (no answer here has a body; Envoy delays its close).
async fn read_head(stream: &mut (impl AsyncReadExt + Unpin), answer: &mut Vec<u8>) -> std::io::Result<()> {
    while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
        if stream.read_buf(answer).await? == 0 {
            break;
        }
    }
    Ok(())
}

/// One request over a new connection; the answer's head and, over TLS, the server's serial.
async fn request(address: SocketAddr, tls: Option<TlsConnector>) -> std::io::Result<(String, String)> {
    let mut stream = TcpStream::connect(address).await?;
    let text = b"GET / HTTP/1.1\r\nhost: cart\r\nconnection: close\r\n\r\n";
    let mut answer = Vec::new();
    let mut serial = String::new();
    match tls {
        None => {
            stream.write_all(text).await?;
            read_head(&mut stream, &mut answer).await?;
        }
        Some(connector) => {
            let mut stream = connector.connect(SNI.try_into().unwrap(), stream).await?;
            serial = tls::facts(stream.get_ref().1, SystemTime::now()).unwrap().unwrap().serial;
            stream.write_all(text).await?;
            read_head(&mut stream, &mut answer).await?;
        }
    }
    let answer = String::from_utf8_lossy(&answer).into_owned();
    if answer.starts_with("HTTP/1.1 200") { Ok((answer, serial)) } else { Err(std::io::Error::other(answer)) }
}

struct Scene {
    _world: World,
    _cart: AgentHandle,
    web: AgentHandle,
    envoy: Envoy,
    failed: Arc<AtomicU64>,
}

/// A control plane, two agents, Envoy as `cart`, and our server as `web`.
async fn scene(ttl: Duration) -> Scene {
    let world = World::start(ttl).await;
    let cart: AgentSettings = world.agent("cart");
    let sds = cart.run_dir.join("sds.sock");
    let cart = Agent::start(cart).unwrap();
    let web = Agent::start(world.agent("web")).unwrap();
    let (upstream, failed) = our_server(&web).await;
    let envoy = Envoy::start(world.dir.path(), &bootstrap(world.dir.path(), &sds, upstream));
    Scene { _world: world, _cart: cart, web, envoy, failed }
}

/// Our side as `web`, which resumes sessions.
fn our_client(scene: &Scene) -> TlsConnector {
    let material = scene.web.status().material.unwrap();
    let sessions = Sessions::new(4, Some(scene.web.keys()));
    TlsConnector::from(
        tls::client_config(&ClientSettings {
            keys: Some(scene.web.keys()),
            trust: vec![material.bundle.clone()],
            names: NameCheck::OneOf(vec![SanMatcher::uri(CART)]),
            alpn: vec![b"http/1.1".to_vec()],
            send_server_name: true,
            sessions: Some(sessions),
            ..ClientSettings::default()
        })
        .unwrap(),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_gets_its_secrets_from_the_agent_and_speaks_with_us_both_ways() {
    let scene = scene(Duration::from_secs(3600)).await;
    let listeners = scene.envoy.listeners().await;
    let (answer, _) = request(listeners["inbound"], Some(our_client(&scene))).await.unwrap();
    assert!(answer.contains(&format!("x-peer: {WEB}\r\n")), "{answer}");
    let (answer, _) = request(listeners["outbound"], None).await.unwrap();
    assert!(answer.contains(&format!("x-peer: {CART}\r\n")), "{answer}");
    assert_eq!(scene.failed.load(Ordering::Relaxed), 0);

    // Without a certificate, and with plaintext, Envoy's door stays shut.
    let material = scene.web.status().material.unwrap();
    let nobody = ClientSettings { trust: vec![material.bundle.clone()], ..ClientSettings::default() };
    let nobody = TlsConnector::from(tls::client_config(&nobody).unwrap());
    assert!(request(listeners["inbound"], Some(nobody)).await.is_err());
    assert!(request(listeners["inbound"], None).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_resumed_with_envoy_both_ways_and_the_peer_stays_known() {
    let scene = scene(Duration::from_secs(3600)).await;
    let listeners = scene.envoy.listeners().await;
    let client = our_client(&scene);
    for _ in 0..3 {
        let (answer, _) = request(listeners["inbound"], Some(client.clone())).await.unwrap();
        assert!(answer.contains(&format!("x-peer: {WEB}\r\n")), "{answer}");
        let (answer, _) = request(listeners["outbound"], None).await.unwrap();
        assert!(answer.contains(&format!("x-peer: {CART}\r\n")), "{answer}");
    }
    let page = scene.envoy.admin("/stats?filter=ssl.session_reused").unwrap();
    let reused = |side: &str| {
        let line = page.lines().find(|line| line.starts_with(side)).and_then(|line| line.split_once(": "));
        line.and_then(|(_, count)| count.trim().parse::<u32>().ok())
    };
    assert_eq!([reused("listener."), reused("cluster.upstream")], [Some(2); 2], "{page}");
}

/// Sessions are resumed meanwhile: none of them may outlive the certificates that it began under.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_of_five_seconds_rotate_under_handshakes_without_a_failure() {
    let scene = scene(Duration::from_secs(5)).await;
    let listeners = scene.envoy.listeners().await;
    let client = our_client(&scene);
    let (mut envoys, mut ours) = (std::collections::HashSet::new(), std::collections::HashSet::new());
    let begin = Instant::now();
    let mut handshakes = 0;
    while begin.elapsed() < Duration::from_secs(13) {
        let (_, serial) = request(listeners["inbound"], Some(client.clone())).await.expect("us to Envoy");
        envoys.insert(serial);
        let (answer, _) = request(listeners["outbound"], None).await.expect("Envoy to us");
        let serial = answer.lines().find_map(|line| line.strip_prefix("x-serial: ")).unwrap();
        ours.insert(serial.to_owned());
        handshakes += 2;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(scene.failed.load(Ordering::Relaxed), 0);
    assert!(handshakes > 100, "{handshakes}");
    assert!(envoys.len() >= 4, "Envoy's door showed {} certificates", envoys.len());
    assert!(ours.len() >= 4, "Envoy's client showed {} certificates", ours.len());
}
