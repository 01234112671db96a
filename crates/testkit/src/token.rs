//! Tokens (JWT) for tests: keys made on the spot, key sets of the published ones, and tokens as a table asks for them.
//!
//! | key | what it is |
//! |---|---|
//! | `k1` | RSA 2048, kid `k1`, in the key set 1 |
//! | `k2` | RSA 2048, says it is `k1`, in no key set |
//! | `e1` | P-256, kid `e1`, in the key set 2 |
//! | `o1` | Ed25519, kid `o1`, in the key set 2 |
//! | `k1-public-as-hmac` | the text of `k1`'s public key taken for a secret |
//! | `none` | no signature |

use std::sync::OnceLock;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RSA_PKCS1_SHA512,
    RSA_PSS_SHA256, RsaEncoding,
};
use aws_lc_rs::{hmac, rsa};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

/// Keys of a test run.
pub struct Mint {
    k1: rsa::KeyPair,
    k2: rsa::KeyPair,
    e1: EcdsaKeyPair,
    o1: Ed25519KeyPair,
}

/// The keys of this process, made when first asked for.
///
/// # Errors
/// When no key can be made.
pub fn mint() -> Result<&'static Mint> {
    static MINT: OnceLock<Option<Mint>> = OnceLock::new();
    MINT.get_or_init(|| Mint::new().ok()).as_ref().context("keys for tokens")
}

impl Mint {
    fn new() -> Result<Self> {
        let rsa = || rsa::KeyPair::generate(rsa::KeySize::Rsa2048).context("an RSA key");
        Ok(Self {
            k1: rsa()?,
            k2: rsa()?,
            e1: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).context("a P-256 key")?,
            o1: Ed25519KeyPair::generate().context("an Ed25519 key")?,
        })
    }

    /// Key set 1 (RSA) or 2 (EC and Ed25519), as JSON.
    pub fn key_set(&self, number: u8) -> String {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let keys = if number == 1 {
            let (n, e) = rsa_numbers(self.k1.public_key().as_ref()).unwrap_or_default();
            json!([{"kty": "RSA", "kid": "k1", "use": "sig", "alg": "RS256", "n": text(&n), "e": text(&e)}])
        } else {
            let point = self.e1.public_key().as_ref();
            let (x, y) = point.get(1..).unwrap_or_default().split_at(32.min(point.len().saturating_sub(1)));
            json!([
                {"kty": "EC", "kid": "e1", "crv": "P-256", "x": text(x), "y": text(y)},
                {"kty": "OKP", "kid": "o1", "crv": "Ed25519", "x": text(self.o1.public_key().as_ref())},
            ])
        };
        json!({ "keys": keys }).to_string()
    }

    /// The token that a case's `jwt` asks for.
    ///
    /// # Errors
    /// When the case asks for a key or algorithm that is not known here.
    pub fn token(&self, wanted: &Value) -> Result<String> {
        if let Some(raw) = wanted["raw"].as_str() {
            return Ok(raw.to_owned());
        }
        let key = wanted["key"].as_str().context("`jwt` needs `key`")?;
        let algorithm = wanted["alg"].as_str().context("`jwt` needs `alg`")?;
        let kid = if key == "e1" || key == "o1" { key } else { "k1" };
        let mut head = json!({"alg": algorithm, "typ": "JWT", "kid": kid});
        if let (Some(head), Some(more)) = (head.as_object_mut(), wanted["header"].as_object()) {
            head.extend(more.clone());
        }
        let text = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", text(&head), text(&claims(&wanted["claims"])));
        let signature = self.sign(key, algorithm, signed.as_bytes())?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    fn sign(&self, key: &str, algorithm: &str, message: &[u8]) -> Result<Vec<u8>> {
        let random = SystemRandom::new();
        let rsa = |pair: &rsa::KeyPair| -> Result<Vec<u8>> {
            let how: &'static dyn RsaEncoding = match algorithm {
                "RS256" => &RSA_PKCS1_SHA256,
                "RS512" => &RSA_PKCS1_SHA512,
                "PS256" => &RSA_PSS_SHA256,
                _ => bail!("no RSA key signs {algorithm} here"),
            };
            let mut signature = vec![0; pair.public_modulus_len()];
            pair.sign(how, &random, message, &mut signature).context("sign")?;
            Ok(signature)
        };
        match key {
            "k1" => rsa(&self.k1),
            "k2" => rsa(&self.k2),
            "e1" => Ok(self.e1.sign(&random, message).context("sign")?.as_ref().to_vec()),
            "o1" => Ok(self.o1.sign(message).as_ref().to_vec()),
            "k1-public-as-hmac" => {
                let der: PublicKeyX509Der<'_> = self.k1.public_key().as_der().context("the public key")?;
                let pem = format!(
                    "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
                    STANDARD.encode(der.as_ref())
                );
                let key = hmac::Key::new(hmac::HMAC_SHA256, pem.as_bytes());
                Ok(hmac::sign(&key, message).as_ref().to_vec())
            }
            "none" => Ok(Vec::new()),
            other => bail!("no key `{other}` for tokens"),
        }
    }
}

/// Claims with times written out: `+60` and `-60` are seconds from now.
fn claims(wanted: &Value) -> Value {
    let mut claims = wanted.clone();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs());
    for name in ["exp", "nbf", "iat"] {
        let Some(text) = claims[name].as_str() else { continue };
        if let Ok(distance) = text.parse::<i64>() {
            claims[name] = json!(i64::try_from(now).unwrap_or(i64::MAX).saturating_add(distance));
        }
    }
    claims
}

/// Modulus and exponent of an RSA key in DER (RFC 8017 appendix A.1.1).
fn rsa_numbers(der: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let (0x30, inside, _) = element(der)? else { return None };
    let (0x02, n, rest) = element(inside)? else { return None };
    let (0x02, e, _) = element(rest)? else { return None };
    let positive = |number: &[u8]| number.iter().skip_while(|byte| **byte == 0).copied().collect();
    Some((positive(n), positive(e)))
}

/// One DER element: tag, content, rest.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = der.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..0x80 => (usize::from(*first), rest),
        long => {
            let (digits, rest) = rest.split_at_checked(usize::from(long & 0x7f))?;
            (digits.iter().fold(0_usize, |length, digit| length << 8 | usize::from(*digit)), rest)
        }
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*tag, content, rest))
}
