//! The control plane: the shell around `compile`.
//!
//! Declarations come in as [`inputs::Batch`]es of texts; [`world::World`] parses and compiles them; [`feeds::Feeds`] encodes what
//! each connected proxy may see, once, and shares it; [`source::MeshSource`] serves it over ADS to who may have it;
//! [`proxies::Proxies`] remembers what each proxy acknowledged; [`api`] is the door for people. [`run`] starts them all.
//!
//! Architecture invariants: no proxy code, no Kubernetes; a control plane never sees a workload's private key;
//! what a client may see is decided by its verified identity, never by what it asks for.

#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unreachable)
)]

pub mod api;
pub mod client;
pub mod feeds;
pub mod inputs;
mod manifest;
mod metrics;
mod node;
pub mod proxies;
mod run;
pub mod settings;
pub mod source;
mod view;
pub mod world;

pub use run::{Error, Running, run, start};
pub use settings::Settings;
