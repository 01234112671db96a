//! Agents against the certificate service over real sockets: joining, renewing, restarting, and everything that must
//! be refused.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper_util::rt::TokioIo;
use identity::agent::{Agent, AgentSettings};
use identity::audit::Event;
use identity::reach::{self, Server};
use identity::tls::{self, Cause, ClientSettings, Credentials, KeySlot, NameCheck, SanMatcher};
use identity::token::JoinToken;
use proto::istio::auth::IstioCertificateRequest;
use proto::istio::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::ClientConfig;
use tonic::{Code, Request};

use crate::world::{TRUST_DOMAIN, World, mode};

const SOON: Duration = Duration::from_secs(10);
const DAY: Duration = Duration::from_secs(86_400);

/// A request for a certificate, made by hand.
fn csr_for(uri: Option<&str>, key: &KeyPair) -> String {
    let mut params = CertificateParams::default();
    params.subject_alt_names = uri.into_iter().map(|u| SanType::URI(u.try_into().unwrap())).collect();
    params.serialize_request(key).unwrap().pem().unwrap()
}

/// One call of the service by hand.
async fn call(
    server: &Server,
    tls: Arc<ClientConfig>,
    bearer: Option<&str>,
    csr: String,
) -> Result<Vec<String>, tonic::Status> {
    let line = reach::connect(server, tls).await.unwrap();
    let mut line = Some(TokioIo::new(line));
    let connector = tower::service_fn(move |_: http::Uri| {
        std::future::ready(line.take().ok_or_else(|| std::io::Error::other("once")))
    });
    let channel = tonic::transport::Endpoint::from_static("https://control.tulle")
        .connect_with_connector(connector)
        .await
        .unwrap();
    let mut request = Request::new(IstioCertificateRequest { csr, validity_duration: 0, metadata: None });
    if let Some(token) = bearer {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    let mut client = IstioCertificateServiceClient::new(channel);
    client.create_certificate(request).await.map(|answer| answer.into_inner().cert_chain)
}

/// A client without certificate that trusts the world's root.
fn anonymous(world: &World) -> Arc<ClientConfig> {
    client(world, None)
}

fn client(world: &World, keys: Option<Arc<KeySlot>>) -> Arc<ClientConfig> {
    let control = identity::ca::control_identity(TRUST_DOMAIN).unwrap().to_string();
    tls::client_config(&ClientSettings {
        keys,
        trust: vec![world.authority.bundle().unwrap()],
        names: NameCheck::OneOf(vec![SanMatcher::uri(control)]),
        alpn: vec![b"h2".to_vec()],
        ..ClientSettings::default()
    })
    .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_joins_over_tcp_and_over_the_unix_socket() {
    let world = World::start(DAY).await;
    for server in [&world.tcp, &world.unix] {
        let (token, _) = world.token("cart", SOON, server);
        let name = format!("run-{}", server.to_string().starts_with("unix"));
        let settings = AgentSettings { run_dir: world.path(&name), token: Some(token), ..AgentSettings::default() };
        let agent = Agent::start(settings).unwrap();
        let material = agent.ready(SOON).await.unwrap();
        assert_eq!(material.identity.to_string(), "spiffe://mesh.test/ns/shop/sa/cart");
        let left = material.not_after().duration_since(SystemTime::now()).unwrap();
        assert!(left > DAY - Duration::from_secs(60) && left <= DAY, "{left:?}");
        assert_eq!(agent.status().received, 1);
    }
    assert_eq!(world.audit.count(Event::TokenRedeemed), 2);
    assert_eq!(world.audit.count(Event::CertificateIssued), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_private_and_the_set_is_whole() {
    let world = World::start(DAY).await;
    let pem_dir = world.path("pem");
    let settings = AgentSettings { pem_dir: Some(pem_dir.clone()), ..world.agent("cart") };
    let run_dir = settings.run_dir.clone();
    let agent = Agent::start(settings).unwrap();
    let material = agent.ready(SOON).await.unwrap();
    for dir in [&run_dir, &pem_dir] {
        assert_eq!(mode(dir), 0o700);
        for file in ["cert-chain.pem", "key.pem", "root-cert.pem"] {
            assert_eq!(mode(&dir.join(file)), 0o600, "{file}");
        }
        let (chain, key) = (std::fs::read(dir.join("cert-chain.pem")), std::fs::read(dir.join("key.pem")));
        let stored = Credentials::from_pem(&chain.unwrap(), &key.unwrap()).unwrap();
        assert_eq!(stored.facts().serial, material.credentials.facts().serial);
    }
    assert_eq!(mode(&run_dir.join("sds.sock")), 0o600);
    assert_eq!(mode(&world.path("ca")), 0o700);
    assert_eq!(mode(&world.path("ca/root-key.pem")), 0o600);
    let socket = run_dir.join("sds.sock");
    drop(agent);
    assert!(!socket.exists(), "the socket goes with the agent");
    assert!(run_dir.join("key.pem").exists(), "the identity stays");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_keeps_the_identity_without_a_control_plane() {
    let world = World::start(DAY).await;
    let settings = world.agent("cart");
    let agent = Agent::start(settings.clone()).unwrap();
    let before = agent.ready(SOON).await.unwrap();
    drop(agent);
    let dir = world.stop();

    let agent = Agent::start(settings.clone()).unwrap();
    let after = agent.ready(SOON).await.unwrap();
    assert_eq!(after.version, before.version);
    drop(agent);

    // What another user could have changed is not trusted.
    use std::os::unix::fs::PermissionsExt;
    let loose = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(&settings.run_dir, loose).unwrap();
    let refused = Agent::start(settings).unwrap_err().to_string();
    assert!(refused.contains("chmod 700"), "{refused}");
    drop(dir);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stolen_token_is_refused_and_audited() {
    let world = World::start(DAY).await;
    let (path, token) = world.token("cart", SOON, &world.tcp);
    let settings = AgentSettings { run_dir: world.path("run"), token: Some(path.clone()), ..AgentSettings::default() };
    let agent = Agent::start(settings).unwrap();
    agent.ready(SOON).await.unwrap();

    let thief = AgentSettings { run_dir: world.path("thief"), token: Some(path), ..AgentSettings::default() };
    let thief = Agent::start(thief).unwrap();
    let problem = thief.ready(Duration::from_secs(1)).await.unwrap_err();
    assert!(problem.contains("already used by another key"), "{problem}");
    assert!(world.audit.count(Event::TokenRefused) >= 1);

    let own_key = KeyPair::generate().unwrap();
    let text = token.secret.reveal();
    let refusal = call(&world.tcp, anonymous(&world), Some(&text), csr_for(None, &own_key)).await.unwrap_err();
    assert_eq!(refusal.code(), Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expired_revoked_and_invented_tokens_are_refused() {
    let world = World::start(DAY).await;
    let key = KeyPair::generate().unwrap();
    let ask =
        async |token: &str| call(&world.tcp, anonymous(&world), Some(token), csr_for(None, &key)).await.unwrap_err();
    let (_, revoked) = world.token("cart", SOON, &world.tcp);
    world.tokens.revoke(&revoked.secret.id(), SystemTime::now()).unwrap();
    assert!(ask(&revoked.secret.reveal()).await.message().contains("revoked"));

    let (_, brief) = world.token("cart", Duration::from_secs(1), &world.tcp);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert!(ask(&brief.secret.reveal()).await.message().contains("ended"));

    for invented in ["", "short", &"A".repeat(43), &"../".repeat(14)] {
        let refusal = ask(invented).await;
        assert_eq!(refusal.code(), Code::Unauthenticated, "{invented}: {refusal}");
    }
    assert_eq!(world.audit.count(Event::CertificateIssued), 0);
    assert_eq!(world.audit.count(Event::TokenRefused), 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_for_another_identity_is_refused_and_audited() {
    let world = World::start(DAY).await;
    let agent = Agent::start(world.agent("cart")).unwrap();
    agent.ready(SOON).await.unwrap();
    let renew = client(&world, Some(agent.keys()));
    let key = KeyPair::generate().unwrap();

    let other = csr_for(Some("spiffe://mesh.test/ns/shop/sa/payments"), &key);
    let refusal = call(&world.tcp, renew.clone(), None, other).await.unwrap_err();
    assert_eq!(refusal.code(), Code::PermissionDenied, "{refusal}");
    assert_eq!(world.audit.count(Event::OtherIdentityRefused), 1);

    let (_, token) = world.token("web", SOON, &world.tcp);
    let control = csr_for(Some("spiffe://mesh.test/ns/tulle-system/sa/tulle-control"), &key);
    let refusal = call(&world.tcp, anonymous(&world), Some(&token.secret.reveal()), control).await.unwrap_err();
    assert_eq!(refusal.code(), Code::PermissionDenied);
    assert_eq!(world.audit.count(Event::OtherIdentityRefused), 2);

    // Names that are not identities change nothing either: what is issued has the caller's id and nothing else.
    let chain = call(&world.tcp, renew, None, csr_for(None, &key)).await.unwrap();
    let issued = Credentials::from_pem(chain[0].as_bytes(), key.serialize_pem().as_bytes()).unwrap();
    assert_eq!(issued.facts().uri_names, ["spiffe://mesh.test/ns/shop/sa/cart"]);
    assert!(issued.facts().dns_names.is_empty());
    assert_eq!(issued.facts().subject, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_gets_a_certificate_for_nothing() {
    let world = World::start(DAY).await;
    let key = KeyPair::generate().unwrap();
    let refusal = call(&world.tcp, anonymous(&world), None, csr_for(None, &key)).await.unwrap_err();
    assert_eq!(refusal.code(), Code::Unauthenticated);
    let refusal = call(&world.unix, anonymous(&world), None, csr_for(None, &key)).await.unwrap_err();
    assert_eq!(refusal.code(), Code::Unauthenticated, "being on this machine is no identity");
    assert_eq!(world.audit.count(Event::CertificateRefused), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn somebody_in_between_is_found_out() {
    let world = World::start(DAY).await;
    let impostor = World::start(DAY).await;
    // The token of the real world, but the address of the impostor.
    let (_, token) = world.token("cart", SOON, &impostor.tcp);
    let path = world.path("diverted.token");
    token.write(&path).unwrap();
    let settings = AgentSettings { run_dir: world.path("run"), token: Some(path), ..AgentSettings::default() };
    let agent = Agent::start(settings).unwrap();
    let problem = agent.ready(Duration::from_secs(1)).await.unwrap_err();
    assert!(problem.contains("somebody in between"), "{problem}");
    assert_eq!(impostor.audit.count(Event::TokenRefused), 0, "the token was not even shown");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workload_cannot_play_the_control_plane() {
    let world = World::start(DAY).await;
    let agent = Agent::start(world.agent("intruder")).unwrap();
    let material = agent.ready(SOON).await.unwrap();
    // The intruder serves with its own good certificate and sends the real root along.
    let chain = format!("{}{}", material.chain_pem, material.root_pem);
    let credentials = Credentials::from_pem(chain.as_bytes(), material.key_pem.as_bytes()).unwrap();
    let tls = identity::door::control_tls(KeySlot::with(credentials), material.bundle.clone()).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: Server = listener.local_addr().unwrap().to_string().parse().unwrap();
    let _door = identity::door::tcp(listener, tls);
    let (token, _) = world.token("cart", SOON, &address);
    let settings = AgentSettings { run_dir: world.path("run"), token: Some(token), ..AgentSettings::default() };
    let victim = Agent::start(settings).unwrap();
    let problem = victim.ready(Duration::from_secs(1)).await.unwrap_err();
    assert!(problem.contains("san_mismatch"), "{problem}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_end_a_new_token_is_needed() {
    let world = World::start(Duration::from_secs(2)).await;
    let (path, first) = world.token("cart", SOON, &world.tcp);
    let settings = AgentSettings { run_dir: world.path("run"), token: Some(path.clone()), ..AgentSettings::default() };
    let agent = Agent::start(settings.clone()).unwrap();
    let old = agent.ready(SOON).await.unwrap();
    drop(agent);
    // X.509 counts whole seconds, and the last one belongs to the certificate.
    tokio::time::sleep(Duration::from_millis(3200)).await;

    // The ended certificate opens no door any more, not even to renew itself.
    let ended = client(&world, Some(KeySlot::with(Arc::clone(&old.credentials))));
    let line = reach::connect(&world.tcp, ended).await;
    let refused = match line {
        Err(_) => true,
        Ok(mut line) => tokio::io::AsyncReadExt::read_u8(&mut line).await.is_err(),
    };
    assert!(refused);

    let agent = Agent::start(settings).unwrap();
    let problem = agent.ready(Duration::from_secs(1)).await.unwrap_err();
    assert!(problem.contains("put a new one there"), "{problem}");
    let (_, second) = world.token("cart", SOON, &world.tcp);
    assert_ne!(first.secret.id(), second.secret.id());
    std::fs::remove_file(&path).unwrap();
    second.write(&path).unwrap();
    let new = agent.ready(SOON).await.unwrap();
    assert_ne!(new.version, old.version);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_control_plane_has_the_same_root_and_remembers_tokens() {
    let world = World::start(DAY).await;
    let root = world.authority.root_hash();
    let (_, token) = world.token("cart", Duration::from_secs(60), &world.tcp);
    let key = KeyPair::generate().unwrap();
    let text = token.secret.reveal();
    call(&world.tcp, anonymous(&world), Some(&text), csr_for(None, &key)).await.unwrap();
    let dir = world.stop();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let world = World::start_in(dir, DAY).await;
    assert_eq!(world.authority.root_hash(), root);
    call(&world.tcp, anonymous(&world), Some(&text), csr_for(None, &key)).await.expect("a retry with the same key");
    let other = KeyPair::generate().unwrap();
    assert!(call(&world.tcp, anonymous(&world), Some(&text), csr_for(None, &other)).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_is_limited() {
    let world = World::start(DAY).await;
    let key = KeyPair::generate().unwrap();
    let line = reach::connect(&world.tcp, anonymous(&world)).await.unwrap();
    let mut line = Some(TokioIo::new(line));
    let connector = tower::service_fn(move |_: http::Uri| {
        std::future::ready(line.take().ok_or_else(|| std::io::Error::other("once")))
    });
    let endpoint = tonic::transport::Endpoint::from_static("https://control.tulle");
    let channel = endpoint.connect_with_connector(connector).await.unwrap();
    let mut client = IstioCertificateServiceClient::new(channel);
    let mut limited = 0;
    for _ in 0..300 {
        let csr = csr_for(None, &key);
        let request = Request::new(IstioCertificateRequest { csr, validity_duration: 0, metadata: None });
        limited += u32::from(client.create_certificate(request).await.unwrap_err().code() == Code::ResourceExhausted);
    }
    assert!(limited > 100, "{limited}");
    assert_eq!(world.audit.count(Event::RateLimited), u64::from(limited));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_made_by_openssl_are_signed() {
    let world = World::start(DAY).await;
    let openssl = |args: &[&str]| {
        let done = std::process::Command::new("openssl").args(args).output().expect("openssl is installed");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    let uri = "subjectAltName=URI:spiffe://mesh.test/ns/shop/sa/cart";
    let (key, csr) = (world.path("o.key"), world.path("o.csr"));
    let (key, csr) = (key.to_str().unwrap(), csr.to_str().unwrap());
    for kind in ["EC:prime256v1", "EC:secp384r1", "ED25519", "RSA:2048", "RSA:1024"] {
        let (algorithm, parameter) = kind.split_once(':').unwrap_or((kind, ""));
        let option = match algorithm {
            "EC" => format!("ec_paramgen_curve:{parameter}"),
            "RSA" => format!("rsa_keygen_bits:{parameter}"),
            _ => String::new(),
        };
        let mut args = vec!["genpkey", "-algorithm", algorithm, "-out", key];
        if !option.is_empty() {
            args.extend(["-pkeyopt", &option]);
        }
        openssl(&args);
        openssl(&["req", "-new", "-key", key, "-out", csr, "-subj", "/O=ignored/CN=root", "-addext", uri]);
        let (_, token) = world.token("cart", SOON, &world.tcp);
        let request = std::fs::read_to_string(csr).unwrap();
        let answer = call(&world.tcp, anonymous(&world), Some(&token.secret.reveal()), request).await;
        if kind == "RSA:1024" {
            let refusal = answer.unwrap_err();
            assert_eq!(refusal.code(), Code::InvalidArgument, "{refusal}");
            continue;
        }
        let chain = answer.unwrap_or_else(|status| panic!("{kind}: {status}"));
        let issued = Credentials::from_pem(chain[0].as_bytes(), &std::fs::read(key).unwrap()).unwrap();
        assert_eq!(issued.facts().subject, "", "{kind}");
        // And openssl accepts what was made.
        let (leaf, root) = (world.path("leaf.pem"), world.path("root.pem"));
        std::fs::write(&leaf, &chain[0]).unwrap();
        std::fs::write(&root, &chain[1]).unwrap();
        for purpose in ["sslclient", "sslserver"] {
            let (leaf, root) = (leaf.to_str().unwrap(), root.to_str().unwrap());
            openssl(&["verify", "-x509_strict", "-purpose", purpose, "-CAfile", root, leaf]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_at_the_doors_stops_nothing() {
    let world = World::start(DAY).await;
    let Server::Tcp { port, .. } = world.tcp else { panic!("tcp") };
    let Server::Unix(path) = &world.unix else { panic!("unix") };
    let mut held = Vec::new();
    for garbage in [&b""[..], b"\x16", b"GET / HTTP/1.1\r\n\r\n", &[0xff; 4096], b"\x16\x03\x01\xff\xff", b"PRI * HTTP"]
    {
        use std::io::Write;
        let mut tcp = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let mut unix = std::os::unix::net::UnixStream::connect(path).unwrap();
        let _ = tcp.write_all(garbage);
        let _ = unix.write_all(garbage);
        held.push((tcp, unix));
    }
    let anonymous = anonymous(&world);
    for server in [&world.tcp, &world.unix] {
        let started = std::time::Instant::now();
        reach::connect(server, anonymous.clone()).await.unwrap();
        assert!(started.elapsed() < Duration::from_secs(2), "half-open callers hold nobody up");
    }
    let plain = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    drop(plain);
    let stranger = tls::client_config(&ClientSettings {
        trust: vec![World::start(DAY).await.authority.bundle().unwrap()],
        ..ClientSettings::default()
    });
    let error = reach::connect(&world.tcp, stranger.unwrap()).await.unwrap_err();
    assert!(matches!(Cause::of_io(&error), Cause::UnknownCa | Cause::BadSignature | Cause::NothingInCommon), "{error}");
}

#[test]
fn token_files_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.token");
    std::fs::write(&path, "{}").unwrap();
    let loose = JoinToken::read(&path).unwrap_err().to_string();
    assert!(loose.contains("chmod 600"), "{loose}");
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let empty = JoinToken::read(&path).unwrap_err().to_string();
    assert!(empty.contains("no join token"), "{empty}");
}
