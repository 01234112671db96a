//! Whom Envoy's counters blame for a failed handshake: they tell verification from everything else.

/// What a failed handshake counts as among Envoy's counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// No certificate was shown.
    Missing,
    /// The certificate is good, its names are not.
    Names,
    /// The certificate itself.
    Certificate,
    /// It took too long.
    Slow,
    /// Everything that is no verification.
    Connection,
}

impl Blame {
    /// For the words that handshakes fail with.
    pub fn of(cause: &str) -> Self {
        match cause {
            "no_certificate" => Self::Missing,
            "san_mismatch" | "not_spiffe" | "foreign_trust_domain" => Self::Names,
            "expired" | "not_yet_valid" | "unknown_ca" | "pin_mismatch" | "revoked" | "bad_certificate"
            | "wrong_purpose" => Self::Certificate,
            "timeout" => Self::Slow,
            _ => Self::Connection,
        }
    }
}
