//! The report phase: metrics, access log and tap of one finished exchange. It never fails or delays an exchange.
//!
//! [`record::Record`] is what the data plane hands over; [`watchtower::Watchtower`] is what all workers report to;
//! [`tally::Tally`] is one worker's way there.

pub mod blame;
pub mod event;
pub mod line;
pub mod messages;
mod outlier;
pub mod party;
pub mod record;
pub mod tally;
mod values;
pub mod watchtower;

pub use tally::{Flow, Site, Tally};
pub use watchtower::Watchtower;

#[cfg(test)]
mod tests;
