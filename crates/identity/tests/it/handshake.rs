//! Handshakes in memory: who is accepted, who is refused, and with which cause on either side.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use identity::tls::{
    self, Cause, ClientAuth, ClientSettings, KeySlot, NameCheck, PeerFacts, Pins, Place, Protocol, SanMatcher,
    ServerSettings, Sessions, TlsCeiling, TlsFloor, TrustBundle,
};
use rcgen::ExtendedKeyUsagePurpose;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, NamedGroup, ServerConfig, ServerConnection};

use crate::pki::{Authority, Leaf};

const WEB: &str = "spiffe://mesh.test/ns/shop/sa/web";
const CART: &str = "spiffe://mesh.test/ns/shop/sa/cart";
const SNI: &str = "outbound_.8080_._.cart.shop.svc.cluster.local";

/// What a finished handshake was like.
pub(crate) struct Done {
    client: ClientConnection,
    server: ServerConnection,
}

/// Both sides in one thread. An error names the side that found it.
pub(crate) fn shake(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    sni: &str,
) -> Result<Done, (&'static str, rustls::Error)> {
    let mut client = ClientConnection::new(client, sni.to_owned().try_into().unwrap()).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    for _ in 0..12 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut rest = &wire[..];
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets().map_err(|e| ("server", e))?;
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut rest = &wire[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets().map_err(|e| ("client", e))?;
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok(Done { client, server })
}

fn server_of(ca: &Authority, leaf: &Leaf) -> ServerSettings {
    ServerSettings {
        keys: ca.slot(leaf),
        client_auth: ClientAuth::Require,
        trust: vec![ca.bundle("mesh.test")],
        alpn: vec![b"istio-peer-exchange".to_vec(), b"h2".to_vec()],
        ..ServerSettings::default()
    }
}

fn client_of(ca: &Authority, leaf: &Leaf) -> ClientSettings {
    ClientSettings {
        keys: Some(ca.slot(leaf)),
        trust: vec![ca.bundle("mesh.test")],
        names: NameCheck::OneOf(vec![SanMatcher::uri(CART)]),
        alpn: vec![b"h2".to_vec()],
        send_server_name: true,
        ..ClientSettings::default()
    }
}

fn attempt(client: &ClientSettings, server: &ServerSettings) -> Result<Done, (&'static str, Cause)> {
    let (client, server) = (tls::client_config(client).unwrap(), tls::server_config(server).unwrap());
    shake(client, server, SNI).map_err(|(side, error)| (side, Cause::of(&error)))
}

fn refused(client: &ClientSettings, server: &ServerSettings) -> (&'static str, Cause) {
    attempt(client, server).map(|_| ()).expect_err("the handshake must fail")
}

fn peer(connection: &rustls::CommonState) -> PeerFacts {
    tls::facts(connection, SystemTime::now()).unwrap().unwrap()
}

#[test]
fn both_sides_know_each_other() {
    let ca = Authority::new("root");
    let done = attempt(&client_of(&ca, &Leaf::spiffe(WEB)), &server_of(&ca, &Leaf::spiffe(CART))).unwrap();
    assert_eq!(peer(&done.server).identity.unwrap().to_string(), WEB);
    assert_eq!(peer(&done.client).identity.unwrap().to_string(), CART);
    assert_eq!(tls::peer_identity(done.server.peer_certificates().unwrap()).unwrap().to_string(), WEB);
    assert_eq!(done.server.server_name(), Some(SNI));
    assert_eq!(done.server.alpn_protocol(), Some(&b"h2"[..]));
    let group = done.client.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, NamedGroup::X25519MLKEM768, "post-quantum first");
}

#[test]
fn another_authority_is_unknown_on_both_sides() {
    let (ca, other) = (Authority::new("root"), Authority::new("root"));
    let mut client = client_of(&ca, &Leaf::spiffe(WEB));
    client.keys = Some(other.slot(&Leaf::spiffe(WEB)));
    let outcome = refused(&client, &server_of(&ca, &Leaf::spiffe(CART)));
    assert!(matches!(outcome, ("server", Cause::UnknownCa | Cause::BadSignature)), "{outcome:?}");

    let mut server = server_of(&ca, &Leaf::spiffe(CART));
    server.keys = Authority::new("different").slot(&Leaf::spiffe(CART));
    assert_eq!(refused(&client_of(&ca, &Leaf::spiffe(WEB)), &server), ("client", Cause::UnknownCa));
}

#[test]
fn time_is_checked() {
    let ca = Authority::new("root");
    let now = SystemTime::now();
    let day = Duration::from_secs(86_400);
    let past = Leaf { begins: now - 2 * day, ends: now - day, ..Leaf::spiffe(WEB) };
    let future = Leaf { begins: now + day, ends: now + 2 * day, ..Leaf::spiffe(WEB) };
    let server = server_of(&ca, &Leaf::spiffe(CART));
    assert_eq!(refused(&client_of(&ca, &past), &server), ("server", Cause::Expired));
    assert_eq!(refused(&client_of(&ca, &future), &server), ("server", Cause::NotYetValid));
    let old_server = server_of(&ca, &Leaf { begins: now - 2 * day, ends: now - day, ..Leaf::spiffe(CART) });
    assert_eq!(refused(&client_of(&ca, &Leaf::spiffe(WEB)), &old_server), ("client", Cause::Expired));
}

#[test]
fn names_are_checked() {
    let ca = Authority::new("root");
    let intruder = server_of(&ca, &Leaf::spiffe("spiffe://mesh.test/ns/shop/sa/intruder"));
    assert_eq!(refused(&client_of(&ca, &Leaf::spiffe(WEB)), &intruder), ("client", Cause::SanMismatch));

    let mut picky = server_of(&ca, &Leaf::spiffe(CART));
    picky.names = NameCheck::OneOf(vec![SanMatcher::uri(CART)]);
    assert_eq!(refused(&client_of(&ca, &Leaf::spiffe(WEB)), &picky), ("server", Cause::SanMismatch));

    let nobody = ServerSettings { names: NameCheck::OneOf(vec![]), ..server_of(&ca, &Leaf::spiffe(CART)) };
    assert_eq!(refused(&client_of(&ca, &Leaf::spiffe(WEB)), &nobody), ("server", Cause::SanMismatch));
}

#[test]
fn an_identity_is_exactly_one_spiffe_uri() {
    let ca = Authority::new("root");
    let server = server_of(&ca, &Leaf::spiffe(CART));
    let two = Leaf { uris: vec![WEB, CART], ..Leaf::spiffe(WEB) };
    let none = Leaf::dns("web.shop");
    let odd = Leaf::spiffe("spiffe://mesh.test/workload/web");
    let other_scheme = Leaf::spiffe("https://mesh.test/ns/shop/sa/web");
    for leaf in [two, none, odd, other_scheme] {
        assert_eq!(refused(&client_of(&ca, &leaf), &server), ("server", Cause::NotSpiffe), "{:?}", leaf.uris);
    }
    let foreign = Leaf::spiffe("spiffe://elsewhere.test/ns/shop/sa/web");
    assert_eq!(refused(&client_of(&ca, &foreign), &server), ("server", Cause::ForeignTrustDomain));
}

#[test]
fn an_authority_speaks_for_its_own_trust_domain_only() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let mut server = server_of(&ours, &Leaf::spiffe(CART));
    server.trust = vec![ours.bundle("mesh.test"), theirs.bundle("partner.test")];
    let mut client = client_of(&ours, &Leaf::spiffe(WEB));
    client.keys = Some(theirs.slot(&Leaf::spiffe("spiffe://partner.test/ns/a/sa/b")));
    assert!(attempt(&client, &server).is_ok());
    client.keys = Some(theirs.slot(&Leaf::spiffe(WEB)));
    assert_eq!(refused(&client, &server), ("server", Cause::UnknownCa), "the partner must not name our workloads");
}

#[test]
fn a_missing_certificate_is_refused_only_when_required() {
    let ca = Authority::new("root");
    let mut server = server_of(&ca, &Leaf::spiffe(CART));
    let anonymous = ClientSettings { keys: None, ..client_of(&ca, &Leaf::spiffe(WEB)) };
    assert_eq!(refused(&anonymous, &server), ("server", Cause::NoCertificate));
    server.client_auth = ClientAuth::Request;
    let done = attempt(&anonymous, &server).unwrap();
    assert!(tls::facts(&done.server, SystemTime::now()).unwrap().is_none());
    let wrong = ClientSettings { keys: Some(Authority::new("x").slot(&Leaf::spiffe(WEB))), ..anonymous };
    assert_eq!(refused(&wrong, &server), ("server", Cause::UnknownCa), "permissive is not blind");
}

#[test]
fn purposes_are_checked() {
    let ca = Authority::new("root");
    let only_server = Leaf { usages: vec![ExtendedKeyUsagePurpose::ServerAuth], ..Leaf::spiffe(WEB) };
    let outcome = refused(&client_of(&ca, &only_server), &server_of(&ca, &Leaf::spiffe(CART)));
    assert_eq!(outcome, ("server", Cause::WrongPurpose));
}

#[test]
fn a_chain_bomb_is_refused_before_any_signature() {
    let ca = Authority::new("root");
    let (leaf, key) = ca.pem_for(&Leaf::spiffe(WEB));
    let bomb = format!("{leaf}{}", ca.pem.repeat(9));
    let keys = KeySlot::with(tls::Credentials::from_pem(bomb.as_bytes(), key.as_bytes()).unwrap());
    let client = ClientSettings { keys: Some(keys), ..client_of(&ca, &Leaf::spiffe(WEB)) };
    assert_eq!(refused(&client, &server_of(&ca, &Leaf::spiffe(CART))), ("server", Cause::BadCertificate));
}

#[test]
fn ordinary_names_work_without_spiffe() {
    let ca = Authority::new("root");
    let any = || vec![TrustBundle::for_any_name(ca.pem.as_bytes()).unwrap()];
    let server = ServerSettings { keys: ca.slot(&Leaf::dns("*.example.com")), ..ServerSettings::default() };
    let mut client = ClientSettings { trust: any(), names: NameCheck::ServerName, ..ClientSettings::default() };
    let run = |client: &ClientSettings, name: &str| {
        shake(tls::client_config(client).unwrap(), tls::server_config(&server).unwrap(), name)
            .map(|done| done.client.alpn_protocol().is_none())
            .map_err(|(side, e)| (side, Cause::of(&e)))
    };
    assert_eq!(run(&client, "a.example.com"), Ok(true));
    assert_eq!(run(&client, "a.example.org"), Err(("client", Cause::SanMismatch)));
    client.names = NameCheck::OneOf(vec![SanMatcher::dns("b.example.com")]);
    assert_eq!(run(&client, "whatever.test"), Ok(true));
    client.names = NameCheck::ChainOnly;
    assert_eq!(run(&client, "whatever.test"), Ok(true));
}

#[test]
fn a_new_key_in_the_slot_serves_the_next_handshake() {
    let ca = Authority::new("root");
    let settings = server_of(&ca, &Leaf::spiffe(CART));
    let server = tls::server_config(&settings).unwrap();
    let client = tls::client_config(&client_of(&ca, &Leaf::spiffe(WEB))).unwrap();
    let serial = |done: Done| peer(&done.client).serial;
    let first = serial(shake(client.clone(), server.clone(), SNI).map_err(|e| e.1).unwrap());
    settings.keys.set(vec![ca.credentials(&Leaf::spiffe(CART))]);
    let second = serial(shake(client.clone(), server.clone(), SNI).map_err(|e| e.1).unwrap());
    assert_ne!(first, second);
    settings.keys.set(vec![]);
    assert!(shake(client, server, SNI).is_err(), "an empty slot serves nobody");
}

/// A client and a server of one mesh, whose sessions can be resumed.
struct Pair {
    ca: Authority,
    client: ClientSettings,
    server: ServerSettings,
    sessions: Sessions,
}

impl Pair {
    fn new(lifetime: Duration) -> Self {
        let ca = Authority::new("root");
        let client = client_of(&ca, &Leaf::spiffe(WEB));
        let sessions = Sessions::new(8, client.keys.clone());
        Self {
            client: ClientSettings { sessions: Some(sessions.clone()), ..client },
            server: ServerSettings {
                tickets: Some(lifetime),
                cache: Some(lifetime),
                ..server_of(&ca, &Leaf::spiffe(CART))
            },
            ca,
            sessions,
        }
    }

    fn built(&self) -> (Arc<ClientConfig>, Arc<ServerConfig>) {
        (tls::client_config(&self.client).unwrap(), tls::server_config(&self.server).unwrap())
    }
}

fn kind(ends: &(Arc<ClientConfig>, Arc<ServerConfig>)) -> HandshakeKind {
    let done = shake(ends.0.clone(), ends.1.clone(), SNI).map_err(|e| e.1).unwrap();
    assert_eq!(done.client.handshake_kind(), done.server.handshake_kind());
    // Whoever the peer is, a resumed session says the same of it.
    assert_eq!(peer(&done.server).identity.unwrap().to_string(), WEB);
    assert_eq!(peer(&done.client).identity.unwrap().to_string(), CART);
    done.client.handshake_kind().unwrap()
}

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn no_session_is_resumed_unless_both_sides_want_it() {
    let mut pair = Pair::new(HOUR);
    pair.client.sessions = None;
    let ends = pair.built();
    assert_eq!([kind(&ends), kind(&ends)], [HandshakeKind::Full; 2], "the client keeps none");
    let mut pair = Pair::new(HOUR);
    pair.server.tickets = None;
    let ends = pair.built();
    assert_eq!([kind(&ends), kind(&ends)], [HandshakeKind::Full; 2], "the server gives none");
    let pair = Pair::new(HOUR);
    let ends = pair.built();
    assert_eq!(
        [kind(&ends), kind(&ends), kind(&ends)],
        [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed]
    );
}

#[test]
fn sessions_end_with_their_configuration() {
    let pair = Pair::new(HOUR);
    let (client, server) = pair.built();
    kind(&(client.clone(), server.clone()));
    assert_eq!(kind(&(client.clone(), server)), HandshakeKind::Resumed);
    let rebuilt = tls::server_config(&pair.server).unwrap();
    assert_eq!(kind(&(client.clone(), rebuilt.clone())), HandshakeKind::Full, "new trust of the server");
    let other = tls::client_config(&pair.client).unwrap();
    assert_eq!(kind(&(other, rebuilt)), HandshakeKind::Full, "new trust of the client, even with the same sessions");
}

#[test]
fn a_removed_authority_ends_its_sessions() {
    let mut pair = Pair::new(HOUR);
    let ends = pair.built();
    assert_eq!([kind(&ends), kind(&ends)], [HandshakeKind::Full, HandshakeKind::Resumed]);
    pair.server.trust = vec![Authority::new("other").bundle("mesh.test")];
    let stricter = tls::server_config(&pair.server).unwrap();
    let refused = shake(ends.0.clone(), stricter, SNI).map(|_| ()).unwrap_err();
    assert_eq!((refused.0, Cause::of(&refused.1)), ("server", Cause::UnknownCa), "asked in full, and refused");
    pair.client.trust = vec![Authority::new("other").bundle("mesh.test")];
    let stricter = tls::client_config(&pair.client).unwrap();
    let refused = shake(stricter, ends.1, SNI).map(|_| ()).unwrap_err();
    assert_eq!((refused.0, Cause::of(&refused.1)), ("client", Cause::UnknownCa), "asked in full, and refused");
}

#[test]
fn sessions_end_with_the_certificate_of_either_side() {
    let pair = Pair::new(HOUR);
    let ends = pair.built();
    assert_eq!([kind(&ends), kind(&ends)], [HandshakeKind::Full, HandshakeKind::Resumed]);
    pair.server.keys.set(vec![pair.ca.credentials(&Leaf::spiffe(CART))]);
    assert_eq!([kind(&ends), kind(&ends)], [HandshakeKind::Full, HandshakeKind::Resumed], "a new one of the server");
    pair.client.keys.as_ref().unwrap().set(vec![pair.ca.credentials(&Leaf::spiffe(WEB))]);
    assert_eq!([kind(&ends), kind(&ends)], [HandshakeKind::Full, HandshakeKind::Resumed], "a new one of the client");
}

#[test]
fn sessions_end_with_time() {
    let brief = Pair::new(Duration::ZERO);
    let ends = brief.built();
    assert_eq!([kind(&ends), kind(&ends)], [HandshakeKind::Full; 2], "too old");
    let pair = Pair::new(HOUR);
    let ends = pair.built();
    kind(&ends);
    let resumed = shake(ends.0, ends.1, SNI).map_err(|e| e.1).unwrap();
    assert_eq!(resumed.server.handshake_kind(), Some(HandshakeKind::Resumed));
    let later = SystemTime::now() + 2 * HOUR;
    assert_eq!(tls::facts(&resumed.server, later).unwrap_err().cause, Cause::Expired, "the client's certificate");
    assert_eq!(tls::facts(&resumed.client, later).unwrap_err().cause, Cause::Expired, "the server's certificate");
}

#[test]
fn only_so_many_sessions_are_kept_and_each_for_its_own_server() {
    let mut pair = Pair::new(HOUR);
    pair.client.sessions = None;
    let (client, server) = pair.built();
    let to = |sessions: &Sessions, port: u16| {
        let place = Place::Socket(([127, 0, 0, 1], port).into());
        kind(&(sessions.towards(&client, place), server.clone()))
    };
    assert_eq!(to(&pair.sessions, 1), HandshakeKind::Full);
    assert_eq!(to(&pair.sessions, 2), HandshakeKind::Full, "another server");
    assert_eq!([to(&pair.sessions, 1), to(&pair.sessions, 2)], [HandshakeKind::Resumed; 2]);
    pair.sessions.clear();
    assert_eq!(to(&pair.sessions, 1), HandshakeKind::Full, "forgotten");
    let one = Sessions::new(1, pair.client.keys.clone());
    to(&one, 1);
    to(&one, 2);
    assert_eq!([to(&one, 1), to(&one, 1)], [HandshakeKind::Full, HandshakeKind::Resumed], "room for the newest alone");
    let none = Sessions::new(0, pair.client.keys.clone());
    assert_eq!([to(&none, 3), to(&none, 3)], [HandshakeKind::Full; 2]);
    let name = "outbound_.8080_._.other.shop.svc.cluster.local";
    let named = shake(pair.sessions.towards(&client, Place::Socket(([127, 0, 0, 1], 1).into())), server.clone(), name);
    assert_eq!(named.map_err(|e| e.1).unwrap().client.handshake_kind(), Some(HandshakeKind::Full), "another name");
}

#[test]
fn sessions_of_tls_1_2_end_alike() {
    for tickets in [Some(HOUR), None] {
        let mut pair = Pair::new(HOUR);
        pair.server.tickets = tickets;
        pair.client.protocol.ceiling = TlsCeiling::V1_2;
        let ends = pair.built();
        assert_eq!(
            [kind(&ends), kind(&ends), kind(&ends)].map(|kind| kind == HandshakeKind::Resumed),
            [false, true, true]
        );
        pair.server.keys.set(vec![pair.ca.credentials(&Leaf::spiffe(CART))]);
        assert_eq!(
            [kind(&ends), kind(&ends)],
            [HandshakeKind::Full, HandshakeKind::Resumed],
            "a new one of the server"
        );
        pair.client.keys.as_ref().unwrap().set(vec![pair.ca.credentials(&Leaf::spiffe(WEB))]);
        assert_eq!(kind(&ends), HandshakeKind::Full, "a new one of the client");
        let rebuilt = tls::server_config(&pair.server).unwrap();
        assert_eq!(kind(&(ends.0.clone(), rebuilt)), HandshakeKind::Full, "new trust of the server");
    }
    let mut pair = Pair::new(HOUR);
    (pair.server.tickets, pair.server.cache) = (None, None);
    pair.client.protocol.ceiling = TlsCeiling::V1_2;
    let ends = pair.built();
    assert_eq!([kind(&ends), kind(&ends)], [HandshakeKind::Full; 2], "neither tickets nor a cache");
}

#[test]
fn plaintext_and_old_versions_have_their_causes() {
    let ca = Authority::new("root");
    let config = tls::server_config(&server_of(&ca, &Leaf::spiffe(CART))).unwrap();
    let mut server = ServerConnection::new(config).unwrap();
    server.read_tls(&mut &b"GET / HTTP/1.1\r\nHost: cart\r\n\r\n"[..]).unwrap();
    assert_eq!(Cause::of(&server.process_new_packets().unwrap_err()), Cause::NotTls);

    let server = ServerSettings {
        protocol: Protocol { floor: TlsFloor::V1_3, ..Protocol::default() },
        ..server_of(&ca, &Leaf::spiffe(CART))
    };
    let client = client_of(&ca, &Leaf::spiffe(WEB));
    let done = attempt(&client, &server).unwrap();
    assert_eq!(done.server.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    let strange = ClientSettings { alpn: vec![b"strange".to_vec()], ..client };
    assert_eq!(refused(&strange, &server), ("server", Cause::NothingInCommon));
}

#[test]
fn pins_are_checked_in_addition_to_the_chain() {
    let ca = Authority::new("root");
    let server = server_of(&ca, &Leaf::spiffe(CART));
    let hash = server.keys.current()[0].facts().hash.clone();
    let good = Pins { certificates: vec![Pins::certificate_hash(&hash).unwrap()], ..Pins::default() };
    let bad = Pins { certificates: vec![[7; 32]], keys: vec![[8; 32]] };
    let client = |pins| ClientSettings { pins, ..client_of(&ca, &Leaf::spiffe(WEB)) };
    assert!(attempt(&client(good.clone()), &server).is_ok());
    assert_eq!(refused(&client(bad), &server), ("client", Cause::PinMismatch));
    let other = Authority::new("other");
    let mut stranger = client(good);
    stranger.trust = vec![other.bundle("mesh.test")];
    assert_eq!(refused(&stranger, &server), ("client", Cause::UnknownCa), "a pin replaces no chain");
    let colons: Vec<_> = hash.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap()).collect();
    assert_eq!(Pins::certificate_hash(&colons.join(":")), Pins::certificate_hash(&hash));
    assert!(Pins::certificate_hash("12").is_none() && Pins::key_hash("AAAA").is_none());
}

#[test]
fn versions_suites_and_groups_are_kept_to() {
    let ca = Authority::new("root");
    let server = |protocol| ServerSettings { protocol, ..server_of(&ca, &Leaf::spiffe(CART)) };
    let client = client_of(&ca, &Leaf::spiffe(WEB));
    let suite = "ECDHE-ECDSA-CHACHA20-POLY1305";
    let done = attempt(
        &client,
        &server(Protocol {
            ceiling: TlsCeiling::V1_2,
            cipher_suites: vec!["AES128-SHA".into(), suite.into()],
            groups: vec!["P-521".into(), "P-384".into()],
            ..Protocol::default()
        }),
    )
    .unwrap();
    assert_eq!(done.client.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_2));
    let agreed = done.client.negotiated_cipher_suite().unwrap().suite();
    assert_eq!(agreed, rustls::CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256);
    assert_eq!(done.client.negotiated_key_exchange_group().unwrap().name(), NamedGroup::secp384r1);
    for wrong in [
        Protocol { floor: TlsFloor::V1_3, ceiling: TlsCeiling::V1_2, ..Protocol::default() },
        Protocol { cipher_suites: vec!["RC4-MD5".into()], ..Protocol::default() },
        Protocol { groups: vec!["P-521".into()], ..Protocol::default() },
    ] {
        assert!(tls::server_config(&server(wrong.clone())).is_err(), "{wrong:?}");
    }
}

#[test]
fn two_spiffe_names_are_refused_also_where_any_name_goes() {
    let ca = Authority::new("root");
    let mut server = server_of(&ca, &Leaf::spiffe(CART));
    server.trust = vec![TrustBundle::for_any_name(ca.pem.as_bytes()).unwrap()];
    let two = Leaf { uris: vec![WEB, "https://example.com"], ..Leaf::spiffe(WEB) };
    assert_eq!(refused(&client_of(&ca, &two), &server), ("server", Cause::NotSpiffe));
    let plain = Leaf { uris: vec!["https://a.example", "https://b.example"], ..Leaf::spiffe(WEB) };
    assert!(attempt(&client_of(&ca, &plain), &server).is_ok());
}

#[test]
fn facts_are_what_headers_need() {
    let ca = Authority::new("root");
    let credentials = ca.credentials(&Leaf { dns: vec!["cart.shop"], ..Leaf::spiffe(CART) });
    let facts = credentials.facts();
    assert_eq!(facts.uri_names, [CART]);
    assert_eq!(facts.dns_names, ["cart.shop"]);
    assert_eq!(facts.subject, "");
    assert_eq!(facts.issuer, "CN=root");
    assert_eq!(facts.hash.len(), 64);
    assert!(!facts.serial.is_empty());
}

#[test]
fn key_and_certificate_must_belong_together() {
    let ca = Authority::new("root");
    let (chain, _) = ca.pem_for(&Leaf::spiffe(WEB));
    let (_, key) = ca.pem_for(&Leaf::spiffe(WEB));
    let error = tls::Credentials::from_pem(chain.as_bytes(), key.as_bytes()).unwrap_err();
    assert!(matches!(error, tls::MaterialError::KeyMismatch), "{error}");
    assert!(tls::Credentials::from_pem(b"", key.as_bytes()).is_err());
    assert!(tls::Credentials::from_pem(chain.as_bytes(), b"").is_err());
    assert!(tls::TrustBundle::for_any_name(b"nothing").is_err());
}
