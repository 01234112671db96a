//! A request walked through the mesh on paper: the caller's proxy, then the called one's, with the same functions
//! that the proxies call.

mod arrive;
mod depart;
mod outline;
mod plan;
mod request;

pub(crate) use arrive::{Arrived, Verdict, arrive};
pub(crate) use depart::{Departed, Way, depart};
pub(crate) use outline::outline;
pub(crate) use request::{Request, Target, Token};
