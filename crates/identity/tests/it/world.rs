//! A control plane's identity side on real sockets, and agents that join it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use identity::agent::AgentSettings;
use identity::audit::Audit;
use identity::ca::Authority;
use identity::door::{self, UnixDoor};
use identity::reach::Server;
use identity::service::{CertificateService, control_keys};
use identity::token::{Grant, JoinToken, TokenStore};
use model::SpiffeId;
use tokio::task::JoinHandle;

pub(crate) const TRUST_DOMAIN: &str = "mesh.test";

pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) authority: Arc<Authority>,
    pub(crate) tokens: TokenStore,
    pub(crate) audit: Arc<Audit>,
    pub(crate) tcp: Server,
    pub(crate) unix: Server,
    tasks: Vec<JoinHandle<()>>,
}

impl World {
    /// Starts the doors. A second start in the same directory is a restarted control plane.
    pub(crate) async fn start(ttl: Duration) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), ttl).await
    }

    pub(crate) async fn start_in(dir: tempfile::TempDir, ttl: Duration) -> Self {
        let ca = dir.path().join("ca");
        let authority = Arc::new(Authority::load_or_create(&ca, TRUST_DOMAIN, ttl, SystemTime::now()).unwrap());
        let audit = Arc::<Audit>::default();
        let tokens = TokenStore::open(&ca, Arc::clone(&audit)).unwrap();
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let keys = control_keys(Arc::clone(&authority), names).unwrap();
        let tls = door::control_tls(keys, authority.bundle().unwrap()).unwrap();
        let service = |_| CertificateService::new(Arc::clone(&authority), tokens.clone(), Arc::clone(&audit));

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = listener.local_addr().unwrap().to_string().parse().unwrap();
        let path = dir.path().join("xds.sock");
        let unix_door = UnixDoor { tls: Some(Arc::clone(&tls)), audit: Arc::clone(&audit), ..UnixDoor::default() };
        let incoming = [door::tcp(listener, tls), door::unix(door::bind_unix(&path).unwrap(), unix_door)];
        let serve = |(index, incoming)| {
            let server = tonic::transport::Server::builder().add_service(service(index).into_server());
            tokio::spawn(async move { server.serve_with_incoming(incoming).await.unwrap() })
        };
        let tasks = incoming.into_iter().enumerate().map(serve).collect();
        Self { dir, authority, tokens, audit, tcp, unix: Server::Unix(path), tasks }
    }

    /// The control plane dies; its directory stays.
    pub(crate) fn stop(self) -> tempfile::TempDir {
        for task in &self.tasks {
            task.abort();
        }
        self.dir
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes a token for `shop/NAME` and writes its file.
    pub(crate) fn token(&self, name: &str, ttl: Duration, server: &Server) -> (PathBuf, JoinToken) {
        let identity = SpiffeId::new(TRUST_DOMAIN, "shop", name).unwrap();
        let grant = Grant { identity: identity.clone(), workload: name.to_owned(), ttl };
        let (secret, info) = self.tokens.create(&grant, SystemTime::now()).unwrap();
        let token = JoinToken {
            secret,
            identity,
            workload: name.to_owned(),
            server: server.to_string(),
            ca_sha256: self.authority.root_hash(),
            expires: info.expires,
        };
        let path = self.path(&format!("{}-{}.token", name, info.id));
        token.write(&path).unwrap();
        (path, token)
    }

    /// Settings of an agent for `shop/NAME` with a fresh token and its own run directory.
    pub(crate) fn agent(&self, name: &str) -> AgentSettings {
        let (token, _) = self.token(name, Duration::from_secs(600), &self.tcp);
        AgentSettings {
            run_dir: self.path(&format!("run-{name}")),
            token: Some(token),
            serve_sds: true,
            ..AgentSettings::default()
        }
    }
}

/// Permission bits of a path, not following links.
pub(crate) fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).unwrap().mode() & 0o7777
}
