//! Why a handshake failed, in words that a counter can carry.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertRevocationListError, CertificateError, Error, OtherError};

/// Why a handshake did not succeed: one word per counter label ([`Cause::as_str`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cause {
    /// The peer's certificate is past its end.
    Expired,
    /// The peer's certificate is not valid yet (clocks differ?).
    NotYetValid,
    /// No trusted authority signed the peer's certificate.
    UnknownCa,
    /// The certificate is valid but its names are not the expected ones.
    SanMismatch,
    /// The certificate or its key is none of those that are pinned.
    PinMismatch,
    /// A certificate was required and none was presented.
    NoCertificate,
    /// A signature in the chain or in the handshake is wrong.
    BadSignature,
    /// The authority revoked the certificate, or its revocation state is unknown while lists are in use.
    Revoked,
    /// The certificate cannot be read, or uses something that is not supported.
    BadCertificate,
    /// The certificate is not meant for this side of a connection (extended key usage, CA as leaf).
    WrongPurpose,
    /// A mesh identity was required; the certificate has no URI name, several, or one that is no SPIFFE id.
    NotSpiffe,
    /// The SPIFFE id belongs to a trust domain that none of the bundles vouches for.
    ForeignTrustDomain,
    /// What arrived is not TLS (plaintext to a TLS port, garbage).
    NotTls,
    /// The two sides share no version, cipher, group or application protocol.
    NothingInCommon,
    /// The peer ended the handshake with an alert: it did not like *us*.
    RefusedByPeer,
    /// The connection closed before the handshake was done.
    Closed,
    /// Something else; the message has the details.
    Other,
}

impl Cause {
    /// The label in metrics and logs, in snake case: `expired`, `unknown_ca`, `san_mismatch`...
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::UnknownCa => "unknown_ca",
            Self::SanMismatch => "san_mismatch",
            Self::PinMismatch => "pin_mismatch",
            Self::NoCertificate => "no_certificate",
            Self::BadSignature => "bad_signature",
            Self::Revoked => "revoked",
            Self::BadCertificate => "bad_certificate",
            Self::WrongPurpose => "wrong_purpose",
            Self::NotSpiffe => "not_spiffe",
            Self::ForeignTrustDomain => "foreign_trust_domain",
            Self::NotTls => "not_tls",
            Self::NothingInCommon => "nothing_in_common",
            Self::RefusedByPeer => "refused_by_peer",
            Self::Closed => "closed",
            Self::Other => "other",
        }
    }

    /// The cause behind an error of rustls.
    pub fn of(error: &Error) -> Self {
        match error {
            Error::InvalidCertificate(problem) => Self::of_certificate(problem),
            Error::InvalidCertRevocationList(CertRevocationListError::BadSignature) => Self::BadSignature,
            Error::InvalidCertRevocationList(_) => Self::Revoked,
            Error::NoCertificatesPresented => Self::NoCertificate,
            Error::InvalidMessage(_) | Error::PeerSentOversizedRecord => Self::NotTls,
            Error::PeerIncompatible(_) | Error::NoApplicationProtocol => Self::NothingInCommon,
            Error::AlertReceived(AlertDescription::CloseNotify | AlertDescription::UserCanceled) => Self::Closed,
            Error::AlertReceived(_) => Self::RefusedByPeer,
            Error::DecryptError | Error::PeerMisbehaved(_) => Self::BadSignature,
            _ => Self::Other,
        }
    }

    /// The cause behind an error of an asynchronous handshake, where rustls' error hides inside.
    pub fn of_io(error: &io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(inner) => Self::of(inner),
            None => match error.kind() {
                io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::BrokenPipe => Self::Closed,
                _ => Self::Other,
            },
        }
    }

    /// The reason of a failed handshake in words for people, without rustls' debug wrapping.
    pub fn explain_io(error: &io::Error) -> String {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(Error::InvalidCertificate(CertificateError::Other(OtherError(inner)))) => inner.to_string(),
            Some(inner) => inner.to_string(),
            None => error.to_string(),
        }
    }

    fn of_certificate(problem: &CertificateError) -> Self {
        match problem {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Self::NotYetValid,
            CertificateError::UnknownIssuer => Self::UnknownCa,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => Self::SanMismatch,
            CertificateError::BadSignature => Self::BadSignature,
            CertificateError::Revoked
            | CertificateError::UnknownRevocationStatus
            | CertificateError::ExpiredRevocationList
            | CertificateError::ExpiredRevocationListContext { .. } => Self::Revoked,
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => Self::WrongPurpose,
            CertificateError::Other(OtherError(inner)) => {
                inner.downcast_ref::<Refusal>().map_or(Self::BadCertificate, |refusal| refusal.cause)
            }
            _ => Self::BadCertificate,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A certificate that was verified and still refused, with the details for the log.
#[derive(Clone, thiserror::Error)]
#[error("{cause}: {detail}")]
pub struct Refusal {
    /// The label.
    pub cause: Cause,
    /// What was seen and what was expected.
    pub detail: String,
}

impl Refusal {
    /// A refusal with its details.
    pub fn new(cause: Cause, detail: impl Into<String>) -> Self {
        Self { cause, detail: detail.into() }
    }
}

/// The same text as for people: rustls shows what is inside its errors in this form.
impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refusal))))
    }
}

/// What webpki found wrong, as rustls says it: so that the peer gets the alert that fits.
pub(super) fn from_webpki(error: &webpki::Error, now: UnixTime) -> Error {
    use webpki::Error as W;
    match error {
        W::CertExpired { time, not_after } => {
            CertificateError::ExpiredContext { time: *time, not_after: *not_after }.into()
        }
        W::InvalidCertValidity => CertificateError::Expired.into(),
        W::CertNotValidYet { time, not_before } => {
            CertificateError::NotValidYetContext { time: *time, not_before: *not_before }.into()
        }
        W::UnknownIssuer => CertificateError::UnknownIssuer.into(),
        W::InvalidSignatureForPublicKey | W::SignatureAlgorithmMismatch => CertificateError::BadSignature.into(),
        W::CertRevoked => CertificateError::Revoked.into(),
        W::UnknownRevocationStatus => CertificateError::UnknownRevocationStatus.into(),
        W::CrlExpired { next_update, .. } => {
            CertificateError::ExpiredRevocationListContext { time: now, next_update: *next_update }.into()
        }
        W::CaUsedAsEndEntity | W::EndEntityUsedAsCa | W::RequiredEkuNotFoundContext(_) => {
            Refusal::new(Cause::WrongPurpose, error.to_string()).into()
        }
        W::CertNotValidForName(_) => Refusal::new(Cause::SanMismatch, error.to_string()).into(),
        other => Refusal::new(Cause::BadCertificate, other.to_string()).into(),
    }
}
