//! Redirection and namespaces: the only privileged code.
