//! Whatever bytes come, the answer is an error, never a panic; and what is damaged is never accepted as whole.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use identity::ca::Authority;
use identity::ca::csr::Csr;
use identity::reach::Server;
use identity::tls::{self, Credentials, PeerFacts, Revocation, TextMatch, TrustBundle};
use identity::token::{JoinToken, Secret, TokenStore};
use proptest::prelude::*;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};

use crate::pki::{Authority as TestAuthority, Leaf};

const WEB: &str = "spiffe://mesh.test/ns/shop/sa/web";

/// A good leaf with its key, and its authority.
struct Good {
    ca: TestAuthority,
    chain: String,
    key: String,
    der: Vec<u8>,
    csr: Vec<u8>,
}

static GOOD: LazyLock<Good> = LazyLock::new(|| {
    let ca = TestAuthority::new("root");
    let (chain, key) = ca.pem_for(&Leaf::spiffe(WEB));
    let der = Credentials::from_pem(chain.as_bytes(), key.as_bytes()).unwrap().chain()[0].to_vec();
    let request = CertificateParams::default().serialize_request(&KeyPair::generate().unwrap()).unwrap();
    let csr: &CertificateSigningRequestDer<'_> = request.der();
    Good { csr: csr.to_vec(), ca, chain, key, der }
});

/// Bytes that begin as something good and are damaged in up to four places, or cut.
fn damaged(good: &'static [u8]) -> impl Strategy<Value = Vec<u8>> {
    let places = prop::collection::vec((0..good.len(), any::<u8>()), 1..4);
    (places, 0..=good.len()).prop_map(move |(places, cut)| {
        let mut bytes = good.to_vec();
        for (place, byte) in places {
            bytes[place] = byte;
        }
        if cut % 3 == 0 {
            bytes.truncate(cut);
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = PeerFacts::read(&CertificateDer::from(bytes.clone()));
        let _ = tls::peer_identity(&[CertificateDer::from(bytes.clone())]);
        let _ = Csr::from_der(&bytes);
        let _ = TrustBundle::for_any_name(&bytes);
        let _ = Revocation::from_pem(&bytes, false);
        let _ = Credentials::from_pem(&bytes, &bytes);
        let text = String::from_utf8_lossy(&bytes);
        let _ = Csr::from_pem(&text);
        let _ = text.parse::<Server>();
        let _ = Secret::parse(&text);
        let _ = TextMatch::regex(&text);
    }

    #[test]
    fn any_pem_body_is_survived(body in "[A-Za-z0-9+/=\n -]{0,400}", label in 0..4_usize) {
        let label = ["CERTIFICATE", "PRIVATE KEY", "CERTIFICATE REQUEST", "X509 CRL"][label];
        let pem = format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n");
        let _ = Csr::from_pem(&pem);
        let _ = TrustBundle::for_any_name(pem.as_bytes());
        let _ = Revocation::from_pem(pem.as_bytes(), true);
        let _ = Credentials::from_pem(pem.as_bytes(), pem.as_bytes());
        prop_assert!(Credentials::from_pem(GOOD.chain.as_bytes(), pem.as_bytes()).is_err());
        prop_assert!(Credentials::from_pem(pem.as_bytes(), GOOD.key.as_bytes()).is_err());
    }

    #[test]
    fn a_damaged_certificate_is_never_verified(bytes in damaged(&GOOD.der)) {
        let bundle = GOOD.ca.bundle("mesh.test");
        let whole = bytes == GOOD.der;
        let verified = tls::verify_leaf(&bundle, &[CertificateDer::from(bytes)], SystemTime::now());
        prop_assert_eq!(verified.is_ok(), whole);
    }

    #[test]
    fn a_damaged_request_gives_no_other_key_or_name(bytes in damaged(&GOOD.csr)) {
        // Damage outside of what is signed (an algorithm's parameters) may pass; the key and the names may not change.
        let good = Csr::from_der(&GOOD.csr).unwrap();
        if let Ok(accepted) = Csr::from_der(&bytes) {
            prop_assert_eq!(accepted.key_hash(), good.key_hash());
            prop_assert_eq!(accepted.names(), good.names());
        }
    }

    #[test]
    fn any_bearer_is_refused(token in ".{0,80}") {
        let dir = tempfile::tempdir().unwrap();
        let store = TokenStore::open(dir.path(), Default::default()).unwrap();
        prop_assert!(store.redeem(&token, [7; 32], SystemTime::now()).is_err());
    }

    #[test]
    fn any_token_file_is_survived_and_never_quoted(text in "\\{\"secret\": \"[a-z]{43}\"[ -~]{0,100}") {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.token");
        std::fs::write(&path, &text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let message = JoinToken::read(&path).unwrap_err().to_string();
        prop_assert!(!message.contains(&text[12..55]), "{}", message);
    }
}

#[test]
fn a_damaged_authority_is_explained() {
    let hour = Duration::from_secs(3600);
    let load = |dir: &std::path::Path, domain: &str| {
        Authority::load_or_create(dir, domain, hour, SystemTime::now()).map(|_| ()).map_err(|e| e.to_string())
    };
    let fresh = || {
        let dir = tempfile::tempdir().unwrap();
        load(dir.path(), "mesh.test").unwrap();
        dir
    };
    let dir = fresh();
    load(dir.path(), "mesh.test").expect("loads what it made");
    assert!(load(dir.path(), "other.test").unwrap_err().contains("spiffe://mesh.test"), "another trust domain");
    assert!(load(dir.path(), "Bad Domain").is_err());

    std::fs::remove_file(dir.path().join("root-cert.pem")).unwrap();
    assert!(load(dir.path(), "mesh.test").unwrap_err().contains("restore it from a backup"));

    let (dir, other) = (fresh(), fresh());
    std::fs::copy(other.path().join("root-cert.pem"), dir.path().join("root-cert.pem")).unwrap();
    assert!(load(dir.path(), "mesh.test").unwrap_err().contains("does not belong to the key"));

    let dir = fresh();
    std::fs::write(dir.path().join("root-key.pem"), "garbage").unwrap();
    assert!(load(dir.path(), "mesh.test").unwrap_err().contains("root-key.pem"));

    let dir = fresh();
    use std::os::unix::fs::PermissionsExt;
    let loose = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(dir.path().join("root-key.pem"), loose).unwrap();
    assert!(load(dir.path(), "mesh.test").unwrap_err().contains("chmod 600"));

    let later = SystemTime::now() + Duration::from_secs(11 * 365 * 86_400);
    let dir = fresh();
    let ended = Authority::load_or_create(dir.path(), "mesh.test", hour, later).unwrap_err().to_string();
    assert!(ended.contains("not valid now"), "{ended}");
    let brief = Authority::load_or_create(dir.path(), "mesh.test", Duration::from_millis(10), SystemTime::now());
    assert!(brief.unwrap_err().to_string().contains("the least is 2s"));
}

#[test]
fn two_programs_that_start_at_once_agree_on_one_root() {
    let dir = tempfile::tempdir().unwrap();
    let hour = Duration::from_secs(3600);
    let roots: std::collections::HashSet<[u8; 32]> = std::thread::scope(|scope| {
        let start = || Authority::load_or_create(dir.path(), "mesh.test", hour, SystemTime::now()).unwrap().root_hash();
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(roots.len(), 1);
}
