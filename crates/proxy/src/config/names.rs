//! Resolving the names of clusters with DNS discovery, each in a task of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use engine::Plan;
use engine::cluster::{DnsFamily, DnsOptions};
use hashbrown::HashMap;
use tokio::net::lookup_host;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::Message;

type Name = (Arc<str>, Arc<str>, u16);

/// The names that are resolved at the moment.
pub struct Names {
    outbox: mpsc::Sender<Message>,
    tasks: HashMap<Name, JoinHandle<()>>,
}

impl Names {
    /// None yet; results go to `outbox`.
    pub fn new(outbox: mpsc::Sender<Message>) -> Self {
        Self { outbox, tasks: HashMap::new() }
    }

    /// Starts and stops tasks so that exactly these names are resolved.
    pub fn follow(&mut self, wanted: Vec<Name>, plan: &Plan) {
        self.tasks.retain(|name, task| {
            let keep = wanted.contains(name);
            if !keep {
                task.abort();
            }
            keep
        });
        for name in wanted {
            if self.tasks.contains_key(&name) {
                continue;
            }
            let options = plan.cluster(&name.0).map(|cluster| cluster.config.dns.clone()).unwrap_or_default();
            let task = tokio::spawn(resolve(name.clone(), options, self.outbox.clone()));
            self.tasks.insert(name, task);
        }
    }
}

async fn resolve(name: Name, options: DnsOptions, outbox: mpsc::Sender<Message>) {
    let (cluster, host, port) = name;
    let mut known: Option<Vec<SocketAddr>> = None;
    loop {
        let found = lookup_host((&*host, port)).await;
        match found {
            Ok(found) => {
                let mut addresses = of_family(found.collect(), options.family);
                addresses.sort_unstable();
                addresses.dedup();
                if known.as_ref() != Some(&addresses) {
                    known = Some(addresses.clone());
                    let (cluster, host) = (Arc::clone(&cluster), Arc::clone(&host));
                    if outbox.send(Message::Resolved { cluster, host, port, addresses }).await.is_err() {
                        return;
                    }
                }
            }
            Err(error) => {
                tracing::debug!(%cluster, %host, %error, "a name did not resolve");
                if known.is_none() {
                    known = Some(Vec::new());
                    let (cluster, host) = (Arc::clone(&cluster), Arc::clone(&host));
                    if outbox.send(Message::Resolved { cluster, host, port, addresses: Vec::new() }).await.is_err() {
                        return;
                    }
                }
            }
        }
        tokio::time::sleep(options.refresh.max(Duration::from_millis(100))).await;
    }
}

fn of_family(found: Vec<SocketAddr>, family: DnsFamily) -> Vec<SocketAddr> {
    let (v4, v6): (Vec<_>, Vec<_>) = found.into_iter().partition(SocketAddr::is_ipv4);
    match family {
        DnsFamily::V4Only => v4,
        DnsFamily::V6Only => v6,
        DnsFamily::All => [v4, v6].concat(),
        DnsFamily::V4Preferred if v4.is_empty() => v6,
        DnsFamily::V4Preferred => v4,
        DnsFamily::Auto if v6.is_empty() => v4,
        DnsFamily::Auto => v6,
    }
}
