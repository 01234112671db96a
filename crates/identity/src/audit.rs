//! What the authority did and refused: one log record (target `audit`) and one count each.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

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
}

impl Audit {
    /// Counts an event and writes its record: who it was about and the details.
    pub fn note(&self, event: Event, subject: &dyn fmt::Display, detail: &dyn fmt::Display) {
        if let Some(count) = self.counts.get(event as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let name = event.as_str();
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
