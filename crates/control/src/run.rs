//! Starting a control plane and keeping it up to date.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::routing::get;
use identity::audit::Audit;
use identity::ca::{Authority, CaError};
use identity::door::{self, UnixDoor};
use identity::service::{CertificateService, control_keys};
use identity::token::TokenStore;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::TcpListenerStream;
use xds::server::Ads;

use crate::api::{self, Api};
use crate::feeds::Feeds;
use crate::inputs::{Batch, Store};
use crate::metrics::Metrics;
use crate::proxies::Proxies;
use crate::settings::Settings;
use crate::source::MeshSource;
use crate::world::World;

/// The pause after a push in which further changes are collected; it doubles while they keep coming.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// Streams begin anew after this time, so that a proxy proves its identity again (Istio's default).
const CONNECTION_AGE: Duration = Duration::from_secs(30 * 60);
/// HTTP/2 pings to a proxy, and how long their answer may take.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Why a control plane cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A door cannot be opened.
    #[error("cannot listen on {what}: {source}")]
    Listen {
        /// Which.
        what: String,
        /// Why.
        source: std::io::Error,
    },
    /// A private file or directory.
    #[error(transparent)]
    Private(#[from] identity::PrivateError),
    /// The certificate authority.
    #[error(transparent)]
    Authority(#[from] CaError),
    /// The trust bundle or the TLS settings made from it.
    #[error("the certificate authority's root cannot be used: {0}")]
    Tls(String),
    /// The inputs ended before their first batch.
    #[error("the declarations cannot be read")]
    NoInputs,
}

/// A control plane that is up.
#[derive(Debug)]
pub struct Running {
    /// ADS and certificates over TLS.
    pub xds: Option<SocketAddr>,
    /// ADS in plaintext on loopback.
    pub insecure_xds: Option<SocketAddr>,
    /// The API.
    pub api: Option<SocketAddr>,
    /// Metrics.
    pub metrics: Option<SocketAddr>,
    /// ADS and certificates over a Unix socket.
    pub socket: PathBuf,
    /// The trust domain of the identities it issues.
    pub trust_domain: String,
    /// What it serves.
    pub world: Arc<World>,
    /// To whom.
    pub proxies: Arc<Proxies>,
    tasks: JoinSet<()>,
}

impl Drop for Running {
    /// Takes its files out of the run directory: what is there belongs to something alive.
    fn drop(&mut self) {
        for name in ["xds.sock", "api.sock", "api.token"] {
            let _ = std::fs::remove_file(self.socket.with_file_name(name));
        }
    }
}

impl Running {
    /// Runs until a task ends, which none does by itself.
    pub async fn wait(&mut self) {
        self.tasks.join_next().await;
    }
}

/// Runs a control plane until it is told to stop.
///
/// # Errors
/// See [`Error`].
pub async fn run(
    settings: Settings,
    inputs: mpsc::Receiver<Batch>,
    store: Option<Arc<dyn Store>>,
    ready: impl FnOnce(&Running),
    stop: impl Future<Output = ()>,
) -> Result<(), Error> {
    let mut running = start(settings, inputs, store).await?;
    ready(&running);
    tokio::select! {
        () = stop => {}
        () = running.wait() => {}
    }
    Ok(())
}

/// Starts a control plane: it is ready when this returns, with the first batch of declarations in force. It ends
/// when the value is dropped.
///
/// # Errors
/// See [`Error`].
pub async fn start(
    settings: Settings,
    mut inputs: mpsc::Receiver<Batch>,
    store: Option<Arc<dyn Store>>,
) -> Result<Running, Error> {
    let audit = Arc::new(Audit::default());
    let metrics = Arc::new(Metrics::new(audit.clone()));
    let (world, feeds, proxies) =
        (Arc::new(World::default()), Arc::new(Feeds::default()), Arc::new(Proxies::default()));
    let source = MeshSource { world: world.clone(), feeds, proxies: proxies.clone(), metrics, audit: audit.clone() };
    let source = Arc::new(source);
    let first = inputs.recv().await.ok_or(Error::NoInputs)?;
    take_in(&source, vec![first]).await;
    let trust_domain = world.read().config().trust_domain.clone();

    let mut tasks = JoinSet::new();
    let mut doors = Doors::open(&settings, &trust_domain, &source, &mut tasks)?;
    let api = Api { world: world.clone(), proxies: proxies.clone(), store };
    api::serve_unix(&settings.run_dir.join("api.sock"), api.clone(), audit, &mut tasks)?;
    if let Some(address) = settings.api {
        let token = token(&settings.run_dir)?;
        let listener = bind(address, "the API's port")?;
        doors.api = listener.local_addr().ok();
        tasks.spawn(async move { report("api", api::serve_tcp(listener, api, token).await) });
    }
    if let Some(address) = settings.metrics {
        let listener = bind(address, "the metrics port")?;
        doors.metrics = listener.local_addr().ok();
        let page = metrics_page(source.clone());
        tasks.spawn(async move { report("metrics", axum::serve(listener, page).await) });
    }
    tasks.spawn(keep_up(source, inputs));
    Ok(Running {
        xds: doors.xds,
        insecure_xds: doors.insecure_xds,
        api: doors.api,
        metrics: doors.metrics,
        socket: doors.socket,
        trust_domain,
        world,
        proxies,
        tasks,
    })
}

/// Where it listens.
struct Doors {
    xds: Option<SocketAddr>,
    insecure_xds: Option<SocketAddr>,
    api: Option<SocketAddr>,
    metrics: Option<SocketAddr>,
    socket: PathBuf,
}

impl Doors {
    /// Opens the doors for proxies and agents.
    fn open(
        settings: &Settings,
        trust_domain: &str,
        source: &Arc<MeshSource>,
        tasks: &mut JoinSet<()>,
    ) -> Result<Self, Error> {
        let audit = source.audit.clone();
        let authority =
            Authority::load_or_create(&settings.ca_dir, trust_domain, settings.cert_ttl, SystemTime::now())?;
        let authority = Arc::new(authority);
        source.metrics.root_ends(authority.root_not_after());
        let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
        names.extend(settings.names.iter().cloned());
        let keys = control_keys(authority.clone(), names)?;
        let bundle = authority.bundle().map_err(|error| Error::Tls(error.to_string()))?;
        let tls = door::control_tls(keys, bundle).map_err(|error| Error::Tls(error.to_string()))?;
        let tokens = TokenStore::open(&settings.ca_dir, audit.clone())?;
        let certificates = CertificateService::new(authority, tokens, audit.clone()).into_server();
        let ads = Ads::new(source.clone());

        let socket = settings.run_dir.join("xds.sock");
        let listener = door::bind_unix(&socket)?;
        let incoming = door::unix(listener, UnixDoor { tls: Some(tls.clone()), audit, ..UnixDoor::default() });
        let serving = server().add_service(ads.clone()).add_service(certificates.clone()).serve_with_incoming(incoming);
        tasks.spawn(async move { report("xds.sock", serving.await) });
        let mut doors = Self { xds: None, insecure_xds: None, api: None, metrics: None, socket };
        if let Some(address) = settings.xds {
            let listener = bind(address, "the xDS port")?;
            doors.xds = listener.local_addr().ok();
            let incoming = door::tcp(listener, tls);
            let serving = server().add_service(ads.clone()).add_service(certificates).serve_with_incoming(incoming);
            tasks.spawn(async move { report("xds", serving.await) });
        }
        if let Some(address) = settings.insecure_xds {
            let listener = bind(address, "the plaintext xDS port")?;
            doors.insecure_xds = listener.local_addr().ok();
            tracing::warn!(event = "insecure_xds", %address, "configuration is served to every program of this machine");
            let serving = server().add_service(ads).serve_with_incoming(TcpListenerStream::new(listener));
            tasks.spawn(async move { report("insecure_xds", serving.await) });
        }
        Ok(doors)
    }
}

/// A gRPC server with every limit said.
fn server() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .max_concurrent_streams(64)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .http2_max_header_list_size(16 << 10)
        .http2_max_pending_accept_reset_streams(Some(32))
        .max_frame_size(Some(1 << 20))
        .max_connection_age(CONNECTION_AGE)
        .max_connection_age_grace(Duration::from_secs(5))
        .tcp_nodelay(true)
}

/// Takes changes in for ever: the first at once, those that follow in short pauses together.
async fn keep_up(source: Arc<MeshSource>, mut inputs: mpsc::Receiver<Batch>) {
    let mut pause = FIRST_PAUSE;
    while let Some(first) = inputs.recv().await {
        let mut batches = vec![first];
        while let Ok(more) = inputs.try_recv() {
            batches.push(more);
        }
        take_in(&source, batches).await;
        tokio::time::sleep(pause).await;
        pause = if inputs.is_empty() { FIRST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
    }
    // The inputs ended: what is in force stays.
    std::future::pending::<()>().await;
}

/// Compiles and publishes, away from the threads that serve.
async fn take_in(source: &Arc<MeshSource>, batches: Vec<Batch>) {
    let source = source.clone();
    let work = tokio::task::spawn_blocking(move || {
        let input = if batches.iter().any(|batch| batch.revision.is_some()) { "store" } else { "directory" };
        let applied = source.world.apply(&batches);
        let changed = source.feeds.publish(&source.world, &applied.workloads, applied.revision);
        source.proxies.want(&changed, applied.revision);
        source.world.in_force(&applied);
        source.metrics.pushed(input, applied.at.elapsed());
        tracing::info!(
            event = "configuration",
            revision = applied.revision,
            objects = applied.objects.len(),
            proxies = changed.len(),
            took_us = applied.at.elapsed().as_micros(),
        );
    });
    if work.await.is_err() {
        tracing::error!(event = "configuration_failed", "the last change could not be compiled; the one before stays");
    }
}

fn bind(address: SocketAddr, what: &str) -> Result<TcpListener, Error> {
    let error = |source| Error::Listen { what: format!("{what} {address}"), source };
    let listener = std::net::TcpListener::bind(address).map_err(error)?;
    listener.set_nonblocking(true).map_err(error)?;
    TcpListener::from_std(listener).map_err(error)
}

/// A fresh token for the TCP API, in a 0600 file.
fn token(run_dir: &Path) -> Result<Arc<str>, Error> {
    let path = run_dir.join("api.token");
    let failed = |source| Error::Listen { what: format!("the API: its token {}", path.display()), source };
    let secret = identity::token::Secret::random().map_err(|_| failed(std::io::Error::other("no random bits")))?;
    let secret = secret.reveal();
    write_private(&path, secret.as_bytes()).map_err(failed)?;
    Ok(secret.as_str().into())
}

/// Writes a 0600 file with an atomic swap.
fn write_private(path: &Path, content: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let fresh = path.with_extension("new");
    let _ = std::fs::remove_file(&fresh);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    file.write_all(content)?;
    std::fs::rename(&fresh, path)
}

fn metrics_page(source: Arc<MeshSource>) -> Router {
    let page = move || {
        let source = source.clone();
        async move {
            source.measure();
            let kind = "text/plain; version=0.0.4; charset=utf-8";
            ([(http::header::CONTENT_TYPE, kind)], source.metrics.page())
        }
    };
    Router::new().route("/metrics", get(page))
}

fn report<E: std::fmt::Display>(what: &str, ended: Result<(), E>) {
    match ended {
        Ok(()) => tracing::info!(event = "door_closed", what),
        Err(error) => tracing::error!(event = "door_failed", what, %error),
    }
}
