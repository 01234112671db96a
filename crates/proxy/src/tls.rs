//! From the plan's TLS contexts and the secrets of the moment to rustls configurations, kept until either changes.
//!
//! A new certificate goes into the key slot that all configurations of the secret share: new handshakes take it, nothing
//! is rebuilt. New roots or rules make the configurations that use them be built anew at the next handshake. Sessions that can
//! be resumed belong to one configuration and to one certificate of ours: with either they are gone.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use engine::matcher::StringPattern;
use engine::tls::{
    Certificate, CertificateSource, DataSource, DownstreamTls, SanKind, SanMatcher, Secret, SecretRef, TlsCommon,
    TlsVersion, UpstreamTls, Validation,
};
use hashbrown::HashMap;
use identity::tls as rust_tls;
use parking_lot::Mutex;
use rust_tls::{
    ClientAuth, ClientSettings, Credentials, KeySlot, NameCheck, Pins, Protocol, Revocation, ServerSettings, Sessions,
    TlsCeiling, TlsFloor, TrustBundle,
};
use rustls::pki_types::ServerName;

use crate::net::dial::Tls;

/// How long a session can be resumed (OpenSSL's and so Envoy's for TLS 1.2). It ends before with the trust and the
/// certificates that it began under: each configuration has its own sessions.
const SESSION: Duration = Duration::from_secs(2 * 60 * 60);

/// Why there is no TLS configuration.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Problem {
    /// A secret has not been delivered yet.
    #[error("secret `{0}` has not been delivered yet")]
    Missing(String),
    /// A file or variable cannot be read.
    #[error("{what}: {reason}")]
    Unreadable {
        /// Which file or variable.
        what: String,
        /// What the system said.
        reason: String,
    },
    /// Certificate, key or roots are wrong.
    #[error("{0}")]
    Material(#[from] rust_tls::MaterialError),
    /// The combination is not possible.
    #[error("{0}")]
    Build(#[from] rust_tls::BuildError),
    /// A matcher is wrong.
    #[error("subject alternative name matcher: {0}")]
    Matcher(String),
    /// A pinned hash is not one.
    #[error("{field}: `{text}` is no SHA-256 in {form}")]
    Pin {
        /// Which field.
        field: &'static str,
        /// What stands there.
        text: String,
        /// How it should be written.
        form: &'static str,
    },
}

/// The two faces of a server's configuration.
#[derive(Debug, Clone)]
pub struct ServerTls {
    /// For clients that share an ALPN protocol with us.
    pub with_alpn: Arc<rustls::ServerConfig>,
    /// For clients that share none: like Envoy, the handshake goes on without a protocol.
    pub without_alpn: Arc<rustls::ServerConfig>,
    /// The protocols of `with_alpn`.
    pub alpn: Arc<[Arc<str>]>,
    keys: Arc<KeySlot>,
}

impl ServerTls {
    /// The first URI name of the certificate of the moment.
    pub fn own_uri(&self) -> Option<Arc<str>> {
        self.keys.current().first().and_then(|own| own.uri()).cloned()
    }
}

/// A client's configuration.
#[derive(Debug, Clone)]
pub struct ClientTls {
    /// The configuration.
    pub config: Arc<rustls::ClientConfig>,
    /// Differs whenever the configuration differs; part of pool keys.
    pub number: u64,
    /// Whether it presents a certificate.
    pub mutual: bool,
    sessions: Sessions,
}

impl ClientTls {
    /// The same with other protocols to offer by ALPN.
    pub fn offering(mut self, protocols: &[Arc<str>]) -> Self {
        let config = Arc::make_mut(&mut self.config);
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        self
    }

    /// TLS towards a server of this name.
    pub fn towards(self, name: ServerName<'static>) -> Tls {
        Tls { config: self.config, name, sessions: self.sessions }
    }
}

/// All TLS configurations and secrets of the process.
#[derive(Default)]
pub struct Contexts {
    inner: Mutex<Inner>,
}

impl std::fmt::Debug for Contexts {
    /// Never prints secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Contexts").finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Inner {
    secrets: HashMap<SecretRef, Secret>,
    slots: HashMap<SecretRef, Arc<KeySlot>>,
    files: HashMap<CertificateFiles, FileSlot>,
    /// Files of roots and lists that were read, with their time of change.
    watched: HashMap<Arc<std::path::Path>, Option<SystemTime>>,
    generation: u64,
    numbers: u64,
    /// Whether some context has several certificates: it is built anew when one of them changes.
    copies: bool,
    servers: HashMap<usize, Kept<DownstreamTls, ServerTls>>,
    clients: HashMap<usize, Kept<UpstreamTls, ClientTls>>,
}

/// A configuration with the context it was built from (held, so that its address stays its own).
struct Kept<C, T> {
    context: Arc<C>,
    generation: u64,
    built: Result<T, Problem>,
}

type CertificateFiles = (Arc<std::path::Path>, Arc<std::path::Path>);

struct FileSlot {
    slot: Arc<KeySlot>,
    certificate: Arc<Certificate>,
    changed: (Option<SystemTime>, Option<SystemTime>),
}

impl Contexts {
    /// Takes a secret as it was delivered.
    ///
    /// # Errors
    /// The material is wrong; what was there before stays in force.
    pub fn put(&self, name: &SecretRef, secret: Secret) -> Result<(), Problem> {
        let mut inner = self.inner.lock();
        if inner.secrets.get(name) == Some(&secret) {
            return Ok(());
        }
        let rebuild = match &secret {
            Secret::Certificate(certificate) => {
                let credentials = credentials(certificate)?;
                let fresh = !inner.slots.contains_key(name);
                inner.slots.entry(name.clone()).or_insert_with(KeySlot::empty).set(vec![credentials]);
                // Contexts with several certificates hold a copy of them all.
                fresh || inner.copies
            }
            Secret::Validation(validation) => {
                trust_of(validation, &mut HashMap::new())?;
                true
            }
        };
        inner.secrets.insert(name.clone(), secret);
        inner.generation += u64::from(rebuild);
        Ok(())
    }

    /// Whether a secret has been delivered.
    pub fn has(&self, name: &SecretRef) -> bool {
        self.inner.lock().secrets.contains_key(name)
    }

    /// The certificates in use, for administration: the secret's name and the credentials.
    pub fn certificates(&self) -> Vec<(String, Arc<Credentials>)> {
        let inner = self.inner.lock();
        let named = inner.slots.iter().flat_map(|(name, slot)| {
            slot.current()
                .iter()
                .map(|credentials| (name.name.to_string(), Arc::clone(credentials)))
                .collect::<Vec<_>>()
        });
        let files = inner.files.iter().flat_map(|((chain, _), file)| {
            let path = chain.display().to_string();
            file.slot.current().iter().map(|c| (path.clone(), Arc::clone(c))).collect::<Vec<_>>()
        });
        named.chain(files).collect()
    }

    /// The configuration of a filter chain.
    ///
    /// # Errors
    /// [`Problem`]; the connection is refused, and asked again at the next one.
    pub fn server(&self, context: &Arc<DownstreamTls>) -> Result<ServerTls, Problem> {
        let mut inner = self.inner.lock();
        let key = Arc::as_ptr(context) as usize;
        let generation = inner.generation;
        if let Some(kept) = inner.servers.get(&key)
            && kept.generation == generation
            && Arc::ptr_eq(&kept.context, context)
        {
            return kept.built.clone();
        }
        let built = inner.build_server(context);
        inner.servers.retain(|_, kept| Arc::strong_count(&kept.context) > 1);
        inner.servers.insert(key, Kept { context: Arc::clone(context), generation, built: built.clone() });
        built
    }

    /// The configuration towards a cluster.
    ///
    /// # Errors
    /// As [`Contexts::server`].
    pub fn client(&self, context: &Arc<UpstreamTls>) -> Result<ClientTls, Problem> {
        let mut inner = self.inner.lock();
        let key = Arc::as_ptr(context) as usize;
        let generation = inner.generation;
        if let Some(kept) = inner.clients.get(&key)
            && kept.generation == generation
            && Arc::ptr_eq(&kept.context, context)
        {
            return kept.built.clone();
        }
        let built = inner.build_client(context);
        inner.clients.retain(|_, kept| Arc::strong_count(&kept.context) > 1);
        inner.clients.insert(key, Kept { context: Arc::clone(context), generation, built: built.clone() });
        built
    }

    /// Reads certificate and root files anew that changed on disk since they were read.
    pub fn refresh_files(&self) {
        let mut inner = self.inner.lock();
        let mut renewed = false;
        for (files, file) in &mut inner.files {
            let changed = (modified(&files.0), modified(&files.1));
            if changed == file.changed {
                continue;
            }
            match credentials(&file.certificate) {
                Ok(credentials) => {
                    file.slot.set(vec![credentials]);
                    file.changed = changed;
                    renewed = true;
                    tracing::info!(chain = %files.0.display(), "certificate read anew");
                }
                // The writer may be between two files: the old pair stays, and the next look decides.
                Err(problem) => tracing::debug!(chain = %files.0.display(), %problem, "certificate not usable yet"),
            }
        }
        inner.generation += u64::from(renewed && inner.copies);
        let stale: Vec<_> = inner
            .watched
            .iter()
            .filter(|(path, at)| modified(path) != **at)
            .map(|(path, _)| Arc::clone(path))
            .collect();
        if !stale.is_empty() {
            for path in stale {
                let at = modified(&path);
                inner.watched.insert(path, at);
            }
            inner.generation += 1;
        }
    }
}

impl Inner {
    fn build_server(&mut self, context: &DownstreamTls) -> Result<ServerTls, Problem> {
        let common = &context.common;
        let peer = self.validation(common)?;
        // A certificate that is required but that nobody can judge: the build then says that no authority is trusted.
        let client_auth = match (&common.validation, context.require_client_certificate) {
            (_, true) => ClientAuth::Require,
            (Some(_), false) => ClientAuth::Request,
            (None, false) => ClientAuth::None,
        };
        let alpn: Arc<[Arc<str>]> = common.alpn.iter().cloned().collect();
        let keys = self.keys(common)?.unwrap_or_default();
        let mut settings = ServerSettings {
            keys: Arc::clone(&keys),
            client_auth,
            trust: peer.trust,
            names: peer.names,
            pins: peer.pins,
            revocation: peer.revocation,
            alpn: alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect(),
            protocol: protocol(common),
            tickets: (!context.disable_stateless_resumption).then_some(SESSION),
            cache: (!context.disable_stateful_resumption).then_some(SESSION),
            ..ServerSettings::default()
        };
        let with_alpn = rust_tls::server_config(&settings)?;
        settings.alpn.clear();
        let without_alpn = rust_tls::server_config(&settings)?;
        Ok(ServerTls { with_alpn, without_alpn, alpn, keys })
    }

    fn build_client(&mut self, context: &UpstreamTls) -> Result<ClientTls, Problem> {
        let common = &context.common;
        let mut peer = self.validation(common)?;
        if context.auto_sni_san_validation {
            peer.names = NameCheck::ServerName;
        }
        let keys = self.keys(common)?;
        let mutual = keys.is_some();
        let sessions = Sessions::new(context.max_session_keys, keys.clone());
        let settings = ClientSettings {
            keys,
            trust: peer.trust,
            names: peer.names,
            pins: peer.pins,
            revocation: peer.revocation,
            alpn: common.alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect(),
            protocol: protocol(common),
            send_server_name: context.sni.is_some() || context.auto_host_sni || context.auto_sni,
            ..ClientSettings::default()
        };
        let config = rust_tls::client_config(&settings)?;
        self.numbers += 1;
        Ok(ClientTls { config, number: self.numbers, mutual, sessions })
    }

    fn keys(&mut self, common: &TlsCommon) -> Result<Option<Arc<KeySlot>>, Problem> {
        match common.certificates.as_slice() {
            [] => Ok(None),
            [one] => self.slot(one).map(Some),
            several => {
                self.copies = true;
                let mut all = Vec::new();
                for source in several {
                    all.extend(self.slot(source)?.current().iter().cloned());
                }
                let slot = KeySlot::empty();
                slot.set(all);
                Ok(Some(slot))
            }
        }
    }

    fn slot(&mut self, source: &CertificateSource) -> Result<Arc<KeySlot>, Problem> {
        match source {
            CertificateSource::Secret(name) => {
                self.slots.get(name).cloned().ok_or_else(|| Problem::Missing(name.name.to_string()))
            }
            CertificateSource::Inline(certificate) => match (&certificate.chain, &certificate.key) {
                (DataSource::File(chain), DataSource::File(key)) => self.file_slot(chain, key, certificate),
                _ => Ok(KeySlot::with(credentials(certificate)?)),
            },
        }
    }

    fn file_slot(
        &mut self,
        chain: &Arc<std::path::Path>,
        key: &Arc<std::path::Path>,
        certificate: &Arc<Certificate>,
    ) -> Result<Arc<KeySlot>, Problem> {
        let files = (Arc::clone(chain), Arc::clone(key));
        if let Some(file) = self.files.get(&files) {
            return Ok(Arc::clone(&file.slot));
        }
        let changed = (modified(chain), modified(key));
        let slot = KeySlot::with(credentials(certificate)?);
        let file = FileSlot { slot: Arc::clone(&slot), certificate: Arc::clone(certificate), changed };
        self.files.insert(files, file);
        Ok(slot)
    }

    fn validation(&mut self, common: &TlsCommon) -> Result<PeerRules, Problem> {
        let Some(own) = &common.validation else { return Ok(PeerRules::default()) };
        let delivered = match &own.secret {
            None => None,
            Some(name) => match self.secrets.get(name) {
                Some(Secret::Validation(validation)) => Some(Arc::clone(validation)),
                _ => return Err(Problem::Missing(name.name.to_string())),
            },
        };
        let both = || std::iter::once(own).chain(delivered.as_deref());
        let mut rules = PeerRules::default();
        let mut matchers = Vec::new();
        for part in both() {
            // As Envoy merges the two: names and hashes add up, delivered roots and lists replace those written here.
            let trust = trust_of(part, &mut self.watched)?;
            if !trust.is_empty() {
                rules.trust = trust;
            }
            add_pins(part, &mut rules.pins)?;
            for matcher in &part.sans {
                matchers.push(san_matcher(matcher)?);
            }
        }
        if !matchers.is_empty() {
            rules.names = NameCheck::OneOf(matchers);
        }
        if let Some(source) = both().filter_map(|part| part.crl.as_ref()).last() {
            note(source, &mut self.watched);
            let leaf_only = both().any(|part| part.only_leaf_crl);
            rules.revocation = Some(Revocation::from_pem(&read(source)?, leaf_only)?);
        }
        Ok(rules)
    }
}

/// How a peer is judged.
#[derive(Default)]
struct PeerRules {
    trust: Vec<TrustBundle>,
    names: NameCheck,
    pins: Pins,
    revocation: Option<Arc<Revocation>>,
}

fn add_pins(validation: &Validation, pins: &mut Pins) -> Result<(), Problem> {
    for text in &validation.certificate_hashes {
        let (field, form) = ("verify_certificate_hash", "hexadecimal");
        let wrong = || Problem::Pin { field, text: text.to_string(), form };
        pins.certificates.push(Pins::certificate_hash(text).ok_or_else(wrong)?);
    }
    for text in &validation.spki_hashes {
        let (field, form) = ("verify_certificate_spki", "base64");
        let wrong = || Problem::Pin { field, text: text.to_string(), form };
        pins.keys.push(Pins::key_hash(text).ok_or_else(wrong)?);
    }
    Ok(())
}

/// Name for the handshake where the context sends none.
pub fn server_name(sni: Option<&str>) -> ServerName<'static> {
    sni.and_then(|name| ServerName::try_from(name.to_owned()).ok())
        .unwrap_or_else(|| ServerName::IpAddress(std::net::IpAddr::from([127, 0, 0, 1]).into()))
}

fn protocol(common: &TlsCommon) -> Protocol {
    let texts = |names: &[Arc<str>]| names.iter().map(ToString::to_string).collect();
    Protocol {
        floor: match common.min_version {
            Some(TlsVersion::V1_3) => TlsFloor::V1_3,
            _ => TlsFloor::V1_2,
        },
        ceiling: match common.max_version {
            Some(TlsVersion::V1_2) => TlsCeiling::V1_2,
            _ => TlsCeiling::V1_3,
        },
        cipher_suites: texts(&common.cipher_suites),
        groups: texts(&common.curves),
    }
}

/// Roots by trust domain, if there are such, alone: a chain to other roots then proves nothing.
fn trust_of(
    validation: &Validation,
    watched: &mut HashMap<Arc<std::path::Path>, Option<SystemTime>>,
) -> Result<Vec<TrustBundle>, Problem> {
    if !validation.trust_domains.is_empty() {
        let bundles = validation.trust_domains.iter().map(|(domain, source)| {
            note(source, watched);
            Ok(TrustBundle::for_trust_domains([&**domain], &read(source)?)?)
        });
        return bundles.collect();
    }
    let Some(source) = &validation.roots else { return Ok(Vec::new()) };
    note(source, watched);
    Ok(vec![TrustBundle::for_any_name(&read(source)?)?])
}

fn note(source: &DataSource, watched: &mut HashMap<Arc<std::path::Path>, Option<SystemTime>>) {
    if let DataSource::File(path) = source {
        watched.insert(Arc::clone(path), modified(path));
    }
}

fn san_matcher(matcher: &SanMatcher) -> Result<rust_tls::SanMatcher, Problem> {
    let kind = match matcher.kind {
        None => rust_tls::NameKind::Any,
        Some(SanKind::Uri) => rust_tls::NameKind::Uri,
        Some(SanKind::Dns) => rust_tls::NameKind::Dns,
        Some(SanKind::Email) => rust_tls::NameKind::Email,
        Some(SanKind::Ip) => rust_tls::NameKind::Ip,
    };
    let text = match &matcher.matcher.pattern {
        StringPattern::Exact(text) => rust_tls::TextMatch::Exact(text.to_string()),
        StringPattern::Prefix(text) => rust_tls::TextMatch::Prefix(text.to_string()),
        StringPattern::Suffix(text) => rust_tls::TextMatch::Suffix(text.to_string()),
        StringPattern::Contains(text) => rust_tls::TextMatch::Contains(text.to_string()),
        StringPattern::Regex(pattern) => {
            rust_tls::TextMatch::regex(pattern.source()).map_err(|error| Problem::Matcher(error.to_string()))?
        }
    };
    Ok(rust_tls::SanMatcher { kind, text, ignore_case: matcher.matcher.ignore_case })
}

fn credentials(certificate: &Certificate) -> Result<Arc<Credentials>, Problem> {
    Ok(Credentials::from_pem(&read(&certificate.chain)?, &read(&certificate.key)?)?)
}

fn read(source: &DataSource) -> Result<bytes::Bytes, Problem> {
    match source {
        DataSource::Inline(bytes) => Ok(bytes.clone()),
        DataSource::File(path) => std::fs::read(path)
            .map(Into::into)
            .map_err(|error| Problem::Unreadable { what: path.display().to_string(), reason: error.to_string() }),
        DataSource::Environment(name) => std::env::var(&**name).map(Into::into).map_err(|error| Problem::Unreadable {
            what: format!("environment variable {name}"),
            reason: error.to_string(),
        }),
    }
}

fn modified(path: &std::path::Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roots() -> DataSource {
        let authority = testkit::issue::Authority::new("root").unwrap();
        DataSource::Inline(authority.root().to_owned().into())
    }

    fn downstream(require: bool, validation: Option<Validation>) -> Arc<DownstreamTls> {
        Arc::new(DownstreamTls {
            common: TlsCommon { validation, ..TlsCommon::default() },
            require_client_certificate: require,
            require_sni: false,
            disable_stateless_resumption: false,
            disable_stateful_resumption: false,
        })
    }

    #[test]
    fn a_required_certificate_needs_somebody_who_judges_it() {
        let contexts = Contexts::default();
        for validation in [None, Some(Validation::default())] {
            let problem = contexts.server(&downstream(true, validation)).unwrap_err();
            assert!(matches!(problem, Problem::Build(rust_tls::BuildError::NoTrust)), "{problem}");
        }
        assert!(contexts.server(&downstream(false, None)).is_ok());
        assert!(
            contexts.server(&downstream(true, Some(Validation { roots: Some(roots()), ..Default::default() }))).is_ok()
        );
    }

    #[test]
    fn pins_and_trust_domains_reach_the_verifier() {
        let mut inner = Inner::default();
        let rules = |inner: &mut Inner, validation| {
            inner.validation(&TlsCommon { validation: Some(validation), ..TlsCommon::default() })
        };
        let pinned = Validation {
            certificate_hashes: vec!["ab:".repeat(31).into(), "ab".repeat(32).into()],
            ..Validation::default()
        };
        let problem = rules(&mut inner, pinned).map(|_| ()).unwrap_err();
        assert!(problem.to_string().starts_with("verify_certificate_hash: `ab:ab:"), "{problem}");
        let pinned = Validation {
            roots: Some(roots()),
            certificate_hashes: vec!["ab".repeat(32).into()],
            spki_hashes: vec!["q6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s=".into()],
            ..Validation::default()
        };
        let pins = rules(&mut inner, pinned).unwrap_or_else(|problem| panic!("{problem}")).pins;
        assert_eq!((pins.certificates, pins.keys), (vec![[0xab; 32]], vec![[0xab; 32]]));
        let domains = vec![("a.test".into(), roots()), ("b.test".into(), roots())];
        let spiffe = Validation { roots: Some(roots()), trust_domains: domains, ..Validation::default() };
        let trust = rules(&mut inner, spiffe).unwrap_or_else(|problem| panic!("{problem}")).trust;
        let named: Vec<_> = trust.iter().map(TrustBundle::trust_domains).collect();
        assert_eq!(named, [["a.test"], ["b.test"]], "the roots of any name are not among them");
    }

    #[test]
    fn delivered_roots_replace_those_written_in_place() {
        let mut inner = Inner::default();
        let name = SecretRef { name: "ROOTCA".into(), source: engine::tls::SecretSource::Ads };
        let delivered = Validation { roots: Some(roots()), ..Validation::default() };
        inner.secrets.insert(name.clone(), Secret::Validation(Arc::new(delivered)));
        let own = Validation { roots: Some(roots()), secret: Some(name), ..Validation::default() };
        let common = TlsCommon { validation: Some(own), ..TlsCommon::default() };
        let trust = inner.validation(&common).unwrap_or_else(|problem| panic!("{problem}")).trust;
        assert_eq!(trust.len(), 1);
    }
}
