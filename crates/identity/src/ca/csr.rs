//! Certificate signing requests: what is asked, and the only thing that is taken from them, the public key.

use rcgen::SubjectPublicKeyInfo;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

use crate::tls::sha256;

/// The largest request that is read, in bytes of PEM text; an RSA-4096 request is about 2 KiB.
pub const MAX_CSR: usize = 16 * 1024;

/// Why a request is not signed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CsrError {
    /// Too long, no PEM, or no PKCS#10 inside.
    #[error("the certificate request cannot be read: {0}")]
    Unreadable(String),
    /// The signature is not made by the key in the request: the sender does not have the key.
    #[error("the certificate request is not signed by its own key")]
    Signature,
    /// The key is too weak or of an unsupported kind.
    #[error(
        "the key of the certificate request is not accepted: {0} (use P-256, P-384, Ed25519 or RSA from 2048 bits)"
    )]
    Key(String),
}

/// A request whose signature was verified: its sender holds the private key.
#[derive(Debug)]
pub struct Csr {
    key: SubjectPublicKeyInfo,
    key_hash: [u8; 32],
    uses_rsa: bool,
    names: Vec<String>,
}

impl Csr {
    /// Reads and verifies a PEM-encoded PKCS#10 request.
    ///
    /// # Errors
    /// See [`CsrError`].
    pub fn from_pem(text: &str) -> Result<Self, CsrError> {
        let unreadable = |what: &dyn ToString| CsrError::Unreadable(what.to_string());
        if text.len() > MAX_CSR {
            return Err(CsrError::Unreadable(format!("{} bytes; at most {MAX_CSR}", text.len())));
        }
        let (_, pem) = x509_parser::pem::parse_x509_pem(text.as_bytes()).map_err(|e| unreadable(&e))?;
        if pem.label != "CERTIFICATE REQUEST" && pem.label != "NEW CERTIFICATE REQUEST" {
            return Err(CsrError::Unreadable(format!("a block `{}` instead of `CERTIFICATE REQUEST`", pem.label)));
        }
        Self::from_der(&pem.contents)
    }

    /// Reads and verifies a DER-encoded PKCS#10 request.
    ///
    /// # Errors
    /// See [`CsrError`].
    pub fn from_der(der: &[u8]) -> Result<Self, CsrError> {
        let (rest, request) =
            X509CertificationRequest::from_der(der).map_err(|e| CsrError::Unreadable(e.to_string()))?;
        if !rest.is_empty() {
            return Err(CsrError::Unreadable("bytes after its end".to_owned()));
        }
        let spki = &request.certification_request_info.subject_pki;
        let uses_rsa = check_key(&spki.parsed().map_err(|e| CsrError::Key(e.to_string()))?)?;
        request.verify_signature().map_err(|_| CsrError::Signature)?;
        let key = SubjectPublicKeyInfo::from_der(spki.raw).map_err(|e| CsrError::Key(e.to_string()))?;
        let names = requested_names(&request)?;
        Ok(Self { key, key_hash: sha256(spki.raw), uses_rsa, names })
    }

    /// SHA-256 of the public key (SubjectPublicKeyInfo).
    pub fn key_hash(&self) -> [u8; 32] {
        self.key_hash
    }

    /// The alternative names that the request asks for, as `URI:...`, `DNS:...` or a word for other kinds. They are
    /// never copied into a certificate; they are only compared with who the caller is.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    pub(super) fn key(&self) -> &SubjectPublicKeyInfo {
        &self.key
    }

    pub(super) fn uses_rsa(&self) -> bool {
        self.uses_rsa
    }
}

/// Whether the key is RSA; refuses weak and unknown ones.
fn check_key(key: &PublicKey<'_>) -> Result<bool, CsrError> {
    match key {
        PublicKey::RSA(rsa) if rsa.key_size() < 2048 => Err(CsrError::Key(format!("RSA of {} bits", rsa.key_size()))),
        PublicKey::RSA(rsa) if rsa.key_size() > 8192 => Err(CsrError::Key(format!("RSA of {} bits", rsa.key_size()))),
        PublicKey::RSA(_) => Ok(true),
        PublicKey::EC(point) if matches!(point.key_size(), 256 | 384) => Ok(false),
        PublicKey::EC(point) => Err(CsrError::Key(format!("an elliptic curve of {} bits", point.key_size()))),
        // The parser knows Ed25519 only as an unknown key; rcgen checks the algorithm right after.
        PublicKey::Unknown(_) => Ok(false),
        _ => Err(CsrError::Key("an unsupported kind".to_owned())),
    }
}

fn requested_names(request: &X509CertificationRequest<'_>) -> Result<Vec<String>, CsrError> {
    let mut names = Vec::new();
    for extension in request.requested_extensions().into_iter().flatten() {
        match extension {
            ParsedExtension::SubjectAlternativeName(san) => {
                names.extend(san.general_names.iter().map(|name| match name {
                    GeneralName::URI(uri) => format!("URI:{uri}"),
                    GeneralName::DNSName(dns) => format!("DNS:{dns}"),
                    GeneralName::IPAddress(ip) => format!("IP:{}", crate::tls::hex(ip)),
                    GeneralName::RFC822Name(mail) => format!("email:{mail}"),
                    _ => "another kind of name".to_owned(),
                }));
            }
            ParsedExtension::BasicConstraints(basic) if basic.ca => names.push("the power of an authority".to_owned()),
            ParsedExtension::ParseError { .. } => {
                return Err(CsrError::Unreadable("an extension cannot be parsed".to_owned()));
            }
            _ => {}
        }
    }
    Ok(names)
}
