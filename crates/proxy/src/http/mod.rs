//! HTTP: one connection's server side ([`serve`]), and the life of each request ([`exchange`]).

pub mod alarm;
pub mod arrive;
pub mod attempt;
pub mod body;
mod consult;
pub mod date;
mod errand;
pub mod exchange;
mod form;
#[cfg(test)]
mod injected;
pub mod interim;
pub mod keys;
pub mod malformed;
pub mod mirror;
pub mod queue;
pub mod reply;
pub mod respond;
pub mod seen;
pub mod serve;
pub mod text;
pub mod tunnel;
