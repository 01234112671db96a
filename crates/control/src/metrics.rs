//! The control plane's own metrics: Istio's names where dashboards read them, `tulle_*` for the rest.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use identity::audit::Audit;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByType {
    r#type: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByVersion {
    version: String,
}

type Histograms = Family<ByType, Histogram, fn() -> Histogram>;

/// All of them.
pub(crate) struct Metrics {
    registry: Registry,
    audit: Arc<Audit>,
    connected: Family<ByVersion, Gauge>,
    pushes: Family<ByType, Counter>,
    push_time: Histograms,
    rejects: Family<ByType, Counter>,
    convergence: Histogram,
    triggers: Family<ByType, Counter>,
    size: Histograms,
    services: Gauge,
    revision: Gauge,
    workloads: Gauge,
    findings: Family<ByType, Gauge>,
    refused_streams: Counter,
    unknown_names: Counter,
    root_expiry: Gauge,
}

fn seconds() -> Histogram {
    Histogram::new([0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0])
}

fn bytes() -> Histogram {
    Histogram::new([1.0, 1e4, 1e6, 4e6, 1e7, 4e7])
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    pub(crate) fn new(audit: Arc<Audit>) -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            audit,
            connected: Family::default(),
            pushes: Family::default(),
            push_time: Family::new_with_constructor(seconds as fn() -> Histogram),
            rejects: Family::default(),
            convergence: seconds(),
            triggers: Family::default(),
            size: Family::new_with_constructor(bytes as fn() -> Histogram),
            services: Gauge::default(),
            revision: Gauge::default(),
            workloads: Gauge::default(),
            findings: Family::default(),
            refused_streams: Counter::default(),
            unknown_names: Counter::default(),
            root_expiry: Gauge::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let it = &mut self.registry;
        it.register("pilot_xds", "Streams connected now", self.connected.clone());
        it.register("pilot_xds_pushes", "Responses sent, by type", self.pushes.clone());
        it.register("pilot_xds_push_time", "Seconds to compute and publish a change", self.push_time.clone());
        it.register("pilot_total_xds_rejects", "Responses that a proxy refused, by type", self.rejects.clone());
        let help = "Seconds from a change to its last acknowledgement by a proxy";
        it.register("pilot_proxy_convergence_time", help, self.convergence.clone());
        it.register("pilot_push_triggers", "Changes taken in, by kind of input", self.triggers.clone());
        it.register("pilot_xds_config_size_bytes", "Size of responses in bytes, by type", self.size.clone());
        it.register("pilot_services", "Services known", self.services.clone());
        it.register("tulle_config_revision", "Revision of the configuration", self.revision.clone());
        it.register("tulle_workloads", "Workloads declared", self.workloads.clone());
        it.register("tulle_findings", "Findings in the configuration, by severity", self.findings.clone());
        let help = "Resources asked for by name that the caller may not see or that do not exist";
        it.register("tulle_xds_unknown_names", help, self.unknown_names.clone());
        let help = "When the root certificate ends, in seconds since 1970";
        it.register("citadel_server_root_cert_expiry_timestamp", help, self.root_expiry.clone());
        it.register("tulle_xds_streams_refused", "Streams refused for their identity", self.refused_streams.clone());
    }

    pub(crate) fn stream(&self, by: i64) {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        self.connected.get_or_create(&ByVersion { version }).inc_by(by);
    }

    pub(crate) fn refused_stream(&self) {
        self.refused_streams.inc();
    }

    pub(crate) fn unknown_name(&self) {
        self.unknown_names.inc();
    }

    pub(crate) fn root_ends(&self, at: SystemTime) {
        let seconds = at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.root_expiry.set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }

    pub(crate) fn sent(&self, type_url: &str, size: usize) {
        let by = short(type_url);
        self.pushes.get_or_create(&by).inc();
        self.size.get_or_create(&by).observe(size as f64);
    }

    pub(crate) fn rejected(&self, type_url: &str) {
        self.rejects.get_or_create(&short(type_url)).inc();
    }

    pub(crate) fn converged(&self, took: Duration) {
        self.convergence.observe(took.as_secs_f64());
    }

    pub(crate) fn pushed(&self, input: &str, took: Duration) {
        self.triggers.get_or_create(&ByType { r#type: input.to_owned() }).inc();
        self.push_time.get_or_create(&ByType { r#type: "all".to_owned() }).observe(took.as_secs_f64());
    }

    pub(crate) fn world(&self, revision: u64, services: usize, workloads: usize, errors: usize, warnings: usize) {
        let number = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        self.revision.set(i64::try_from(revision).unwrap_or(i64::MAX));
        self.services.set(number(services));
        self.workloads.set(number(workloads));
        for (severity, count) in [("error", errors), ("warning", warnings)] {
            self.findings.get_or_create(&ByType { r#type: severity.to_owned() }).set(number(count));
        }
    }

    /// The page that Prometheus reads (text format 0.0.4).
    pub(crate) fn page(&self) -> String {
        let mut page = String::new();
        // Writing to a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut page, &self.registry);
        let mut page = prometheus(&page);
        page.push_str("# HELP tulle_audit_total Audited events, by kind.\n# TYPE tulle_audit_total counter\n");
        for (event, count) in self.audit.counts() {
            page.push_str(&format!("tulle_audit_total{{event=\"{event}\"}} {count}\n"));
        }
        page
    }
}

/// From OpenMetrics to the older text format. There a counter is called like its samples: ours end with `_total`,
/// Istio's do not, and its dashboards ask for them as they are.
fn prometheus(page: &str) -> String {
    let counter = |line: &str| line.strip_prefix("# TYPE ")?.strip_suffix(" counter").map(str::to_owned);
    let counters: Vec<String> = page.lines().filter_map(counter).collect();
    let mut text = String::with_capacity(page.len());
    for line in page.lines().filter(|line| *line != "# EOF") {
        let name_end =
            |name: &str| line.strip_prefix("# ").map_or(0, |rest| 2 + rest.find(' ').unwrap_or(0) + 1) + name.len();
        let of = |name: &&String| {
            let start = name_end(name) - name.len();
            let after = line.get(start..).and_then(|rest| rest.strip_prefix(name.as_str()));
            after.is_some_and(|after| after.starts_with([' ', '{']) || after.starts_with("_total"))
        };
        match counters.iter().find(of) {
            Some(name) if name.starts_with("pilot_") => {
                text.push_str(&line.replacen(&format!("{name}_total"), name, 1))
            }
            Some(name) if line.starts_with('#') => {
                text.push_str(&line.replacen(name.as_str(), &format!("{name}_total"), 1))
            }
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

/// Istio's short names of the types.
fn short(type_url: &str) -> ByType {
    use proto::type_url::{CLUSTER, ENDPOINTS, LISTENER, ROUTE, SECRET};
    let name = match type_url {
        CLUSTER => "cds",
        ENDPOINTS => "eds",
        LISTENER => "lds",
        ROUTE => "rds",
        SECRET => "sds",
        _ => "other",
    };
    ByType { r#type: name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_called_as_dashboards_know_them() {
        let metrics = Metrics::new(Arc::new(Audit::default()));
        metrics.sent(proto::type_url::CLUSTER, 100);
        metrics.rejected(proto::type_url::LISTENER);
        metrics.refused_stream();
        metrics.stream(1);
        let page = metrics.page();
        for line in [
            "# TYPE pilot_xds_pushes counter",
            "pilot_xds_pushes{type=\"cds\"} 1",
            "pilot_total_xds_rejects{type=\"lds\"} 1",
            "# TYPE tulle_xds_streams_refused_total counter",
            "tulle_xds_streams_refused_total 1",
            "tulle_audit_total{event=\"peer_refused\"} 0",
        ] {
            assert!(page.lines().any(|one| one == line), "{line} is missing in\n{page}");
        }
        assert!(page.lines().any(|line| line.starts_with("pilot_xds{version=")), "{page}");
        assert!(!page.contains("EOF"));
    }
}
