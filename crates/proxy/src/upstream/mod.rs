//! The upstream side: pools of connections and how an endpoint is reached.

pub mod failure;
pub mod health;
pub mod original;
pub mod pool;
pub mod probe;
pub mod reach;
pub mod sweep;
