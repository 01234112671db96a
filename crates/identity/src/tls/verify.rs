//! Verification of a peer: its chain by webpki, always; then its names.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use webpki::{EndEntityCert, KeyUsage, RevocationCheckDepth, RevocationOptionsBuilder};

use super::cause::{Cause, Refusal, from_webpki};
use super::material::{Revocation, TrustBundle};
use super::peer::{PeerFacts, single_identity};
use super::san::SanMatcher;
use super::{provider, sha256};

/// Chains longer than this are refused before any signature is checked.
pub(super) const MAX_INTERMEDIATES: usize = 6;
/// More intermediates of one name than this are refused as well: each is a fork of the search for a path, and whoever
/// connects chooses them. Two are a cross-signed authority.
const MAX_NAMESAKES: usize = 2;

/// Which names the peer's certificate must have, after its chain was verified.
#[derive(Debug, Clone, Default)]
pub enum NameCheck {
    /// None beyond what the bundle asks (a SPIFFE bundle still wants an identity of its trust domains).
    #[default]
    ChainOnly,
    /// At least one of these; the server name of the connection is then only a routing hint and not compared.
    /// An empty list accepts nobody.
    OneOf(Vec<SanMatcher>),
    /// The server name of the connection, as a browser checks it (clients only).
    ServerName,
}

/// Verifies a chain (leaf first) outside of a handshake, for use as a client's certificate.
///
/// # Errors
/// What a handshake would have said.
pub fn verify_leaf(
    bundle: &TrustBundle,
    chain: &[CertificateDer<'_>],
    now: std::time::SystemTime,
) -> Result<PeerFacts, Refusal> {
    let Some((leaf, intermediates)) = chain.split_first() else {
        return Err(Refusal::new(Cause::NoCertificate, "the chain is empty"));
    };
    let verifier = PeerVerifier { bundles: vec![bundle.clone()], ..PeerVerifier::default() };
    let since = now.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default();
    verifier
        .verify(leaf, intermediates, UnixTime::since_unix_epoch(since), KeyUsage::client_auth())
        .map_err(|error| Refusal::new(Cause::of(&error), error.to_string()))
}

/// Certificates and keys by their SHA-256, in addition to a verified chain; if any is given, the peer's certificate must
/// be one of the first or its key one of the second (Envoy's `verify_certificate_hash`, `verify_certificate_spki`).
#[derive(Debug, Clone, Default)]
pub struct Pins {
    /// Of whole certificates.
    pub certificates: Vec<[u8; 32]>,
    /// Of public keys (SubjectPublicKeyInfo).
    pub keys: Vec<[u8; 32]>,
}

impl Pins {
    /// Reads the SHA-256 of a certificate: 64 hexadecimal digits, with or without colons.
    pub fn certificate_hash(text: &str) -> Option<[u8; 32]> {
        crate::token::unhex(&text.replace(':', ""))
    }

    /// Reads the SHA-256 of a key: base64.
    pub fn key_hash(text: &str) -> Option<[u8; 32]> {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.decode(text).ok()?.try_into().ok()
    }

    fn check(&self, certificate: &CertificateDer<'_>, parsed: &EndEntityCert<'_>) -> Result<(), Refusal> {
        if self.certificates.is_empty() && self.keys.is_empty() {
            return Ok(());
        }
        if self.certificates.contains(&sha256(certificate)) {
            return Ok(());
        }
        if self.keys.contains(&sha256(&parsed.subject_public_key_info())) {
            return Ok(());
        }
        Err(Refusal::new(Cause::PinMismatch, "neither the certificate nor its key is one of the pinned ones"))
    }
}

/// The one verifier for both directions.
#[derive(Default)]
pub(super) struct PeerVerifier {
    pub(super) bundles: Vec<TrustBundle>,
    pub(super) names: NameCheck,
    pub(super) pins: Pins,
    pub(super) revocation: Option<Arc<Revocation>>,
    /// Whether a client without certificate is refused.
    pub(super) mandatory: bool,
}

impl PeerVerifier {
    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<PeerFacts, Error> {
        check_shape(intermediates)?;
        let facts = PeerFacts::read(end_entity)?;
        // X.509-SVID section 5.2: whatever calls itself a SPIFFE identity is one, not several.
        if facts.uri_names.len() > 1 && facts.uri_names.iter().any(|uri| is_spiffe(uri)) {
            let detail = format!("the certificate has {} URI names, not one", facts.uri_names.len());
            return Err(Refusal::new(Cause::NotSpiffe, detail).into());
        }
        let bundle = self.bundle_for(&facts);
        // The chain is judged before the names: an unknown authority is the stronger news. When no bundle speaks for
        // the peer's trust domain, its chain is still checked against all, so that the cause says which it is.
        let candidates: Vec<&TrustBundle> = match &bundle {
            Ok(bundle) => vec![*bundle],
            Err(_) => self.bundles.iter().collect(),
        };
        self.verify_chain(&candidates, end_entity, intermediates, now, usage)?;
        bundle?;
        self.check_names(&facts)?;
        Ok(facts)
    }

    /// The bundle that may vouch for this peer.
    fn bundle_for(&self, facts: &PeerFacts) -> Result<&TrustBundle, Refusal> {
        let identity = single_identity(&facts.uri_names);
        if let Ok(id) = &identity
            && let Some(bundle) = self.bundles.iter().find(|b| b.speaks_for(id.trust_domain()))
        {
            return Ok(bundle);
        }
        if let Some(any) = self.bundles.iter().find(|b| b.trust_domains().is_empty()) {
            return Ok(any);
        }
        let id = identity?;
        let known: Vec<&str> = self.bundles.iter().flat_map(TrustBundle::trust_domains).map(String::as_str).collect();
        let detail = format!("{id} is of trust domain {}; trusted are: {}", id.trust_domain(), known.join(", "));
        Err(Refusal::new(Cause::ForeignTrustDomain, detail))
    }

    fn verify_chain(
        &self,
        bundles: &[&TrustBundle],
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<(), Error> {
        let certificate = EndEntityCert::try_from(end_entity).map_err(|e| from_webpki(&e, now))?;
        let pinned = || self.pins.check(end_entity, &certificate);
        let algorithms = provider().signature_verification_algorithms.all;
        let lists: Vec<_> = self.revocation.iter().flat_map(|r| r.lists()).collect();
        let mut failure = Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        for bundle in bundles {
            let revocation = self.revocation.as_ref().and_then(|r| {
                let depth = if r.leaf_only() { RevocationCheckDepth::EndEntity } else { RevocationCheckDepth::Chain };
                // Refuses only an empty list of lists, which `Revocation` cannot hold.
                RevocationOptionsBuilder::new(&lists).ok().map(|b| b.with_depth(depth).build())
            });
            let anchors = bundle.anchors();
            match certificate.verify_for_usage(algorithms, anchors, intermediates, now, usage, revocation, None) {
                Ok(_) => return Ok(pinned()?),
                Err(error) => failure = from_webpki(&error, now),
            }
        }
        Err(failure)
    }

    fn check_names(&self, facts: &PeerFacts) -> Result<(), Refusal> {
        let NameCheck::OneOf(matchers) = &self.names else { return Ok(()) };
        if matchers.iter().any(|matcher| matcher.matches(facts)) {
            return Ok(());
        }
        let expected: Vec<String> = matchers.iter().map(ToString::to_string).collect();
        let detail = format!("presented {}; expected one of: {}", facts.names(), expected.join(", "));
        Err(Refusal::new(Cause::SanMismatch, detail))
    }
}

/// Refuses chains that can cost much time, before anything expensive.
fn check_shape(intermediates: &[CertificateDer<'_>]) -> Result<(), Refusal> {
    let bad = |detail: String| Err(Refusal::new(Cause::BadCertificate, detail));
    if intermediates.len() > MAX_INTERMEDIATES {
        return bad(format!("{} intermediates; at most {MAX_INTERMEDIATES}", intermediates.len()));
    }
    let mut names: Vec<Vec<u8>> = Vec::with_capacity(intermediates.len());
    for certificate in intermediates {
        match EndEntityCert::try_from(certificate) {
            Ok(parsed) => names.push(parsed.subject().to_vec()),
            Err(error) => return bad(format!("an intermediate cannot be read: {error}")),
        }
    }
    let namesakes = names.iter().map(|name| names.iter().filter(|other| *other == name).count()).max();
    match namesakes {
        Some(many) if many > MAX_NAMESAKES => bad(format!("{many} intermediates have the same name")),
        _ => Ok(()),
    }
}

fn is_spiffe(uri: &str) -> bool {
    uri.get(..9).is_some_and(|scheme| scheme.eq_ignore_ascii_case("spiffe://"))
}

impl fmt::Debug for PeerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerVerifier")
            .field("bundles", &self.bundles.len())
            .field("names", &self.names)
            .field("mandatory", &self.mandatory)
            .finish_non_exhaustive()
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(end_entity, intermediates, now, KeyUsage::server_auth())?;
        if matches!(self.names, NameCheck::ServerName) {
            let certificate = EndEntityCert::try_from(end_entity).map_err(|e| from_webpki(&e, now))?;
            certificate.verify_is_valid_for_subject_name(server_name).map_err(|e| from_webpki(&e, now))?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(end_entity, intermediates, now, KeyUsage::client_auth())?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls12_signature(self, message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls13_signature(self, message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ServerCertVerifier::supported_verify_schemes(self)
    }
}
