//! First contact: the only thing known of the authority is the SHA-256 of its root certificate.

use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

use super::cause::{Cause, Refusal};
use super::config::BuildError;
use super::material::TrustBundle;
use super::san::SanMatcher;
use super::verify::{MAX_INTERMEDIATES, NameCheck, PeerVerifier};
use super::{provider, sha256};

/// A client configuration that trusts only servers whose chain ends in the root with this SHA-256 and whose one URI
/// name is `server` (a SPIFFE id of `trust_domain`). The server must send its root along. The second value holds the
/// root after a successful handshake.
///
/// # Errors
/// Never in practice: rustls is asked for nothing unusual.
pub fn pinned_client_config(
    root_sha256: [u8; 32],
    trust_domain: &str,
    server: &str,
    alpn: Vec<Vec<u8>>,
) -> Result<(Arc<ClientConfig>, PinnedRoot), BuildError> {
    let seen = PinnedRoot::default();
    let names = NameCheck::OneOf(vec![SanMatcher::uri(server)]);
    let verifier = PinVerifier {
        pin: root_sha256,
        trust_domain: trust_domain.to_owned(),
        ordinary: PeerVerifier { names, ..PeerVerifier::default() },
        seen: seen.clone(),
    };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = alpn;
    config.enable_sni = false;
    config.resumption = rustls::client::Resumption::disabled();
    Ok((Arc::new(config), seen))
}

/// The root certificate that matched the pin.
#[derive(Debug, Clone, Default)]
pub struct PinnedRoot(Arc<OnceLock<CertificateDer<'static>>>);

impl PinnedRoot {
    /// The root; `None` before a handshake succeeded.
    pub fn certificate(&self) -> Option<&CertificateDer<'static>> {
        self.0.get()
    }
}

#[derive(Debug)]
struct PinVerifier {
    pin: [u8; 32],
    trust_domain: String,
    /// Judges all but the root, which is only known once the server has shown it.
    ordinary: PeerVerifier,
    seen: PinnedRoot,
}

impl PinVerifier {
    /// An ordinary verifier for the presented root that matches the pin.
    fn pinned(&self, intermediates: &[CertificateDer<'_>]) -> Result<PeerVerifier, Error> {
        let root = intermediates.iter().take(MAX_INTERMEDIATES).find(|c| sha256(c) == self.pin).ok_or_else(|| {
            let detail = "no certificate in the server's chain has the SHA-256 that the join token names: this is \
                          another control plane, or somebody in between";
            Refusal::new(Cause::UnknownCa, detail)
        })?;
        let root = root.clone().into_owned();
        let bundle = TrustBundle::from_certificates(vec![self.trust_domain.clone()], vec![root])
            .map_err(|e| Refusal::new(Cause::BadCertificate, e.to_string()))?;
        Ok(PeerVerifier { bundles: vec![bundle], names: self.ordinary.names.clone(), ..PeerVerifier::default() })
    }
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verifier = self.pinned(intermediates)?;
        let verified = verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        if let Some(root) = verifier.bundles.first().and_then(|b| b.certificates().first()) {
            let _ = self.seen.0.set(root.clone());
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Refusal::new(Cause::NothingInCommon, "first contact speaks TLS 1.3 only").into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls13_signature(&self.ordinary, message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ServerCertVerifier::supported_verify_schemes(&self.ordinary)
    }
}
