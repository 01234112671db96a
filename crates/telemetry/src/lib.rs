//! Metrics, access logs, tap, and the admin address's pages.
