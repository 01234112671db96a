//! Which proxies there are and how to reach them: from the control plane, from a run directory, or as told.

use std::path::{Path, PathBuf};

use control::api::{Proxy, Workload};

use super::connection::{Connection, default_run_dir, refuse};
use crate::output::{Exit, fail};

/// How deep a run directory is searched for `admin.sock`.
const DEPTH: usize = 4;
/// Most sockets taken from a run directory.
const MOST: usize = 1_000;

/// Flags that say which proxies are asked.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Mesh {
    /// Ask the proxy with this admin address, unix:PATH or IP:PORT (repeat for more); no control plane is asked then
    #[arg(long, value_name = "ADDRESS")]
    admin: Vec<String>,
    #[command(flatten)]
    connection: Connection,
}

/// A proxy that can be asked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known {
    /// Its admin address: `unix:PATH` or `IP:PORT`.
    pub(crate) admin: String,
    /// What the control plane knows of it; `None` when none was asked.
    pub(crate) proxy: Option<Proxy>,
}

/// The mesh as far as it is known.
#[derive(Debug, Clone, Default)]
pub(crate) struct Found {
    /// Proxies that can be asked.
    pub(crate) proxies: Vec<Known>,
    /// Declared workloads; empty when no control plane was asked.
    pub(crate) workloads: Vec<Workload>,
}

impl Mesh {
    /// The mesh of the control plane with this run directory.
    pub(crate) fn of_run_dir(dir: PathBuf) -> Self {
        Self { admin: Vec::new(), connection: Connection::of_run_dir(dir) }
    }

    /// Finds the proxies.
    pub(crate) async fn search(&self) -> Result<Found, Exit> {
        if !self.admin.is_empty() {
            let proxies = self.admin.iter().map(|admin| Known { admin: admin.clone(), proxy: None }).collect();
            return Ok(Found { proxies, workloads: Vec::new() });
        }
        let client = self.connection.client()?;
        let proxies = match client.proxies().await {
            Ok(proxies) => proxies,
            Err(error) => return self.without_control(&error),
        };
        let workloads = client.workloads().await.map_err(|error| refuse(&error))?;
        let proxies = proxies
            .into_iter()
            .filter_map(|proxy| Some(Known { admin: proxy.admin.clone()?, proxy: Some(proxy) }))
            .collect();
        Ok(Found { proxies, workloads })
    }

    /// The control plane is away: what runs on this machine can still be asked.
    fn without_control(&self, error: &control::client::ClientError) -> Result<Found, Exit> {
        let run_dir = self.connection.run_dir().unwrap_or_else(default_run_dir);
        let sockets = admin_sockets(&run_dir);
        if sockets.is_empty() {
            return Err(refuse(error));
        }
        fail(Exit::Unreachable, error, Some("asking the proxies under the run directory instead"));
        let known = |path: PathBuf| Known { admin: format!("unix:{}", path.display()), proxy: None };
        Ok(Found { proxies: sockets.into_iter().map(known).collect(), workloads: Vec::new() })
    }
}

/// Every `admin.sock` under a directory, sorted.
fn admin_sockets(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![(directory.to_owned(), 0)];
    while let Some((directory, depth)) = open.pop() {
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() && depth < DEPTH {
                open.push((entry.path(), depth + 1));
            } else if entry.file_name() == "admin.sock" && found.len() < MOST {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_found_in_the_directories_of_workloads() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["web-1/admin.sock", "cart-1/admin.sock", "cart-1/sds.sock", "a/b/c/d/e/f/admin.sock"] {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let found = admin_sockets(dir.path());
        assert_eq!(found, [dir.path().join("cart-1/admin.sock"), dir.path().join("web-1/admin.sock")]);
    }
}
