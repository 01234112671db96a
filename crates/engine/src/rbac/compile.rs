//! Compiling rules from xDS.
