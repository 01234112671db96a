//! The words of the mesh: identities, services, workloads, routes, policies, and where each came from.
//!
//! Every other crate speaks in these types. They hold what a user *said* (one user kind lowered to one
//! neutral kind), with all references still as written; `compile` resolves them.
//!
//! Architecture invariant: no IO, no runtime, no TLS, no protobuf, no YAML.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unreachable)
)]

pub mod destination;
pub mod diagnostic;
pub mod matching;
pub mod mesh;
pub mod name;
pub mod origin;
pub mod route;
pub mod security;
pub mod service;
pub mod spiffe;
pub mod workload;

pub use destination::DestinationPolicy;
pub use diagnostic::{Code, Diagnostic, Label, Severity};
pub use matching::StringMatch;
pub use mesh::{Declaration, Entry, MeshConfig};
pub use name::{Labels, ObjectKey};
pub use origin::{Origin, Position};
pub use route::RouteTable;
pub use security::{AuthorizationPolicy, PeerAuthentication, RequestAuthentication};
pub use service::Service;
pub use spiffe::SpiffeId;
pub use workload::Workload;
