//! TLS for the mesh: configurations built from plain inputs, and what a handshake said about the peer.
//!
//! A caller puts its key into a [`KeySlot`] (and again at each rotation), its trust into a [`TrustBundle`], says
//! who may be at the other end ([`NameCheck`]) and asks for [`server_config`] or [`client_config`]. New handshakes
//! take the newest key of the slot, so a rotation builds nothing; a change of trust builds a new configuration, and
//! with it no session, so no session outlives the trust it was made under; nor the certificate of our own.

mod cause;
mod config;
mod material;
mod peer;
mod pin;
mod san;
mod sessions;
mod tickets;
mod verify;

use std::sync::{Arc, LazyLock};

use rustls::CipherSuite;
use rustls::crypto::{CryptoProvider, aws_lc_rs};

pub use cause::{Cause, Refusal};
pub use config::{
    BuildError, ClientAuth, ClientSettings, Protocol, ServerSettings, TlsCeiling, TlsFloor, client_config,
    server_config,
};
pub(crate) use material::certificates;
pub use material::{Credentials, KeySlot, MaterialError, Revocation, TrustBundle};
pub(crate) use peer::when;
pub use peer::{PeerFacts, facts, peer_identity};
pub use pin::{PinnedRoot, pinned_client_config};
pub use san::{NameKind, SanMatcher, TextMatch};
pub use sessions::{Place, Sessions};
pub use verify::{NameCheck, Pins, verify_leaf};

/// The cryptography of every Tulle program: aws-lc-rs, with the hybrid post-quantum group X25519MLKEM768 offered
/// first, then X25519, P-256 and P-384, and AES-128-GCM before AES-256-GCM as Envoy has them. It is always passed
/// explicitly, never installed as the process default.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        use aws_lc_rs::kx_group::{SECP256R1, SECP384R1, X25519, X25519MLKEM768};
        let mut provider = aws_lc_rs::default_provider();
        provider.kx_groups = vec![X25519MLKEM768, X25519, SECP256R1, SECP384R1];
        provider.cipher_suites.sort_by_key(|suite| (suite.tls13().is_none(), !is_aes_128(suite.suite())));
        Arc::new(provider)
    });
    Arc::clone(&PROVIDER)
}

fn is_aes_128(suite: CipherSuite) -> bool {
    use CipherSuite as C;
    matches!(
        suite,
        C::TLS13_AES_128_GCM_SHA256
            | C::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
            | C::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
    )
}

/// The SHA-256 of some bytes.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = ::aws_lc_rs::digest::digest(&::aws_lc_rs::digest::SHA256, bytes);
    let mut out = [0; 32];
    for (to, from) in out.iter_mut().zip(digest.as_ref()) {
        *to = *from;
    }
    out
}

/// Lower-case hexadecimal text.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aes_128_comes_first_in_each_version() {
        let suites: Vec<_> = provider().cipher_suites.iter().map(|suite| suite.suite()).collect();
        assert_eq!(suites.first(), Some(&CipherSuite::TLS13_AES_128_GCM_SHA256));
        let newer = provider().cipher_suites.iter().take_while(|suite| suite.tls13().is_some()).count();
        assert_eq!(newer, 3, "those of TLS 1.3 stand together: {suites:?}");
        assert!(suites.get(newer).is_some_and(|suite| is_aes_128(*suite)), "{suites:?}");
    }
}
