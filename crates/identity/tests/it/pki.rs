//! A small certificate authority for tests that can also make wrong certificates.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use identity::tls::{Credentials, KeySlot, TrustBundle};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

/// An authority of tests.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

/// What a leaf of tests looks like.
pub(crate) struct Leaf {
    pub(crate) uris: Vec<&'static str>,
    pub(crate) dns: Vec<&'static str>,
    pub(crate) begins: SystemTime,
    pub(crate) ends: SystemTime,
    pub(crate) usages: Vec<ExtendedKeyUsagePurpose>,
}

impl Leaf {
    pub(crate) fn spiffe(uri: &'static str) -> Self {
        let now = SystemTime::now();
        Self {
            uris: vec![uri],
            dns: vec![],
            begins: now - Duration::from_secs(60),
            ends: now + Duration::from_secs(3600),
            usages: vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        }
    }

    pub(crate) fn dns(name: &'static str) -> Self {
        Self { uris: vec![], dns: vec![name], ..Self::spiffe("") }
    }
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    pub(crate) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }

    /// Chain and key as PEM.
    pub(crate) fn pem_for(&self, leaf: &Leaf) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.not_before = leaf.begins.into();
        params.not_after = leaf.ends.into();
        let uris = leaf.uris.iter().map(|u| SanType::URI((*u).try_into().unwrap()));
        let names = leaf.dns.iter().map(|d| SanType::DnsName((*d).try_into().unwrap()));
        params.subject_alt_names = uris.chain(names).collect();
        params.extended_key_usages = leaf.usages.clone();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    pub(crate) fn credentials(&self, leaf: &Leaf) -> Arc<Credentials> {
        let (chain, key) = self.pem_for(leaf);
        Credentials::from_pem(chain.as_bytes(), key.as_bytes()).unwrap()
    }

    pub(crate) fn slot(&self, leaf: &Leaf) -> Arc<KeySlot> {
        KeySlot::with(self.credentials(leaf))
    }

    pub(crate) fn bundle(&self, trust_domain: &str) -> TrustBundle {
        TrustBundle::for_trust_domains([trust_domain], self.pem.as_bytes()).unwrap()
    }
}

/// Processor time of this thread while it does something: what else the machine does is not counted.
pub(crate) fn cpu<T>(what: impl FnOnce() -> T) -> (Duration, T) {
    let now = || {
        // A thread's time is brought up to date when it gives way.
        std::thread::yield_now();
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
    };
    let before = now();
    let outcome = what();
    (now().saturating_sub(before), outcome)
}
