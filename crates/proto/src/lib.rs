//! The one door to Envoy's and Istio's message types, and their canonical JSON and YAML.
//!
//! [`envoy`], [`google`], [`xds`] and the others re-export the types of the crate `envoy-types`; [`istio`] adds
//! Istio's few public messages, and [`type_url`] the names by which xDS carries resources.

pub mod istio;
pub mod type_url;

pub use envoy_types::pb::{envoy, google, xds};
pub use envoy_types::util::pack_any;
