//! The one door to cryptography: does a key confirm a signature? Nothing else of this crate knows the library behind it.

use aws_lc_rs::hmac;
use aws_lc_rs::rsa::PublicKeyComponents;
use aws_lc_rs::signature::{self, ParsedPublicKey, VerificationAlgorithm};

/// Signature algorithms (RFC 7518 section 3.1, RFC 8037).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// RSA PKCS #1 v1.5 with SHA-256.
    Rs256,
    /// RSA PKCS #1 v1.5 with SHA-384.
    Rs384,
    /// RSA PKCS #1 v1.5 with SHA-512.
    Rs512,
    /// RSA PSS with SHA-256.
    Ps256,
    /// RSA PSS with SHA-384.
    Ps384,
    /// RSA PSS with SHA-512.
    Ps512,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// ECDSA on P-384 with SHA-384.
    Es384,
    /// ECDSA on P-521 with SHA-512.
    Es512,
    /// HMAC with SHA-256.
    Hs256,
    /// HMAC with SHA-384.
    Hs384,
    /// HMAC with SHA-512.
    Hs512,
    /// Ed25519.
    EdDsa,
}

impl Algorithm {
    const NAMES: [(&'static str, Self); 13] = [
        ("RS256", Self::Rs256),
        ("RS384", Self::Rs384),
        ("RS512", Self::Rs512),
        ("PS256", Self::Ps256),
        ("PS384", Self::Ps384),
        ("PS512", Self::Ps512),
        ("ES256", Self::Es256),
        ("ES384", Self::Es384),
        ("ES512", Self::Es512),
        ("HS256", Self::Hs256),
        ("HS384", Self::Hs384),
        ("HS512", Self::Hs512),
        ("EdDSA", Self::EdDsa),
    ];

    /// The algorithm of a name, with case; `none` is not one.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, algorithm)| *algorithm)
    }
}

/// Curves of the ECDSA algorithms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Curve {
    P256,
    P384,
    P521,
}

impl Curve {
    pub(super) fn parse(name: &str) -> Option<Self> {
        match name {
            "P-256" => Some(Self::P256),
            "P-384" => Some(Self::P384),
            "P-521" => Some(Self::P521),
            _ => None,
        }
    }

    /// Bytes of a coordinate.
    const fn width(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }

    const fn algorithm(self) -> Algorithm {
        match self {
            Self::P256 => Algorithm::Es256,
            Self::P384 => Algorithm::Es384,
            Self::P521 => Algorithm::Es512,
        }
    }

    fn verification(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::P256 => &signature::ECDSA_P256_SHA256_FIXED,
            Self::P384 => &signature::ECDSA_P384_SHA384_FIXED,
            Self::P521 => &signature::ECDSA_P521_SHA512_FIXED,
        }
    }
}

/// Key material whose kind decides which algorithms it can serve.
#[derive(Clone)]
pub(super) enum Material {
    Rsa(Box<PublicKeyComponents<Vec<u8>>>),
    Ec(Curve, Box<ParsedPublicKey>),
    Ed25519(Box<ParsedPublicKey>),
    Secret(Box<[u8]>),
}

/// Secrets do not show up in logs.
impl std::fmt::Debug for Material {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Rsa(_) => "RSA",
            Self::Ec(..) => "EC",
            Self::Ed25519(_) => "Ed25519",
            Self::Secret(_) => "secret",
        })
    }
}

impl Material {
    /// An RSA key of 2048 to 8192 bits with one of the two exponents in use.
    pub(super) fn rsa(n: &[u8], e: &[u8]) -> Option<Self> {
        let significant = |bytes: &[u8]| bytes.iter().skip_while(|byte| **byte == 0).copied().collect::<Vec<u8>>();
        let (n, e) = (significant(n), significant(e));
        if !matches!(e.as_slice(), [3] | [1, 0, 1]) {
            return None;
        }
        let bits = n.len() * 8 - n.first()?.leading_zeros() as usize;
        if !(2048..=8192).contains(&bits) || has_infineon_fingerprint(&n) {
            return None;
        }
        let components = PublicKeyComponents { n, e };
        components.to_parsed_public_key(&signature::RSA_PKCS1_2048_8192_SHA256).ok()?;
        Some(Self::Rsa(Box::new(components)))
    }

    /// A point on a curve; coordinates whose leading zeros were left out are filled up.
    pub(super) fn ec(curve: Curve, x: &[u8], y: &[u8]) -> Option<Self> {
        let mut point = vec![4_u8];
        for coordinate in [x, y] {
            let missing = curve.width().checked_sub(coordinate.len())?;
            point.extend(std::iter::repeat_n(0, missing));
            point.extend_from_slice(coordinate);
        }
        let key = ParsedPublicKey::new(curve.verification(), point).ok()?;
        Some(Self::Ec(curve, Box::new(key)))
    }

    pub(super) fn ed25519(x: &[u8]) -> Option<Self> {
        ParsedPublicKey::new(&signature::ED25519, x).ok().map(|key| Self::Ed25519(Box::new(key)))
    }

    /// A secret as long as the shortest of the hashes (RFC 7518 section 3.2).
    pub(super) fn secret(bytes: &[u8]) -> Option<Self> {
        (bytes.len() >= 32).then(|| Self::Secret(bytes.into()))
    }

    pub(super) fn is_secret(&self) -> bool {
        matches!(self, Self::Secret(_))
    }

    /// Whether keys of this kind serve an algorithm: a public key is never taken for a secret.
    pub(super) fn serves(&self, algorithm: Algorithm) -> bool {
        use Algorithm::{EdDsa, Hs256, Hs384, Hs512, Ps256, Ps384, Ps512, Rs256, Rs384, Rs512};
        match self {
            Self::Rsa(_) => matches!(algorithm, Rs256 | Rs384 | Rs512 | Ps256 | Ps384 | Ps512),
            Self::Ec(curve, _) => algorithm == curve.algorithm(),
            Self::Ed25519(_) => algorithm == EdDsa,
            Self::Secret(secret) => match algorithm {
                Hs256 => secret.len() >= 32,
                Hs384 => secret.len() >= 48,
                Hs512 => secret.len() >= 64,
                _ => false,
            },
        }
    }

    /// Whether the key confirms the signature.
    pub(super) fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Rsa(components) => {
                let Some(how) = rsa_verification(algorithm) else { return false };
                components.verify(how, message, signature).is_ok()
            }
            Self::Ec(curve, key) if curve.algorithm() == algorithm => key.verify_sig(message, signature).is_ok(),
            Self::Ed25519(key) if algorithm == Algorithm::EdDsa => key.verify_sig(message, signature).is_ok(),
            Self::Secret(secret) => {
                let how = match algorithm {
                    Algorithm::Hs256 => hmac::HMAC_SHA256,
                    Algorithm::Hs384 => hmac::HMAC_SHA384,
                    Algorithm::Hs512 => hmac::HMAC_SHA512,
                    _ => return false,
                };
                hmac::verify(&hmac::Key::new(how, secret), message, signature).is_ok()
            }
            Self::Ec(..) | Self::Ed25519(_) => false,
        }
    }
}

fn rsa_verification(algorithm: Algorithm) -> Option<&'static signature::RsaParameters> {
    Some(match algorithm {
        Algorithm::Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
        Algorithm::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
        Algorithm::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
        Algorithm::Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
        Algorithm::Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
        Algorithm::Ps512 => &signature::RSA_PSS_2048_8192_SHA512,
        _ => return None,
    })
}

/// Whether a modulus looks like those that a broken library made, which can be factored (ROCA, CVE-2017-15361): its
/// residue is a power of 65537 modulo every one of these primes. That happens to a sound key once in 2^27.
fn has_infineon_fingerprint(modulus: &[u8]) -> bool {
    const PRIMES: [u32; 17] = [11, 13, 17, 19, 37, 53, 61, 71, 73, 79, 97, 103, 107, 109, 127, 151, 157];
    PRIMES.iter().all(|prime| {
        let residue = modulus.iter().fold(0, |rest, byte| (rest * 256 + u32::from(*byte)) % prime);
        let mut power = 1;
        (0..*prime).any(|_| {
            power = power * 65537 % prime;
            power == residue
        })
    })
}
