//! The administration address: Envoy's pages in Envoy's shapes, and Tulle's own under `/tulle/`.
//!
//! It runs on a runtime of its own. What a page needs to know or to change it asks a [`House`]. Pages that change
//! something are POST; over TCP the `Host` must be this machine, so that no web page can reach in through a browser.

mod certs;
mod clusters;
mod door;
mod dump;
mod guard;
mod info;
mod levels;
mod pages;
mod stats;
mod watch;

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use engine::Plan;
use identity::tls::Credentials;
use proto::envoy::config::bootstrap::v3::Bootstrap;
use proto::google::protobuf::Any;

pub use door::{Door, bind};
pub use pages::serve;

/// Which pages an address has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All of them.
    Admin,
    /// Only `/stats/prometheus` (port 15090).
    Metrics,
    /// Only `/healthz/ready` (port 15021).
    Health,
}

/// Whether the proxy serves (Envoy's `ServerInfo.State`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It serves.
    Live,
    /// It drains, or was told to fail health checks.
    Draining,
    /// It waits for its first configuration.
    Initializing,
}

impl State {
    /// Envoy's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "LIVE",
            Self::Draining => "DRAINING",
            Self::Initializing => "INITIALIZING",
        }
    }
}

/// What is drained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drain {
    /// Only listeners for traffic into the workload.
    pub inbound_only: bool,
    /// Connections may end by themselves first.
    pub graceful: bool,
}

/// A resource as it was received, for `/config_dump`.
#[derive(Debug, Clone)]
pub struct Held {
    /// Its name.
    pub name: String,
    /// The resource.
    pub body: Any,
    /// The version that the server gave it; empty for static ones.
    pub version: String,
    /// When it came into force.
    pub updated: SystemTime,
    /// From the bootstrap file rather than from a server.
    pub is_static: bool,
    /// A later version that was refused: when and why.
    pub refused: Option<(SystemTime, String)>,
}

/// The proxy as its administration sees it.
pub trait House: Send + Sync + 'static {
    /// The configuration in force.
    fn plan(&self) -> Arc<Plan>;

    /// The bootstrap it was started with.
    fn bootstrap(&self) -> Arc<Bootstrap>;

    /// The resources in force of one type (`proto::type_url`), in no order.
    fn held(&self, type_url: &str) -> Vec<Held>;

    /// The certificates in use: where each came from, and the certificate.
    fn certificates(&self) -> Vec<(String, Arc<Credentials>)>;

    /// Whether it serves.
    fn state(&self) -> State;

    /// How many workers it has.
    fn workers(&self) -> usize;

    /// Begins to drain.
    fn drain(&self, what: Drain);

    /// Makes `/ready` and health checks fail, or not any more.
    fn fail_health_checks(&self, fail: bool);

    /// Ends the process in order.
    fn quit(&self);
}

/// Why an administration address cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// It is not an address of this machine alone.
    #[error(
        "admin.address {0} can be reached from other machines: use 127.0.0.1, ::1 or a Unix socket (pipe), or start with --admin-anywhere"
    )]
    Public(std::net::SocketAddr),
    /// The system refused.
    #[error("cannot listen on admin address {address}: {error}")]
    System {
        /// The address.
        address: String,
        /// Why.
        error: std::io::Error,
    },
    /// It is a host name.
    #[error("admin.address {0} is a name: write an IP address or a Unix socket (pipe)")]
    Name(String),
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests;
