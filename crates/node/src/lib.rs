//! Redirection and namespaces: the only privileged code.

pub mod inherited;
