//! Configuration: from the bootstrap file, the control plane and files to the plan in force.
//!
//! One task owns the engine's store. Everything that can change it - xDS updates, resolved names, files, secrets - comes to
//! it as a message; after each it puts the new plan in force, tells the workers, and answers whom it must.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use engine::tls::SecretRef;
use engine::{Store, Update, UpdateError};
use hashbrown::{HashMap, HashSet};
use proto::envoy::config::bootstrap::v3::Bootstrap;
use proto::type_url;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use xds::client::{Event, Rejection};

use crate::door::listeners::{Listeners, Listening};
use crate::handover::heir::{Inheritance, Word};
use crate::shared::Shared;
use crate::worker::{Handle, Order};

pub mod dynamic;
pub mod files;
pub mod ledger;
pub mod names;
pub mod reach;
pub mod saved;
pub mod secrets;

/// How long anything new waits for its routes, endpoints, names and secrets (Envoy: `initial_fetch_timeout`).
const FIRST_FETCH: Duration = Duration::from_secs(15);
/// So many ignored fields are named in the log; of the others there is the count.
const MOST_NAMED: usize = 200;
/// Between two tries to open a listener whose address is taken, and between looks at files.
const LOOK: Duration = Duration::from_secs(1);

/// What comes to the configuration task from outside of the xDS stream.
#[derive(Debug)]
pub enum Message {
    /// A name was resolved.
    Resolved {
        /// The cluster that wants it.
        cluster: Arc<str>,
        /// The name.
        host: Arc<str>,
        /// The port to use.
        port: u16,
        /// Its addresses; empty when it failed.
        addresses: Vec<std::net::SocketAddr>,
    },
    /// A file of resources was read anew.
    Resources {
        /// Where they came from, for the log.
        origin: String,
        /// What changed.
        updates: Vec<Update>,
    },
    /// A secret was delivered.
    Secret(SecretRef),
}

/// Where the configuration stands; readiness follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Listeners and clusters are there as far as they will come, and every listener is open.
    pub ready: bool,
}

/// The configuration task's belongings.
pub struct Configuration {
    /// What workers see.
    pub shared: Arc<Shared>,
    /// The workers.
    pub workers: Arc<Vec<Handle>>,
    /// The engine's store with the bootstrap loaded.
    pub store: Store,
    /// Open sockets.
    pub listeners: Listeners,
    /// Last good resources of the control plane.
    pub saved: Option<saved::Saved>,
    /// Tells how far it is.
    pub progress: watch::Sender<Progress>,
    /// Tells which sockets are open.
    pub listening: watch::Sender<Vec<Listening>>,
    secrets: secrets::Secrets,
    names: names::Names,
    stream: Option<dynamic::Dynamic>,
    inbox: mpsc::Receiver<Message>,
    /// Ignored fields that the log has named.
    named: HashSet<String>,
    generation: Option<u64>,
    /// Type and name of what is warming, and since when.
    warming: HashMap<(Arc<str>, Arc<str>), Instant>,
    /// How long a server may be silent before the saved configuration is used. What it says later counts more.
    patience: Duration,
    /// Tells the proxy that this one takes over from that it may go.
    word: Option<Word>,
}

impl Configuration {
    /// Loads the bootstrap's own resources and prepares what it subscribes to.
    pub fn new(
        shared: Arc<Shared>,
        workers: Arc<Vec<Handle>>,
        store: Store,
        bootstrap: &Bootstrap,
        saved: Option<saved::Saved>,
        patience: Duration,
        mut inheritance: Option<Inheritance>,
    ) -> Self {
        let word = inheritance.as_mut().and_then(Inheritance::word);
        let (outbox, inbox) = mpsc::channel(256);
        let node = bootstrap.node.clone().unwrap_or_default();
        let stream = dynamic::Dynamic::start(bootstrap, &shared);
        files::watch(bootstrap, &outbox);
        Self {
            secrets: secrets::Secrets::new(Arc::clone(&shared), node, outbox.clone()),
            names: names::Names::new(outbox),
            shared,
            workers,
            store,
            listeners: Listeners::inheriting(inheritance),
            saved,
            progress: watch::Sender::default(),
            listening: watch::Sender::default(),
            stream,
            inbox,
            named: HashSet::new(),
            generation: None,
            warming: HashMap::new(),
            patience,
            word,
        }
    }

    /// Runs until the process ends.
    pub async fn run(mut self) {
        let mut look = tokio::time::interval(LOOK);
        let mut patience = pin!(tokio::time::sleep(self.patience));
        let mut patient = true;
        self.note_ignored();
        self.put_in_force();
        loop {
            tokio::select! {
                event = dynamic::next(&mut self.stream) => self.receive(event),
                message = self.inbox.recv() => match message {
                    Some(message) => self.take(message),
                    None => return,
                },
                () = &mut patience, if patient => {
                    patient = false;
                    if self.stream.as_ref().is_some_and(dynamic::Dynamic::silent) {
                        self.use_saved();
                        self.put_in_force();
                    }
                }
                _ = look.tick() => {
                    self.shared.tls.refresh_files();
                    self.stop_waiting();
                    if let Some(saved) = &mut self.saved {
                        saved.write_if_changed();
                    }
                    self.put_in_force();
                }
            }
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Resolved { cluster, host, port, addresses } => {
                self.store.resolved(&cluster, &host, port, &addresses);
            }
            Message::Secret(secret) => self.store.delivered(&secret),
            Message::Resources { origin, updates } => {
                let results = self.store.apply(&updates);
                self.note_ignored();
                for (update, result) in updates.iter().zip(results) {
                    self.note(update, result.as_ref().err(), "");
                    if let Err(error) = result {
                        tracing::error!(event = "config-refused", %origin, %error, "a resource was refused; the last good one stays");
                    }
                }
            }
        }
        self.put_in_force();
    }

    fn receive(&mut self, event: Event) {
        match event {
            Event::Connected => {
                tracing::info!(event = "control-plane-connected", "connected to the control plane");
                self.shared.tower.control_plane(true);
            }
            Event::Disconnected { reason, retry_in } => {
                tracing::warn!(event = "control-plane-lost", %reason, ?retry_in, "no control plane; the configuration in force stays");
                self.shared.tower.control_plane(false);
                self.use_saved();
            }
            Event::Update(update) => self.apply(update),
        }
        self.put_in_force();
    }

    fn apply(&mut self, update: xds::client::Update) {
        let Some(stream) = &mut self.stream else { return };
        let type_url: Arc<str> = Arc::from(update.type_url.as_str());
        let version = update.version.clone();
        let named = |name: &str, body| Update { type_url: Arc::clone(&type_url), name: Arc::from(name), body };
        let mut updates: Vec<Update> = update
            .resources
            .iter()
            .map(|resource| named(&resource.name, Some(resource.any.value.clone().into())))
            .collect();
        updates.extend(update.removed.iter().map(|name| named(name, None)));
        if stream.first(&type_url)
            && let Some(saved) = &mut self.saved
        {
            // What was saved and the server no longer has must go.
            let fresh: Vec<&str> = update.resources.iter().map(|resource| resource.name.as_str()).collect();
            updates.extend(saved.stale(&type_url, &fresh).into_iter().map(|name| named(&name, None)));
        }
        let results = self.store.apply(&updates);
        let mut rejections = Vec::new();
        for (update, result) in updates.iter().zip(results) {
            self.note(update, result.as_ref().err(), &version);
            match result {
                Ok(()) => {
                    if let Some(saved) = &mut self.saved {
                        saved.note(update);
                    }
                }
                Err(error) => {
                    tracing::error!(event = "config-refused", resource = %error.name, %error, "refused; the last good one stays");
                    rejections.push(Rejection { name: update.name.to_string(), message: error.to_string() });
                }
            }
        }
        self.note_ignored();
        if !version.is_empty() {
            self.shared.tower.config_in_force(&version);
        }
        if let Some(stream) = &self.stream {
            stream.handle.answer(update.ticket, rejections);
        }
    }

    /// Counts the fields that were taken and do nothing. The log names each of them once: resources come again and again.
    fn note_ignored(&mut self) {
        for ignored in self.store.take_ignored() {
            self.shared.tower.field_ignored(ignored.kind);
            // The place differs from resource to resource; its last part and the reason do not.
            let (place, reason) = ignored.field.split_once(": ").unwrap_or(("", &ignored.field));
            let what = format!("{}: {reason}", place.rsplit('.').next().unwrap_or(place));
            // Whoever reads a bootstrap file names what is in it.
            let first = self.generation.is_some() || ignored.kind == "Bootstrap";
            if first && self.named.len() < MOST_NAMED && self.named.insert(what.clone()) {
                let resource = &ignored.name;
                tracing::info!(event = "field-ignored", kind = ignored.kind, %resource, first = %place, "{what}");
            }
        }
    }

    /// Remembers what became of a resource.
    fn note(&self, update: &Update, error: Option<&UpdateError>, version: &str) {
        let (ledger, kind, name) = (&self.shared.ledger, &update.type_url, &update.name);
        match (error, &update.body) {
            (Some(error), _) => {
                ledger.refused(kind, name, error.to_string());
                self.shared.tower.config_rejected(kind);
            }
            // Secrets are shown as certificates, never as resources.
            (None, _) if **kind == *type_url::SECRET => {}
            (None, Some(body)) => ledger.accepted(kind, name, body.clone(), version, false),
            (None, None) => ledger.removed(kind, name),
        }
    }

    /// The server does not answer: the last good configuration, if there is one, is better than none.
    fn use_saved(&mut self) {
        let nothing_yet = self.stream.as_ref().is_some_and(dynamic::Dynamic::is_virgin);
        let Some(saved) = self.saved.as_mut().filter(|_| nothing_yet) else { return };
        let updates = saved.take_loaded();
        if updates.is_empty() {
            return;
        }
        tracing::warn!(event = "saved-config", resources = updates.len(), "starting from the last good configuration");
        for error in self.store.apply(&updates).into_iter().filter_map(Result::err) {
            tracing::error!(event = "config-refused", %error, "a saved resource was refused");
        }
    }

    /// What waits too long for a part of it goes into the plan with what there is.
    fn stop_waiting(&mut self) {
        let now = Instant::now();
        let before = std::mem::take(&mut self.warming);
        let since = |key: &(Arc<str>, Arc<str>)| before.get(key).copied().unwrap_or(now);
        self.warming = self.store.warming().into_iter().map(|key| (key.clone(), since(&key))).collect();
        let late = self.warming.iter().filter(|((kind, name), since)| {
            // What says nothing itself waits as long as Envoy does; some wait without end.
            let patience = self.store.patience(kind, name).unwrap_or(Some(FIRST_FETCH));
            patience.is_some_and(|patience| now.duration_since(**since) >= patience)
        });
        let late: Vec<_> = late.map(|(key, _)| key.clone()).collect();
        for (kind, name) in &late {
            tracing::warn!(event = "warming-ended", %kind, %name, "a part of it has not come; it comes into force without");
        }
        self.store.release(&late);
    }

    /// Everything that follows from a change of the store.
    fn put_in_force(&mut self) {
        let plan = self.store.plan();
        let changed = self.generation != Some(plan.generation);
        if changed {
            self.generation = Some(plan.generation);
            self.secrets.follow(&self.store);
            self.shared.plan.store(Arc::clone(&plan));
            self.names.follow(&self.store);
        }
        if let Some(stream) = &mut self.stream {
            stream.ask(type_url::ENDPOINTS, self.store.wanted_endpoints());
            stream.ask(type_url::ROUTE, self.store.wanted_routes());
            stream.ask(type_url::SECRET, self.store.wanted_secrets());
            stream.ask(type_url::EXTENSION, self.store.wanted_filters());
        }
        self.shared.ledger.keep(type_url::EXTENSION, &self.store.wanted_filters());
        let all_came = self.stream.as_ref().is_none_or(dynamic::Dynamic::is_complete) || self.generation_from_saved();
        let complete = all_came && self.store.warming().is_empty();
        // While another proxy serves on the same sockets, nothing is accepted with half a configuration.
        let wait = self.word.is_some() && !complete;
        let failures = if wait { Vec::new() } else { self.listeners.follow(&plan, &self.workers) };
        for failure in &failures {
            tracing::error!(event = "listener-closed", %failure);
        }
        let listening = self.listeners.listening();
        self.listening.send_if_modified(|known| {
            let differs = *known != listening;
            *known = listening;
            differs
        });
        if changed {
            for worker in self.workers.iter() {
                worker.order(Order::PlanChanged);
            }
        }
        let ready = failures.is_empty() && complete;
        if let Some(word) = self.word.take_if(|_| ready) {
            self.listeners.settle();
            match word.serving() {
                Ok(()) => tracing::info!(event = "taken-over", "this proxy serves now; the other one comes to its end"),
                Err(error) => tracing::warn!(event = "taken-over", %error, "the other proxy is gone already"),
            }
        }
        self.progress.send_if_modified(|known| {
            let differs = known.ready != ready;
            // Once ready, a listener that cannot be opened is an error of its own and not of the whole proxy.
            known.ready |= ready;
            differs
        });
    }

    fn generation_from_saved(&self) -> bool {
        self.saved.as_ref().is_some_and(saved::Saved::is_in_use)
    }
}
