//! Tap: finished exchanges, live, for whoever looks. Costs one relaxed load per exchange when nobody does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::istio::{Party, Reporter, Security, ServiceName};

/// Most events that wait for one watcher.
const QUEUE: usize = 256;
/// Events a watcher gets per second unless it asks for another number.
pub const DEFAULT_RATE: u32 = 100;
/// Most watchers at once.
const MOST_WATCHERS: usize = 16;

/// One finished exchange or connection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Event {
    /// When it began, RFC 3339 with milliseconds, UTC.
    pub time: String,
    /// The exchange's id (`x-tulle-id`, else the request id).
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tulle_id: String,
    /// Which side saw it.
    pub reporter: Reporter,
    /// The caller.
    pub source: Arc<Party>,
    /// Its address.
    pub source_address: String,
    /// The called workload.
    pub destination: Arc<Party>,
    /// The called service.
    pub service: Arc<ServiceName>,
    /// Where the exchange went: `ip:port`; empty when nowhere.
    pub upstream: String,
    /// Cluster chosen by the route.
    pub cluster: String,
    /// Route that matched.
    pub route: String,
    /// `HTTP/1.1`, `HTTP/2`, `tcp`.
    pub protocol: String,
    /// Request method; empty for TCP.
    pub method: String,
    /// Path with its query; empty for TCP.
    pub path: String,
    /// `:authority`.
    pub authority: String,
    /// Status sent to the caller; 0 for none.
    pub status: u16,
    /// gRPC status, for gRPC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<u16>,
    /// Envoy's response flags.
    pub flags: String,
    /// Envoy's response code details.
    pub details: String,
    /// The policy or line of configuration that decided.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub policy: String,
    /// What audit (shadow) rules would have done: the policy.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub would_deny: String,
    /// Whether an authorization policy refused it.
    pub denied: bool,
    /// How the hop was secured.
    pub security: Security,
    /// Attempts upstream.
    pub attempts: u32,
    /// From the first byte to the last, in milliseconds.
    pub duration_ms: f64,
    /// Body bytes from the caller.
    pub received: u64,
    /// Body bytes to the caller.
    pub sent: u64,
}

impl Default for Event {
    fn default() -> Self {
        Self {
            time: String::new(),
            tulle_id: String::new(),
            reporter: Reporter::Destination,
            source: Arc::default(),
            source_address: String::new(),
            destination: Arc::default(),
            service: Arc::default(),
            upstream: String::new(),
            cluster: String::new(),
            route: String::new(),
            protocol: String::new(),
            method: String::new(),
            path: String::new(),
            authority: String::new(),
            status: 0,
            grpc_status: None,
            flags: String::new(),
            details: String::new(),
            policy: String::new(),
            would_deny: String::new(),
            denied: false,
            security: Security::Unknown,
            attempts: 0,
            duration_ms: 0.0,
            received: 0,
            sent: 0,
        }
    }
}

impl Event {
    /// Whether it failed: no answer, 5xx, or a gRPC status other than OK.
    pub fn is_error(&self) -> bool {
        let http = !self.method.is_empty();
        (http && (self.status == 0 || self.status >= 500))
            || self.grpc_status.is_some_and(|status| status != 0)
            || (!http && !matches!(self.flags.as_str(), "" | "-"))
    }
}

/// Which kind of exchange a watcher wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Only {
    /// Refused by an authorization policy, or would be by an audited one.
    Denied,
    /// Failed.
    Errors,
}

/// What a watcher wants to see; empty fields want everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// Called workload, service or host.
    pub to: String,
    /// Calling workload.
    pub from: String,
    /// Request method.
    pub method: String,
    /// Path: exact, or a prefix when it ends in `*`.
    pub path: String,
    /// Status: `503`, or `5xx`.
    pub status: String,
    /// Only refused or only failed ones.
    pub only: Option<Only>,
}

/// What a watcher asked for in words that mean nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// Unknown key.
    #[error("unknown filter `{0}`: to, from, method, path, status, only, rate are known")]
    Key(String),
    /// Bad value.
    #[error("`{value}` is no {key}: {hint}")]
    Value {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        hint: &'static str,
    },
}

impl Filter {
    /// Reads `key=value` pairs; also gives the rate per second asked for.
    ///
    /// # Errors
    /// The first key or value that means nothing.
    pub fn parse<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<(Self, u32), FilterError> {
        let (mut filter, mut rate) = (Self::default(), DEFAULT_RATE);
        for (key, value) in pairs {
            let bad = |key, hint| FilterError::Value { key, value: value.to_owned(), hint };
            match key {
                "to" => value.clone_into(&mut filter.to),
                "from" => value.clone_into(&mut filter.from),
                "method" => value.clone_into(&mut filter.method),
                "path" => value.clone_into(&mut filter.path),
                "status" if is_status(value) => value.clone_into(&mut filter.status),
                "status" => return Err(bad("status", "a code such as 503 or a class such as 5xx")),
                "only" => {
                    filter.only = match value {
                        "denied" => Some(Only::Denied),
                        "errors" => Some(Only::Errors),
                        "" => None,
                        _ => return Err(bad("only", "denied or errors")),
                    };
                }
                "rate" => rate = value.parse().map_err(|_| bad("rate", "a number of events per second"))?,
                other => return Err(FilterError::Key(other.to_owned())),
            }
        }
        Ok((filter, rate.max(1)))
    }

    /// Whether the watcher wants this one.
    pub fn takes(&self, event: &Event) -> bool {
        let only = match self.only {
            None => true,
            Some(Only::Denied) => event.denied || !event.would_deny.is_empty(),
            Some(Only::Errors) => event.is_error(),
        };
        let to = || {
            named(&self.to, &event.destination) || of_service(&self.to, &event.service) || event.authority == self.to
        };
        only && (self.to.is_empty() || to())
            && (self.from.is_empty() || named(&self.from, &event.source))
            && (self.method.is_empty() || self.method.eq_ignore_ascii_case(&event.method))
            && (self.path.is_empty() || path_matches(&self.path, &event.path))
            && (self.status.is_empty() || status_matches(&self.status, event.status))
    }
}

fn is_status(text: &str) -> bool {
    matches!(text.as_bytes(), [b'1'..=b'5', b'x', b'x'] | [b'0'..=b'9', b'0'..=b'9', b'0'..=b'9'])
}

fn status_matches(wanted: &str, status: u16) -> bool {
    match wanted.strip_suffix("xx") {
        Some(class) => class.parse() == Ok(status / 100),
        None => wanted.parse() == Ok(status),
    }
}

fn path_matches(wanted: &str, path: &str) -> bool {
    let bare = path.split('?').next().unwrap_or_default();
    match wanted.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => wanted == bare || wanted == path,
    }
}

/// Whether `wanted` is the party's workload, `WORKLOAD.NAMESPACE`, `deploy/WORKLOAD` or SPIFFE identity.
pub fn named(wanted: &str, party: &Party) -> bool {
    let wanted = wanted.strip_prefix("deploy/").unwrap_or(wanted);
    if wanted.starts_with("spiffe://") {
        return wanted == party.principal;
    }
    let (name, namespace) = wanted.split_once('.').unwrap_or((wanted, ""));
    (name == party.workload || name == party.canonical_service)
        && (namespace.is_empty() || namespace == party.namespace)
}

/// Whether `wanted` is the service's name, `NAME.NAMESPACE`, `svc/NAME` or host.
pub fn of_service(wanted: &str, service: &ServiceName) -> bool {
    let wanted = wanted.strip_prefix("svc/").unwrap_or(wanted);
    let (name, namespace) = wanted.split_once('.').unwrap_or((wanted, ""));
    wanted == service.host || (name == service.name && (namespace.is_empty() || namespace == service.namespace))
}

/// All watchers of one proxy. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Tap {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    watching: AtomicUsize,
    watchers: Mutex<Vec<Watcher>>,
}

#[derive(Debug)]
struct Watcher {
    filter: Filter,
    rate: u32,
    second: Instant,
    sent: u32,
    left_out: Arc<AtomicU64>,
    queue: mpsc::Sender<Arc<Event>>,
}

/// What a watcher receives. Dropping it ends the watching.
#[derive(Debug)]
pub struct Watch {
    /// The events.
    pub events: mpsc::Receiver<Arc<Event>>,
    left_out: Arc<AtomicU64>,
}

impl Watch {
    /// How many events the filter took but the rate or a full queue left out, since the last call.
    pub fn left_out(&self) -> u64 {
        self.left_out.swap(0, Relaxed)
    }
}

impl Tap {
    /// Whether anybody looks: only then is an event worth making.
    #[inline]
    pub fn is_watched(&self) -> bool {
        self.inner.watching.load(Relaxed) > 0
    }

    /// Begins watching; `None` when there are too many watchers.
    pub fn watch(&self, filter: Filter, rate: u32) -> Option<Watch> {
        let mut watchers = self.inner.watchers.lock();
        watchers.retain(|watcher| !watcher.queue.is_closed());
        if watchers.len() >= MOST_WATCHERS {
            return None;
        }
        let (queue, events) = mpsc::channel(QUEUE);
        let left_out = Arc::<AtomicU64>::default();
        watchers.push(Watcher {
            filter,
            rate,
            second: Instant::now(),
            sent: 0,
            left_out: Arc::clone(&left_out),
            queue,
        });
        self.inner.watching.store(watchers.len(), Relaxed);
        Some(Watch { events, left_out })
    }

    /// Hands an event to everybody whose filter takes it.
    pub fn publish(&self, event: Event) {
        let event = Arc::new(event);
        let mut watchers = self.inner.watchers.lock();
        watchers.retain_mut(|watcher| watcher.offer(&event));
        self.inner.watching.store(watchers.len(), Relaxed);
    }
}

impl Watcher {
    /// Whether the watcher is still there.
    fn offer(&mut self, event: &Arc<Event>) -> bool {
        if !self.filter.takes(event) {
            return !self.queue.is_closed();
        }
        if self.second.elapsed().as_secs() >= 1 {
            (self.second, self.sent) = (Instant::now(), 0);
        }
        if self.sent >= self.rate {
            self.left_out.fetch_add(1, Relaxed);
            return !self.queue.is_closed();
        }
        self.sent += 1;
        match self.queue.try_send(Arc::clone(event)) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.left_out.fetch_add(1, Relaxed);
                true
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(from: &str, to: &str, status: u16) -> Event {
        let edge = crate::istio::tests::edge(from, to);
        Event {
            source: edge.source,
            destination: edge.destination,
            service: edge.service,
            method: "GET".to_owned(),
            path: "/items?page=2".to_owned(),
            status,
            ..Event::default()
        }
    }

    fn takes(pairs: &[(&str, &str)], event: &Event) -> bool {
        Filter::parse(pairs.iter().copied()).unwrap().0.takes(event)
    }

    #[test]
    fn filters() {
        let event = event("web", "cart", 503);
        for pairs in [
            &[][..],
            &[("to", "cart"), ("from", "web.shop")],
            &[("to", "svc/cart.shop"), ("from", "spiffe://cluster.local/ns/shop/sa/web")],
            &[("to", "cart.shop.svc.cluster.local")],
            &[("method", "get"), ("path", "/items")],
            &[("path", "/it*"), ("status", "5xx"), ("only", "errors")],
        ] {
            assert!(takes(pairs, &event), "{pairs:?}");
        }
        for pairs in [
            &[("to", "web")][..],
            &[("from", "web.other")],
            &[("path", "/it")],
            &[("status", "404")],
            &[("status", "4xx")],
            &[("only", "denied")],
        ] {
            assert!(!takes(pairs, &event), "{pairs:?}");
        }
        assert!(Filter::parse([("statsu", "1")]).is_err());
        assert!(Filter::parse([("status", "6xx")]).is_err());
        assert!(Filter::parse([("only", "failed")]).is_err());
    }

    #[tokio::test]
    async fn a_watcher_gets_no_more_than_it_asked_for() {
        let tap = Tap::default();
        assert!(!tap.is_watched());
        let mut watch = tap.watch(Filter::default(), 2).unwrap();
        assert!(tap.is_watched());
        for _ in 0..5 {
            tap.publish(event("web", "cart", 200));
        }
        assert!(watch.events.recv().await.is_some() && watch.events.recv().await.is_some());
        assert!(watch.events.try_recv().is_err());
        assert_eq!((watch.left_out(), watch.left_out()), (3, 0));
        drop(watch);
        tap.publish(event("web", "cart", 200));
        assert!(!tap.is_watched());
    }

    #[test]
    fn watchers_are_bounded() {
        let tap = Tap::default();
        let watches: Vec<_> = (0..MOST_WATCHERS + 1).map(|_| tap.watch(Filter::default(), 1)).collect();
        assert!(watches.last().is_some_and(Option::is_none));
    }
}
