//! From settings to rustls configurations.

use std::sync::Arc;
use std::time::Duration;

use rustls::server::{NoServerSessionStorage, ServerConfig, WebPkiClientVerifier};
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::{ClientConfig, SupportedProtocolVersion, client};

use super::material::{KeySlot, Revocation, TrustBundle};
use super::provider;
use super::sessions::BoundSessions;
use super::verify::{NameCheck, PeerVerifier};

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

impl TlsFloor {
    pub(super) fn versions(self) -> &'static [&'static SupportedProtocolVersion] {
        static BOTH: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];
        static NEWEST: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS13];
        match self {
            Self::V1_2 => &BOTH,
            Self::V1_3 => &NEWEST,
        }
    }
}

/// Whether sessions are resumed. They live in the configuration that made them and end with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Resumption {
    /// Every handshake is a full one: each verifies the peer's certificate anew. The default for mutual TLS.
    #[default]
    Off,
    /// Within this time. With client certificates the caller must use [`super::facts`], which refuses a resumed
    /// session whose certificate has ended.
    Within(Duration),
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
    /// Revocation lists.
    pub revocation: Option<Arc<Revocation>>,
    /// Application protocols in order of preference; empty: ALPN is not negotiated.
    pub alpn: Vec<Vec<u8>>,
    /// The lowest version.
    pub floor: TlsFloor,
    /// Session resumption.
    pub resumption: Resumption,
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
    /// Revocation lists.
    pub revocation: Option<Arc<Revocation>>,
    /// Application protocols in order of preference; empty: ALPN is not offered.
    pub alpn: Vec<Vec<u8>>,
    /// The lowest version.
    pub floor: TlsFloor,
    /// Session resumption.
    pub resumption: Resumption,
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
    let builder = ServerConfig::builder_with_details(provider(), clock(settings.clock.as_ref()))
        .with_protocol_versions(settings.floor.versions())?;
    let builder = match settings.client_auth {
        ClientAuth::None => builder.with_client_cert_verifier(WebPkiClientVerifier::no_client_auth()),
        auth => {
            if matches!(settings.names, NameCheck::ServerName) {
                return Err(BuildError::ServerNameOnServer);
            }
            let mandatory = auth == ClientAuth::Require;
            let revocation = settings.revocation.as_ref();
            builder.with_client_cert_verifier(verifier(&settings.trust, &settings.names, revocation, mandatory)?)
        }
    };
    let mut config = builder.with_cert_resolver(Arc::clone(&settings.keys) as Arc<_>);
    config.alpn_protocols = alpn(&settings.alpn)?;
    match settings.resumption {
        Resumption::Off => {
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        Resumption::Within(lifetime) => {
            config.session_storage = Arc::new(BoundSessions::new(lifetime));
            config.send_tls13_tickets = 1;
        }
    }
    Ok(Arc::new(config))
}

/// Builds a client's configuration.
///
/// # Errors
/// See [`BuildError`].
pub fn client_config(settings: &ClientSettings) -> Result<Arc<ClientConfig>, BuildError> {
    let verifier = verifier(&settings.trust, &settings.names, settings.revocation.as_ref(), false)?;
    let builder = ClientConfig::builder_with_details(provider(), clock(settings.clock.as_ref()))
        .with_protocol_versions(settings.floor.versions())?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match &settings.keys {
        Some(keys) => builder.with_client_cert_resolver(Arc::clone(keys) as Arc<_>),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn(&settings.alpn)?;
    config.enable_sni = settings.send_server_name;
    config.resumption = match settings.resumption {
        Resumption::Off => client::Resumption::disabled(),
        Resumption::Within(_) => client::Resumption::in_memory_sessions(64),
    };
    Ok(Arc::new(config))
}

fn verifier(
    bundles: &[TrustBundle],
    names: &NameCheck,
    revocation: Option<&Arc<Revocation>>,
    mandatory: bool,
) -> Result<Arc<PeerVerifier>, BuildError> {
    if bundles.is_empty() {
        return Err(BuildError::NoTrust);
    }
    let (bundles, names, revocation) = (bundles.to_vec(), names.clone(), revocation.cloned());
    Ok(Arc::new(PeerVerifier { bundles, names, revocation, mandatory }))
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
