//! Certificates for a test mesh: a root made on the spot and leaves with SPIFFE names.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};

/// A certificate authority that lives as long as the test.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: String,
}

/// What a certificate says; a serial number of chance where none is given.
struct Leaf<'a> {
    names: Vec<SanType>,
    common: Option<&'a str>,
    serial: Option<SerialNumber>,
}

impl Authority {
    /// Makes a root.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn new(name: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::OrganizationName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), root })
    }

    /// The root's PEM.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// A leaf for a SPIFFE id: certificate chain and key as PEM. It is good from `start` to `end`, counted from now.
    ///
    /// # Errors
    /// When no key can be made or the id is no URI.
    pub fn leaf(&self, spiffe: &str, start: Duration, end: Duration) -> Result<(String, String)> {
        let names = vec![SanType::URI(spiffe.try_into().context("SPIFFE id")?)];
        self.sign(Leaf { names, common: None, serial: None }, start, end)
    }

    fn sign(&self, leaf: Leaf<'_>, start: Duration, end: Duration) -> Result<(String, String)> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.subject_alt_names = leaf.names;
        params.serial_number = leaf.serial;
        if let Some(common) = leaf.common {
            params.distinguished_name.push(DnType::CommonName, common);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let now = std::time::SystemTime::now();
        params.not_before = (now - start).into();
        params.not_after = (now + end).into();
        let leaf = params.signed_by(&key, &self.issuer)?;
        Ok((leaf.pem(), key.serialize_pem()))
    }

    /// Writes `cert-chain.pem`, `key.pem` and `root-cert.pem` for an identity into a directory.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, directory: &Path, spiffe: &str) -> Result<()> {
        let hour = Duration::from_secs(3600);
        self.store(directory, self.leaf(spiffe, Duration::from_secs(60), 24 * hour)?)
    }

    /// As [`Self::write`], with a common name and a DNS name beside the SPIFFE id, for peers that know no URIs.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write_named(&self, directory: &Path, spiffe: &str, common: &str, dns: &str) -> Result<()> {
        let names = vec![
            SanType::URI(spiffe.try_into().context("SPIFFE id")?),
            SanType::DnsName(dns.try_into().context("DNS name")?),
        ];
        let hour = Duration::from_secs(3600);
        let leaf = Leaf { names, common: Some(common), serial: None };
        self.store(directory, self.sign(leaf, Duration::from_secs(60), 24 * hour)?)
    }

    /// As [`Self::write`], with a list in `crl.pem` beside it that revokes the certificate.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write_revoked(&self, directory: &Path, spiffe: &str) -> Result<()> {
        let serial = SerialNumber::from(4711);
        let names = vec![SanType::URI(spiffe.try_into().context("SPIFFE id")?)];
        let day = Duration::from_secs(24 * 3600);
        let leaf = Leaf { names, common: None, serial: Some(serial.clone()) };
        self.store(directory, self.sign(leaf, Duration::from_secs(60), day)?)?;
        let now = std::time::SystemTime::now();
        let list = CertificateRevocationListParams {
            this_update: (now - Duration::from_secs(60)).into(),
            next_update: (now + day).into(),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: serial,
                revocation_time: (now - Duration::from_secs(60)).into(),
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        std::fs::write(directory.join("crl.pem"), list.signed_by(&self.issuer)?.pem()?)?;
        Ok(())
    }

    fn store(&self, directory: &Path, (chain, key): (String, String)) -> Result<()> {
        std::fs::create_dir_all(directory)?;
        std::fs::write(directory.join("cert-chain.pem"), chain)?;
        std::fs::write(directory.join("key.pem"), key)?;
        std::fs::write(directory.join("root-cert.pem"), &self.root)?;
        Ok(())
    }
}
