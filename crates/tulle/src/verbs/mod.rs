//! One file for each verb.

pub(crate) mod completion;
pub(crate) mod demo;
pub(crate) mod translate;
pub(crate) mod version;
