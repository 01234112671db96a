//! Fuzz targets: what strangers' bytes reach before anybody has proved who they are, and what files and control planes
//! say. Each target is a function of bytes that panics where something is wrong; no panic is the least, and where there
//! is a rule that must hold (what is canonical stays canonical, what we encode we accept) it holds them to it.
//!
//! `cargo test` runs the corpora in `corpus/`; `cargo xtask fuzz` runs the fuzzer.

mod configuration;
mod connection;
mod detection;
mod request;
mod token;

/// A target's name and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("hello", detection::hello),
    ("preface", detection::preface),
    ("proxy_protocol", detection::proxy_protocol),
    ("frames", detection::frames),
    ("http1", request::http1),
    ("connection", connection::http1),
    ("streams", connection::http2),
    ("http1_answer", request::answer),
    ("path", request::path),
    ("jwt", token::jwt),
    ("xds", configuration::xds),
    ("bootstrap", configuration::bootstrap),
    ("yaml", configuration::yaml),
];

/// The function of a target.
pub fn target(name: &str) -> Option<fn(&[u8])> {
    TARGETS.iter().find(|(known, _)| *known == name).map(|(_, function)| *function)
}
