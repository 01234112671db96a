//! One file for each verb.

pub(crate) mod admin;
pub(crate) mod agent;
pub(crate) mod analyze;
pub(crate) mod apply;
pub(crate) mod completion;
pub(crate) mod connection;
pub(crate) mod control;
pub(crate) mod delete;
pub(crate) mod demo;
pub(crate) mod duration;
pub(crate) mod enter;
pub(crate) mod explain;
pub(crate) mod get;
pub(crate) mod mesh;
pub(crate) mod proxy;
pub(crate) mod proxy_config;
pub(crate) mod proxy_ls;
pub(crate) mod proxy_run;
pub(crate) mod stat;
pub(crate) mod stat_rows;
pub(crate) mod table;
pub(crate) mod tap;
pub(crate) mod token;
pub(crate) mod translate;
pub(crate) mod version;
