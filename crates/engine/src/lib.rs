//! xDS messages in, decisions out.
//!
//! The engine is the pure middle of the data plane. [`Store`] turns Envoy v3 resources into an immutable [`Plan`];
//! [`decide()`] answers, for one request, whether it may pass and where it goes; [`shape`] changes its head,
//! [`balance`] picks the endpoint, [`retry`], [`circuit`] and [`outlier`] keep the promises made to upstreams.
//!
//! What is absent on purpose: input and output, sockets, threads, timers, clocks and global randomness. Time comes in
//! as a [`Moment`] (or a `SystemTime` inside [`Facts`]), chance as [`Dice`]; so every answer can be repeated in a test
//! and explained by `tulle explain`, which calls the same functions.
//!
//! Semantics are those of Envoy 1.40's API v3 for the fields that `docs/reference/xds.toml` calls honoured.

#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::string_slice)
)]

pub mod access_log;
pub mod alpn;
pub mod balance;
mod build;
pub mod chains;
pub mod circuit;
pub mod cluster;
pub mod cors;
pub mod decide;
pub mod dice;
pub mod discovered;
pub mod endpoint;
pub mod ext_authz;
pub mod facts;
pub mod fault;
pub mod format;
pub mod framing;
pub mod health;
pub mod health_filter;
pub mod http_manager;
pub mod jwt;
pub mod limit;
pub mod listener;
pub mod local_reply;
pub mod matcher;
pub mod metadata;
pub mod moment;
pub mod mutation;
pub mod outlier;
pub mod overload;
pub mod path;
pub mod plan;
pub mod rbac;
pub mod reply;
pub mod retry;
pub mod routes;
pub mod runtime;
pub mod shape;
pub mod store;
pub mod tls;
pub mod tracing;

pub use cluster::{Cluster, ClusterConfig, Discovery};
pub use decide::{Decision, Forward, Outcome, decide};
pub use dice::Dice;
pub use endpoint::{Endpoint, EndpointSet, Locality};
pub use facts::{ConnectionFacts, Facts, Peer};
pub use http_manager::HttpManager;
pub use listener::{Address, FilterChain, Listener, NetworkFilter, TcpProxy};
pub use moment::Moment;
pub use plan::Plan;
pub use routes::{Route, RouteAction, RouteTable, VirtualHost};
pub use store::{Fault, Store, Update, UpdateError};
