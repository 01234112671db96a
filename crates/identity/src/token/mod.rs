//! Join tokens: how a workload that has no certificate yet proves which one it is, once.
//!
//! A token is 256 random bits in a 0600 file, next to what first contact needs: where the control plane is and the
//! SHA-256 of its root certificate. The control plane keeps only the SHA-256 of the bits. The first key that uses a
//! token owns it; a retry with the same key works until the token ends, any other key is refused.

mod file;
mod store;

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use crate::tls::{hex, sha256};

pub(crate) use file::unhex;
pub use file::{JoinToken, TokenFileError};
pub use store::{Grant, Redeemed, TokenError, TokenInfo, TokenRefusal, TokenState, TokenStore};

/// How long a token can be used unless told otherwise (`--ttl`).
pub const DEFAULT_TTL: std::time::Duration = std::time::Duration::from_secs(600);
/// The longest that can be asked for.
pub const MAX_TTL: std::time::Duration = std::time::Duration::from_secs(7 * 24 * 3600);

/// The secret bits of a token. Never printed by `Debug`; wiped when dropped.
#[derive(Clone)]
pub struct Secret(Zeroizing<[u8; 32]>);

impl Secret {
    /// Fresh bits from the system's generator.
    ///
    /// # Errors
    /// The generator failed.
    pub fn random() -> Result<Self, aws_lc_rs::error::Unspecified> {
        let mut bits = Zeroizing::new([0; 32]);
        aws_lc_rs::rand::fill(bits.as_mut_slice())?;
        Ok(Self(bits))
    }

    /// Reads the text form: 43 characters of URL-safe base64.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != 43 {
            return None;
        }
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(text).ok()?);
        <[u8; 32]>::try_from(bytes.as_slice()).ok().map(|bits| Self(Zeroizing::new(bits)))
    }

    /// The text form, for a 0600 file or an `authorization` header inside TLS, and nowhere else.
    pub fn reveal(&self) -> Zeroizing<String> {
        Zeroizing::new(URL_SAFE_NO_PAD.encode(self.0.as_slice()))
    }

    /// SHA-256 of the bits: what the control plane keeps.
    pub fn hash(&self) -> [u8; 32] {
        sha256(self.0.as_slice())
    }

    /// The token's public name: the first 64 bits of the hash in hexadecimal.
    pub fn id(&self) -> String {
        let mut id = hex(&self.hash());
        id.truncate(16);
        id
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({}...)", self.id())
    }
}

/// RFC 3339 text and back.
pub(crate) mod moment {
    use std::time::SystemTime;

    /// As text, whole seconds.
    pub(crate) fn text(time: SystemTime) -> String {
        let seconds = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        jiff::Timestamp::from_second(seconds).map_or_else(|_| "9999-12-31T00:00:00Z".to_owned(), |t| t.to_string())
    }

    /// From text.
    pub(crate) fn parse(text: &str) -> Option<SystemTime> {
        text.parse::<jiff::Timestamp>().ok().map(SystemTime::from)
    }
}
