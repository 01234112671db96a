//! Key sets (RFC 7517).

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::json;
use super::status::Status;
use super::token::Signed;
use super::verify::{Algorithm, Curve, Material};
use crate::metadata::Datum;

/// The largest key set that is read, bytes.
pub const MAX_KEY_SET: usize = 1024 * 1024;
/// The most keys that a set may have.
const MAX_KEYS: usize = 256;

/// Keys that can confirm signatures; at least one.
#[derive(Debug, Clone)]
pub struct KeySet {
    keys: Vec<Key>,
}

/// One key.
#[derive(Debug, Clone)]
struct Key {
    kid: Option<Arc<str>>,
    /// The only algorithm it is for, where it says so.
    algorithm: Option<Algorithm>,
    material: Material,
}

impl KeySet {
    /// Reads a key set. Keys that cannot be used are left out.
    ///
    /// # Errors
    /// What is wrong with the set as a whole: no JSON, no list of keys, or none that can be used.
    pub fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        if bytes.len() > MAX_KEY_SET {
            return Err("Jwks is too large");
        }
        let object = Datum::Object(json::object(bytes).ok_or("Jwks is an invalid JSON")?);
        let items = match object.key("keys") {
            None => return Err("Jwks does not have [keys] field"),
            Some(Datum::List(items)) => items,
            Some(_) => return Err("[keys] in Jwks is not an array"),
        };
        if items.len() > MAX_KEYS {
            return Err("Jwks has too many keys");
        }
        let keys: Vec<Key> = items.iter().filter_map(key).collect();
        if keys.is_empty() {
            return Err(Status::NoValidKeys.text());
        }
        let secrets = keys.iter().filter(|key| key.material.is_secret()).count();
        if secrets > 0 && secrets < keys.len() {
            return Err("Jwks mixes secrets with public keys");
        }
        let twins = |(at, item): (usize, &Datum)| items.iter().skip(at + 1).any(|other| alike(item, other));
        if items.iter().enumerate().any(twins) {
            return Err("Jwks has two keys of one kind with the same [kid]");
        }
        Ok(Self { keys })
    }

    /// How many keys there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether one of the keys signed a text. One that names its key is confirmed by no other.
    #[must_use]
    pub fn verify(&self, signed: &Signed) -> Status {
        let mut tried = false;
        for key in self.keys.iter().filter(|key| key.may_confirm(signed)) {
            tried = true;
            if key.material.verifies(signed.algorithm, &signed.message, &signed.signature) {
                return Status::Ok;
            }
        }
        if tried { Status::VerificationFail } else { Status::KidAlgMismatch }
    }
}

impl Key {
    fn may_confirm(&self, signed: &Signed) -> bool {
        let named = match (&self.kid, &signed.kid) {
            (Some(own), Some(wanted)) => own == wanted,
            _ => true,
        };
        named
            && self.algorithm.is_none_or(|algorithm| algorithm == signed.algorithm)
            && self.material.serves(signed.algorithm)
    }
}

/// One key of a set; `None` for keys of other kinds and uses, and for broken ones.
fn key(item: &Datum) -> Option<Key> {
    let text = |name: &str| item.key(name).and_then(Datum::text);
    if !verifies(item) {
        return None;
    }
    let algorithm = match item.key("alg") {
        None => None,
        Some(name) => Some(Algorithm::parse(name.text()?)?),
    };
    let bytes = |name: &str| URL_SAFE_NO_PAD.decode(text(name)?).ok();
    let material = match text("kty")? {
        "RSA" => Material::rsa(&bytes("n")?, &bytes("e")?)?,
        "EC" => Material::ec(curve(text("crv"), algorithm)?, &bytes("x")?, &bytes("y")?)?,
        "OKP" if text("crv")? == "Ed25519" => Material::ed25519(&bytes("x")?)?,
        "oct" => Material::secret(&bytes("k")?)?,
        _ => return None,
    };
    if algorithm.is_some_and(|algorithm| !material.serves(algorithm)) {
        return None;
    }
    let kid = text("kid").filter(|kid| !kid.is_empty()).map(Arc::from);
    Some(Key { kid, algorithm, material })
}

/// Whether a key is meant for signatures.
fn verifies(item: &Datum) -> bool {
    let usage = item.key("use").is_none_or(|usage| usage.text() == Some("sig"));
    let operation = match item.key("key_ops") {
        Some(Datum::List(operations)) => operations.iter().any(|operation| operation.text() == Some("verify")),
        _ => true,
    };
    usage && operation
}

fn text<'d>(item: &'d Datum, name: &str) -> Option<&'d str> {
    item.key(name).and_then(Datum::text)
}

/// Whether a token's `kid` and `alg` would not tell two keys apart, whether they can be used or not.
fn alike(one: &Datum, other: &Datum) -> bool {
    let same = |name: &str| text(one, name) == text(other, name);
    let algorithms = match (text(one, "alg"), text(other, "alg")) {
        (Some(one), Some(other)) => one == other,
        _ => true,
    };
    text(one, "kid").is_some()
        && same("kid")
        && same("kty")
        && same("crv")
        && algorithms
        && verifies(one)
        && verifies(other)
}

/// The curve that is named, else the one of the algorithm, else P-256.
fn curve(named: Option<&str>, algorithm: Option<Algorithm>) -> Option<Curve> {
    match (named, algorithm) {
        (Some(name), _) => Curve::parse(name),
        (None, Some(Algorithm::Es384)) => Some(Curve::P384),
        (None, Some(Algorithm::Es512)) => Some(Curve::P521),
        (None, Some(Algorithm::Es256) | None) => Some(Curve::P256),
        (None, Some(_)) => None,
    }
}
