//! One integration-test program for the crate: real handshakes, real sockets, real files, real Envoy.

mod bombs;
mod envoy;
mod garbage;
mod handshake;
mod joining;
mod limits;
mod pki;
mod world;
