//! The client's end: [`Session`] is the protocol, [`start`] keeps one alive over gRPC.
//!
//! ```no_run
//! # async fn example(node: proto::envoy::config::core::v3::Node) {
//! use xds::client::{self, Config, Event};
//! let (handle, mut events) = client::start(Config::new(node, client::dial::unix("run/xds.sock")));
//! handle.subscribe_all(proto::type_url::CLUSTER);
//! while let Some(event) = events.recv().await {
//!     if let Event::Update(update) = event {
//!         // Build what it says, then say what could not be built.
//!         handle.answer(update.ticket, Vec::new());
//!     }
//! }
//! # }
//! ```

mod backoff;
pub mod dial;
mod interest;
mod session;
mod stream;
mod text;

use proto::google::protobuf::Any;

pub use backoff::Backoff;
pub use session::{Request, Session, SessionError};
pub use stream::{Config, Event, Handle, start};

/// One resource as received.
#[derive(Debug, Clone, PartialEq)]
pub struct Received {
    /// Its name.
    pub name: String,
    /// Its version, opaque; of the whole response in state-of-the-world.
    pub version: String,
    /// The resource itself.
    pub any: Any,
}

/// What one response changes. It must be answered by its ticket, also when it is empty: an empty first update
/// says that the server has nothing (of what was asked for).
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// For the answer.
    pub ticket: Ticket,
    /// The resources' type.
    pub type_url: String,
    /// The response's version as the server names it, for the config dump; may be empty.
    pub version: String,
    /// New and changed resources.
    pub resources: Vec<Received>,
    /// Names that are no more, or that were asked for and do not exist.
    pub removed: Vec<String>,
}

/// Names an update until it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket(pub(crate) u64);

/// A resource of an update that could not be used. The server is told; the last good one stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The resource's name.
    pub name: String,
    /// Why, with the field's path: `filter_chains[0].filters[1].typed_config.foo: not supported`.
    pub message: String,
}
