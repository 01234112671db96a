//! Replacing a running proxy by the next one without a lost connection.
//!
//! The one that runs keeps an [`office`] in its run directory, a Unix socket. The next one comes there ([`heir`]), gets a copy
//! of every listening socket, opens its own listeners on them, and says so once it serves. Only then the first one accepts
//! no more, and lets its connections come to their end. Until that word both accept from the same queues; if it never comes,
//! nothing has happened.
//!
//! Connections themselves are not handed over: TLS and HTTP state stays where it is, so clients are asked to come again and
//! pools towards endpoints begin empty.

pub mod heir;
pub mod office;
mod packet;

/// The office's file in the run directory.
pub const FILE: &str = "handover.sock";
