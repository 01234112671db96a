//! The proxy over real sockets.

mod backend;
mod canonical;
mod checks;
mod drain;
mod files;
mod framing;
mod hostile;
mod http;
mod http2;
mod interim;
mod limits;
mod pressure;
mod resumption;
mod tcp;
mod world;
