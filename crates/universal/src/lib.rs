//! Declarations from a directory or an embedded store.
