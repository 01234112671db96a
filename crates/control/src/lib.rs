//! The control plane: the shell around `compile`.
