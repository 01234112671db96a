//! Tokens (RFC 7519 in the compact form of RFC 7515), taken apart and not yet believed.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::json;
use super::status::Status;
use super::verify::Algorithm;
use crate::metadata::Datum;

/// The longest token that is looked at, bytes.
pub const MAX_TOKEN: usize = 64 * 1024;

/// A signed text (RFC 7515) taken apart.
#[derive(Debug, Clone, PartialEq)]
pub struct Signed {
    /// The protected header.
    pub header: Datum,
    /// `alg`.
    pub algorithm: Algorithm,
    /// `kid`; empty counts as absent.
    pub kid: Option<Arc<str>>,
    /// What is signed for.
    pub payload: Vec<u8>,
    /// The same as it was sent, base64url.
    pub payload_text: Arc<str>,
    /// Header and payload with their dot.
    pub(super) message: Box<[u8]>,
    pub(super) signature: Box<[u8]>,
}

/// A token taken apart.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// Its header, and what is signed.
    pub signed: Signed,
    /// The claims.
    pub claims: Datum,
    /// `iss`, empty where absent.
    pub issuer: Arc<str>,
    /// `sub`, empty where absent.
    pub subject: Arc<str>,
    /// `aud`, as a list.
    pub audiences: Vec<Arc<str>>,
    /// `nbf`, seconds since 1970.
    pub not_before: Option<u64>,
    /// `exp`, seconds since 1970.
    pub expires: Option<u64>,
}

/// Takes a signed text apart. Its signature is not looked at.
///
/// # Errors
/// [`Status`]: what is wrong with its form.
pub fn parse_signed(text: &str) -> Result<Signed, Status> {
    let mut parts = text.split('.');
    let (Some(header), Some(payload), Some(signature), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Status::BadFormat);
    };
    if text.len() > MAX_TOKEN || header.is_empty() || payload.is_empty() || signature.is_empty() {
        return Err(Status::BadFormat);
    }
    let decoded = URL_SAFE_NO_PAD.decode(header).map_err(|_| Status::HeaderBadBase64)?;
    let header_object = Datum::Object(json::object(&decoded).ok_or(Status::HeaderBadJson)?);
    let algorithm = match header_object.key("alg") {
        Some(Datum::Text(name)) => Algorithm::parse(name).ok_or(Status::HeaderUnknownAlg)?,
        _ => return Err(Status::HeaderBadAlg),
    };
    let kid = text_of(&header_object, "kid", Status::HeaderBadKid)?.filter(|kid| !kid.is_empty());
    if header_object.key("crit").is_some() {
        // Nothing that a header could call critical is understood here (RFC 7515 section 4.1.11).
        return Err(Status::VerificationFail);
    }
    let bytes = URL_SAFE_NO_PAD.decode(payload).map_err(|_| Status::PayloadBadBase64)?;
    let signed_by = URL_SAFE_NO_PAD.decode(signature).map_err(|_| Status::SignatureBadBase64)?;
    let message = text.as_bytes().get(..header.len() + 1 + payload.len()).unwrap_or_default();
    Ok(Signed {
        header: header_object,
        algorithm,
        kid,
        payload: bytes,
        payload_text: payload.into(),
        message: message.into(),
        signature: signed_by.into(),
    })
}

/// Takes a token apart. Its signature is not looked at.
///
/// # Errors
/// [`Status`]: what is wrong with its form.
pub fn parse(text: &str) -> Result<Token, Status> {
    let signed = parse_signed(text)?;
    let claims = Datum::Object(json::object(&signed.payload).ok_or(Status::PayloadBadJson)?);
    let issuer = text_of(&claims, "iss", Status::BadIss)?;
    let subject = text_of(&claims, "sub", Status::BadSub)?;
    seconds_of(&claims, "iat", Status::BadIat, Status::IatOutOfRange)?;
    let not_before = seconds_of(&claims, "nbf", Status::BadNbf, Status::NbfOutOfRange)?;
    let expires = seconds_of(&claims, "exp", Status::BadExp, Status::ExpOutOfRange)?;
    text_of(&claims, "jti", Status::BadJti)?;
    let audiences = audiences(&claims)?;
    Ok(Token {
        signed,
        issuer: issuer.unwrap_or_default(),
        subject: subject.unwrap_or_default(),
        audiences,
        not_before,
        expires,
        claims,
    })
}

/// A token with these claims that nobody signed.
pub(super) fn unsigned(claims: &str) -> Result<Token, Status> {
    let payload = URL_SAFE_NO_PAD.encode(claims);
    // The shortest header and signature that have the right form; they are never verified.
    parse(&format!("{}.{payload}.AA", URL_SAFE_NO_PAD.encode(r#"{"alg":"RS256"}"#)))
}

impl Token {
    /// Whether it is valid at `now` (seconds since 1970), with clocks that may differ by `skew` seconds.
    pub(super) fn at(&self, now: u64, skew: u64) -> Status {
        if self.not_before.is_some_and(|begin| now.saturating_add(skew) < begin) {
            return Status::NotYetValid;
        }
        if self.expires.is_some_and(|end| now > end.saturating_add(skew)) {
            return Status::Expired;
        }
        Status::Ok
    }
}

fn text_of(object: &Datum, name: &str, wrong: Status) -> Result<Option<Arc<str>>, Status> {
    match object.key(name) {
        None => Ok(None),
        Some(Datum::Text(text)) => Ok(Some(text.clone())),
        Some(_) => Err(wrong),
    }
}

/// A NumericDate; fractions of a second are cut off.
fn seconds_of(object: &Datum, name: &str, wrong: Status, out_of_range: Status) -> Result<Option<u64>, Status> {
    match object.key(name) {
        None => Ok(None),
        Some(Datum::Number(number)) if *number >= 0.0 && *number < u64::MAX as f64 => Ok(Some(*number as u64)),
        Some(Datum::Number(_)) => Err(out_of_range),
        Some(_) => Err(wrong),
    }
}

fn audiences(claims: &Datum) -> Result<Vec<Arc<str>>, Status> {
    match claims.key("aud") {
        None => Ok(Vec::new()),
        Some(Datum::Text(one)) => Ok(vec![one.clone()]),
        Some(Datum::List(items)) => items
            .iter()
            .map(|item| match item {
                Datum::Text(text) => Ok(text.clone()),
                _ => Err(Status::BadAud),
            })
            .collect(),
        Some(_) => Err(Status::BadAud),
    }
}
