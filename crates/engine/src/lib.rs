//! xDS messages in, decisions out.
