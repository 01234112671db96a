//! The proxy over real sockets.

mod backend;
mod http;
mod limits;
mod tcp;
mod world;
