//! The report phase: metrics, access log and tap of one finished exchange.

pub mod flags;
pub mod record;
