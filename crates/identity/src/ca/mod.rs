//! The certificate authority: one root key in a private directory, signing leaves with exactly one SPIFFE id.

pub mod csr;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use model::SpiffeId;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

use crate::private::{self, PrivateError};
use crate::tls::{Credentials, MaterialError, PeerFacts, TrustBundle, sha256};
use csr::Csr;

/// How long a workload's certificate lives unless told otherwise (`--cert-ttl`).
pub const DEFAULT_LEAF_TTL: Duration = Duration::from_secs(24 * 3600);
/// The shortest lifetime that can be asked for: X.509 counts whole seconds.
pub const MIN_LEAF_TTL: Duration = Duration::from_secs(2);
/// How long the root lives.
const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How far before the moment of signing a certificate becomes valid, so that a peer whose clock is slow accepts it.
const BACKDATE: Duration = Duration::from_secs(600);

const ROOT_CERTIFICATE: &str = "root-cert.pem";
const ROOT_KEY: &str = "root-key.pem";

/// The namespace and account of the control plane itself. No token is ever made for it.
pub const CONTROL_NAMESPACE: &str = "tulle-system";
/// See [`CONTROL_NAMESPACE`].
pub const CONTROL_ACCOUNT: &str = "tulle-control";

/// The control plane's identity in a trust domain: what agents expect at the other end.
///
/// # Errors
/// The trust domain is not well-formed.
pub fn control_identity(trust_domain: &str) -> Result<SpiffeId, model::spiffe::SpiffeError> {
    SpiffeId::new(trust_domain, CONTROL_NAMESPACE, CONTROL_ACCOUNT)
}

/// Why there is no authority, or why it does not sign.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file or directory.
    #[error(transparent)]
    Private(#[from] PrivateError),
    /// One of the two files is there and the other is not.
    #[error(
        "{present} is there but {missing} is not: restore it from a backup, or remove both to begin a new authority \
         (every workload must then join again)"
    )]
    Half {
        /// The file that is there.
        present: PathBuf,
        /// The file that is not.
        missing: PathBuf,
    },
    /// The root is past its end or not valid yet.
    #[error("the root certificate {path} is not valid now (from {from} to {to}): check the clock, or begin a new root")]
    RootTime {
        /// Where it is.
        path: PathBuf,
        /// Begin.
        from: String,
        /// End.
        to: String,
    },
    /// The files hold no authority.
    #[error("{path}: {reason}")]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The lifetime is too short.
    #[error("a certificate cannot live {0:?}: the least is {MIN_LEAF_TTL:?}")]
    Ttl(Duration),
    /// The cryptography refused.
    #[error("signing: {0}")]
    Signing(#[from] rcgen::Error),
    /// What was made cannot be read back.
    #[error(transparent)]
    Material(#[from] MaterialError),
    /// The trust domain is not well-formed.
    #[error(transparent)]
    TrustDomain(#[from] model::spiffe::SpiffeError),
}

/// A signed leaf.
#[derive(Debug)]
pub struct Issued {
    /// The leaf and the root, PEM, in this order.
    pub chain: Vec<String>,
    /// Serial number in lower-case hexadecimal.
    pub serial: String,
    /// End of validity.
    pub not_after: SystemTime,
}

/// The authority of one trust domain. Its root key never leaves this value and its 0600 file.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    root_pem: String,
    root_ends: SystemTime,
    trust_domain: String,
    leaf_ttl: Duration,
}

impl Authority {
    /// Loads the root from `directory`, or creates one there (P-256, ten years) when the directory has none.
    ///
    /// # Errors
    /// See [`CaError`]. Two programs that start at once agree on one root.
    pub fn load_or_create(
        directory: &Path,
        trust_domain: &str,
        leaf_ttl: Duration,
        now: SystemTime,
    ) -> Result<Self, CaError> {
        control_identity(trust_domain)?;
        if leaf_ttl < MIN_LEAF_TTL {
            return Err(CaError::Ttl(leaf_ttl));
        }
        private::directory(directory)?;
        let _lock = lock(directory)?;
        let (key_path, root_path) = (directory.join(ROOT_KEY), directory.join(ROOT_CERTIFICATE));
        match (key_path.exists(), root_path.exists()) {
            (false, false) => create_root(&key_path, &root_path, trust_domain, now)?,
            (true, true) => {}
            (true, false) => return Err(CaError::Half { present: key_path, missing: root_path }),
            (false, true) => return Err(CaError::Half { present: root_path, missing: key_path }),
        }
        Self::load(&key_path, &root_path, trust_domain, leaf_ttl, now)
    }

    fn load(
        key_path: &Path,
        root_path: &Path,
        trust_domain: &str,
        leaf_ttl: Duration,
        now: SystemTime,
    ) -> Result<Self, CaError> {
        let unusable = |path: &Path, reason: String| CaError::Unusable { path: path.to_owned(), reason };
        let key_pem = Zeroizing::new(private::read_secret(key_path)?);
        let key_text = std::str::from_utf8(&key_pem).map_err(|e| unusable(key_path, e.to_string()))?;
        let key = KeyPair::from_pem(key_text).map_err(|e| unusable(key_path, e.to_string()))?;
        let root_bytes = private::read(root_path)?;
        let bundle = TrustBundle::for_trust_domains([trust_domain], &root_bytes)
            .map_err(|e| unusable(root_path, e.to_string()))?;
        let [root] = bundle.certificates() else {
            return Err(unusable(root_path, "it must hold exactly one certificate".to_owned()));
        };
        let root = root.clone();
        let (facts, spki) = read_root(&root).map_err(|reason| unusable(root_path, reason))?;
        if spki != key.subject_public_key_info() {
            return Err(unusable(root_path, format!("it does not belong to the key in {}", key_path.display())));
        }
        let own = format!("spiffe://{trust_domain}");
        if let Some(other) = facts.uri_names.iter().find(|uri| uri.starts_with("spiffe://") && **uri != own) {
            return Err(unusable(root_path, format!("it is the root of {other}, not of trust domain {trust_domain}")));
        }
        if facts.check_time(now).is_err() {
            let (from, to) = (crate::tls::when(facts.not_before), crate::tls::when(facts.not_after));
            return Err(CaError::RootTime { path: root_path.to_owned(), from, to });
        }
        let issuer = Issuer::from_ca_cert_der(&root, key).map_err(|e| unusable(root_path, e.to_string()))?;
        Ok(Self {
            issuer,
            root_pem: pem_text("CERTIFICATE", &root),
            root,
            root_ends: facts.not_after,
            trust_domain: trust_domain.to_owned(),
            leaf_ttl,
        })
    }

    /// The trust domain whose identities it issues.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The root certificate as PEM text.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// SHA-256 of the root certificate: the pin in join tokens.
    pub fn root_hash(&self) -> [u8; 32] {
        sha256(&self.root)
    }

    /// When the root ends.
    pub fn root_not_after(&self) -> SystemTime {
        self.root_ends
    }

    /// The bundle that trusts this authority for its trust domain.
    ///
    /// # Errors
    /// Never in practice: the root was parsed before.
    pub fn bundle(&self) -> Result<TrustBundle, MaterialError> {
        TrustBundle::for_trust_domains([&self.trust_domain], self.root_pem.as_bytes())
    }

    /// Signs a leaf for an authenticated identity. From the request comes the public key and nothing else. `wanted`
    /// may shorten the lifetime, never lengthen it.
    ///
    /// # Errors
    /// The lifetime is below two seconds, the root has ended, or the cryptography refused.
    pub fn sign(
        &self,
        csr: &Csr,
        identity: &SpiffeId,
        wanted: Option<Duration>,
        now: SystemTime,
    ) -> Result<Issued, CaError> {
        let (mut params, not_after) = self.leaf_params(identity, wanted, now)?;
        if csr.uses_rsa() {
            params.key_usages.push(KeyUsagePurpose::KeyEncipherment);
        }
        let serial = params.serial_number.as_ref().map(|s| crate::tls::hex(&s.to_bytes())).unwrap_or_default();
        let leaf = params.signed_by(csr.key(), &self.issuer)?;
        Ok(Issued { chain: vec![leaf.pem(), self.root_pem.clone()], serial, not_after })
    }

    /// A key and certificate for the control plane's own TLS door, with its SPIFFE id and the DNS names or addresses by
    /// which it is reached. The root is part of the chain, so that first contact can compare it with its pin.
    ///
    /// # Errors
    /// A name is not valid in a certificate, or the cryptography refused.
    pub fn control_credentials(
        &self,
        names: &[String],
        now: SystemTime,
    ) -> Result<std::sync::Arc<Credentials>, CaError> {
        let identity = control_identity(&self.trust_domain)?;
        let (mut params, _) = self.leaf_params(&identity, None, now)?;
        for name in names {
            params.subject_alt_names.push(match name.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.as_str().try_into()?),
            });
        }
        let key = KeyPair::generate()?;
        let leaf = params.signed_by(&key, &self.issuer)?;
        let chain = format!("{}{}", leaf.pem(), self.root_pem);
        let key = Zeroizing::new(key.serialize_pem());
        Ok(Credentials::from_pem(chain.as_bytes(), key.as_bytes())?)
    }

    fn leaf_params(
        &self,
        identity: &SpiffeId,
        wanted: Option<Duration>,
        now: SystemTime,
    ) -> Result<(CertificateParams, SystemTime), CaError> {
        let ttl = wanted.map_or(self.leaf_ttl, |wanted| wanted.min(self.leaf_ttl));
        if ttl < MIN_LEAF_TTL {
            return Err(CaError::Ttl(ttl));
        }
        let not_after = (now + ttl).min(self.root_ends);
        let mut params = CertificateParams::default();
        // No subject: the identity is the URI name alone (the extension is then critical, RFC 5280 section 4.2.1.6).
        params.distinguished_name = DistinguishedName::new();
        params.not_before = (now - BACKDATE).into();
        params.not_after = not_after.into();
        params.serial_number = Some(random_serial());
        params.subject_alt_names = vec![SanType::URI(identity.to_string().as_str().try_into()?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        Ok((params, not_after))
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

/// Where the authority lives when no `--ca-dir` is given: `$XDG_STATE_HOME/tulle/ca`, else `~/.local/state/tulle/ca`;
/// for root `/var/lib/tulle/ca`.
pub fn default_directory() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/tulle/ca");
    }
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    let state = std::env::var_os("XDG_STATE_HOME").filter(|v| !v.is_empty()).map(PathBuf::from).or_else(home);
    state.unwrap_or_else(|| PathBuf::from(".")).join("tulle/ca")
}

/// The SHA-256 of the root in a directory that already has one.
///
/// # Errors
/// There is no root, or it cannot be read.
pub fn root_hash_in(directory: &Path) -> Result<[u8; 32], CaError> {
    let path = directory.join(ROOT_CERTIFICATE);
    let bundle = TrustBundle::for_any_name(&private::read(&path)?)
        .map_err(|e| CaError::Unusable { path: path.clone(), reason: e.to_string() })?;
    let [root] = bundle.certificates() else {
        return Err(CaError::Unusable { path, reason: "it must hold exactly one certificate".to_owned() });
    };
    Ok(sha256(root))
}

/// The trust domain of the root in a directory that already has one: its subject says it.
///
/// # Errors
/// There is no root, or it was not made by [`Authority::load_or_create`].
pub fn trust_domain_in(directory: &Path) -> Result<String, CaError> {
    let path = directory.join(ROOT_CERTIFICATE);
    let unusable = |reason: String| CaError::Unusable { path: path.clone(), reason };
    let bundle = TrustBundle::for_any_name(&private::read(&path)?).map_err(|e| unusable(e.to_string()))?;
    let root = bundle.certificates().first().ok_or_else(|| unusable("no certificate".to_owned()))?;
    let facts = PeerFacts::read(root).map_err(|e| unusable(e.detail))?;
    facts
        .uri_names
        .first()
        .and_then(|uri| uri.strip_prefix("spiffe://"))
        .map(str::to_owned)
        .ok_or_else(|| unusable("its subject alternative name does not say the trust domain".to_owned()))
}

fn create_root(key_path: &Path, root_path: &Path, trust_domain: &str, now: SystemTime) -> Result<(), CaError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain);
    params.distinguished_name.push(DnType::CommonName, "Tulle root");
    // The SPIFFE id of an authority is its trust domain (X.509-SVID section 2).
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").as_str().try_into()?)];
    params.serial_number = Some(random_serial());
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + ROOT_LIFE).into();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let root = params.self_signed(&key)?;
    // The key first: a certificate without its key would look like a finished authority.
    private::create(key_path, Zeroizing::new(key.serialize_pem()).as_bytes())?;
    private::create(root_path, root.pem().as_bytes())?;
    tracing::info!(target: "audit", event = "root_created", subject = trust_domain, path = %root_path.display());
    Ok(())
}

/// One program at a time creates or loads; the lock ends with the file.
fn lock(directory: &Path) -> Result<File, CaError> {
    let path = directory.join(".lock");
    let io = |source| PrivateError::Io { what: "lock", path: path.clone(), source };
    let mut options = std::fs::OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.create(true).truncate(false).write(true).open(&path).map_err(io)?;
    file.lock().map_err(io)?;
    Ok(file)
}

/// The facts of an authority's certificate and its public key.
fn read_root(root: &CertificateDer<'_>) -> Result<(PeerFacts, Vec<u8>), String> {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let facts = PeerFacts::read(root).map_err(|e| e.detail)?;
    let (_, parsed) = X509Certificate::from_der(root).map_err(|e| e.to_string())?;
    if !parsed.is_ca() {
        return Err("it is not the certificate of an authority".to_owned());
    }
    Ok((facts, parsed.public_key().raw.to_vec()))
}

/// 127 random bits, never zero, positive in DER.
fn random_serial() -> SerialNumber {
    let number = (rand::random::<u128>() >> 1) | (1 << 126);
    SerialNumber::from_slice(&number.to_be_bytes())
}

/// PEM text of some DER.
pub(crate) fn pem_text(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for (at, c) in body.char_indices() {
        if at > 0 && at % 64 == 0 {
            text.push('\n');
        }
        text.push(c);
    }
    text.push_str(&format!("\n-----END {label}-----\n"));
    text
}
