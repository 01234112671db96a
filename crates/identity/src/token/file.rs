//! The file that a workload gets.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use model::SpiffeId;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::{Secret, moment};
use crate::private::{self, PrivateError};
use crate::tls::hex;

/// Why a token file cannot be used. The messages never hold the secret.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    /// The file itself.
    #[error(transparent)]
    Private(#[from] PrivateError),
    /// It is no token.
    #[error("{path}: {reason} (make a new one: tulle token create)")]
    Format {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// Everything that a workload needs to join.
#[derive(Debug, Clone)]
pub struct JoinToken {
    /// The bits.
    pub secret: Secret,
    /// Who its holder will be.
    pub identity: SpiffeId,
    /// The name of the workload, for people.
    pub workload: String,
    /// Where the control plane is: `HOST:PORT` or `unix:PATH`.
    pub server: String,
    /// SHA-256 of the control plane's root certificate: nobody else is trusted at first contact.
    pub ca_sha256: [u8; 32],
    /// Its end.
    pub expires: SystemTime,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    /// The format's version.
    tulle_join_token: u32,
    identity: String,
    workload: String,
    server: String,
    ca_sha256: String,
    expires: String,
    secret: String,
}

impl JoinToken {
    /// Reads a token file; refuses it when others may read it.
    ///
    /// # Errors
    /// The file is not private or not a token.
    pub fn read(path: &Path) -> Result<Self, TokenFileError> {
        let bytes = Zeroizing::new(private::read_secret(path)?);
        Self::parse(&bytes).map_err(|reason| TokenFileError::Format { path: path.to_owned(), reason })
    }

    /// Writes a new token file of mode 0600.
    ///
    /// # Errors
    /// A file of that name is there already, or cannot be made.
    pub fn write(&self, path: &Path) -> Result<(), PrivateError> {
        private::create(path, self.text().as_bytes())
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        // The parser's own message may quote the text around a fault, and with it the secret: only the place is told.
        let mut written: Written = serde_json::from_slice(bytes)
            .map_err(|e| format!("no join token (line {}, column {})", e.line(), e.column()))?;
        if written.tulle_join_token != 1 {
            return Err(format!("format {} is not known to this version", written.tulle_join_token));
        }
        let secret = Secret::parse(&written.secret).ok_or("field `secret` is damaged");
        written.secret.zeroize();
        Ok(Self {
            secret: secret?,
            identity: written.identity.parse().map_err(|e| format!("field `identity`: {e}"))?,
            workload: written.workload,
            server: written.server,
            ca_sha256: unhex(&written.ca_sha256).ok_or("field `ca_sha256` is not 64 hexadecimal digits")?,
            expires: moment::parse(&written.expires).ok_or("field `expires` is not a time")?,
        })
    }

    fn text(&self) -> Zeroizing<String> {
        let mut written = Written {
            tulle_join_token: 1,
            identity: self.identity.to_string(),
            workload: self.workload.clone(),
            server: self.server.clone(),
            ca_sha256: hex(&self.ca_sha256),
            expires: moment::text(self.expires),
            secret: self.secret.reveal().to_string(),
        };
        let text = serde_json::to_string_pretty(&written).unwrap_or_default();
        written.secret.zeroize();
        Zeroizing::new(text + "\n")
    }
}

/// 64 hexadecimal digits.
pub(crate) fn unhex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut out = [0; 32];
    for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(out)
}
