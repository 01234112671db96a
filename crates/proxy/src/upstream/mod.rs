//! The upstream side: pools of connections and how an endpoint is reached.

pub mod failure;
pub mod health;
pub mod original;
pub mod pool;
mod probe;
pub mod reach;
pub mod sweep;

/// By this header an answer says that its server is overburdened.
pub const DEGRADED: http::HeaderName = http::HeaderName::from_static("x-envoy-degraded");
