//! The workload's side: makes the key, which never leaves, joins with a token, renews in time, and hands key and
//! certificate to proxies over SDS and as PEM files.

mod ask;
mod directory;
mod material;
mod worker;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::audit::Audit;
use crate::ca;
use crate::door::{self, UnixDoor};
use crate::private::PrivateError;
use crate::reach::Server;
use crate::sds;
use crate::tls::{
    BuildError, Cause, ClientSettings, KeySlot, MaterialError, NameCheck, Protocol, SanMatcher, TlsFloor,
    client_config, hex,
};
use crate::token::TokenFileError;
use directory::PemDirectory;
use worker::Worker;

pub use material::Material;

/// The name of the SDS socket in the run directory.
pub const SDS_SOCKET: &str = "sds.sock";

/// What an agent needs to know.
#[derive(Debug, Clone, Default)]
pub struct AgentSettings {
    /// Where key, certificate and sockets live: a private directory, best on tmpfs. A restart finds its identity here.
    pub run_dir: PathBuf,
    /// The token file for first contact, and again after the certificate has ended. It may appear later.
    pub token: Option<PathBuf>,
    /// Where the control plane is; `None`: what the token says, or what it said last time.
    pub server: Option<Server>,
    /// A shorter lifetime than the control plane's; `None`: its default.
    pub ttl: Option<Duration>,
    /// Whether to serve SDS on `RUN-DIR/sds.sock`.
    pub serve_sds: bool,
    /// Users besides this one and root who may ask for the key over SDS.
    pub sds_uids: Vec<u32>,
    /// A second directory for `cert-chain.pem`, `key.pem` and `root-cert.pem`. The run directory always has them.
    pub pem_dir: Option<PathBuf>,
}

/// Why an agent cannot start or does not get its certificate.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A file or directory.
    #[error(transparent)]
    Private(#[from] PrivateError),
    /// The token file.
    #[error(transparent)]
    Token(#[from] TokenFileError),
    /// There is neither a valid certificate nor a token that was not used yet.
    #[error("{0}")]
    NoProof(String),
    /// The control plane cannot be reached, or is not the one it should be.
    #[error("cannot reach the control plane at {server}: {reason}")]
    Reach {
        /// Its address.
        server: String,
        /// The handshake's cause, for counting.
        cause: Cause,
        /// What happened.
        reason: String,
    },
    /// The control plane answered no.
    #[error("the control plane refused: {0}")]
    Refused(String),
    /// The certificate is not what was asked for.
    #[error("the certificate cannot be used: {0}")]
    Certificate(String),
    /// Key material.
    #[error(transparent)]
    Material(#[from] MaterialError),
    /// TLS settings.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The cryptography refused.
    #[error("making a key or request: {0}")]
    Crypto(#[from] rcgen::Error),
}

impl AgentError {
    /// Whether trying again with the same proof is pointless.
    fn is_forbidden(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::NoProof(_) | Self::Token(_))
    }
}

/// What the agent has and what is wrong, if anything.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// The current identity; it may have ended if renewals fail for long.
    pub material: Option<Arc<Material>>,
    /// Why the last attempt failed; `None` after a success.
    pub problem: Option<String>,
    /// Whether the last attempt failed for want of permission (refused, no usable token) rather than of reach.
    pub forbidden: bool,
    /// How many certificates were received since the start.
    pub received: u64,
    /// How many attempts failed since the start.
    pub failed: u64,
}

/// Starts agents.
#[derive(Debug)]
pub struct Agent;

impl Agent {
    /// Starts an agent on the current tokio runtime. It loads what an earlier run left, and otherwise joins; failures to
    /// reach the control plane are retried for ever and shown by [`AgentHandle::status`].
    ///
    /// # Errors
    /// Directories or sockets cannot be made, or are not private.
    pub fn start(settings: AgentSettings) -> Result<AgentHandle, AgentError> {
        let home = PemDirectory::open(&settings.run_dir)?;
        let copy = settings.pem_dir.as_deref().map(PemDirectory::open).transpose()?;
        let keys = KeySlot::empty();
        let (send, status) = watch::channel(Status::default());
        let mut tasks = Vec::new();
        let mut sds_socket = None;
        if settings.serve_sds {
            let path = settings.run_dir.join(SDS_SOCKET);
            let listener = door::bind_unix(&path)?;
            let more_uids = settings.sds_uids.clone();
            let incoming = door::unix(listener, UnixDoor { more_uids, tls: None, audit: Arc::<Audit>::default() });
            tasks.push(tokio::spawn(sds::serve(incoming, status.clone())));
            sds_socket = Some(path);
        }
        let worker = Worker::new(settings, home, copy, send, Arc::clone(&keys));
        tasks.push(tokio::spawn(worker.run()));
        Ok(AgentHandle { status, keys, sds_socket, tasks })
    }
}

/// A running agent. It stops when this is dropped; its files stay, its socket goes.
#[derive(Debug)]
pub struct AgentHandle {
    status: watch::Receiver<Status>,
    keys: Arc<KeySlot>,
    sds_socket: Option<PathBuf>,
    tasks: Vec<JoinHandle<()>>,
}

impl AgentHandle {
    /// What the agent has now.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Follows every change.
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// A slot that always holds the current key, for [`crate::tls`] configurations.
    pub fn keys(&self) -> Arc<KeySlot> {
        Arc::clone(&self.keys)
    }

    /// Where SDS is served.
    pub fn sds_socket(&self) -> Option<&std::path::Path> {
        self.sds_socket.as_deref()
    }

    /// Waits for a valid identity, at most for `limit`.
    ///
    /// # Errors
    /// The time is over; the text is the last problem.
    pub async fn ready(&self, limit: Duration) -> Result<Arc<Material>, String> {
        let mut status = self.status.clone();
        let valid = |s: &Status| s.material.as_ref().is_some_and(|m| !m.is_over(SystemTime::now()));
        match tokio::time::timeout(limit, status.wait_for(valid)).await {
            Ok(Ok(found)) => found.material.clone().ok_or_else(|| "the agent has no identity".to_owned()),
            Ok(Err(_)) => Err("the agent has stopped".to_owned()),
            Err(_) => Err(self.status().problem.unwrap_or_else(|| format!("no certificate within {limit:?}"))),
        }
    }

    /// A TLS client configuration for the control plane (ADS): this workload's certificate, the control plane's
    /// identity expected, HTTP/2. `None` before the first certificate.
    ///
    /// # Errors
    /// Never in practice.
    pub fn control_client(&self) -> Result<Option<Arc<rustls::ClientConfig>>, BuildError> {
        let Some(material) = self.status().material else { return Ok(None) };
        control_client(&material, Arc::clone(&self.keys)).map(Some)
    }
}

impl Drop for AgentHandle {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        if let Some(path) = &self.sds_socket {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// See [`AgentHandle::control_client`].
fn control_client(material: &Material, keys: Arc<KeySlot>) -> Result<Arc<rustls::ClientConfig>, BuildError> {
    let trust_domain = material.identity.trust_domain();
    let expected = format!("spiffe://{trust_domain}/ns/{}/sa/{}", ca::CONTROL_NAMESPACE, ca::CONTROL_ACCOUNT);
    client_config(&ClientSettings {
        keys: Some(keys),
        trust: vec![material.bundle.clone()],
        names: NameCheck::OneOf(vec![SanMatcher::uri(expected)]),
        alpn: vec![b"h2".to_vec()],
        protocol: Protocol { floor: TlsFloor::V1_3, ..Protocol::default() },
        ..ClientSettings::default()
    })
}

/// The text of a root's pin, as tokens have it.
fn pin_text(hash: [u8; 32]) -> String {
    hex(&hash)
}
