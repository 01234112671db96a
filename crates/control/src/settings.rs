//! What a control plane is started with.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Settings with their defaults resolved.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where its sockets and token live: `xds.sock`, `api.sock`, `api.token`.
    pub run_dir: PathBuf,
    /// The certificate authority's directory.
    pub ca_dir: PathBuf,
    /// How long a workload's certificate lives; 24 h by default (Istio's).
    pub cert_ttl: Duration,
    /// ADS and certificates over TLS; `0.0.0.0:15012` by default, `None` = not served.
    pub xds: Option<SocketAddr>,
    /// ADS in plaintext on loopback (`--insecure-xds`); off by default.
    pub insecure_xds: Option<SocketAddr>,
    /// API; `127.0.0.1:15100` by default, `None` = only on the Unix socket.
    pub api: Option<SocketAddr>,
    /// Metrics; `127.0.0.1:15014` by default, `None` = not served.
    pub metrics: Option<SocketAddr>,
    /// Names and addresses in its own certificate besides `localhost` and the loopback addresses.
    pub names: Vec<String>,
}

impl Settings {
    /// The defaults, on these directories.
    pub fn new(run_dir: PathBuf, ca_dir: PathBuf) -> Self {
        Self {
            run_dir,
            ca_dir,
            cert_ttl: Duration::from_secs(24 * 3600),
            xds: Some(SocketAddr::from(([0, 0, 0, 0], 15012))),
            insecure_xds: None,
            api: Some(SocketAddr::from(([127, 0, 0, 1], 15100))),
            metrics: Some(SocketAddr::from(([127, 0, 0, 1], 15014))),
            names: Vec::new(),
        }
    }
}
