//! Revocation, clocks that differ, and certificate chains made to cost time.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use identity::ca::Authority as Ca;
use identity::ca::csr::Csr;
use identity::tls::{
    self, Cause, ClientAuth, ClientSettings, Credentials, KeySlot, NameCheck, Revocation, SanMatcher, ServerSettings,
};
use model::SpiffeId;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;

use crate::handshake::shake;
use crate::pki::{Authority, Leaf, cpu};

const WEB: &str = "spiffe://mesh.test/ns/shop/sa/web";
const CART: &str = "spiffe://mesh.test/ns/shop/sa/cart";

fn seconds(time: SystemTime) -> i64 {
    i64::try_from(time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

/// A list of an authority that revokes one serial number.
fn list(ca: &Authority, serial: &str) -> String {
    let bytes: Vec<u8> =
        (0..serial.len()).step_by(2).map(|at| u8::from_str_radix(&serial[at..at + 2], 16).unwrap()).collect();
    let now = SystemTime::now();
    let revoked = RevokedCertParams {
        serial_number: SerialNumber::from_slice(&bytes),
        revocation_time: now.into(),
        reason_code: None,
        invalidity_date: None,
    };
    let params = CertificateRevocationListParams {
        this_update: now.into(),
        next_update: (now + Duration::from_secs(3600)).into(),
        crl_number: SerialNumber::from(1_u64),
        issuing_distribution_point: None,
        revoked_certs: vec![revoked],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(ca.issuer()).unwrap().pem().unwrap()
}

fn outcome(client: &ClientSettings, server: &ServerSettings) -> Result<(), Cause> {
    let (client, server) = (tls::client_config(client).unwrap(), tls::server_config(server).unwrap());
    shake(client, server, "cart.test").map(|_| ()).map_err(|(_, error)| Cause::of(&error))
}

#[test]
fn revoked_certificates_are_refused_and_so_are_those_without_a_list() {
    let ca = Authority::new("root");
    let (good, bad) = (ca.credentials(&Leaf::spiffe(WEB)), ca.credentials(&Leaf::spiffe(WEB)));
    let lists = list(&ca, &bad.facts().serial);
    let server = |lists: &str| ServerSettings {
        keys: ca.slot(&Leaf::spiffe(CART)),
        client_auth: ClientAuth::Require,
        trust: vec![ca.bundle("mesh.test")],
        revocation: Some(Revocation::from_pem(lists.as_bytes(), false).unwrap()),
        ..ServerSettings::default()
    };
    let client = |keys: &Arc<Credentials>| ClientSettings {
        keys: Some(KeySlot::with(Arc::clone(keys))),
        trust: vec![ca.bundle("mesh.test")],
        ..ClientSettings::default()
    };
    assert_eq!(outcome(&client(&good), &server(&lists)), Ok(()));
    assert_eq!(outcome(&client(&bad), &server(&lists)), Err(Cause::Revoked));
    let foreign = list(&Authority::new("another"), "01");
    assert_eq!(outcome(&client(&good), &server(&foreign)), Err(Cause::Revoked), "no list of this issuer");
}

/// A clock that is off by some time.
#[derive(Debug)]
struct Off(i64);

impl TimeProvider for Off {
    fn current_time(&self) -> Option<UnixTime> {
        let now = seconds(SystemTime::now()) + self.0;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now).ok()?)))
    }
}

#[test]
fn a_clock_may_be_slow_by_nine_minutes_and_beyond_it_the_reason_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let hour = Duration::from_secs(3600);
    let ca = Ca::load_or_create(dir.path(), "mesh.test", hour, SystemTime::now()).unwrap();
    let key = KeyPair::generate().unwrap();
    let request = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let identity = SpiffeId::new("mesh.test", "shop", "cart").unwrap();
    let issued = ca.sign(&Csr::from_pem(&request).unwrap(), &identity, None, SystemTime::now()).unwrap();
    let keys = Credentials::from_pem(issued.chain[0].as_bytes(), key.serialize_pem().as_bytes()).unwrap();
    let server = ServerSettings { keys: KeySlot::with(keys), ..ServerSettings::default() };
    let client = |off| ClientSettings {
        trust: vec![ca.bundle().unwrap()],
        names: NameCheck::OneOf(vec![SanMatcher::uri(CART)]),
        clock: Some(Arc::new(Off(off))),
        ..ClientSettings::default()
    };
    assert_eq!(outcome(&client(-9 * 60), &server), Ok(()));
    assert_eq!(outcome(&client(50 * 60), &server), Ok(()));
    assert_eq!(outcome(&client(-11 * 60), &server), Err(Cause::NotYetValid));
    assert_eq!(outcome(&client(61 * 60), &server), Err(Cause::Expired));
}

/// Intermediates with the slowest curve that could all have signed each other: every order is a candidate path.
fn bomb(names: &[&str]) -> Arc<Credentials> {
    let mut chain = String::new();
    let mut issuer = None;
    for (at, name) in names.iter().enumerate() {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, *name);
        params.serial_number = Some(SerialNumber::from(at as u64 + 1));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let signer = issuer.unwrap_or_else(|| Issuer::new(params.clone(), KeyPair::generate().unwrap()));
        chain.push_str(&params.signed_by(&key, &signer).unwrap().pem());
        issuer = Some(Issuer::new(params, key));
    }
    let key = KeyPair::generate().unwrap();
    let mut leaf = CertificateParams::default();
    leaf.subject_alt_names = vec![SanType::URI(WEB.try_into().unwrap())];
    let leaf = leaf.signed_by(&key, &issuer.unwrap()).unwrap().pem();
    Credentials::from_pem(format!("{leaf}{chain}").as_bytes(), key.serialize_pem().as_bytes()).unwrap()
}

#[test]
fn a_chain_made_to_cost_time_costs_little() {
    let bundle = Authority::new("root").bundle("mesh.test");
    for names in [&["loop"; 6][..], &["a", "a", "b", "b", "c", "c"], &["loop"; 7]] {
        let bomb = bomb(names);
        let verify = || cpu(|| tls::verify_leaf(&bundle, bomb.chain(), SystemTime::now()).unwrap_err());
        let (took, refusal) = (0..3).map(|_| verify()).min_by_key(|(took, _)| *took).unwrap();
        let cause = refusal.cause;
        assert!(matches!(cause, Cause::UnknownCa | Cause::BadCertificate | Cause::BadSignature), "{refusal}");
        println!("{names:?} {took:?}");
        assert!(took < Duration::from_millis(20), "{names:?} {took:?} {refusal}");
    }
}

#[test]
fn ordinary_chains_with_intermediates_are_accepted() {
    let ca = Authority::new("root");
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, "issuing");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let intermediate = params.signed_by(&key, ca.issuer()).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let mut leaf = CertificateParams::default();
    leaf.subject_alt_names = vec![SanType::URI(WEB.try_into().unwrap())];
    let leaf = leaf.signed_by(&key, &issuer).unwrap().pem();
    // In order, and with the root along, as some send it.
    for chain in [format!("{leaf}{intermediate}"), format!("{leaf}{intermediate}{}", ca.pem)] {
        let keys = Credentials::from_pem(chain.as_bytes(), key.serialize_pem().as_bytes()).unwrap();
        tls::verify_leaf(&ca.bundle("mesh.test"), keys.chain(), SystemTime::now()).unwrap();
    }
}
