//! The data plane: an Envoy-compatible proxy made of plain async functions, one worker per core.
//!
//! Read it in the order of a request: [`door`] (accept, detect), [`tls`], [`http`] (the exchange), [`upstream`]
//! (pick, reach), [`report`].

pub mod report;
