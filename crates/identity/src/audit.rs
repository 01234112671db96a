//! What the authority did and refused: one log record (target `audit`) and one count each.

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use crate::private::{self, PrivateError};

/// A kind of audited event; its name is the label of the count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// A certificate was issued.
    CertificateIssued,
    /// A request for a certificate was refused.
    CertificateRefused,
    /// A request named an identity that is not the caller's.
    OtherIdentityRefused,
    /// A join token was made.
    TokenCreated,
    /// A join token was used for the first time.
    TokenRedeemed,
    /// A join token was presented after its end, after its revocation, with another key, or never existed.
    TokenRefused,
    /// A join token was revoked.
    TokenRevoked,
    /// A caller asked too often.
    RateLimited,
    /// A Unix peer without permission connected.
    PeerRefused,
}

impl Event {
    const ALL: [Self; 9] = [
        Self::CertificateIssued,
        Self::CertificateRefused,
        Self::OtherIdentityRefused,
        Self::TokenCreated,
        Self::TokenRedeemed,
        Self::TokenRefused,
        Self::TokenRevoked,
        Self::RateLimited,
        Self::PeerRefused,
    ];

    /// The label in metrics and logs, in snake case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CertificateIssued => "certificate_issued",
            Self::CertificateRefused => "certificate_refused",
            Self::OtherIdentityRefused => "other_identity_refused",
            Self::TokenCreated => "token_created",
            Self::TokenRedeemed => "token_redeemed",
            Self::TokenRefused => "token_refused",
            Self::TokenRevoked => "token_revoked",
            Self::RateLimited => "rate_limited",
            Self::PeerRefused => "peer_refused",
        }
    }
}

/// Counts and records events. Shared by everything that issues or refuses.
#[derive(Debug, Default)]
pub struct Audit {
    counts: [AtomicU64; Event::ALL.len()],
    file: Option<File>,
}

impl Audit {
    /// An audit that also appends each record to a file of mode 0600, a JSON object per line: for short-lived programs
    /// whose log nobody keeps.
    ///
    /// # Errors
    /// The file cannot be opened, or its directory cannot be made or is not private.
    pub fn appending_to(path: &Path) -> Result<Self, PrivateError> {
        Ok(Self { file: Some(private::append(path)?), ..Self::default() })
    }

    /// Counts an event and writes its record: who it was about and the details.
    pub fn note(&self, event: Event, subject: &dyn fmt::Display, detail: &dyn fmt::Display) {
        if let Some(count) = self.counts.get(event as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let name = event.as_str();
        if let Some(mut file) = self.file.as_ref() {
            let time = crate::tls::when(SystemTime::now());
            let (subject, detail) = (subject.to_string(), detail.to_string());
            let line = serde_json::json!({ "time": time, "event": name, "subject": subject, "detail": detail });
            if let Err(error) = file.write_all(format!("{line}\n").as_bytes()) {
                tracing::error!(%error, "writing the audit file");
            }
        }
        match event {
            Event::CertificateIssued | Event::TokenCreated | Event::TokenRedeemed | Event::TokenRevoked => {
                tracing::info!(target: "audit", event = name, subject = %subject, detail = %detail);
            }
            _ => tracing::warn!(target: "audit", event = name, subject = %subject, detail = %detail),
        }
    }

    /// How often an event happened since the start.
    pub fn count(&self, event: Event) -> u64 {
        self.counts.get(event as usize).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// All counts with their labels, for a metrics page.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Event::ALL.iter().map(|event| (event.as_str(), self.count(*event)))
    }
}
