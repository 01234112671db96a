//! Istio's standard metrics (istio.io, "Istio Standard Metrics"): exact names, labels and buckets.
//!
//! A row is an [`Edge`]: who called whom, as seen by one side. Under it, one set of numbers per kind of answer.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::edges::EdgeTotals;
use crate::exposition::LabelWriter;
use crate::registry::cells::{LATENCY_BUCKETS, Latency};
use crate::registry::{Counter, Gauge, Histogram, HistogramSnapshot, Row, Shard, Stat, Table, Value, own_stat};

/// What Istio writes where it does not know.
pub const UNKNOWN: &str = "unknown";

/// Which side of a hop reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reporter {
    /// The caller's proxy.
    Source,
    /// The called one's proxy.
    Destination,
}

/// How a hop was secured, as the called side knows it (`connection_security_policy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Security {
    /// TLS with both identities proven.
    MutualTls,
    /// Anything else.
    None,
    /// The caller's side does not report it.
    Unknown,
}

/// One end of a hop. Empty fields are reported as `unknown`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Party {
    /// Workload (deployment) name.
    pub workload: String,
    /// Its namespace.
    pub namespace: String,
    /// SPIFFE identity proven by mTLS: `spiffe://cluster.local/ns/shop/sa/web`.
    pub principal: String,
    /// Label `app`.
    pub app: String,
    /// Label `version`.
    pub version: String,
    /// Cluster it runs in: `Kubernetes`.
    pub cluster: String,
    /// Label `service.istio.io/canonical-name`, else `app`, else the workload's name.
    pub canonical_service: String,
    /// Label `service.istio.io/canonical-revision`, else `version`, else `latest`.
    pub canonical_revision: String,
}

/// The service that was called. Empty fields are reported as `unknown`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceName {
    /// Host: `reviews.shop.svc.cluster.local`.
    pub host: String,
    /// Short name: `reviews`.
    pub name: String,
    /// Namespace.
    pub namespace: String,
}

/// Who called whom, as seen by one side.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Edge {
    /// Which side reports.
    pub reporter: Reporter,
    /// The caller.
    pub source: Arc<Party>,
    /// The called workload.
    pub destination: Arc<Party>,
    /// The called service.
    pub service: Arc<ServiceName>,
    /// How the hop was secured.
    pub security: Security,
    /// Where a caller without an identity called from. No label says it: edges that differ only in it are one series.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_ip: Option<IpAddr>,
}

/// The kind of an answer: what the labels of `istio_requests_total` say beyond the edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResponseKey {
    /// Status code; 0 when there was no answer.
    pub code: u16,
    /// gRPC status when the exchange was gRPC and had one.
    pub grpc_status: Option<u16>,
    /// Response flags, as a set of bits that the caller can name (see [`EdgeHandle::response`]).
    pub flags: u64,
    /// Whether the request was gRPC.
    pub grpc: bool,
}

/// What one exchange adds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sample {
    /// From the first byte of the request to the last of the answer.
    pub duration: Duration,
    /// Bytes of the request's body.
    pub request_bytes: u64,
    /// Bytes of the answer's body.
    pub response_bytes: u64,
    /// gRPC messages of the request.
    pub request_messages: u64,
    /// gRPC messages of the answer.
    pub response_messages: u64,
    /// Whether an authorization policy refused it.
    pub denied: bool,
}

/// The numbers of one kind of answer.
#[derive(Debug, Default)]
struct ResponseCells {
    /// The flags' letters.
    flags: String,
    requests: Counter,
    duration: Histogram,
    request_bytes: Histogram,
    response_bytes: Histogram,
    request_messages: Counter,
    response_messages: Counter,
}

/// The numbers of raw TCP connections that ended with the same flags.
#[derive(Debug, Default)]
struct ConnectionCells {
    /// The flags' letters.
    flags: String,
    opened: Counter,
    closed: Counter,
    sent: Counter,
    received: Counter,
}

/// One worker's numbers of an edge.
#[derive(Debug, Default)]
pub struct EdgeCells {
    responses: Mutex<Vec<(ResponseKey, Arc<ResponseCells>)>>,
    connections: Mutex<Vec<(u64, Arc<ConnectionCells>)>>,
    latency: Latency,
    requests: Counter,
    failures: Counter,
    denied: Counter,
    open: Gauge,
}

/// A worker's way to an edge's numbers: resolved once, then no lock and no allocation.
#[derive(Debug)]
pub struct EdgeHandle {
    shard: Arc<Shard<EdgeCells>>,
    responses: Vec<(ResponseKey, Arc<ResponseCells>)>,
    connections: Vec<(u64, Arc<ConnectionCells>)>,
    room: Arc<Room>,
}

/// How many series there may be, and how many were refused.
#[derive(Debug)]
struct Room {
    used: AtomicUsize,
    most: usize,
    refused: Counter,
}

/// All edges of one proxy.
#[derive(Debug)]
pub struct Requests {
    edges: Table<Edge, EdgeCells>,
    room: Arc<Room>,
}

impl ResponseKey {
    /// The kind that stands for all answers that found no room.
    const OVERFLOW: Self = Self { code: 0, grpc_status: None, flags: 0, grpc: false };

    /// Whether the answer is a failure: no answer, 5xx, or a gRPC status that blames the server (unknown,
    /// deadline exceeded, internal, unavailable, data loss).
    pub fn is_failure(&self) -> bool {
        self.code == 0 || self.code >= 500 || matches!(self.grpc_status, Some(2 | 4 | 13 | 14 | 15))
    }
}

impl Edge {
    /// The edge that takes what found no room.
    fn overflow(&self) -> Self {
        Self {
            reporter: self.reporter,
            source: Arc::default(),
            destination: Arc::default(),
            service: Arc::default(),
            security: self.security,
            source_ip: None,
        }
    }

    fn write_labels(&self, to: &mut LabelWriter) {
        let (source, destination, service) = (&self.source, &self.destination, &self.service);
        let reporter = match self.reporter {
            Reporter::Source => "source",
            Reporter::Destination => "destination",
        };
        for (key, value) in [
            ("reporter", reporter),
            ("source_workload", source.workload.as_str()),
            ("source_canonical_service", &source.canonical_service),
            ("source_canonical_revision", &source.canonical_revision),
            ("source_workload_namespace", &source.namespace),
            ("source_principal", &source.principal),
            ("source_app", &source.app),
            ("source_version", &source.version),
            ("source_cluster", &source.cluster),
            ("destination_workload", &destination.workload),
            ("destination_workload_namespace", &destination.namespace),
            ("destination_principal", &destination.principal),
            ("destination_app", &destination.app),
            ("destination_version", &destination.version),
            ("destination_service", &service.host),
            ("destination_canonical_service", &destination.canonical_service),
            ("destination_canonical_revision", &destination.canonical_revision),
            ("destination_service_name", &service.name),
            ("destination_service_namespace", &service.namespace),
            ("destination_cluster", &destination.cluster),
        ] {
            to.label(key, if value.is_empty() { UNKNOWN } else { value });
        }
    }

    fn response_labels(&self, key: &ResponseKey, flags: &str) -> String {
        let mut labels = LabelWriter::with_capacity(1_024);
        self.write_labels(&mut labels);
        labels.label("request_protocol", if key.grpc { "grpc" } else { "http" });
        labels.label_display("response_code", key.code);
        match key.grpc_status {
            Some(status) => labels.label_display("grpc_response_status", status),
            None => labels.label("grpc_response_status", ""),
        }
        labels.label("response_flags", flags);
        labels.label("connection_security_policy", self.security.as_str());
        labels.finish()
    }

    fn connection_labels(&self, flags: &str) -> String {
        let mut labels = LabelWriter::with_capacity(1_024);
        self.write_labels(&mut labels);
        labels.label("request_protocol", "tcp");
        labels.label("response_flags", flags);
        labels.label("connection_security_policy", self.security.as_str());
        labels.finish()
    }
}

impl Security {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MutualTls => "mutual_tls",
            Self::None => "none",
            Self::Unknown => UNKNOWN,
        }
    }
}

impl EdgeHandle {
    /// Whether the edge was evicted after lying idle: resolve it again.
    #[inline]
    pub fn is_retired(&self) -> bool {
        self.shard.is_retired()
    }

    /// Counts one HTTP exchange. `letters` names the flags (`UF,URX`); it is asked once per kind of answer.
    pub fn response(&mut self, key: ResponseKey, letters: impl FnOnce() -> String, sample: &Sample) {
        let shard = &self.shard;
        shard.requests.inc();
        shard.latency.observe(sample.duration);
        if key.is_failure() {
            shard.failures.inc();
        }
        if sample.denied {
            shard.denied.inc();
        }
        let cells = match self.responses.iter().find(|(held, _)| *held == key) {
            Some((_, cells)) => cells,
            None => {
                let cells = self.resolve(key, letters);
                self.responses.push((key, Arc::clone(&cells)));
                &Arc::clone(&cells)
            }
        };
        cells.requests.inc();
        cells.duration.observe_duration(sample.duration);
        cells.request_bytes.observe(sample.request_bytes);
        cells.response_bytes.observe(sample.response_bytes);
        if key.grpc {
            cells.request_messages.add(sample.request_messages);
            cells.response_messages.add(sample.response_messages);
        }
    }

    /// Counts a raw TCP connection that was opened.
    pub fn connection_opened(&mut self) {
        self.shard.open.inc();
        self.connection(0, no_flags).opened.inc();
    }

    /// Counts bytes of a raw TCP connection since the last call: `sent` to the caller, `received` from it.
    pub fn connection_bytes(&mut self, sent: u64, received: u64) {
        let cells = self.connection(0, no_flags);
        cells.sent.add(sent);
        cells.received.add(received);
    }

    /// Counts the end of a raw TCP connection.
    pub fn connection_closed(&mut self, flags: u64, letters: impl FnOnce() -> String, denied: bool) {
        self.shard.open.dec();
        if denied {
            self.shard.denied.inc();
        }
        self.connection(flags, letters).closed.inc();
    }

    fn connection(&mut self, flags: u64, letters: impl FnOnce() -> String) -> Arc<ConnectionCells> {
        if let Some((_, cells)) = self.connections.iter().find(|(held, _)| *held == flags) {
            return Arc::clone(cells);
        }
        let make = || ConnectionCells { flags: letters(), ..ConnectionCells::default() };
        let cells = find_or_insert(&mut self.shard.connections.lock(), flags, make);
        self.connections.push((flags, Arc::clone(&cells)));
        cells
    }

    fn resolve(&self, key: ResponseKey, letters: impl FnOnce() -> String) -> Arc<ResponseCells> {
        let mut responses = self.shard.responses.lock();
        if let Some((_, cells)) = responses.iter().find(|(held, _)| *held == key) {
            return Arc::clone(cells);
        }
        if self.room.used.fetch_add(1, Relaxed) >= self.room.most {
            self.room.used.fetch_sub(1, Relaxed);
            self.room.refused.inc();
            let make = || ResponseCells { flags: no_flags(), ..ResponseCells::default() };
            return find_or_insert(&mut responses, ResponseKey::OVERFLOW, make);
        }
        find_or_insert(&mut responses, key, || ResponseCells { flags: letters(), ..ResponseCells::default() })
    }
}

impl Requests {
    /// No edges yet; at most `most` edges and `most` kinds of answers per worker.
    pub fn new(workers: usize, most: usize) -> Self {
        let room =
            Room { used: AtomicUsize::new(0), most: most.saturating_mul(workers.max(1)), refused: Counter::default() };
        Self { edges: Table::new(workers, most), room: Arc::new(room) }
    }

    /// The numbers of an edge for one worker; keep the handle.
    pub fn edge(&self, edge: &Edge, worker: usize) -> EdgeHandle {
        let row = self.edges.row(edge).unwrap_or_else(|| {
            self.room.refused.inc();
            self.edges.row_beyond(&edge.overflow())
        });
        EdgeHandle {
            shard: row.shard(worker),
            responses: Vec::new(),
            connections: Vec::new(),
            room: Arc::clone(&self.room),
        }
    }

    /// How many series were refused.
    pub fn overflow(&self) -> u64 {
        self.room.refused.value()
    }

    /// Drops edges that saw nothing during the last `idle_sweeps` calls and have nothing open.
    pub fn sweep(&self, idle_sweeps: u32) {
        self.edges.sweep(idle_sweeps, |row| {
            let totals = row_totals(row);
            (totals.open == 0).then(|| totals.requests.wrapping_add(totals.opened).wrapping_add(totals.closed))
        });
        let mut used = 0;
        self.edges.each(|_, row| used += row.shards().map(|shard| shard.responses.lock().len()).sum::<usize>());
        self.room.used.store(used, Relaxed);
    }

    /// The sums of every edge since it exists.
    pub fn totals(&self, mut visit: impl FnMut(&Edge, EdgeTotals)) {
        self.edges.each(|edge, row| visit(edge, row_totals(row)));
    }

    /// Hands every series to `visit`.
    pub fn visit(&self, visit: &mut dyn FnMut(Stat)) {
        self.edges.each(|edge, row| {
            visit_responses(edge, row, visit);
            visit_connections(edge, row, visit);
        });
    }
}

fn no_flags() -> String {
    "-".to_owned()
}

fn find_or_insert<K: PartialEq, V>(list: &mut Vec<(K, Arc<V>)>, key: K, make: impl FnOnce() -> V) -> Arc<V> {
    if let Some((_, cells)) = list.iter().find(|(held, _)| *held == key) {
        return Arc::clone(cells);
    }
    let cells = Arc::new(make());
    list.push((key, Arc::clone(&cells)));
    cells
}

fn row_totals(row: &Row<EdgeCells>) -> EdgeTotals {
    let mut totals = EdgeTotals::default();
    let mut latency = [0_u32; LATENCY_BUCKETS];
    for shard in row.shards() {
        totals.requests += shard.requests.value();
        totals.failures += shard.failures.value();
        totals.denied += shard.denied.value();
        totals.open = totals.open.wrapping_add(shard.open.value());
        shard.latency.add_to(&mut latency);
        for (_, cells) in shard.connections.lock().iter() {
            totals.opened += cells.opened.value();
            totals.closed += cells.closed.value();
            totals.sent += cells.sent.value();
            totals.received += cells.received.value();
        }
    }
    totals.set_latency(&latency);
    totals
}

#[derive(Default)]
struct ResponseSums {
    flags: String,
    requests: u64,
    duration: HistogramSnapshot,
    request_bytes: HistogramSnapshot,
    response_bytes: HistogramSnapshot,
    messages: [u64; 2],
}

fn visit_responses(edge: &Edge, row: &Row<EdgeCells>, visit: &mut dyn FnMut(Stat)) {
    let mut sums: Vec<(ResponseKey, ResponseSums)> = Vec::new();
    for shard in row.shards() {
        for (key, cells) in shard.responses.lock().iter() {
            let index = sums.iter().position(|(held, _)| held == key).unwrap_or_else(|| {
                sums.push((*key, ResponseSums { flags: cells.flags.clone(), ..ResponseSums::default() }));
                sums.len() - 1
            });
            if let Some((_, sum)) = sums.get_mut(index) {
                sum.requests += cells.requests.value();
                cells.duration.add_to(&mut sum.duration);
                cells.request_bytes.add_to(&mut sum.request_bytes);
                cells.response_bytes.add_to(&mut sum.response_bytes);
                let [requests, responses] = &mut sum.messages;
                *requests += cells.request_messages.value();
                *responses += cells.response_messages.value();
            }
        }
    }
    for (key, sum) in sums {
        let labels = edge.response_labels(&key, &sum.flags);
        let histogram = |snapshot| Value::Histogram(Box::new(snapshot));
        for (family, help, value) in [
            ("istio_requests_total", "Requests.", Value::Counter(sum.requests)),
            ("istio_request_duration_milliseconds", "Duration of requests.", histogram(sum.duration)),
            ("istio_request_bytes", "Bytes of request bodies.", histogram(sum.request_bytes)),
            ("istio_response_bytes", "Bytes of response bodies.", histogram(sum.response_bytes)),
        ] {
            visit(own_stat(family, &labels, help, value));
        }
        if key.grpc {
            let [requests, responses] = sum.messages.map(Value::Counter);
            visit(own_stat("istio_request_messages_total", &labels, "gRPC messages from callers.", requests));
            visit(own_stat("istio_response_messages_total", &labels, "gRPC messages to callers.", responses));
        }
    }
}

fn visit_connections(edge: &Edge, row: &Row<EdgeCells>, visit: &mut dyn FnMut(Stat)) {
    let mut sums: Vec<(u64, String, [u64; 4])> = Vec::new();
    for shard in row.shards() {
        for (flags, cells) in shard.connections.lock().iter() {
            let values = [cells.opened.value(), cells.closed.value(), cells.sent.value(), cells.received.value()];
            match sums.iter_mut().find(|(held, ..)| held == flags) {
                Some((_, _, sum)) => sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value),
                None => sums.push((*flags, cells.flags.clone(), values)),
            }
        }
    }
    for (_, flags, [opened, closed, sent, received]) in sums {
        let labels = edge.connection_labels(&flags);
        for (family, help, value) in [
            ("istio_tcp_connections_opened_total", "Raw TCP connections opened.", opened),
            ("istio_tcp_connections_closed_total", "Raw TCP connections closed.", closed),
            ("istio_tcp_sent_bytes_total", "Bytes sent to the caller over raw TCP.", sent),
            ("istio_tcp_received_bytes_total", "Bytes received from the caller over raw TCP.", received),
        ] {
            visit(own_stat(family, &labels, help, Value::Counter(value)));
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn edge(source: &str, destination: &str) -> Edge {
        let party = |name: &str| {
            Arc::new(Party {
                workload: name.to_owned(),
                namespace: "shop".to_owned(),
                principal: format!("spiffe://cluster.local/ns/shop/sa/{name}"),
                app: name.to_owned(),
                version: "v1".to_owned(),
                cluster: "Kubernetes".to_owned(),
                canonical_service: name.to_owned(),
                canonical_revision: "v1".to_owned(),
            })
        };
        Edge {
            reporter: Reporter::Destination,
            source: party(source),
            destination: party(destination),
            service: Arc::new(ServiceName {
                host: format!("{destination}.shop.svc.cluster.local"),
                name: destination.to_owned(),
                namespace: "shop".to_owned(),
            }),
            security: Security::MutualTls,
            source_ip: None,
        }
    }

    /// What `letters` says where there are none.
    pub(crate) fn none() -> String {
        no_flags()
    }

    pub(crate) fn ok() -> ResponseKey {
        ResponseKey { code: 200, grpc_status: None, flags: 0, grpc: false }
    }

    #[test]
    fn labels_are_istios() {
        let key = ResponseKey { code: 200, grpc_status: Some(14), flags: 2, grpc: true };
        let names: Vec<String> = edge("web", "cart")
            .response_labels(&key, "UH")
            .split("\",")
            .map(|label| label.split('=').next().unwrap_or_default().to_owned())
            .collect();
        let mut wanted = Vec::new();
        for side in ["source", "destination"] {
            for what in ["workload", "workload_namespace", "principal", "app", "version", "cluster"] {
                wanted.push(format!("{side}_{what}"));
            }
            wanted.push(format!("{side}_canonical_service"));
            wanted.push(format!("{side}_canonical_revision"));
        }
        for name in ["destination_service", "destination_service_name", "destination_service_namespace", "reporter"] {
            wanted.push(name.to_owned());
        }
        for name in ["request_protocol", "response_code", "grpc_response_status", "response_flags"] {
            wanted.push(name.to_owned());
        }
        wanted.push("connection_security_policy".to_owned());
        wanted.sort();
        let mut sorted = names;
        sorted.sort();
        assert_eq!(sorted, wanted);
    }

    #[test]
    fn messages_are_counted_of_grpc_alone() {
        let requests = Requests::new(1, 10);
        let mut handle = requests.edge(&edge("web", "pricing"), 0);
        let sample = Sample { request_messages: 3, response_messages: 7, ..Sample::default() };
        handle.response(ok(), no_flags, &sample);
        handle.response(ResponseKey { grpc: true, grpc_status: Some(0), ..ok() }, no_flags, &sample);
        let mut seen = Vec::new();
        requests.visit(&mut |stat: Stat| {
            if let Value::Counter(value) = &stat.value
                && stat.family.contains("_messages_")
            {
                seen.push((stat.family.to_string(), *value));
            }
        });
        let wanted = [("istio_request_messages_total", 3), ("istio_response_messages_total", 7)];
        assert_eq!(seen, wanted.map(|(family, value)| (family.to_owned(), value)));
    }

    #[test]
    fn an_idle_edge_goes_and_a_full_table_says_unknown() {
        let requests = Requests::new(1, 1);
        let mut first = requests.edge(&edge("web", "cart"), 0);
        first.response(ok(), no_flags, &Sample::default());
        let mut second = requests.edge(&edge("web", "other"), 0);
        second.response(ok(), no_flags, &Sample::default());
        let mut seen = Vec::new();
        requests.totals(|edge, totals| seen.push((edge.destination.workload.clone(), totals.requests)));
        seen.sort();
        assert_eq!(seen, [(String::new(), 1), ("cart".to_owned(), 1)]);
        assert_eq!(requests.overflow(), 2, "one edge and one kind of answer had no room");
        requests.sweep(1);
        assert!(!first.is_retired(), "it was used since the sweep before");
        requests.sweep(1);
        assert!(first.is_retired());
    }

    #[test]
    fn an_open_connection_keeps_its_edge() {
        let requests = Requests::new(2, 10);
        let mut handle = requests.edge(&edge("web", "ledger"), 1);
        handle.connection_opened();
        for _ in 0..5 {
            requests.sweep(1);
        }
        assert!(!handle.is_retired());
        handle.connection_closed(0, no_flags, false);
        requests.sweep(1);
        requests.sweep(1);
        assert!(handle.is_retired());
    }
}
