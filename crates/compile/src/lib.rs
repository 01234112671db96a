//! The mesh as a function: declarations in, the configuration of each proxy out.
//!
//! [`Mesh::compile`] resolves what users declared (`model::Entry`): short names, subsets, selectors, precedence.
//! [`encode`] writes what one workload's proxy gets as xDS resources, [`bootstrap`] the file it starts from, and
//! [`Incremental`] keeps a mesh up to date change by change, saying which workloads each change concerns.
//!
//! Architecture invariant: no IO, no clock, no runtime. Two calls with equal input give equal bytes.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unreachable)
)]

mod bootstrap;
mod destination;
mod encode;
mod findings;
mod host;
mod incremental;
mod lookup;
mod mesh;
mod reach;
mod routes;
mod security;

pub use bootstrap::{Admin, Ads, AdsServer, Mode, bootstrap, node};
pub use encode::{Delivery, EncodeOptions, Resource, Secrets, Snapshot, encode, proxyless};
pub use incremental::{Applied, Change, Incremental};
pub use lookup::Arrival;
pub use mesh::{Mesh, WorkloadKey};
