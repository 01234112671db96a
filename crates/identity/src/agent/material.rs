//! What an agent holds: a key, its chain and the root, as text for others and checked for itself.

use std::sync::Arc;
use std::time::SystemTime;

use model::SpiffeId;
use zeroize::Zeroizing;

use super::AgentError;
use crate::ca::pem_text;
use crate::tls::{self, Credentials, TrustBundle, hex, sha256};

/// One identity with its key, verified to be usable.
pub struct Material {
    /// The identity.
    pub identity: SpiffeId,
    /// Leaf and intermediates, PEM.
    pub chain_pem: String,
    /// The private key, PEM (PKCS#8). Wiped when dropped.
    pub key_pem: Zeroizing<String>,
    /// The trusted root, PEM.
    pub root_pem: String,
    /// Key and chain for rustls.
    pub credentials: Arc<Credentials>,
    /// The trust in the root, for rustls.
    pub bundle: TrustBundle,
    /// When it was received; for material from disk: the begin of the certificate.
    pub since: SystemTime,
    /// A name for this content; changes with each renewal.
    pub version: String,
}

impl Material {
    /// Checks that key, chain and root belong together, that the leaf names exactly one identity and is valid now.
    pub(super) fn check(
        chain_pem: String,
        key_pem: Zeroizing<String>,
        root_pem: String,
        since: Option<SystemTime>,
        now: SystemTime,
    ) -> Result<Self, AgentError> {
        let credentials = Credentials::from_pem(chain_pem.as_bytes(), key_pem.as_bytes())?;
        let identity =
            tls::peer_identity(credentials.chain()).map_err(|refusal| AgentError::Certificate(refusal.to_string()))?;
        let bundle = TrustBundle::for_trust_domains([identity.trust_domain()], root_pem.as_bytes())?;
        tls::verify_leaf(&bundle, credentials.chain(), now)
            .map_err(|refusal| AgentError::Certificate(refusal.to_string()))?;
        let version = hex(&sha256(chain_pem.as_bytes())).chars().take(16).collect();
        let since = since.unwrap_or_else(|| credentials.facts().not_before);
        Ok(Self { identity, chain_pem, key_pem, root_pem, credentials, bundle, since, version })
    }

    /// Takes an answer of the certificate service apart: the leaf and intermediates, and the root at its end.
    pub(super) fn from_answer(
        answer: &[String],
        key_pem: Zeroizing<String>,
        now: SystemTime,
    ) -> Result<Self, AgentError> {
        let all = answer.concat();
        let certificates = tls::certificates("the authority's answer", all.as_bytes())?;
        let Some((root, chain)) = certificates.split_last().filter(|(_, chain)| !chain.is_empty()) else {
            return Err(AgentError::Certificate("the answer must hold a leaf and its root".to_owned()));
        };
        let chain_pem = chain.iter().map(|c| pem_text("CERTIFICATE", c)).collect();
        Self::check(chain_pem, key_pem, pem_text("CERTIFICATE", root), Some(now), now)
    }

    /// SHA-256 of the root.
    pub(super) fn root_hash(&self) -> Option<[u8; 32]> {
        self.bundle.certificates().first().map(|root| sha256(root))
    }

    /// When the certificate ends.
    pub fn not_after(&self) -> SystemTime {
        self.credentials.not_after()
    }

    /// Whether it has ended.
    pub fn is_over(&self, now: SystemTime) -> bool {
        now >= self.not_after()
    }
}

impl std::fmt::Debug for Material {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Material")
            .field("identity", &self.identity)
            .field("version", &self.version)
            .field("not_after", &tls::when(self.not_after()))
            .finish_non_exhaustive()
    }
}
