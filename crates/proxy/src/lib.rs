//! The data plane: an Envoy-compatible proxy made of plain async functions, one worker per core.
//!
//! Read it in the order of a request: `door` (accept, detect), `tls`, `http` (the exchange), `h1` and `h2` (its protocols), `upstream`
//! (pick, reach), `report`.

#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::string_slice)
)]

pub mod admin;
pub mod config;
pub mod door;
pub mod h1;
pub mod h2;
pub mod handover;
pub mod house;
pub mod http;
pub mod net;
pub mod overload;
pub mod process;
pub mod report;
pub mod settle;
pub mod shared;
#[cfg(test)]
mod sizes;
pub mod tcp;
pub mod tls;
pub mod upstream;
pub mod validate;
pub mod worker;
