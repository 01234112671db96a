//! The proxy over real sockets.

mod backend;
mod files;
mod hostile;
mod http;
mod limits;
mod pressure;
mod tcp;
mod world;
