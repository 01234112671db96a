//! The proxy over real sockets.

mod backend;
mod files;
mod http;
mod limits;
mod tcp;
mod world;
