//! HTTP/1 in framing of our own, over `httparse`: both sides of a hop run in the task of the client's connection, so that a
//! request costs no channel, no wake-up of another task and no copy of its head (`docs/decisions/http1.md`).
//!
//! Reading is strict (`engine::framing`); what is written is always framed anew.

pub mod client;
pub mod probe;
pub mod server;

mod decode;
mod encode;
mod head;
mod wire;

#[cfg(test)]
mod tests;

use engine::framing;
use http::HeaderMap;

/// Takes a map of headers that nobody reads any more, for the next message.
pub fn recycle(headers: HeaderMap) {
    wire::keep_map(headers);
}

/// Why a connection can carry no further message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The peer broke the grammar.
    #[error("{}", .0.details())]
    Malformed(framing::Fault),
    /// The peer ended the connection within a message.
    #[error("connection ended within a message")]
    Ended,
    /// The socket or TLS broke.
    #[error("connection broke: {0}")]
    Io(std::io::ErrorKind),
    /// A body of ours turned out shorter or longer than it had said.
    #[error("body does not have the length that was announced")]
    Length,
    /// The message that this was a part of is over.
    #[error("the message is over")]
    Over,
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error.kind())
    }
}

impl From<framing::Fault> for Fault {
    fn from(fault: framing::Fault) -> Self {
        Self::Malformed(fault)
    }
}
