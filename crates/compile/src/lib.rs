//! The mesh as a function: compile, scope, encode.
