//! What a client's proxy thinks of the endpoints of a configuration, by its admin address.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use testkit::client::{Ask, Http1};
use testkit::table::Expect;
use testkit::topology::{Placed, Topology};
use testkit::world::World;

/// How often the proxy is asked.
const EVERY: Duration = Duration::from_millis(100);

/// Looks again and again which endpoints are out, until it is ended.
pub(super) struct Watch {
    admin: std::net::SocketAddr,
    seen: Arc<Mutex<Seen>>,
    task: tokio::task::JoinHandle<()>,
}

/// Which endpoints were out.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    /// At any time.
    pub(super) ever: BTreeSet<IpAddr>,
    /// Most of them at one time.
    pub(super) most: usize,
}

impl Watch {
    /// Begins to ask the proxy of a client.
    pub(super) fn begin(client: &Placed) -> Self {
        let (admin, seen) = (World::admin(client), Arc::<Mutex<Seen>>::default());
        let task = tokio::spawn({
            let seen = Arc::clone(&seen);
            async move {
                loop {
                    if let Ok(out) = ejected(admin).await {
                        note(&seen, out);
                    }
                    tokio::time::sleep(EVERY).await;
                }
            }
        });
        Self { admin, seen, task }
    }

    /// Asks a last time and tells what was seen.
    pub(super) async fn end(self) -> Result<Seen> {
        self.task.abort();
        note(&self.seen, ejected(self.admin).await?);
        Ok(self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

fn note(seen: &Mutex<Seen>, out: BTreeSet<IpAddr>) {
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    seen.most = seen.most.max(out.len());
    seen.ever.extend(out);
}

impl Seen {
    /// The names of the endpoints that were out.
    pub(super) fn names(&self, topology: &Topology) -> BTreeSet<String> {
        let out = topology.workloads.iter().filter(|workload| self.ever.contains(&workload.address));
        out.map(|workload| workload.name.clone()).collect()
    }
}

/// The endpoints that outlier detection has put out now.
async fn ejected(admin: std::net::SocketAddr) -> Result<BTreeSet<IpAddr>> {
    let text = page(admin, "/clusters").await?;
    let address = |line: &str| {
        let (head, flags) = line.split_once("::health_flags::")?;
        if !flags.contains("failed_outlier_check") {
            return None;
        }
        let address = head.rsplit_once("::")?.1;
        Some(address.parse::<std::net::SocketAddr>().ok()?.ip())
    };
    Ok(text.lines().filter_map(address).collect())
}

/// What is wrong with the numbers that a proxy tells at its admin address; one that it does not tell is 0.
pub(super) async fn numbers(admin: std::net::SocketAddr, expect: &Expect) -> Result<Vec<String>> {
    let text = page(admin, "/stats").await?;
    let seen = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.and_then(|value| value.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    let low = expect.stats_min.iter().flatten().filter(|(name, least)| seen(name) < **least);
    let low = low.map(|(name, least)| format!("{name} is {}, at least {least}", seen(name)));
    let high = expect.stats_max.iter().flatten().filter(|(name, most)| seen(name) > **most);
    Ok(low.chain(high.map(|(name, most)| format!("{name} is {}, at most {most}", seen(name)))).collect())
}

async fn page(admin: std::net::SocketAddr, path: &str) -> Result<String> {
    let ask = Ask {
        method: "GET".to_owned(),
        path: path.to_owned(),
        authority: admin.to_string(),
        headers: Vec::new(),
        body: Vec::new(),
    };
    let reply = Http1::new(admin).send(&ask).await?.context("the proxy's admin address closed")?;
    Ok(String::from_utf8_lossy(&reply.body).into_owned())
}
