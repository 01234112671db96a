//! `tulle control`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use control::inputs::{Batch, Change, Store, StoreError, Write, stored_name};
use control::{Running, Settings};
use telemetry::logging::{self, Style};
use tokio::sync::mpsc;

use super::connection::default_run_dir;
use crate::cli::Global;
use crate::output::{self, Exit, fail};

/// Run the control plane: declarations in, configuration and certificates for proxies out
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tulle control --config shop/\n  tulle control --store redb:/var/lib/tulle/mesh.redb --run-dir /run/tulle"
)]
pub(crate) struct Args {
    /// File or directory of YAML to read and watch; may be repeated
    #[arg(long, value_name = "PATH")]
    config: Vec<PathBuf>,
    /// Store that `tulle apply` writes to: redb:FILE
    #[arg(long, value_name = "STORE", value_parser = parse_store)]
    store: Option<PathBuf>,
    /// Directory of its sockets and its API token [default: /run/tulle for root, $XDG_RUNTIME_DIR/tulle else]
    #[arg(long, value_name = "DIR", env = "TULLE_RUN_DIR")]
    run_dir: Option<PathBuf>,
    /// Directory of the certificate authority; made when there is none
    #[arg(long, value_name = "DIR")]
    ca_dir: Option<PathBuf>,
    /// How long a workload's certificate lives: 90s, 10m, 24h
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = super::duration::parse)]
    cert_ttl: Duration,
    /// Where proxies and agents connect over TLS, or `off`
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:15012")]
    xds: Door,
    /// Serve configuration without encryption to everybody on this machine, on 127.0.0.1:15010 or where told
    #[arg(long, value_name = "IP:PORT", num_args = 0..=1, default_missing_value = "127.0.0.1:15010")]
    insecure_xds: Option<SocketAddr>,
    /// Where the API listens besides RUN-DIR/api.sock, or `off`
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:15100")]
    api: Door,
    /// Where Prometheus reads metrics, or `off`
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:15014")]
    metrics: Door,
    /// A name or address in its own certificate, besides those of this machine's loopback; may be repeated
    #[arg(long = "name", value_name = "NAME")]
    names: Vec<String>,
    /// How its log looks: logfmt or json
    #[arg(long, value_name = "STYLE", default_value = "logfmt")]
    log_format: Style,
    /// What it logs: `info`, or exceptions by module: `warn,control=debug`
    #[arg(long, value_name = "LEVELS", env = "TULLE_LOG", default_value = "info")]
    log: String,
}

/// An address to listen on, or none.
#[derive(Debug, Clone, Copy)]
struct Door(Option<SocketAddr>);

impl std::str::FromStr for Door {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self(None));
        }
        text.parse().map(|address| Self(Some(address))).map_err(|_| "write IP:PORT or off".to_owned())
    }
}

fn parse_store(text: &str) -> Result<PathBuf, String> {
    match text.split_once(':') {
        Some(("redb", path)) if !path.is_empty() => Ok(path.into()),
        Some((kind, _)) => Err(format!("there is no store of kind `{kind}` in this build: write redb:FILE")),
        None => Err("write redb:FILE".to_owned()),
    }
}

pub(crate) fn run(args: Args, global: &Global) -> Exit {
    if args.config.is_empty() && args.store.is_none() {
        let next = "give --config DIR, or --store redb:FILE, or both";
        return fail(Exit::Usage, "the control plane needs declarations", Some(next));
    }
    if let Some(address) = args.insecure_xds.filter(|address| !address.ip().is_loopback()) {
        let next = "use a loopback address; other machines connect over TLS (--xds)";
        return fail(
            Exit::Usage,
            format!("--insecure-xds {address} would show the configuration to the network"),
            Some(next),
        );
    }
    let levels = if global.verbose > 0 { "debug" } else { args.log.as_str() };
    if let Err(error) = logging::init(levels, args.log_format) {
        return fail(Exit::Usage, error, None);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("tulle-control").build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(Exit::Unreachable, format!("cannot start: {error}"), None),
    };
    runtime.block_on(serve(args, global))
}

async fn serve(args: Args, global: &Global) -> Exit {
    let (inputs, store) = match inputs(&args) {
        Ok(both) => both,
        Err(exit) => return exit,
    };
    let settings = Settings {
        cert_ttl: args.cert_ttl,
        xds: args.xds.0,
        insecure_xds: args.insecure_xds,
        api: args.api.0,
        metrics: args.metrics.0,
        names: args.names,
        ..Settings::new(
            args.run_dir.unwrap_or_else(default_run_dir),
            args.ca_dir.unwrap_or_else(identity::ca::default_directory),
        )
    };
    let quiet = global.quiet;
    let ready = |running: &Running| {
        if !quiet {
            output::print(&banner(running));
        }
    };
    match control::run(settings, inputs, store, ready, stopped()).await {
        Ok(()) => Exit::Done,
        Err(error @ (control::Error::Private(_) | control::Error::Listen { .. })) => {
            let next = "choose other addresses with --xds, --api and --metrics (or `off`), other places with --run-dir and --ca-dir";
            fail(Exit::Forbidden, error, Some(next))
        }
        Err(error) => fail(Exit::Invalid, error, None),
    }
}

/// One line for each door, on standard output when it is ready.
fn banner(running: &Running) -> String {
    let mut text = format!("ready: trust domain {}, {}", running.trust_domain, running.socket.display());
    let doors = [
        ("xds", running.xds),
        ("insecure xds", running.insecure_xds),
        ("api", running.api),
        ("metrics", running.metrics),
    ];
    for (name, address) in doors {
        if let Some(address) = address {
            text.push_str(&format!(", {name} {address}"));
        }
    }
    text.push('\n');
    text
}

async fn stopped() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        // Without handlers the signals end the process by themselves.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

type Inputs = (mpsc::Receiver<Batch>, Option<Arc<dyn Store>>);

/// Opens what is declared. Both kinds come as one first batch, then as they change.
fn inputs(args: &Args) -> Result<Inputs, Exit> {
    let (sender, receiver) = mpsc::channel(64);
    let mut files = None;
    if !args.config.is_empty() {
        let watched = universal::directory::watch(&args.config);
        files = Some(watched.map_err(|error| fail(Exit::Invalid, format!("cannot read --config: {error}"), None))?);
    }
    let Some(path) = &args.store else {
        tokio::spawn(relay(files, None, sender));
        return Ok((receiver, None));
    };
    let opened = universal::store::Store::open(path);
    let store = Arc::new(opened.map_err(|error| fail(Exit::Invalid, error, None))?);
    let name = format!("redb:{}", path.display());
    tokio::spawn(relay(files, Some(store.clone()), sender));
    Ok((receiver, Some(Arc::new(Written { store, name }))))
}

/// Joins the two kinds of input.
async fn relay(
    mut files: Option<mpsc::Receiver<Vec<universal::directory::Change>>>,
    store: Option<Arc<universal::store::Store>>,
    out: mpsc::Sender<Batch>,
) {
    let mut first = Batch::default();
    if let Some(files) = &mut files {
        first.changes.extend(files.recv().await.unwrap_or_default().into_iter().map(of_file));
    }
    let mut stored = Stored::default();
    let mut revisions = store.as_ref().map(|store| store.watch());
    if let Some(store) = &store {
        let batch = stored.changes(store);
        first.changes.extend(batch.changes);
        first.revision = batch.revision;
    }
    if out.send(first).await.is_err() {
        return;
    }
    loop {
        let batch = tokio::select! {
            Some(changes) = next(&mut files) => {
                Batch { changes: changes.into_iter().map(of_file).collect(), revision: None }
            }
            Some(()) = moved(&mut revisions) => match &store {
                Some(store) => stored.changes(store),
                None => continue,
            },
            () = out.closed() => return,
        };
        if out.send(batch).await.is_err() {
            return;
        }
    }
}

/// The next batch of files; never resolves when there are no files.
async fn next<T>(receiver: &mut Option<mpsc::Receiver<T>>) -> Option<T> {
    match receiver {
        Some(receiver) => match receiver.recv().await {
            Some(value) => Some(value),
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

async fn moved(revisions: &mut Option<tokio::sync::watch::Receiver<u64>>) -> Option<()> {
    if let Some(revisions) = revisions
        && revisions.changed().await.is_ok()
    {
        return Some(());
    }
    std::future::pending().await
}

fn of_file(change: universal::directory::Change) -> Change {
    Change { file: change.file, text: change.text, revision: None }
}

/// What was last seen in the store.
#[derive(Default)]
struct Stored {
    seen: std::collections::BTreeMap<Arc<str>, u64>,
}

impl Stored {
    /// What changed since the last look.
    fn changes(&mut self, store: &universal::store::Store) -> Batch {
        let revision = store.revision();
        let objects = match store.objects() {
            Ok(objects) => objects,
            Err(error) => {
                tracing::error!(event = "store_failed", %error);
                return Batch::default();
            }
        };
        let mut batch = Batch { changes: Vec::new(), revision: Some(revision) };
        let mut now = std::collections::BTreeMap::new();
        for object in objects {
            let file = stored_name(&object.key);
            if self.seen.get(&file) != Some(&object.revision) {
                let (text, revision) = (Some(object.text), Some(object.revision));
                batch.changes.push(Change { file: file.clone(), text, revision });
            }
            now.insert(file, object.revision);
        }
        for file in self.seen.keys().filter(|file| !now.contains_key(*file)) {
            batch.changes.push(Change { file: file.clone(), text: None, revision: None });
        }
        self.seen = now;
        batch
    }
}

/// The store as the control plane writes it.
struct Written {
    store: Arc<universal::store::Store>,
    name: String,
}

impl Store for Written {
    fn commit(&self, writes: &[Write]) -> Result<u64, StoreError> {
        use universal::store::Write as To;
        let to = |write: &Write| match write.clone() {
            Write::Put { key, text, expected } => To::Put { key, text, expected },
            Write::Delete { key, expected } => To::Delete { key, expected },
        };
        let all: Vec<To> = writes.iter().map(to).collect();
        self.store.commit(&all, "api").map_err(|error| match error {
            universal::store::StoreError::Conflict { key, found } => {
                let of_key = |write: &&Write| *write.key() == key;
                let expected = writes.iter().find(of_key).and_then(|write| match write {
                    Write::Put { expected, .. } | Write::Delete { expected, .. } => *expected,
                });
                let found = (found > 0).then_some(found);
                StoreError::Conflict { key: Box::new(key), expected: expected.unwrap_or(0), found }
            }
            other => StoreError::Failed(other.to_string()),
        })
    }

    fn name(&self) -> &str {
        &self.name
    }
}
