//! Metrics, access logs, tap and process logging: what a proxy tells about itself and its traffic.
//!
//! - [`Registry`]: counters, gauges and histograms in shards, one per worker; summed when somebody asks.
//! - [`istio`]: Istio's standard metrics, one row per edge of the mesh.
//! - [`exposition`]: Prometheus text, OpenMetrics, and Envoy's own text and JSON.
//! - [`accesslog`]: times and text as Envoy writes them; files written by one thread.
//! - [`tap`]: live exchanges for whoever looks, bounded.
//! - [`edges`]: pre-aggregated counters of the last minutes for `tulle stat`.
//!
//! Architecture invariant: nothing here knows the proxy, the engine or the control plane; callers hand in
//! plain values.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unreachable)
)]

pub mod accesslog;
pub mod edges;
pub mod exposition;
pub mod istio;
pub mod logging;
pub mod registry;
pub mod tap;

pub use registry::Registry;
