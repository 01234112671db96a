//! Where the mesh's configuration lives when there is no Kubernetes: a directory of YAML that is watched,
//! and an embedded store with revisions and history.
//!
//! Both hold *texts*; what the texts say is the business of `resources`.
//!
//! Architecture invariant: knows nothing of the control plane or of Kubernetes.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unreachable)
)]

pub mod directory;
pub mod store;
mod tree;
