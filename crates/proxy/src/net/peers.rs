//! What peers' certificates say, read once for each certificate and worker: the same few peers come again and again, and
//! whatever is shared by their connections costs each of them nothing.

use std::cell::{OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use engine::Peer;
use hashbrown::HashMap;
use identity::tls::{PeerFacts, Refusal};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use rustls::CommonState;
use rustls::pki_types::CertificateDer;

/// Certificates that are remembered; with more, all are read anew.
const MOST: usize = 512;

thread_local! {
    static KNOWN: RefCell<HashMap<Box<[u8]>, Rc<Known>>> = RefCell::default();
}

/// A certificate that was read.
#[derive(Debug)]
pub struct Known {
    /// Its mesh identity.
    pub identity: Option<Arc<str>>,
    facts: PeerFacts,
    peer: Arc<Peer>,
    /// The same with the certificate itself; made where it is handed on.
    whole: OnceCell<Arc<Peer>>,
}

/// The peer of a finished handshake; `None` when it presented no certificate.
///
/// # Errors
/// The certificate cannot be read, or it ended while its session lived on and was resumed now.
pub fn of(state: &CommonState, now: SystemTime) -> Result<Option<Rc<Known>>, Refusal> {
    let Some(leaf) = state.peer_certificates().and_then(<[_]>::first) else { return Ok(None) };
    let known = match KNOWN.with_borrow(|all| all.get(leaf.as_ref()).cloned()) {
        Some(known) => known,
        None => remember(leaf)?,
    };
    if state.handshake_kind() == Some(rustls::HandshakeKind::Resumed) {
        known.facts.check_time(now)?;
    }
    Ok(Some(known))
}

fn remember(leaf: &CertificateDer<'_>) -> Result<Rc<Known>, Refusal> {
    let facts = PeerFacts::read(leaf)?;
    let known = Rc::new(Known {
        identity: facts.identity.as_ref().map(|identity| identity.to_string().into()),
        peer: Arc::new(peer(&facts)),
        facts,
        whole: OnceCell::new(),
    });
    KNOWN.with_borrow_mut(|all| {
        if all.len() >= MOST {
            all.clear();
        }
        all.insert(leaf.as_ref().into(), Rc::clone(&known));
    });
    Ok(known)
}

impl Known {
    /// As the engine knows it.
    pub fn peer(&self) -> Arc<Peer> {
        Arc::clone(&self.peer)
    }

    /// The same with the certificate itself, the first of the `chain` that the client sent.
    pub fn whole(&self, chain: &[CertificateDer<'_>]) -> Arc<Peer> {
        let [leaf, rest @ ..] = chain else { return self.peer() };
        let alone = self.whole.get_or_init(|| {
            let certificate: Option<Arc<str>> = Some(encoded_pem(leaf).into());
            Arc::new(Peer { chain: certificate.clone(), certificate, ..Peer::clone(&self.peer) })
        });
        if rest.is_empty() {
            return Arc::clone(alone);
        }
        // The same certificate may come with other intermediates.
        let all: String = chain.iter().map(|one| encoded_pem(one)).collect();
        Arc::new(Peer { chain: Some(all.into()), ..Peer::clone(alone) })
    }
}

fn peer(facts: &PeerFacts) -> Peer {
    let shared = |names: &[String]| names.iter().map(|name| Arc::from(name.as_str())).collect();
    Peer {
        uri_sans: shared(&facts.uri_names),
        dns_sans: shared(&facts.dns_names),
        subject: facts.subject.as_str().into(),
        issuer: facts.issuer.as_str().into(),
        serial: facts.serial.as_str().into(),
        sha256: facts.hash.as_str().into(),
        validated: true,
        certificate: None,
        chain: None,
    }
}

/// A certificate as PEM, URL-encoded as Envoy hands it on.
fn encoded_pem(certificate: &[u8]) -> String {
    const ESCAPED: &AsciiSet = &CONTROLS.add(b' ').add(b'+').add(b'/').add(b'=');
    let text = STANDARD.encode(certificate);
    let lines = text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line).into_owned());
    let body = lines.collect::<Vec<_>>().join("\n");
    let pem = format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
    utf8_percent_encode(&pem, ESCAPED).to_string()
}
