//! The engine's scenarios: resources as xDS in YAML, requests, and the decisions they must get.

mod authorization;
mod discovery;
mod external;
mod filters;
mod growth;
mod heads;
mod limits;
mod plans;
mod routing;
mod sizes;
mod tokens;
mod world;
