//! Redirection and namespaces: the only privileged code.
//!
//! [`enter`] puts a process into namespaces before it becomes another program, [`segment`] builds a bridge with a
//! network namespace for each workload, [`pocket`] one for a single program whose proxy is outside, [`redirect`] sends a workload's traffic through its proxy, [`dns`] answers for
//! the mesh's names, and [`probe`] tells what of all this the machine allows.
//!
//! Architecture invariant: knows addresses, ports and processes; nothing of services, policies or xDS.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unreachable)
)]

pub mod dns;
pub mod enter;
pub mod inherited;
mod links;
pub mod pocket;
pub mod probe;
pub mod redirect;
pub mod segment;
