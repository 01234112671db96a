//! From settings to rustls configurations.

use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::CryptoProvider;
use rustls::server::{NoServerSessionStorage, ServerConfig, WebPkiClientVerifier};
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::{CipherSuite, ClientConfig, NamedGroup, SupportedProtocolVersion, client};

use super::material::{KeySlot, Revocation, TrustBundle};
use super::provider;
use super::sessions::{Place, Sessions};
use super::tickets::{BoundSessions, BoundTickets};
use super::verify::{NameCheck, PeerVerifier, Pins};

/// Why a configuration cannot be built.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BuildError {
    /// Verification would need an authority and there is none. Tulle never connects without verification.
    #[error("no trusted authority: give a trust bundle (Envoy's `trusted_ca` or a validation secret)")]
    NoTrust,
    /// A server cannot compare a client with the name of the connection.
    #[error("the server name can be checked on clients only: give SAN matchers instead")]
    ServerNameOnServer,
    /// An application protocol is empty or longer than 255 bytes.
    #[error("ALPN protocol {0:?} must have 1 to 255 bytes")]
    Alpn(String),
    /// No version is left.
    #[error("the lowest version (TLS 1.3) is above the highest (TLS 1.2)")]
    Versions,
    /// No cipher suite is left.
    #[error("none of the cipher suites is supported: {0}")]
    NoCipherSuite(String),
    /// No group is left.
    #[error("none of the key exchange groups is supported: {0}")]
    NoGroup(String),
    /// rustls does not accept the combination.
    #[error("TLS settings: {0}")]
    Rustls(#[from] rustls::Error),
}

/// Whether a server wants a certificate from its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClientAuth {
    /// Does not ask.
    #[default]
    None,
    /// Asks; a client without one is served, a client with a wrong one is refused.
    Request,
    /// Asks and insists: mutual TLS.
    Require,
}

/// The lowest version of TLS that is spoken. TLS 1.0 and 1.1 do not exist here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TlsFloor {
    /// TLS 1.2 and 1.3 (Envoy's default).
    #[default]
    V1_2,
    /// TLS 1.3 only: what mesh peers speak to each other.
    V1_3,
}

/// The highest version of TLS that is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TlsCeiling {
    /// TLS 1.2 only.
    V1_2,
    /// TLS 1.3.
    #[default]
    V1_3,
}

/// Which versions, cipher suites and groups are spoken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Protocol {
    /// The lowest version.
    pub floor: TlsFloor,
    /// The highest version.
    pub ceiling: TlsCeiling,
    /// Cipher suites of TLS 1.2 by OpenSSL's names, in order; those that are not supported are left out. Empty: all that
    /// are. (The three of TLS 1.3 are always spoken, as in Envoy.)
    pub cipher_suites: Vec<String>,
    /// Key exchange groups by OpenSSL's names (`X25519MLKEM768`, `X25519`, `P-256`, `P-384`), in order; those that are
    /// not supported are left out. Empty: all four, in this order.
    pub groups: Vec<String>,
}

impl Protocol {
    fn versions(&self) -> Result<&'static [&'static SupportedProtocolVersion], BuildError> {
        static BOTH: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];
        static NEWER: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS13];
        static OLDER: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS12];
        match (self.floor, self.ceiling) {
            (TlsFloor::V1_2, TlsCeiling::V1_3) => Ok(&BOTH),
            (TlsFloor::V1_3, TlsCeiling::V1_3) => Ok(&NEWER),
            (TlsFloor::V1_2, TlsCeiling::V1_2) => Ok(&OLDER),
            (TlsFloor::V1_3, TlsCeiling::V1_2) => Err(BuildError::Versions),
        }
    }

    fn provider(&self) -> Result<Arc<CryptoProvider>, BuildError> {
        if self.cipher_suites.is_empty() && self.groups.is_empty() {
            return Ok(provider());
        }
        let mut tuned = (*provider()).clone();
        if !self.cipher_suites.is_empty() {
            let all = std::mem::take(&mut tuned.cipher_suites);
            let (newer, older): (Vec<_>, Vec<_>) = all.into_iter().partition(|s| s.tls13().is_some());
            let wanted = self.cipher_suites.iter().filter_map(|name| {
                older.iter().find(|suite| openssl_name(suite.suite()) == Some(name.as_str())).copied()
            });
            let wanted: Vec<_> = wanted.collect();
            if wanted.is_empty() && self.floor == TlsFloor::V1_2 {
                return Err(BuildError::NoCipherSuite(self.cipher_suites.join(", ")));
            }
            tuned.cipher_suites = newer.into_iter().chain(wanted).collect();
        }
        if !self.groups.is_empty() {
            let all = std::mem::take(&mut tuned.kx_groups);
            let wanted = |name: &String| all.iter().find(|group| named_group(name) == Some(group.name())).copied();
            tuned.kx_groups = self.groups.iter().filter_map(wanted).collect();
            if tuned.kx_groups.is_empty() {
                return Err(BuildError::NoGroup(self.groups.join(", ")));
            }
        }
        Ok(Arc::new(tuned))
    }
}

/// OpenSSL's name of a cipher suite of TLS 1.2.
fn openssl_name(suite: CipherSuite) -> Option<&'static str> {
    Some(match suite {
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 => "ECDHE-ECDSA-AES128-GCM-SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 => "ECDHE-ECDSA-AES256-GCM-SHA384",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-ECDSA-CHACHA20-POLY1305",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => "ECDHE-RSA-AES128-GCM-SHA256",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => "ECDHE-RSA-AES256-GCM-SHA384",
        CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-RSA-CHACHA20-POLY1305",
        _ => return None,
    })
}

fn named_group(name: &str) -> Option<NamedGroup> {
    Some(match name {
        "X25519MLKEM768" => NamedGroup::X25519MLKEM768,
        "X25519" => NamedGroup::X25519,
        "P-256" => NamedGroup::secp256r1,
        "P-384" => NamedGroup::secp384r1,
        _ => return None,
    })
}

/// What a TLS server needs to know.
#[derive(Debug, Clone, Default)]
pub struct ServerSettings {
    /// Its keys; read at each handshake.
    pub keys: Arc<KeySlot>,
    /// Whether clients authenticate.
    pub client_auth: ClientAuth,
    /// Who vouches for clients; needed unless `client_auth` is `None`.
    pub trust: Vec<TrustBundle>,
    /// Which names clients must have.
    pub names: NameCheck,
    /// Pinned certificates and keys.
    pub pins: Pins,
    /// Revocation lists.
    pub revocation: Option<Arc<Revocation>>,
    /// Application protocols in order of preference; empty: ALPN is not negotiated.
    pub alpn: Vec<Vec<u8>>,
    /// Versions, cipher suites, groups.
    pub protocol: Protocol,
    /// How long the session tickets that clients get are good for; `None`, the default: clients get none, and each
    /// handshake verifies the client anew (with TLS 1.2 see `cache`). With client certificates the caller must use
    /// [`super::facts`], which refuses a resumed session whose certificate has ended.
    pub tickets: Option<Duration>,
    /// How long the session ids of TLS 1.2 are good for; `None`, the default: there are none.
    pub cache: Option<Duration>,
    /// The clock; `None`: the system's.
    pub clock: Option<Arc<dyn TimeProvider>>,
}

/// What a TLS client needs to know. The server name goes with each connection.
#[derive(Debug, Clone, Default)]
pub struct ClientSettings {
    /// Its keys, if it authenticates; read at each handshake. `None`: it has none.
    pub keys: Option<Arc<KeySlot>>,
    /// Who vouches for servers; never empty.
    pub trust: Vec<TrustBundle>,
    /// Which names servers must have.
    pub names: NameCheck,
    /// Pinned certificates and keys.
    pub pins: Pins,
    /// Revocation lists.
    pub revocation: Option<Arc<Revocation>>,
    /// Application protocols in order of preference; empty: ALPN is not offered.
    pub alpn: Vec<Vec<u8>>,
    /// Versions, cipher suites, groups.
    pub protocol: Protocol,
    /// The sessions that may be resumed; `None`, the default: each handshake is a full one.
    pub sessions: Option<Sessions>,
    /// Whether the server name is sent (SNI).
    pub send_server_name: bool,
    /// The clock; `None`: the system's.
    pub clock: Option<Arc<dyn TimeProvider>>,
}

/// Builds a server's configuration.
///
/// # Errors
/// See [`BuildError`].
pub fn server_config(settings: &ServerSettings) -> Result<Arc<ServerConfig>, BuildError> {
    let builder = ServerConfig::builder_with_details(settings.protocol.provider()?, clock(settings.clock.as_ref()))
        .with_protocol_versions(settings.protocol.versions()?)?;
    let builder = match settings.client_auth {
        ClientAuth::None => builder.with_client_cert_verifier(WebPkiClientVerifier::no_client_auth()),
        auth => {
            if matches!(settings.names, NameCheck::ServerName) {
                return Err(BuildError::ServerNameOnServer);
            }
            builder.with_client_cert_verifier(Arc::new(PeerVerifier {
                bundles: some_trust(&settings.trust)?,
                names: settings.names.clone(),
                pins: settings.pins.clone(),
                revocation: settings.revocation.clone(),
                mandatory: auth == ClientAuth::Require,
            }))
        }
    };
    let mut config = builder.with_cert_resolver(Arc::clone(&settings.keys) as Arc<_>);
    config.alpn_protocols = alpn(&settings.alpn)?;
    config.session_storage = match settings.cache.filter(|_| settings.protocol.floor == TlsFloor::V1_2) {
        Some(lifetime) => Arc::new(BoundSessions::new(&settings.keys, lifetime)),
        None => Arc::new(NoServerSessionStorage {}),
    };
    config.send_tls13_tickets = usize::from(settings.tickets.is_some());
    if let Some(lifetime) = settings.tickets {
        config.ticketer = Arc::new(BoundTickets::new(&settings.keys, lifetime)?);
    }
    Ok(Arc::new(config))
}

/// Builds a client's configuration.
///
/// # Errors
/// See [`BuildError`].
pub fn client_config(settings: &ClientSettings) -> Result<Arc<ClientConfig>, BuildError> {
    let verifier = Arc::new(PeerVerifier {
        bundles: some_trust(&settings.trust)?,
        names: settings.names.clone(),
        pins: settings.pins.clone(),
        revocation: settings.revocation.clone(),
        mandatory: false,
    });
    let builder = ClientConfig::builder_with_details(settings.protocol.provider()?, clock(settings.clock.as_ref()))
        .with_protocol_versions(settings.protocol.versions()?)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match &settings.keys {
        Some(keys) => builder.with_client_cert_resolver(Arc::clone(keys) as Arc<_>),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn(&settings.alpn)?;
    config.enable_sni = settings.send_server_name;
    config.resumption = match &settings.sessions {
        None => client::Resumption::disabled(),
        Some(sessions) => client::Resumption::store(Arc::new(sessions.of(Place::Any))),
    };
    Ok(Arc::new(config))
}

fn some_trust(bundles: &[TrustBundle]) -> Result<Vec<TrustBundle>, BuildError> {
    if bundles.is_empty() { Err(BuildError::NoTrust) } else { Ok(bundles.to_vec()) }
}

fn clock(given: Option<&Arc<dyn TimeProvider>>) -> Arc<dyn TimeProvider> {
    given.map_or_else(|| Arc::new(DefaultTimeProvider) as Arc<_>, Arc::clone)
}

fn alpn(protocols: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, BuildError> {
    match protocols.iter().find(|p| p.is_empty() || p.len() > 255) {
        Some(bad) => Err(BuildError::Alpn(String::from_utf8_lossy(bad).into_owned())),
        None => Ok(protocols.to_vec()),
    }
}
