//! The registry: everything a proxy counts, in shards per worker.
//!
//! Handles are resolved once (per cluster, listener, edge, policy) and kept by their users; counting through a
//! handle takes no lock and allocates nothing. Whoever asks for the numbers pays for summing the shards.

pub mod cells;
pub mod scopes;
pub mod table;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use hashbrown::HashMap;
use parking_lot::{Mutex, RwLock};

use crate::edges::History;
use crate::istio::Requests;
pub use cells::{Counter, Gauge, Histogram, HistogramSnapshot};
pub use scopes::{
    ClusterCells, Codes, ConnectionLimitCells, HttpCells, LimitCells, ListenerCells, Scope, TcpCells, Value,
};
pub use table::{Row, Shard, Table};

/// How much the registry may hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most series rows of one kind (clusters, edges, answers of an edge, own series): 10,000 by default.
    pub series: usize,
    /// Sweeps (one a minute) after which an unused row of the traffic tables is dropped: 60 by default.
    pub idle_sweeps: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { series: 10_000, idle_sweeps: 60 }
    }
}

/// One sample for an output format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// Envoy's dotted name (`cluster.web.upstream_rq_200`); for other series the family with its labels.
    pub text: String,
    /// Prometheus' name.
    pub family: &'static str,
    /// For names made at run time from `family`'s parts; empty when `family` is the whole name.
    pub suffix: String,
    /// Labels as `key="value",key="value"`, values escaped.
    pub labels: String,
    /// One line about the family; may be empty.
    pub help: &'static str,
    /// The number.
    pub value: Value,
}

type Collector = Box<dyn Fn(&mut dyn FnMut(Stat)) + Send + Sync>;

/// Everything one proxy counts. Cheap to clone.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    limits: Limits,
    workers: usize,
    started: Instant,
    clusters: Table<String, ClusterCells>,
    http: Table<String, HttpCells>,
    listeners: Table<String, ListenerCells>,
    tcp: Table<String, TcpCells>,
    request_limits: Table<String, LimitCells>,
    connection_limits: Table<String, ConnectionLimitCells>,
    requests: Requests,
    own: RwLock<HashMap<OwnKey, OwnSeries>>,
    overflow: Counter,
    collectors: Mutex<Vec<Collector>>,
    history: Mutex<History>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct OwnKey {
    family: &'static str,
    labels: String,
}

enum OwnSeries {
    Counter { help: &'static str, cell: Arc<Counter> },
    Gauge { help: &'static str, cell: Arc<Gauge> },
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("workers", &self.inner.workers).finish_non_exhaustive()
    }
}

impl Registry {
    /// A registry for `workers` workers (plus everything else, which shares the first shard).
    pub fn new(workers: usize, limits: Limits) -> Self {
        let inner = Inner {
            limits,
            workers,
            started: Instant::now(),
            clusters: Table::new(workers, limits.series),
            http: Table::new(workers, limits.series),
            listeners: Table::new(workers, limits.series),
            tcp: Table::new(workers, limits.series),
            request_limits: Table::new(workers, limits.series),
            connection_limits: Table::new(workers, limits.series),
            requests: Requests::new(workers, limits.series),
            own: RwLock::default(),
            overflow: Counter::default(),
            collectors: Mutex::default(),
            history: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The numbers of a cluster for one worker; keep the handle.
    pub fn cluster(&self, name: &str, worker: usize) -> Arc<Shard<ClusterCells>> {
        self.shard(&self.inner.clusters, name, worker)
    }

    /// The numbers of an HTTP connection manager (`stat_prefix`) for one worker; keep the handle.
    pub fn http(&self, stat_prefix: &str, worker: usize) -> Arc<Shard<HttpCells>> {
        self.shard(&self.inner.http, stat_prefix, worker)
    }

    /// The numbers of a listener for one worker, by its address as text (`0.0.0.0:15001`); keep the handle.
    pub fn listener(&self, address: &str, worker: usize) -> Arc<Shard<ListenerCells>> {
        self.shard(&self.inner.listeners, &address.replace(':', "_"), worker)
    }

    /// The numbers of a TCP proxy (`stat_prefix`) for one worker; keep the handle.
    pub fn tcp(&self, stat_prefix: &str, worker: usize) -> Arc<Shard<TcpCells>> {
        self.shard(&self.inner.tcp, stat_prefix, worker)
    }

    /// The numbers of filters that limit requests (`stat_prefix`) for one worker; keep the handle.
    pub fn limit(&self, stat_prefix: &str, worker: usize) -> Arc<Shard<LimitCells>> {
        self.shard(&self.inner.request_limits, stat_prefix, worker)
    }

    /// The numbers of filters that limit new connections (`stat_prefix`) for one worker; keep the handle.
    pub fn connection_limit(&self, stat_prefix: &str, worker: usize) -> Arc<Shard<ConnectionLimitCells>> {
        self.shard(&self.inner.connection_limits, stat_prefix, worker)
    }

    /// Istio's standard metrics.
    pub fn requests(&self) -> &Requests {
        &self.inner.requests
    }

    /// A counter of our own (`tulle_*`); keep the handle. Labels as `(key, value)`.
    pub fn counter(&self, family: &'static str, help: &'static str, labels: &[(&str, &str)]) -> Arc<Counter> {
        let made = self.own(
            family,
            labels,
            || OwnSeries::Counter { help, cell: Arc::default() },
            |series| match series {
                OwnSeries::Counter { cell, .. } => Some(Arc::clone(cell)),
                OwnSeries::Gauge { .. } => None,
            },
        );
        made.unwrap_or_default()
    }

    /// A gauge of our own (`tulle_*`); keep the handle. Labels as `(key, value)`.
    pub fn gauge(&self, family: &'static str, help: &'static str, labels: &[(&str, &str)]) -> Arc<Gauge> {
        let made = self.own(
            family,
            labels,
            || OwnSeries::Gauge { help, cell: Arc::default() },
            |series| match series {
                OwnSeries::Gauge { cell, .. } => Some(Arc::clone(cell)),
                OwnSeries::Counter { .. } => None,
            },
        );
        made.unwrap_or_default()
    }

    /// Removes the series of one of our own families whose labels `keep` refuses (a configuration version that
    /// is no longer in force).
    pub fn retain_own(&self, family: &str, mut keep: impl FnMut(&str) -> bool) {
        self.inner.own.write().retain(|key, _| key.family != family || keep(&key.labels));
    }

    /// Adds numbers that are worked out only when somebody asks.
    pub fn collect_with(&self, collector: impl Fn(&mut dyn FnMut(Stat)) + Send + Sync + 'static) {
        self.inner.collectors.lock().push(Box::new(collector));
    }

    /// Forgets clusters that the configuration no longer has.
    pub fn retain_clusters(&self, mut keep: impl FnMut(&str) -> bool) {
        self.inner.clusters.retain(|name| keep(name));
    }

    /// Forgets listeners (by address) that the configuration no longer has.
    pub fn retain_listeners(&self, mut keep: impl FnMut(&str) -> bool) {
        self.inner.listeners.retain(|name| keep(name));
    }

    /// To be called once a minute: drops traffic series that nobody used for an hour.
    pub fn sweep(&self) {
        self.inner.requests.sweep(self.inner.limits.idle_sweeps);
    }

    /// The recent past of the edges.
    pub fn history(&self) -> &Mutex<History> {
        &self.inner.history
    }

    /// How long the registry exists.
    pub fn age(&self) -> std::time::Duration {
        self.inner.started.elapsed()
    }

    /// Clusters with endpoints that outlier detection holds back now: name and how many.
    pub fn ejected(&self) -> Vec<(String, u64)> {
        let mut ejected = Vec::new();
        self.inner.clusters.each(|name, row| {
            let active =
                row.shards().fold(0_u64, |sum, shard| sum.wrapping_add(shard.outlier_ejections_active.value()));
            if active != 0 {
                ejected.push((name.clone(), active));
            }
        });
        ejected.sort();
        ejected
    }

    /// Client connections open now to the HTTP connection managers whose prefix `wanted` accepts.
    pub fn connections(&self, wanted: impl Fn(&str) -> bool) -> u64 {
        let mut open = 0_u64;
        self.inner.http.each(|prefix, row| {
            if wanted(prefix) {
                open = row.shards().fold(open, |sum, shard| sum.wrapping_add(shard.downstream_cx_active.value()));
            }
        });
        open
    }

    /// The sum of one cluster's numbers that a page shows per cluster.
    pub fn cluster_values(&self, name: &str) -> Vec<(&'static str, Value)> {
        let mut values = Vec::new();
        self.inner.clusters.each(|key, row| {
            if key == name {
                values = ClusterCells::collect(&mut row.shards());
            }
        });
        values
    }

    /// Hands every number to `visit`: Envoy's scopes, our own series, Istio's metrics, in no particular order.
    pub fn visit(&self, visit: &mut dyn FnMut(Stat)) {
        visit_scope(&self.inner.clusters, visit);
        visit_scope(&self.inner.http, visit);
        visit_scope(&self.inner.listeners, visit);
        visit_scope(&self.inner.tcp, visit);
        visit_scope(&self.inner.request_limits, visit);
        visit_scope(&self.inner.connection_limits, visit);
        self.visit_own(visit);
        self.inner.requests.visit(visit);
        for collector in self.inner.collectors.lock().iter() {
            collector(visit);
        }
    }

    fn visit_own(&self, visit: &mut dyn FnMut(Stat)) {
        let overflow = self.inner.overflow.value() + self.inner.requests.overflow();
        visit(own_stat(
            "tulle_metrics_overflow_total",
            "",
            "Series refused because a table of metrics was full; their numbers are in the series `unknown`.",
            Value::Counter(overflow),
        ));
        for (key, series) in self.inner.own.read().iter() {
            visit(match series {
                OwnSeries::Counter { help, cell } => {
                    own_stat(key.family, &key.labels, help, Value::Counter(cell.value()))
                }
                OwnSeries::Gauge { help, cell } => own_stat(key.family, &key.labels, help, Value::Gauge(cell.value())),
            });
        }
    }

    fn shard<T: Default>(&self, table: &Table<String, T>, name: &str, worker: usize) -> Arc<Shard<T>> {
        match table.row(name) {
            Some(row) => row.shard(worker),
            None => {
                self.inner.overflow.inc();
                Arc::default()
            }
        }
    }

    fn own<T>(
        &self,
        family: &'static str,
        labels: &[(&str, &str)],
        make: impl FnOnce() -> OwnSeries,
        handle: impl Fn(&OwnSeries) -> Option<T>,
    ) -> Option<T> {
        let key = OwnKey { family, labels: crate::exposition::labels(labels) };
        if let Some(series) = self.inner.own.read().get(&key) {
            return handle(series);
        }
        let mut own = self.inner.own.write();
        if own.len() >= self.inner.limits.series {
            self.inner.overflow.inc();
            return None;
        }
        handle(own.entry(key).or_insert_with(make))
    }
}

/// A sample outside Envoy's dotted names.
pub fn own_stat(family: &'static str, labels: &str, help: &'static str, value: Value) -> Stat {
    let text = if labels.is_empty() { family.to_owned() } else { format!("{family}{{{labels}}}") };
    Stat { text, family, suffix: String::new(), labels: labels.to_owned(), help, value }
}

/// A sample of a cluster that is worked out when somebody asks: `field` is Envoy's (`membership_total`).
pub fn cluster_stat(name: &str, field: &str, value: Value) -> Stat {
    Stat {
        text: format!("{}.{name}.{field}", ClusterCells::PREFIX),
        family: "envoy_",
        suffix: format!("{}_{}", ClusterCells::PREFIX, field.replace('.', "_")),
        labels: crate::exposition::labels(&[(ClusterCells::LABEL, name)]),
        help: "",
        value,
    }
}

/// A sample with a dotted name of Envoy's and no label: `server.live`.
pub fn envoy_stat(text: &str, value: Value) -> Stat {
    Stat {
        text: text.to_owned(),
        family: "envoy_",
        suffix: text.replace('.', "_"),
        labels: String::new(),
        help: "",
        value,
    }
}

fn visit_scope<T: Scope>(table: &Table<String, T>, visit: &mut dyn FnMut(Stat)) {
    table.each(|name, row| {
        let label = crate::exposition::labels(&[(T::LABEL, name)]);
        for (field, value) in T::collect(&mut row.shards()) {
            visit(Stat {
                text: match T::NAME_FIRST {
                    true => format!("{name}.{}.{field}", T::PREFIX),
                    false => format!("{}.{name}.{field}", T::PREFIX),
                },
                family: "envoy_",
                suffix: format!("{}_{}", T::PREFIX, field.replace('.', "_")),
                labels: label.clone(),
                help: "",
                value,
            });
        }
        if !T::CODES.is_empty() {
            visit_codes(name, &label, row, visit);
        }
    });
}

fn visit_codes<T: Scope>(name: &str, label: &str, row: &Row<T>, visit: &mut dyn FnMut(Stat)) {
    let mut classes = [0_u64; 5];
    let mut by_code: Vec<(u16, u64)> = Vec::new();
    for codes in row.shards().filter_map(Scope::codes) {
        for (sum, one) in classes.iter_mut().zip(codes.classes()) {
            *sum += one;
        }
        for (code, count) in codes.each() {
            match by_code.iter_mut().find(|(held, _)| *held == code) {
                Some((_, sum)) => *sum += count,
                None => by_code.push((code, count)),
            }
        }
    }
    let (prefix, codes) = (T::PREFIX, T::CODES);
    for (class, count) in (1..).zip(classes).filter(|(_, count)| *count > 0) {
        visit(Stat {
            text: format!("{prefix}.{name}.{codes}_{class}xx"),
            family: "envoy_",
            suffix: format!("{prefix}_{codes}_xx"),
            labels: format!("envoy_response_code_class=\"{class}\",{label}"),
            help: "",
            value: Value::Counter(count),
        });
    }
    for (code, count) in by_code.into_iter().filter(|_| T::EACH_CODE) {
        visit(Stat {
            text: format!("{prefix}.{name}.{codes}_{code}"),
            family: "envoy_",
            suffix: format!("{prefix}_{codes}"),
            labels: format!("envoy_response_code=\"{code}\",{label}"),
            help: "",
            value: Value::Counter(count),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_table_counts_what_it_refuses() {
        let registry = Registry::new(1, Limits { series: 2, idle_sweeps: 1 });
        for name in ["a", "b", "c"] {
            registry.cluster(name, 0).upstream_rq_total.inc();
        }
        let mut seen = Vec::new();
        registry.visit(&mut |stat| {
            if stat.text.ends_with("upstream_rq_total") || stat.family.contains("overflow") {
                seen.push((stat.text, stat.value));
            }
        });
        seen.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(
            seen,
            [
                ("cluster.a.upstream_rq_total".to_owned(), Value::Counter(1)),
                ("cluster.b.upstream_rq_total".to_owned(), Value::Counter(1)),
                ("tulle_metrics_overflow_total".to_owned(), Value::Counter(1)),
            ]
        );
    }

    #[test]
    fn workers_count_apart_and_are_summed() {
        let registry = Registry::new(2, Limits::default());
        let handles = [registry.cluster("web", 0), registry.cluster("web", 1)];
        for (handle, n) in handles.iter().zip([3, 4]) {
            handle.upstream_rq_total.add(n);
            handle.responses.inc(503);
        }
        let mut found = Vec::new();
        registry.visit(&mut |stat| {
            if matches!(stat.text.as_str(), "cluster.web.upstream_rq_total" | "cluster.web.upstream_rq_503") {
                found.push((stat.text, stat.labels, stat.value));
            }
        });
        found.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(found[0].1, "envoy_response_code=\"503\",envoy_cluster_name=\"web\"");
        assert_eq!(found[0].2, Value::Counter(2));
        assert_eq!(found[1].2, Value::Counter(7));
    }

    #[test]
    fn a_dropped_cluster_is_retired() {
        let registry = Registry::new(1, Limits::default());
        let handle = registry.cluster("old", 0);
        registry.retain_clusters(|name| name != "old");
        assert!(handle.is_retired());
    }
}
