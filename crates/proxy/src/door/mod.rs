//! The doors: listening sockets, and what a connection tells before its first protocol byte is answered.

pub mod accept;
pub mod connection;
pub mod detect;
pub mod hello;
pub mod limited;
pub mod listeners;
pub mod preface;
pub mod proxy_protocol;
