//! The proxy as a whole: starts workers and configuration, drains and ends.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use engine::{Store, UpdateError};
use proto::envoy::config::bootstrap::v3::Bootstrap;
use proto::envoy::config::core::v3::Node;
use proto::envoy::config::core::v3::node::UserAgentVersionType;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::admin::Drain;
use crate::config::saved::Saved;
use crate::config::{Configuration, Progress};
use crate::door::listeners::Listening;
use crate::handover;
use crate::handover::heir::Inheritance;
use crate::handover::office::{Estate, Office, OfficeError};
use crate::house::{Admin, Rooms};
use crate::overload::Overload;
use crate::report::Watchtower;
use crate::shared::Shared;
use crate::worker::{self, Handle, Order};

/// How long a silent control plane is waited for, if nothing else is said: a proxy that was killed serves again at once.
pub const STATE_WAIT: Duration = Duration::from_millis(100);

/// How a proxy is started.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its bootstrap.
    pub bootstrap: Bootstrap,
    /// Workers; one per core given is usual.
    pub concurrency: usize,
    /// Where the last good configuration is kept; `None`: nowhere.
    pub state_dir: Option<PathBuf>,
    /// How long a silent control plane is waited for before the last good configuration is used.
    pub state_wait: Duration,
    /// How long connections may take to come to their end when the process is told to.
    pub drain: Duration,
    /// React to SIGTERM and SIGINT.
    pub signals: bool,
    /// Where another process finds this one to take over from it; `None`: nobody can.
    pub run_dir: Option<PathBuf>,
    /// Take the listening sockets over from the proxy that runs in `run_dir`, if one does.
    pub take_over: bool,
    /// Let the admin address be one that other machines can reach.
    pub admin_anywhere: bool,
}

impl Settings {
    /// A bootstrap with the defaults: one worker, nothing kept, 10 s to drain, no signals.
    pub fn new(bootstrap: Bootstrap) -> Self {
        Self {
            bootstrap,
            concurrency: 1,
            state_dir: None,
            state_wait: STATE_WAIT,
            drain: Duration::from_secs(10),
            signals: false,
            run_dir: None,
            take_over: false,
            admin_anywhere: false,
        }
    }
}

/// Why a proxy does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Static resources are wrong.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Resources(Vec<UpdateError>),
    /// The state directory cannot be used.
    #[error("state directory {path}: {reason}")]
    State {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: std::io::Error,
    },
    /// The admin address cannot be had.
    #[error("{0}")]
    Admin(String),
    /// Nobody could take over from it.
    #[error("{0}")]
    Office(#[from] OfficeError),
    /// The proxy that runs does not hand over.
    #[error("cannot take over from the proxy in {run_dir}: {reason}")]
    TakeOver {
        /// The run directory.
        run_dir: PathBuf,
        /// Why.
        reason: std::io::Error,
    },
    /// The log of outlier detection cannot be written.
    #[error("cluster_manager.outlier_detection.event_log_path: {path}: {reason}")]
    Log {
        /// Which file.
        path: String,
        /// Why.
        reason: std::io::Error,
    },
    /// The system gives no thread or runtime.
    #[error("cannot start: {0}")]
    System(#[from] std::io::Error),
}

/// What a running proxy is told.
#[derive(Debug)]
pub enum Command {
    /// Drain, then end.
    Stop,
    /// Another process serves on the same sockets: drain with patience, then end.
    Replaced,
    /// Close listeners and let their connections come to their end; the process stays.
    Drain(Drain),
}

/// A running proxy.
pub struct Proxy {
    commands: mpsc::UnboundedSender<Command>,
    listening: watch::Receiver<Vec<Listening>>,
    progress: watch::Receiver<Progress>,
    shared: Arc<Shared>,
    admin_port: Option<u16>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts workers and configuration; returns as soon as they run.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running then.
    pub fn start(mut settings: Settings) -> Result<Self, StartError> {
        let mut store = Store::new();
        store.bootstrap(&settings.bootstrap).map_err(StartError::Resources)?;
        let saved = match &settings.state_dir {
            None => None,
            Some(path) => {
                let opened = Saved::open(path);
                Some(opened.map_err(|reason| StartError::State { path: path.clone(), reason })?)
            }
        };
        let count = settings.concurrency.max(1);
        introduce(settings.bootstrap.node.get_or_insert_default());
        let node = settings.bootstrap.node.clone().unwrap_or_default();
        let tower = Watchtower::new(&node, count)?;
        if let Some(path) = outlier_log(&settings.bootstrap) {
            tower.log_outliers(path).map_err(|reason| StartError::Log { path: path.to_owned(), reason })?;
        }
        let shared = Shared::new(store.plan(), tower, Overload::new(store.overload(), store.max_clients()));
        let workers = Arc::new(worker::start(count, &shared)?);
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (commands, orders) = mpsc::unbounded_channel();
        let rooms = Rooms::new(&shared, &settings, commands.clone());
        let mut inheritance = inherit(&settings)?;
        let office = Successor::prepare(&settings, inheritance.is_some(), &commands)?;
        let inherited = inheritance.as_mut().and_then(Inheritance::claim_admin);
        let admin = runtime.block_on(Admin::open(&settings, inherited));
        let admin = admin.map_err(|error| StartError::Admin(error.to_string()))?;
        let configuration = {
            let _inside = runtime.enter();
            let (shared, workers) = (Arc::clone(&shared), Arc::clone(&workers));
            Configuration::new(shared, workers, store, &settings.bootstrap, saved, settings.state_wait, inheritance)
        };
        // What it says is in the plan now; of ten thousand services it would be more than the plan.
        settings.bootstrap = Bootstrap::default();
        let admin_port = admin.port();
        let listening = configuration.listening.subscribe();
        let progress = configuration.progress.subscribe();
        let keeper = Keeper { shared: Arc::clone(&shared), workers, rooms, orders, settings, office };
        let thread = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || runtime.block_on(keeper.run(configuration, admin)))?;
        Ok(Self { commands, listening, progress, shared, admin_port, thread: Some(thread) })
    }

    /// What all its parts share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The port of the admin address, where it is TCP.
    pub fn admin_port(&self) -> Option<u16> {
        self.admin_port
    }

    /// The sockets that are open now.
    pub fn listening(&self) -> Vec<Listening> {
        self.listening.borrow().clone()
    }

    /// Whether the first configuration is complete and all listeners are open.
    pub fn is_ready(&self) -> bool {
        self.progress.borrow().ready
    }

    /// Waits until it is ready, at most so long; false: it is not.
    pub fn wait_ready(&self, limit: Duration) -> bool {
        let end = std::time::Instant::now() + limit;
        while std::time::Instant::now() < end {
            if self.is_ready() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.is_ready()
    }

    /// Tells it to drain and end.
    pub fn stop(&self) {
        let _ = self.commands.send(Command::Stop);
    }

    /// Waits until it has ended.
    pub fn join(mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Says towards servers which program asks.
fn introduce(node: &mut Node) {
    if node.user_agent_name.is_empty() {
        "tulle".clone_into(&mut node.user_agent_name);
        let version = env!("CARGO_PKG_VERSION").to_owned();
        node.user_agent_version_type.get_or_insert(UserAgentVersionType::UserAgentVersion(version));
    }
}

/// The sockets of the proxy that this one takes over from.
/// The file that events of outlier detection go to.
fn outlier_log(bootstrap: &Bootstrap) -> Option<&str> {
    let outliers = bootstrap.cluster_manager.as_ref()?.outlier_detection.as_ref()?;
    Some(outliers.event_log_path.as_str()).filter(|path| !path.is_empty())
}

fn inherit(settings: &Settings) -> Result<Option<Inheritance>, StartError> {
    match settings.run_dir.as_deref().filter(|_| settings.take_over) {
        None => Ok(None),
        Some(run_dir) => {
            let taken = handover::heir::take(run_dir);
            taken.map_err(|reason| StartError::TakeOver { run_dir: run_dir.to_owned(), reason })
        }
    }
}

/// Lets another process take over from this one.
struct Successor {
    run_dir: PathBuf,
    /// Open already where there was nobody in office.
    office: Option<Office>,
    commands: mpsc::UnboundedSender<Command>,
}

impl Successor {
    fn prepare(
        settings: &Settings,
        taken_over: bool,
        commands: &mpsc::UnboundedSender<Command>,
    ) -> Result<Option<Self>, StartError> {
        let Some(run_dir) = settings.run_dir.clone() else { return Ok(None) };
        let office = if taken_over { None } else { Some(Office::open(&run_dir, false)?) };
        Ok(Some(Self { run_dir, office, commands: commands.clone() }))
    }

    /// As soon as this proxy serves it can be replaced.
    async fn receive(self, estate: Estate, mut progress: watch::Receiver<Progress>) {
        if progress.wait_for(|progress| progress.ready).await.is_err() {
            return;
        }
        let office = self.office.map_or_else(|| Office::open(&self.run_dir, true), Ok);
        let replaced = move || drop(self.commands.send(Command::Replaced));
        let served = office.map_err(|error| error.to_string());
        let served = served.and_then(|office| office.serve(estate, replaced).map_err(|error| error.to_string()));
        if let Err(error) = served {
            tracing::error!(event = "no-handover", %error, "nobody will be able to take over from this proxy");
        }
    }
}

/// Why a proxy ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Stopped,
    Replaced,
}

/// Runs on the control thread for the life of the process.
struct Keeper {
    shared: Arc<Shared>,
    workers: Arc<Vec<Handle>>,
    rooms: Arc<Rooms>,
    orders: mpsc::UnboundedReceiver<Command>,
    settings: Settings,
    office: Option<Successor>,
}

impl Keeper {
    async fn run(mut self, configuration: Configuration, admin: Admin) {
        let progress = configuration.progress.subscribe();
        tokio::spawn(settle(progress.clone(), Arc::clone(&self.workers)));
        self.rooms.watch(progress.clone());
        if let Some(office) = self.office.take() {
            let listening = configuration.listening.subscribe();
            let estate = Estate { listening, workers: Arc::clone(&self.workers), admin: admin.copy() };
            tokio::spawn(office.receive(estate, progress));
        }
        tokio::spawn(crate::upstream::sweep::run(Arc::clone(&self.shared)));
        tokio::spawn(crate::upstream::health::run(Arc::clone(&self.shared)));
        tokio::spawn(Arc::clone(&self.shared.tower).keep());
        tokio::spawn(Arc::clone(&self.shared.overload).watch(Arc::clone(&self.shared.tower)));
        let admin = admin.serve(&self.rooms);
        let configuration = tokio::spawn(configuration.run());
        let end = self.wait_for_the_end().await;
        self.rooms.begin_drain();
        configuration.abort();
        if end == End::Replaced {
            if let Some(admin) = admin {
                admin.abort();
            }
            // Clients that are quiet find the other process when they come again, so there is no hurry.
            self.workers.iter().for_each(|worker| worker.order(Order::Shed { inbound_only: false }));
        }
        let within = self.settings.drain;
        let workers = Arc::clone(&self.workers);
        let ended = tokio::task::spawn_blocking(move || drain(&workers, within));
        tokio::select! {
            _ = ended => {}
            // A second signal ends it at once.
            _ = self.wait_for_the_end() => {}
        }
        self.shared.tower.sinks.finish();
    }

    async fn wait_for_the_end(&mut self) -> End {
        let signals = self.settings.signals;
        let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
            tracing::error!(event = "no-signals", "signals cannot be received; stop over the admin interface");
            return std::future::pending().await;
        };
        loop {
            tokio::select! {
                command = self.orders.recv() => match command {
                    Some(Command::Drain(what)) => {
                        for worker in self.workers.iter() {
                            worker.order(Order::Shed { inbound_only: what.inbound_only });
                        }
                        continue;
                    }
                    Some(Command::Replaced) => {
                        tracing::info!(event = "replaced", "another process has taken over");
                        return End::Replaced;
                    }
                    Some(Command::Stop) | None => return End::Stopped,
                },
                _ = term.recv(), if signals => tracing::info!(event = "stopping", signal = "SIGTERM"),
                _ = int.recv(), if signals => tracing::info!(event = "stopping", signal = "SIGINT"),
            }
            return End::Stopped;
        }
    }
}

/// Gives back what the start needed, once it is over; and from then on, whenever a time of work is followed by rest, what the
/// work left.
async fn settle(mut progress: watch::Receiver<Progress>, workers: Arc<Vec<Handle>>) {
    if progress.wait_for(|progress| progress.ready).await.is_err() {
        return;
    }
    tokio::time::sleep(crate::settle::AFTER).await;
    crate::settle::release_code();
    let everywhere = || {
        workers.iter().for_each(|worker| worker.order(Order::GiveBack));
        crate::settle::trim();
    };
    everywhere();
    let mut rest = crate::settle::Rest::default();
    loop {
        tokio::time::sleep(crate::settle::LOOK).await;
        if rest.begins(crate::settle::spent()) {
            everywhere();
        }
    }
}

fn drain(workers: &[Handle], within: Duration) {
    for worker in workers {
        worker.order(Order::Drain { within });
    }
    for worker in workers {
        worker.wait();
    }
}
