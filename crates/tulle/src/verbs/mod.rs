//! One file for each verb.

pub(crate) mod agent;
pub(crate) mod completion;
pub(crate) mod demo;
pub(crate) mod enter;
pub(crate) mod token;
pub(crate) mod translate;
pub(crate) mod version;
