//! What users write in, what proxies get out.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "a test may panic")]

mod identities;
mod incremental;
mod invariants;
mod precedence;
mod sidecar;
mod world;
