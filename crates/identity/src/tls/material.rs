//! Keys, certificates and trust as they come: PEM text in, checked values out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, TrustAnchor};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, SignatureScheme};
use webpki::{CertRevocationList, OwnedCertRevocationList};

use super::peer::PeerFacts;
use super::san::SanMatcher;
use super::{hex, provider, sha256};

/// How many certificates a PEM text may hold: far above any real bundle, far below what hurts.
const MAX_CERTIFICATES: usize = 1024;

/// Why key material cannot be used. The messages never hold key bytes.
#[derive(Debug, Clone, thiserror::Error)]
pub enum MaterialError {
    /// No certificate in a text that must hold one.
    #[error("{0}: no `-----BEGIN CERTIFICATE-----` block found")]
    NoCertificate(&'static str),
    /// A block is damaged.
    #[error("{what}: block {block} is not readable: {reason}")]
    Pem {
        /// Which text: `certificate chain`, `private key`, `trust bundle`, `revocation list`.
        what: &'static str,
        /// Which block, from 1.
        block: usize,
        /// What is wrong.
        reason: String,
    },
    /// No private key, or one of an unsupported kind.
    #[error("private key: {0}")]
    Key(String),
    /// The key belongs to another certificate.
    #[error("the private key does not belong to the first certificate of the chain")]
    KeyMismatch,
    /// More than 1024 blocks.
    #[error("{0}: more than {MAX_CERTIFICATES} blocks")]
    TooMany(&'static str),
}

/// A private key with its certificate chain, parsed and checked to belong together.
#[derive(Debug)]
pub struct Credentials {
    certified: Arc<CertifiedKey>,
    facts: PeerFacts,
    uri: Option<Arc<str>>,
}

impl Credentials {
    /// Reads a chain (leaf first, then intermediates) and a key (PKCS#8, SEC1 or PKCS#1) from PEM text.
    ///
    /// # Errors
    /// A block is missing or damaged, the key's kind is not supported, or key and leaf do not belong together.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Arc<Self>, MaterialError> {
        let chain = certificates("certificate chain", chain)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| MaterialError::Key(e.to_string()))?;
        Self::from_der(chain, key)
    }

    /// The same from DER.
    ///
    /// # Errors
    /// As [`Credentials::from_pem`].
    pub fn from_der(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Arc<Self>, MaterialError> {
        let leaf = chain.first().ok_or(MaterialError::NoCertificate("certificate chain"))?;
        let facts = PeerFacts::read(leaf).map_err(|e| MaterialError::Pem {
            what: "certificate chain",
            block: 1,
            reason: e.detail,
        })?;
        let key = provider().key_provider.load_private_key(key).map_err(|e| MaterialError::Key(e.to_string()))?;
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(_) => return Err(MaterialError::KeyMismatch),
        }
        let uri = facts.uri_names.first().map(|uri| Arc::from(uri.as_str()));
        Ok(Arc::new(Self { certified: Arc::new(certified), facts, uri }))
    }

    /// The leaf's facts: names, serial, validity.
    pub fn facts(&self) -> &PeerFacts {
        &self.facts
    }

    /// The leaf's first URI name.
    pub fn uri(&self) -> Option<&Arc<str>> {
        self.uri.as_ref()
    }

    /// The chain, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// When the leaf ends.
    pub fn not_after(&self) -> SystemTime {
        self.facts.not_after
    }
}

/// Where configurations take their key from at each handshake; a rotation puts a new one in and rebuilds nothing.
#[derive(Debug, Default)]
pub struct KeySlot {
    current: ArcSwap<Vec<Arc<Credentials>>>,
    number: AtomicU64,
}

impl KeySlot {
    /// A slot with one key.
    pub fn with(credentials: Arc<Credentials>) -> Arc<Self> {
        let slot = Self::default();
        slot.set(vec![credentials]);
        Arc::new(slot)
    }

    /// An empty slot: servers refuse handshakes until a key arrives, clients present no certificate.
    pub fn empty() -> Arc<Self> {
        Arc::default()
    }

    /// Replaces all keys: the first whose DNS names fit the requested server name is used, else the first usable.
    pub fn set(&self, credentials: Vec<Arc<Credentials>>) {
        self.current.store(Arc::new(credentials));
        self.number.fetch_add(1, Ordering::Release);
    }

    /// Another one after each replacement: a session that began under other keys is not resumed.
    pub(super) fn number(&self) -> u64 {
        self.number.load(Ordering::Acquire)
    }

    /// The keys now.
    pub fn current(&self) -> Arc<Vec<Arc<Credentials>>> {
        self.current.load_full()
    }

    fn pick(&self, server_name: Option<&str>, schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let current = self.current.load();
        let usable = |c: &&Arc<Credentials>| c.certified.key.choose_scheme(schemes).is_some();
        let named = server_name.filter(|_| current.len() > 1).and_then(|name| {
            let wanted = SanMatcher::dns(name);
            current.iter().filter(usable).find(|c| wanted.matches(&c.facts))
        });
        named.or_else(|| current.iter().find(usable)).map(|c| Arc::clone(&c.certified))
    }
}

impl ResolvesServerCert for KeySlot {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.pick(hello.server_name(), hello.signature_schemes())
    }
}

impl ResolvesClientCert for KeySlot {
    fn resolve(&self, _hints: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.pick(None, schemes)
    }

    fn has_certs(&self) -> bool {
        !self.current.load().is_empty()
    }
}

/// Certificate authorities that are trusted, and for which trust domains they may speak.
#[derive(Debug, Clone)]
pub struct TrustBundle {
    trust_domains: Vec<String>,
    anchors: Vec<TrustAnchor<'static>>,
    certificates: Vec<CertificateDer<'static>>,
}

impl TrustBundle {
    /// Authorities of the mesh: peers must have exactly one URI name, a SPIFFE id of one of these trust domains.
    ///
    /// # Errors
    /// The text holds no certificate or a damaged one.
    pub fn for_trust_domains<I, S>(trust_domains: I, pem: &[u8]) -> Result<Self, MaterialError>
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        let domains = trust_domains.into_iter().map(Into::into).collect();
        Self::from_certificates(domains, certificates("trust bundle", pem)?)
    }

    /// Authorities for any name, as a plain Envoy `trusted_ca`: the peer need not be a SPIFFE identity.
    ///
    /// # Errors
    /// The text holds no certificate or a damaged one.
    pub fn for_any_name(pem: &[u8]) -> Result<Self, MaterialError> {
        Self::from_certificates(Vec::new(), certificates("trust bundle", pem)?)
    }

    pub(super) fn from_certificates(
        trust_domains: Vec<String>,
        certificates: Vec<CertificateDer<'static>>,
    ) -> Result<Self, MaterialError> {
        let mut anchors = Vec::with_capacity(certificates.len());
        for (index, certificate) in certificates.iter().enumerate() {
            let anchor = webpki::anchor_from_trusted_cert(certificate).map_err(|e| MaterialError::Pem {
                what: "trust bundle",
                block: index + 1,
                reason: e.to_string(),
            })?;
            anchors.push(anchor.to_owned());
        }
        Ok(Self { trust_domains, anchors, certificates })
    }

    /// The trust domains these authorities speak for; empty: any name.
    pub fn trust_domains(&self) -> &[String] {
        &self.trust_domains
    }

    /// The authorities' certificates.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// A name for this content: equal bundles have equal fingerprints (SHA-256, hexadecimal).
    pub fn fingerprint(&self) -> String {
        let mut all = self.trust_domains.join(" ").into_bytes();
        for certificate in &self.certificates {
            all.extend(sha256(certificate));
        }
        hex(&sha256(&all))
    }

    pub(super) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }

    pub(super) fn speaks_for(&self, trust_domain: &str) -> bool {
        self.trust_domains.iter().any(|domain| domain == trust_domain)
    }
}

/// Revocation lists. When given, a certificate whose issuer has no list here is refused, as Envoy does.
#[derive(Debug)]
pub struct Revocation {
    lists: Vec<CertRevocationList<'static>>,
    leaf_only: bool,
}

impl Revocation {
    /// Reads lists from PEM text. `leaf_only`: check only the peer's own certificate, not its intermediates.
    ///
    /// # Errors
    /// No list, or a damaged one.
    pub fn from_pem(pem: &[u8], leaf_only: bool) -> Result<Arc<Self>, MaterialError> {
        let what = "revocation list";
        let mut lists = Vec::new();
        for (index, list) in CertificateRevocationListDer::pem_slice_iter(pem).enumerate() {
            let bad = |reason: String| MaterialError::Pem { what, block: index + 1, reason };
            let list = list.map_err(|e| bad(e.to_string()))?;
            let owned = OwnedCertRevocationList::from_der(list.as_ref()).map_err(|e| bad(e.to_string()))?;
            lists.push(owned.into());
        }
        if lists.is_empty() {
            return Err(MaterialError::Pem { what, block: 1, reason: "no `-----BEGIN X509 CRL-----` block".into() });
        }
        Ok(Arc::new(Self { lists, leaf_only }))
    }

    pub(super) fn lists(&self) -> &[CertRevocationList<'static>] {
        &self.lists
    }

    pub(super) fn leaf_only(&self) -> bool {
        self.leaf_only
    }
}

/// All certificate blocks of a PEM text; at least one.
pub(crate) fn certificates(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, MaterialError> {
    let mut all = Vec::new();
    for (index, certificate) in CertificateDer::pem_slice_iter(pem).enumerate() {
        if index >= MAX_CERTIFICATES {
            return Err(MaterialError::TooMany(what));
        }
        let certificate =
            certificate.map_err(|e| MaterialError::Pem { what, block: index + 1, reason: e.to_string() })?;
        all.push(certificate);
    }
    if all.is_empty() { Err(MaterialError::NoCertificate(what)) } else { Ok(all) }
}
