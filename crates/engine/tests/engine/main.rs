//! The engine's scenarios: resources as xDS in YAML, requests, and the decisions they must get.

mod authorization;
mod filters;
mod heads;
mod plans;
mod routing;
mod world;
