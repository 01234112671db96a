//! The upstream side: pools of connections and how an endpoint is reached.

pub mod failure;
pub mod original;
pub mod pool;
pub mod reach;
pub mod sweep;
