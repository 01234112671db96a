//! User kinds in: parse and lower, with diagnostics that name file, line and field.
