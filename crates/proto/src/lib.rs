//! The one door to Envoy's and Istio's message types, and their canonical JSON and YAML.
//!
//! [`envoy`], [`google`] and [`xds`] re-export the types of the crate `envoy-types`, [`istio`] adds Istio's few public
//! messages, and [`type_url`] the names by which xDS carries resources. [`json`] reads and writes any of them as JSON
//! or YAML, and [`surface`] says which of their fields the proxy honours.
//!
//! Architecture invariant: no IO and no knowledge of what a message means; only what it is.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unreachable)
)]

pub mod istio;
pub mod json;
mod schema;
pub mod surface;
pub mod type_url;
pub mod typed_struct;
mod wire;

pub use envoy_types::pb::{envoy, google, xds};
pub use envoy_types::util::pack_any;
