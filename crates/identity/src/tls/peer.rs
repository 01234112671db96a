//! What a peer's certificate says: identity, names, and the facts that headers and logs carry.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use model::SpiffeId;
use rustls::CommonState;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate, X509Name};

use super::cause::{Cause, Refusal};
use super::{hex, sha256};

/// The facts of a peer's leaf certificate. They are claims until the chain was verified; from a finished handshake
/// of a configuration of this crate they are verified.
#[derive(Debug, Clone)]
pub struct PeerFacts {
    /// The mesh identity: there is exactly one URI name and it is a SPIFFE id of the form that the mesh issues.
    pub identity: Option<SpiffeId>,
    /// URI names, in the certificate's order.
    pub uri_names: Vec<String>,
    /// DNS names, in the certificate's order.
    pub dns_names: Vec<String>,
    /// IP address names.
    pub ip_names: Vec<IpAddr>,
    /// Mail address names.
    pub email_names: Vec<String>,
    /// The subject as RFC 2253 writes it (last part first), as in `x-forwarded-client-cert`; empty for mesh leaves.
    pub subject: String,
    /// The issuer as RFC 2253 writes it.
    pub issuer: String,
    /// The serial number in lower-case hexadecimal.
    pub serial: String,
    /// SHA-256 of the certificate in lower-case hexadecimal: `Hash` of `x-forwarded-client-cert`.
    pub hash: String,
    /// Begin of validity.
    pub not_before: SystemTime,
    /// End of validity. A resumed session may outlive it: see [`PeerFacts::check_time`].
    pub not_after: SystemTime,
}

impl PeerFacts {
    /// Reads a certificate.
    ///
    /// # Errors
    /// [`Cause::BadCertificate`] when it is not a well-formed X.509 certificate, has duplicate extensions or a name
    /// with characters outside printable ASCII (such as NUL, by which two parsers may disagree about a name).
    pub fn read(certificate: &CertificateDer<'_>) -> Result<Self, Refusal> {
        let bad = |what: String| Refusal::new(Cause::BadCertificate, what);
        let (rest, parsed) =
            X509Certificate::from_der(certificate).map_err(|e| bad(format!("not an X.509 certificate: {e}")))?;
        if !rest.is_empty() {
            return Err(bad("bytes after the end of the certificate".to_owned()));
        }
        let mut facts = Self {
            identity: None,
            uri_names: Vec::new(),
            dns_names: Vec::new(),
            ip_names: Vec::new(),
            email_names: Vec::new(),
            subject: rfc2253(parsed.subject()),
            issuer: rfc2253(parsed.issuer()),
            serial: hex(parsed.raw_serial()),
            hash: hex(&sha256(certificate)),
            not_before: system_time(parsed.validity().not_before.timestamp()),
            not_after: system_time(parsed.validity().not_after.timestamp()),
        };
        let names = parsed.subject_alternative_name().map_err(|e| bad(format!("subject alternative names: {e}")))?;
        for name in names.iter().flat_map(|extension| &extension.value.general_names) {
            facts.add_name(name)?;
        }
        facts.identity = single_identity(&facts.uri_names).ok();
        Ok(facts)
    }

    /// Refuses a certificate outside of its validity.
    ///
    /// # Errors
    /// [`Cause::Expired`] or [`Cause::NotYetValid`].
    pub fn check_time(&self, now: SystemTime) -> Result<(), Refusal> {
        if now > self.not_after {
            return Err(Refusal::new(Cause::Expired, format!("ended {}", when(self.not_after))));
        }
        if now < self.not_before {
            return Err(Refusal::new(Cause::NotYetValid, format!("begins {}", when(self.not_before))));
        }
        Ok(())
    }

    /// The names in one line, for messages.
    pub(crate) fn names(&self) -> String {
        let mut all: Vec<String> = self.uri_names.iter().map(|n| format!("URI:{n}")).collect();
        all.extend(self.dns_names.iter().map(|n| format!("DNS:{n}")));
        all.extend(self.ip_names.iter().map(|n| format!("IP:{n}")));
        all.extend(self.email_names.iter().map(|n| format!("email:{n}")));
        if all.is_empty() { "no names".to_owned() } else { all.join(", ") }
    }

    fn add_name(&mut self, name: &GeneralName<'_>) -> Result<(), Refusal> {
        let text = |text: &str| {
            if text.bytes().all(|b| b.is_ascii_graphic()) {
                Ok(text.to_owned())
            } else {
                Err(Refusal::new(Cause::BadCertificate, format!("name {text:?} holds characters no name may have")))
            }
        };
        match name {
            GeneralName::URI(uri) => self.uri_names.push(text(uri)?),
            GeneralName::DNSName(dns) => self.dns_names.push(text(dns)?),
            GeneralName::RFC822Name(mail) => self.email_names.push(text(mail)?),
            GeneralName::IPAddress(bytes) => {
                let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
                let ip = v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
                self.ip_names.push(ip.map_err(|_| {
                    Refusal::new(Cause::BadCertificate, format!("an address of {} bytes", bytes.len()))
                })?);
            }
            GeneralName::Invalid(..) => {
                return Err(Refusal::new(Cause::BadCertificate, "a subject alternative name that cannot be read"));
            }
            _ => {}
        }
        Ok(())
    }
}

/// The mesh identity in a presented chain: its leaf has exactly one URI name and that is a SPIFFE id.
///
/// # Errors
/// [`Cause::NoCertificate`], [`Cause::BadCertificate`] or [`Cause::NotSpiffe`].
pub fn peer_identity(chain: &[CertificateDer<'_>]) -> Result<SpiffeId, Refusal> {
    let leaf = chain.first().ok_or_else(|| Refusal::new(Cause::NoCertificate, "no certificate was presented"))?;
    single_identity(&PeerFacts::read(leaf)?.uri_names)
}

/// The facts of the peer of a finished handshake; `None` when it presented no certificate.
///
/// # Errors
/// The certificate cannot be read, or it ended while its session lived on in a cache and was resumed now.
pub fn facts(connection: &CommonState, now: SystemTime) -> Result<Option<PeerFacts>, Refusal> {
    let Some(leaf) = connection.peer_certificates().and_then(<[_]>::first) else { return Ok(None) };
    let facts = PeerFacts::read(leaf)?;
    if connection.handshake_kind() == Some(rustls::HandshakeKind::Resumed) {
        facts.check_time(now)?;
    }
    Ok(Some(facts))
}

/// Exactly one URI name, which is a SPIFFE id of the mesh's form.
pub(super) fn single_identity(uri_names: &[String]) -> Result<SpiffeId, Refusal> {
    match uri_names {
        [only] => only.parse().map_err(|e: model::spiffe::SpiffeError| Refusal::new(Cause::NotSpiffe, e.to_string())),
        [] => Err(Refusal::new(Cause::NotSpiffe, "the certificate has no URI name")),
        more => Err(Refusal::new(Cause::NotSpiffe, format!("the certificate has {} URI names, not one", more.len()))),
    }
}

/// A moment as text in UTC.
pub(crate) fn when(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(|_| "at an unknown time".to_owned(), |t| t.to_string())
}

fn system_time(unix_seconds: i64) -> SystemTime {
    let seconds = Duration::from_secs(unix_seconds.unsigned_abs());
    let time = if unix_seconds >= 0 {
        SystemTime::UNIX_EPOCH.checked_add(seconds)
    } else {
        SystemTime::UNIX_EPOCH.checked_sub(seconds)
    };
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// RFC 2253: the last part first, `,` between parts, `+` inside a part with several values, special characters escaped.
fn rfc2253(name: &X509Name<'_>) -> String {
    let registry = x509_parser::objects::oid_registry();
    let mut parts: Vec<String> = name
        .iter()
        .map(|part| {
            let values = part.iter().map(|attribute| {
                let key = x509_parser::objects::oid2abbrev(attribute.attr_type(), registry)
                    .map_or_else(|_| attribute.attr_type().to_id_string(), str::to_owned);
                let value = attribute.as_str().map_or_else(|_| format!("#{}", hex(attribute.as_slice())), escape);
                format!("{key}={value}")
            });
            values.collect::<Vec<_>>().join("+")
        })
        .collect();
    parts.reverse();
    parts.join(",")
}

fn escape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for (at, c) in value.char_indices() {
        let edge_space = c == ' ' && (at == 0 || at + 1 == value.len());
        if ",+\"\\<>;".contains(c) || edge_space || (c == '#' && at == 0) {
            out.push('\\');
            out.push(c);
        } else if c.is_ascii_control() || !c.is_ascii() {
            let mut buffer = [0; 4];
            for byte in c.encode_utf8(&mut buffer).bytes() {
                out.push_str(&format!("\\{byte:02X}"));
            }
        } else {
            out.push(c);
        }
    }
    out
}
