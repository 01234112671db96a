//! The demo: a small shop as a whole mesh on this machine.

pub(crate) mod app;
mod burst;
pub(crate) mod cast;
mod check;
mod declare;
mod outage;
mod place;
mod record;
mod run;
mod scrape;
mod show;
pub(crate) mod spawn;
mod world;

pub(crate) use run::run;
