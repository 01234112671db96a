//! The proxy as its administration sees it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use proto::envoy::config::bootstrap::v3::Bootstrap;
use tokio::sync::{mpsc, watch};

use crate::config::Progress;
use crate::process::{Command, Settings};
use crate::shared::Shared;

/// What the administration knows and may change.
pub struct Rooms {
    shared: Arc<Shared>,
    bootstrap: Arc<Bootstrap>,
    workers: usize,
    anywhere: bool,
    commands: mpsc::UnboundedSender<Command>,
    draining: AtomicBool,
    failing: AtomicBool,
    progress: Mutex<Option<watch::Receiver<Progress>>>,
}

impl Rooms {
    /// The rooms of a proxy that is about to start.
    pub fn new(shared: &Arc<Shared>, settings: &Settings, commands: mpsc::UnboundedSender<Command>) -> Arc<Self> {
        Arc::new(Self {
            shared: Arc::clone(shared),
            bootstrap: Arc::new(settings.bootstrap.clone()),
            workers: settings.concurrency.max(1),
            anywhere: settings.admin_anywhere,
            commands,
            draining: AtomicBool::new(false),
            failing: AtomicBool::new(false),
            progress: Mutex::new(None),
        })
    }

    /// Learns readiness from here on.
    pub fn watch(&self, progress: watch::Receiver<Progress>) {
        *self.progress.lock() = Some(progress);
    }

    /// The process drains.
    pub fn begin_drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }
}

/// The open admin address.
pub struct Admin;

impl Admin {
    /// Opens the bootstrap's admin address.
    ///
    /// # Errors
    /// The address cannot be had.
    #[allow(clippy::unused_async)]
    pub async fn open(_rooms: &Rooms) -> std::io::Result<Self> {
        Ok(Self)
    }

    /// Serves it.
    pub fn serve(self, _rooms: &Arc<Rooms>) {}
}
