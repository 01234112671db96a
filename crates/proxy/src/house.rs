//! The proxy as its administration sees it.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use engine::{Address, Plan};
use identity::tls::Credentials;
use parking_lot::Mutex;
use prost::Message;
use proto::envoy::config::bootstrap::v3::Bootstrap;
use proto::envoy::config::core::v3::{address as proto_address, socket_address::PortSpecifier};
use proto::google::protobuf::Any;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use crate::admin::{self, BindError, Door, Drain, Held, House, Scope, State};
use crate::config::Progress;
use crate::process::{Command, Settings};
use crate::shared::Shared;

/// What the administration knows and may change.
pub struct Rooms {
    shared: Arc<Shared>,
    /// As bytes: read in full it would be several times as large, and it is asked for by people alone.
    bootstrap: Vec<u8>,
    workers: usize,
    commands: mpsc::UnboundedSender<Command>,
    draining: AtomicBool,
    progress: Mutex<Option<watch::Receiver<Progress>>>,
}

impl Rooms {
    /// The rooms of a proxy that is about to start.
    pub fn new(shared: &Arc<Shared>, settings: &Settings, commands: mpsc::UnboundedSender<Command>) -> Arc<Self> {
        Arc::new(Self {
            shared: Arc::clone(shared),
            bootstrap: settings.bootstrap.encode_to_vec(),
            workers: settings.concurrency.max(1),
            commands,
            draining: AtomicBool::new(false),
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

impl House for Rooms {
    fn plan(&self) -> Arc<Plan> {
        self.shared.plan.load_full()
    }

    fn bootstrap(&self) -> Arc<Bootstrap> {
        Arc::new(Bootstrap::decode(self.bootstrap.as_slice()).unwrap_or_default())
    }

    fn held(&self, type_url: &str) -> Vec<Held> {
        let entries = self.shared.ledger.of(type_url).into_iter();
        let held = entries.map(|(name, entry)| Held {
            name: name.to_string(),
            body: Any {
                type_url: type_url.to_owned(),
                value: entry.body.map(|body| body.to_vec()).unwrap_or_default(),
            },
            version: entry.version,
            updated: entry.updated,
            is_static: entry.is_static,
            refused: entry.refused,
        });
        held.collect()
    }

    fn certificates(&self) -> Vec<(String, Arc<Credentials>)> {
        self.shared.tls.certificates()
    }

    fn state(&self) -> State {
        if self.draining.load(Ordering::Relaxed) || self.shared.fails_checks() {
            return State::Draining;
        }
        let ready = self.progress.lock().as_ref().is_some_and(|progress| progress.borrow().ready);
        if ready { State::Live } else { State::Initializing }
    }

    fn workers(&self) -> usize {
        self.workers
    }

    fn drain(&self, what: Drain) {
        if !what.inbound_only {
            self.begin_drain();
        }
        let _ = self.commands.send(Command::Drain(what));
    }

    fn fail_health_checks(&self, fail: bool) {
        self.shared.fail_checks(fail);
    }

    fn quit(&self) {
        let _ = self.commands.send(Command::Stop);
    }
}

/// The open admin address, where the bootstrap has one.
pub struct Admin(Option<Door>);

impl Admin {
    /// Opens the bootstrap's admin address.
    ///
    /// # Errors
    /// The address cannot be had.
    pub async fn open(settings: &Settings, inherited: Option<OwnedFd>) -> Result<Self, BindError> {
        let configured = settings.bootstrap.admin.as_ref().and_then(|admin| admin.address.as_ref());
        let Some(address) = configured.and_then(|address| address.address.as_ref()) else { return Ok(Self(None)) };
        let address = match address {
            proto_address::Address::Pipe(pipe) => Address::Unix(std::path::Path::new(&pipe.path).into()),
            proto_address::Address::SocketAddress(socket) => {
                let port = match socket.port_specifier {
                    Some(PortSpecifier::PortValue(port)) => u16::try_from(port).unwrap_or_default(),
                    _ => 0,
                };
                match socket.address.parse::<IpAddr>() {
                    Ok(ip) => Address::Socket((ip, port).into()),
                    Err(_) => Address::Name { host: socket.address.as_str().into(), port },
                }
            }
            proto_address::Address::EnvoyInternalAddress(_) => return Ok(Self(None)),
        };
        if let Some(socket) = inherited {
            let adopted = Door::adopt(&address, socket);
            let failed = |error| BindError::System { address: address.to_string(), error };
            return adopted.map(Some).map(Self).map_err(failed);
        }
        admin::bind(&address, Scope::Admin, settings.admin_anywhere).await.map(Some).map(Self)
    }

    /// The port, for TCP.
    pub fn port(&self) -> Option<u16> {
        self.0.as_ref().and_then(Door::port)
    }

    /// Another descriptor of its socket.
    pub fn copy(&self) -> Option<OwnedFd> {
        self.0.as_ref().and_then(Door::copy)
    }

    /// Serves it in a task of its own.
    pub fn serve(self, rooms: &Arc<Rooms>) -> Option<AbortHandle> {
        let tower = Arc::clone(&rooms.shared.tower);
        let house = Arc::clone(rooms) as Arc<dyn House>;
        self.0.map(|door| tokio::spawn(admin::serve(door, Scope::Admin, house, tower)).abort_handle())
    }
}
