//! Resolving the names of clusters with DNS discovery, each in a task of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use engine::cluster::{DnsFamily, DnsOptions};
use engine::{Dice, Store};
use hashbrown::HashMap;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;
use tokio::net::lookup_host;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::Message;

/// No name is asked for more often.
const SOONEST: Duration = Duration::from_millis(100);

type Name = (Arc<str>, Arc<str>, u16);

/// The names that are resolved at the moment, and how.
pub struct Names {
    outbox: mpsc::Sender<Message>,
    tasks: HashMap<Name, (DnsOptions, JoinHandle<()>)>,
}

impl Names {
    /// None yet; results go to `outbox`.
    pub fn new(outbox: mpsc::Sender<Message>) -> Self {
        Self { outbox, tasks: HashMap::new() }
    }

    /// Starts and stops tasks so that exactly the names that the store wants are resolved, also for clusters that are not in
    /// force before their names are known.
    pub fn follow(&mut self, store: &Store) {
        let options = |name: Name| {
            let options = store.dns_options(&name.0).cloned().unwrap_or_default();
            (name, options)
        };
        let wanted: HashMap<Name, DnsOptions> = store.names_to_resolve().into_iter().map(options).collect();
        self.tasks.retain(|name, (options, task)| {
            let keep = wanted.get(name) == Some(&*options);
            if !keep {
                task.abort();
            }
            keep
        });
        for (name, options) in wanted {
            if self.tasks.contains_key(&name) {
                continue;
            }
            let task = tokio::spawn(resolve(name.clone(), options.clone(), self.outbox.clone()));
            self.tasks.insert(name, (options, task));
        }
    }
}

async fn resolve(name: Name, options: DnsOptions, outbox: mpsc::Sender<Message>) {
    let (cluster, host, port) = name;
    let mut dice = Dice::new(rand::random());
    let mut known: Option<Vec<SocketAddr>> = None;
    let mut failures = 0;
    loop {
        let (addresses, wait) = match look_up(&host, port, options.respect_ttl).await {
            Ok((found, ttl)) => {
                failures = 0;
                let mut addresses = of_family(found, options.family);
                addresses.sort_unstable();
                addresses.dedup();
                (Some(addresses), options.wait(ttl, &mut dice))
            }
            Err(error) => {
                failures += 1;
                tracing::debug!(%cluster, %host, %error, "a name did not resolve");
                // What is known goes on; a name that never resolved has no addresses.
                (known.is_none().then(Vec::new), options.wait_after_failure(failures, &mut dice))
            }
        };
        if let Some(addresses) = addresses
            && known.as_ref() != Some(&addresses)
        {
            known = Some(addresses.clone());
            let (cluster, host) = (Arc::clone(&cluster), Arc::clone(&host));
            if outbox.send(Message::Resolved { cluster, host, port, addresses }).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(wait.max(SOONEST)).await;
    }
}

/// The addresses of a name, and how long they are good where that was asked for. The system's own resolver, which knows
/// more sources than DNS, does not tell.
async fn look_up(host: &str, port: u16, with_ttl: bool) -> Result<(Vec<SocketAddr>, Option<Duration>), String> {
    if !with_ttl {
        let found = lookup_host((host, port)).await.map_err(|error| error.to_string())?;
        return Ok((found.collect(), None));
    }
    let mut builder = TokioResolver::builder_tokio().map_err(|error| error.to_string())?;
    builder.options_mut().cache_size = 0;
    builder.options_mut().ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    let resolver = builder.build().map_err(|error| error.to_string())?;
    let found = resolver.lookup_ip(host).await.map_err(|error| error.to_string())?;
    let ttl = found.valid_until().saturating_duration_since(std::time::Instant::now());
    Ok((found.iter().map(|ip| SocketAddr::new(ip, port)).collect(), Some(ttl)))
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
