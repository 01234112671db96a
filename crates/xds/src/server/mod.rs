//! The server's end: [`Session`] is the protocol of one stream, [`Ads`] serves it over gRPC.

mod session;
mod stream;
mod subscription;

use std::sync::Arc;

pub use session::{Event, Request, Response, Session, Violation};
pub use stream::{Ads, Observer, Opened, Source};

/// Most names that a client may ask for in one type.
pub const MOST_NAMES: usize = 200_000;
/// Longest name, in bytes.
pub const LONGEST_NAME: usize = 2048;
/// Most types that one stream may ask for.
pub const MOST_TYPES: usize = 32;
/// About how many bytes of resources go into one response; more follows after its ACK. gRPC's libraries refuse
/// messages over 4 MiB unless told otherwise.
pub const RESPONSE_BYTES: usize = 2 << 20;

/// A resource that a client refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The resource's type.
    pub type_url: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// The client's own words.
    pub message: Arc<str>,
}
