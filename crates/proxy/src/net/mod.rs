//! Sockets: listening, connecting, and the one stream type of both sides.

use std::net::SocketAddr;

pub mod dial;
pub mod frames;
pub mod listen;
pub mod namespace;
pub mod option;
pub mod peers;
pub mod relay;
pub mod stream;
pub mod turns;

/// An IPv4 address that came in through a dual-stack socket (`::ffff:a.b.c.d`) as plain IPv4, anything else unchanged.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
