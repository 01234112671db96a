//! The proxies that are connected now, and what each of them has.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use compile::WorkloadKey;
use parking_lot::Mutex;
use tokio::sync::watch;
use xds::Flavor;
use xds::server::Refused;

/// One connected proxy.
#[derive(Debug, Clone)]
pub struct Proxy {
    /// Its node id.
    pub node: String,
    /// The workload it belongs to.
    pub workload: WorkloadKey,
    /// Who it proved to be: a SPIFFE id or `uid N`.
    pub peer: String,
    /// What it calls itself: `envoy/1.40.0`.
    pub agent: String,
    /// Where its admin interface listens, if it says so.
    pub admin: Option<String>,
    /// Which protocol its stream speaks.
    pub flavor: Flavor,
    /// Since when.
    pub since: SystemTime,
    /// The revision that last changed its configuration.
    pub wanted: u64,
    /// The revision that was last sent to it; 0 = nothing yet.
    pub sent: u64,
    /// The revision it has completely; 0 = none yet.
    pub settled: u64,
    /// When it had that.
    pub settled_at: Option<Instant>,
    /// What it refused and was not replaced since.
    pub refused: Vec<Refused>,
}

/// Names a connection.
pub type ConnectionId = u64;

/// All connected proxies.
#[derive(Debug)]
pub struct Proxies {
    inner: Mutex<Inner>,
    moved: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    next: ConnectionId,
    connected: BTreeMap<ConnectionId, Proxy>,
}

/// Which proxies of some workloads count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Concerned {
    /// All of them.
    All,
    /// Those whose configuration the revision, or a later one, changed.
    Changed,
}

/// How a wait for acknowledgements ended.
#[derive(Debug, Clone, Default)]
pub struct Waited {
    /// The node ids that have the revision, with the time from `since` until they had it.
    pub acknowledged: Vec<(String, Duration)>,
    /// The node ids that have not (or refused some of it), with the reason.
    pub missing: Vec<(String, String)>,
}

impl Default for Proxies {
    fn default() -> Self {
        Self { inner: Mutex::default(), moved: watch::channel(0).0 }
    }
}

impl Proxies {
    /// A proxy connected.
    pub fn add(&self, proxy: Proxy) -> ConnectionId {
        let mut inner = self.inner.lock();
        inner.next += 1;
        let id = inner.next;
        inner.connected.insert(id, proxy);
        drop(inner);
        self.tell();
        id
    }

    /// A proxy went away.
    pub fn remove(&self, id: ConnectionId) -> Option<Proxy> {
        let gone = self.inner.lock().connected.remove(&id);
        self.tell();
        gone
    }

    /// Something about a proxy changed. The closure tells whether others should look.
    pub fn update(&self, id: ConnectionId, change: impl FnOnce(&mut Proxy) -> bool) {
        let told = self.inner.lock().connected.get_mut(&id).is_some_and(change);
        if told {
            self.tell();
        }
    }

    /// The configuration of these workloads changed.
    pub fn want(&self, workloads: &BTreeSet<WorkloadKey>, revision: u64) {
        let mut inner = self.inner.lock();
        for proxy in inner.connected.values_mut().filter(|proxy| workloads.contains(&proxy.workload)) {
            proxy.wanted = revision;
        }
    }

    /// All of them, in order of connecting.
    pub fn list(&self) -> Vec<Proxy> {
        self.inner.lock().connected.values().cloned().collect()
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.inner.lock().connected.len()
    }

    /// Waits until every connected proxy whose configuration a revision changed has it, or the time is over.
    pub async fn wait(
        &self,
        workloads: &Arc<BTreeSet<WorkloadKey>>,
        revision: u64,
        since: Instant,
        timeout: Duration,
    ) -> Waited {
        let deadline = tokio::time::Instant::now() + timeout;
        let mut moved = self.moved.subscribe();
        loop {
            moved.borrow_and_update();
            let (waited, open) = self.look(workloads, revision, Concerned::Changed, since);
            if open == 0 {
                return waited;
            }
            if tokio::time::timeout_at(deadline, moved.changed()).await.is_err() {
                // What was sent meanwhile wakes nobody, and is part of the reasons.
                return self.look(workloads, revision, Concerned::Changed, since).0;
            }
        }
    }

    /// Who has a revision now; and how many have neither taken nor refused it.
    pub fn look(
        &self,
        workloads: &BTreeSet<WorkloadKey>,
        revision: u64,
        concerned: Concerned,
        since: Instant,
    ) -> (Waited, usize) {
        let (mut waited, mut open) = (Waited::default(), 0);
        let inner = self.inner.lock();
        for proxy in inner.connected.values().filter(|proxy| workloads.contains(&proxy.workload)) {
            if concerned == Concerned::Changed && proxy.wanted < revision {
                continue;
            }
            if proxy.settled < proxy.wanted.min(revision) {
                open += 1;
                let reason = if proxy.sent < revision { "nothing was sent to it yet" } else { "it did not answer yet" };
                waited.missing.push((proxy.node.clone(), reason.to_owned()));
            } else if let Some(refused) = proxy.refused.first() {
                // Most clients name the resource themselves.
                let named = refused.message.contains(&*refused.name);
                let name = if named { String::new() } else { format!("{}: ", refused.name) };
                let reason = format!("it refused {name}{}", refused.message);
                waited.missing.push((proxy.node.clone(), reason));
            } else {
                let took = proxy.settled_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(since));
                waited.acknowledged.push((proxy.node.clone(), took));
            }
        }
        (waited, open)
    }

    fn tell(&self) {
        self.moved.send_modify(|count| *count = count.wrapping_add(1));
    }
}

impl Waited {
    /// The time within which a share of the proxies had it; `None` when none has.
    pub fn percentile(&self, share: f64) -> Option<Duration> {
        let mut times: Vec<Duration> = self.acknowledged.iter().map(|(_, took)| *took).collect();
        times.sort_unstable();
        let rank = (share * times.len() as f64).ceil() as usize;
        times.get(rank.saturating_sub(1)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(name: &str, settled: u64) -> Proxy {
        Proxy {
            node: name.to_owned(),
            workload: WorkloadKey::new("shop", name),
            peer: String::new(),
            agent: String::new(),
            admin: None,
            flavor: Flavor::Delta,
            since: SystemTime::UNIX_EPOCH,
            wanted: 2,
            sent: 2,
            settled,
            settled_at: Some(Instant::now()),
            refused: Vec::new(),
        }
    }

    fn all(names: &[&str]) -> Arc<BTreeSet<WorkloadKey>> {
        Arc::new(names.iter().map(|name| WorkloadKey::new("shop", *name)).collect())
    }

    #[tokio::test]
    async fn a_wait_ends_when_the_last_one_has_it() {
        let proxies = Arc::new(Proxies::default());
        proxies.add(proxy("a", 2));
        let late = proxies.add(proxy("b", 1));
        proxies.add(proxy("elsewhere", 0));
        let waiting = proxies.clone();
        let wait =
            tokio::spawn(
                async move { waiting.wait(&all(&["a", "b"]), 2, Instant::now(), Duration::from_secs(5)).await },
            );
        tokio::task::yield_now().await;
        proxies.update(late, |proxy| {
            proxy.settled = 2;
            true
        });
        let waited = wait.await.unwrap();
        assert_eq!((waited.acknowledged.len(), waited.missing.len()), (2, 0));
    }

    #[tokio::test]
    async fn who_does_not_answer_is_named() {
        let proxies = Proxies::default();
        proxies.add(proxy("a", 1));
        let waited = proxies.wait(&all(&["a"]), 2, Instant::now(), Duration::from_millis(5)).await;
        assert_eq!(waited.missing, [("a".to_owned(), "it did not answer yet".to_owned())]);
    }

    #[tokio::test]
    async fn what_was_sent_during_the_wait_counts() {
        let proxies = Arc::new(Proxies::default());
        let silent = proxies.add(Proxy { sent: 1, ..proxy("a", 1) });
        let waiting = proxies.clone();
        let wait =
            tokio::spawn(async move { waiting.wait(&all(&["a"]), 2, Instant::now(), Duration::from_millis(50)).await });
        tokio::task::yield_now().await;
        proxies.update(silent, |proxy| {
            proxy.sent = 2;
            false
        });
        assert_eq!(wait.await.unwrap().missing, [("a".to_owned(), "it did not answer yet".to_owned())]);
    }

    #[test]
    fn percentiles() {
        let waited = Waited {
            acknowledged: (1..=100).map(|ms| (String::new(), Duration::from_millis(ms))).collect(),
            missing: Vec::new(),
        };
        assert_eq!(waited.percentile(0.5), Some(Duration::from_millis(50)));
        assert_eq!(waited.percentile(0.99), Some(Duration::from_millis(99)));
        assert_eq!(Waited::default().percentile(0.5), None);
    }
}
