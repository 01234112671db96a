//! Envoy's aggregated discovery protocol (ADS, version 3): delta and state-of-the-world, both ends.
//!
//! The protocol lives in pure state machines such as [`client::Session`]: messages go in,
//! messages come out, and there is no clock, socket or task inside. [`server::Ads`] and [`client::start`] are
//! thin shells that put them on gRPC.
//!
//! Architecture invariant: nothing here knows what a listener or a cluster *says*; resources are named bytes.

#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unreachable)
)]

pub mod client;
pub mod kind;
pub mod resource;
pub mod server;
mod wire;

pub use kind::Flavor;
pub use resource::{Resource, ResourceSet, Snapshot};
