//! What can be wrong with a token or a key set, in Envoy's words.

/// The outcome of looking at a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// It is good.
    Ok,
    /// There is none.
    Missed,
    /// `nbf` is still to come.
    NotYetValid,
    /// `exp` is over.
    Expired,
    /// Not three parts.
    BadFormat,
    /// The header is no base64url.
    HeaderBadBase64,
    /// The header is no JSON object, or one with a member twice.
    HeaderBadJson,
    /// `alg` is missing or no text.
    HeaderBadAlg,
    /// `alg` is not one that is implemented; `none` is not.
    HeaderUnknownAlg,
    /// `kid` is no text.
    HeaderBadKid,
    /// The payload is no base64url.
    PayloadBadBase64,
    /// The payload is no JSON object, or one with a member twice.
    PayloadBadJson,
    /// `iss` is no text.
    BadIss,
    /// `sub` is no text.
    BadSub,
    /// `iat` is no number.
    BadIat,
    /// `iat` is negative or too large.
    IatOutOfRange,
    /// `nbf` is no number.
    BadNbf,
    /// `nbf` is negative or too large.
    NbfOutOfRange,
    /// `exp` is no number.
    BadExp,
    /// `exp` is negative or too large.
    ExpOutOfRange,
    /// `jti` is no text.
    BadJti,
    /// `aud` is neither a text nor a list of texts.
    BadAud,
    /// The signature is no base64url.
    SignatureBadBase64,
    /// The issuer is not the provider's.
    UnknownIssuer,
    /// None of its audiences is allowed.
    AudienceNotAllowed,
    /// The signature, the subject, the lifetime or the header's `crit` is wrong.
    VerificationFail,
    /// The key set has no key that could be used.
    NoValidKeys,
    /// The key set has no key with the token's `kid` and `alg`.
    KidAlgMismatch,
    /// The key set could not be fetched.
    FetchFail,
}

impl Status {
    /// Envoy's text, which is the body of the answer.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Missed => "Jwt is missing",
            Self::NotYetValid => "Jwt not yet valid",
            Self::Expired => "Jwt is expired",
            Self::BadFormat => "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections",
            Self::HeaderBadBase64 => "Jwt header is an invalid Base64url encoded",
            Self::HeaderBadJson => "Jwt header is an invalid JSON",
            Self::HeaderBadAlg => "Jwt header [alg] field is required and must be a string",
            Self::HeaderUnknownAlg => "Jwt header [alg] is not supported",
            Self::HeaderBadKid => "Jwt header [kid] field is not a string",
            Self::PayloadBadBase64 => "Jwt payload is an invalid Base64url encoded",
            Self::PayloadBadJson => "Jwt payload is an invalid JSON",
            Self::BadIss => "Jwt payload [iss] field is not a string",
            Self::BadSub => "Jwt payload [sub] field is not a string",
            Self::BadIat => "Jwt payload [iat] field is not an integer",
            Self::IatOutOfRange => "Jwt payload [iat] field is not a positive 64 bit integer",
            Self::BadNbf => "Jwt payload [nbf] field is not an integer",
            Self::NbfOutOfRange => "Jwt payload [nbf] field is not a positive 64 bit integer",
            Self::BadExp => "Jwt payload [exp] field is not an integer",
            Self::ExpOutOfRange => "Jwt payload [exp] field is not a positive 64 bit integer",
            Self::BadJti => "Jwt payload [jti] field is not a string",
            Self::BadAud => "Jwt payload [aud] field is not a string or string list",
            Self::SignatureBadBase64 => "Jwt signature is an invalid Base64url encoded",
            Self::UnknownIssuer => "Jwt issuer is not configured",
            Self::AudienceNotAllowed => "Audiences in Jwt are not allowed",
            Self::VerificationFail => "Jwt verification fails",
            Self::NoValidKeys => "Jwks doesn't have any valid public key",
            Self::KidAlgMismatch => "Jwks doesn't have key to match kid or alg from Jwt",
            Self::FetchFail => "Jwks remote fetch is failed",
        }
    }

    /// Envoy's number of the status, which `failed_status_in_metadata` shows.
    #[must_use]
    pub const fn code(self) -> u32 {
        match self {
            Self::Ok => 0,
            Self::Missed => 1,
            Self::NotYetValid => 2,
            Self::Expired => 3,
            Self::BadFormat => 4,
            Self::HeaderBadBase64 => 5,
            Self::HeaderBadJson => 6,
            Self::HeaderBadAlg => 7,
            Self::HeaderUnknownAlg => 8,
            Self::HeaderBadKid => 9,
            Self::PayloadBadBase64 => 10,
            Self::PayloadBadJson => 11,
            Self::BadIss => 12,
            Self::BadSub => 13,
            Self::BadIat => 14,
            Self::IatOutOfRange => 15,
            Self::BadNbf => 16,
            Self::NbfOutOfRange => 17,
            Self::BadExp => 18,
            Self::ExpOutOfRange => 19,
            Self::BadJti => 20,
            Self::BadAud => 21,
            Self::SignatureBadBase64 => 22,
            Self::UnknownIssuer => 24,
            Self::AudienceNotAllowed => 25,
            Self::VerificationFail => 26,
            Self::NoValidKeys => 31,
            Self::KidAlgMismatch => 32,
            Self::FetchFail => 39,
        }
    }

    /// The status itself as an error, if it is one.
    pub(crate) const fn ok(self) -> Result<(), Self> {
        match self {
            Self::Ok => Ok(()),
            other => Err(other),
        }
    }
}
