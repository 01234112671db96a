//! The demo: a small shop as a whole mesh on this machine.

pub(crate) mod app;
