//! Identities: keys, certificates, the certificate authority, join tokens, rotation, and the TLS settings
//! that make one program prove to another who it is.
//!
//! - [`ca`]: the root key and what it signs; [`ca::csr`]: the requests.
//! - [`token`]: how a workload joins for the first time.
//! - [`agent`]: the workload's side, from key to renewal; [`sds`]: how its proxies get key and certificate.
//! - [`service`]: the certificate service over gRPC; [`door`]: listeners that know who calls; [`reach`]: the way there.
//! - [`audit`]: records and counts of what was issued and refused.
//! - [`tls`]: rustls configurations from plain inputs, verification of peers, facts about a peer.
//!
//! Architecture invariants: no Kubernetes types; chain verification is never switched off; an identity comes
//! from a verified certificate or a join token, never from what a request claims; nothing here panics on input.

#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unreachable)
)]

pub mod agent;
pub mod audit;
pub mod ca;
pub mod door;
mod private;
pub mod reach;
pub mod sds;
pub mod service;
pub mod tls;
pub mod token;

pub use private::PrivateError;
