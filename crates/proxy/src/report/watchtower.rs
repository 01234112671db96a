//! What all workers report to: the registry, the log files, the tap, and who this proxy is.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use engine::circuit::{Limits as CircuitLimits, Resource, Usage};
use engine::endpoint::HealthStatus;
use engine::routes::Priority;
use engine::{Cluster, Plan};
use parking_lot::Mutex;
use proto::envoy::config::core::v3::Node;
use telemetry::Registry;
use telemetry::accesslog::{Sink, Sinks, Target};
use telemetry::edges::{self, ProxyFacts};
use telemetry::registry::{Counter, Limits, Stat, Value, cluster_stat, envoy_stat};
use telemetry::tap::Tap;

use super::party::Own;

/// Between two sweeps of the registry.
const SWEEP: Duration = Duration::from_secs(60);

/// The reporting side of one proxy.
pub struct Watchtower {
    /// All numbers.
    pub registry: Registry,
    /// Who watches exchanges live.
    pub tap: Tap,
    /// The access logs.
    pub sinks: Sinks,
    /// Who this proxy works for.
    pub own: Own,
    /// Where events of outlier detection are written.
    outliers: OnceLock<Sink>,
    node: String,
    config: Mutex<Config>,
    plan: OnceLock<PlanSource>,
    identity: OnceLock<IdentitySource>,
}

/// Where the plan in force can be had.
type PlanSource = Box<dyn Fn() -> Arc<Plan> + Send + Sync>;
/// Where this proxy's own SPIFFE id can be had: its certificate's.
type IdentitySource = Box<dyn Fn() -> Option<String> + Send + Sync>;

#[derive(Debug, Default)]
struct Config {
    version: String,
    rejects: u64,
    connected: Option<bool>,
}

impl Watchtower {
    /// The reporting side of a proxy with `workers` workers.
    ///
    /// # Errors
    /// When the system gives no thread for the access logs.
    pub fn new(node: &Node, workers: usize) -> io::Result<Arc<Self>> {
        let registry = Registry::new(workers, Limits::default());
        registry
            .gauge(
                "istio_build",
                "Istio's build information.",
                &[("component", "proxy"), ("tag", env!("CARGO_PKG_VERSION"))],
            )
            .set(1);
        let tower = Arc::new(Self {
            registry,
            tap: Tap::default(),
            sinks: Sinks::start(workers)?,
            own: Own::of(node),
            outliers: OnceLock::new(),
            node: node.id.clone(),
            config: Mutex::default(),
            plan: OnceLock::new(),
            identity: OnceLock::new(),
        });
        let weak = Arc::downgrade(&tower);
        tower.registry.collect_with(move |visit| {
            if let Some(tower) = weak.upgrade() {
                tower.visit_own(visit);
            }
        });
        Ok(tower)
    }

    /// Keeps the recent past and drops dead series; to be spawned on the administration's runtime.
    pub async fn keep(self: Arc<Self>) {
        let mut tick = tokio::time::interval(edges::TICK);
        let mut swept = Instant::now();
        loop {
            tick.tick().await;
            let now = Instant::now();
            self.registry.tick(now);
            if now.duration_since(swept) >= SWEEP {
                swept = now;
                self.registry.sweep();
            }
        }
    }

    /// A configuration came into force; `version` is the control plane's, or a hash of what is in force.
    pub fn config_in_force(&self, version: &str) {
        let mut config = self.config.lock();
        if config.version == version {
            return;
        }
        version.clone_into(&mut config.version);
        drop(config);
        let label = telemetry::exposition::labels(&[("version", version)]);
        self.registry.retain_own("tulle_config_info", |held| held == label);
        let help = "The configuration in force, by version; always 1.";
        self.registry.gauge("tulle_config_info", help, &[("version", version)]).set(1);
        self.registry.counter("tulle_config_updates_total", "Configurations that came into force.", &[]).inc();
    }

    /// A resource was refused.
    pub fn config_rejected(&self, type_url: &str) {
        self.config.lock().rejects += 1;
        let kind = type_url.rsplit('.').next().unwrap_or(type_url);
        self.registry.counter("tulle_config_rejects_total", "Resources refused, by kind.", &[("type", kind)]).inc();
    }

    /// A field that a resource sets does nothing here.
    pub fn field_ignored(&self, kind: &str) {
        let help = "Fields of resources that are taken and do nothing, by kind of the resource.";
        self.registry.counter("tulle_config_ignored_fields_total", help, &[("type", kind)]).inc();
    }

    /// Whether the control plane is connected now.
    pub fn control_plane(&self, connected: bool) {
        self.config.lock().connected = Some(connected);
        let help = "Whether the control plane is connected.";
        self.registry.gauge("tulle_control_plane_connected", help, &[]).set(u64::from(connected));
        // Envoy's name for the same.
        self.registry.gauge("envoy_control_plane_connected_state", "", &[]).set(u64::from(connected));
    }

    /// Lets the numbers that follow from the plan (members of clusters, connections, limits) be worked out when somebody
    /// asks. Only the first call counts.
    pub fn observe(&self, plan: impl Fn() -> Arc<Plan> + Send + Sync + 'static) {
        let _ = self.plan.set(Box::new(plan));
    }

    /// Lets this proxy's own identity be read from its certificate. Only the first call counts.
    pub fn identify(&self, identity: impl Fn() -> Option<String> + Send + Sync + 'static) {
        let _ = self.identity.set(Box::new(identity));
    }

    /// Facts about this proxy for reports.
    pub fn facts(&self) -> ProxyFacts {
        let config = self.config.lock();
        ProxyFacts {
            node: self.node.clone(),
            name: self.own.name.clone(),
            workload: self.own.party.workload.clone(),
            service: self.own.party.canonical_service.clone(),
            namespace: self.own.party.namespace.clone(),
            connections: self.registry.connections(|prefix| prefix.starts_with("inbound")),
            pid: std::process::id(),
            pss_bytes: own_pss().unwrap_or_default(),
            config_version: config.version.clone(),
            config_rejects: config.rejects,
            connected: config.connected,
        }
    }

    pub(super) fn handshake_failed(&self, side: &str, cause: &str) {
        let help = "TLS handshakes that failed, by side and cause.";
        self.registry.counter("tulle_tls_handshake_failures_total", help, &[("side", side), ("cause", cause)]).inc();
    }

    /// Writes events of outlier detection to a file from now on.
    ///
    /// # Errors
    /// When it cannot be opened for appending.
    pub fn log_outliers(&self, path: &str) -> io::Result<()> {
        let sink = self.sinks.open(&Target::from_path(path))?;
        // It is asked once, at the start.
        let _ = self.outliers.set(sink);
        Ok(())
    }

    pub(super) fn outlier_event(&self, cluster: &str, event: &engine::outlier::Event, worker: usize) {
        let Some(sink) = self.outliers.get() else { return };
        if let Some(line) = super::outlier::line(cluster, event, SystemTime::now()) {
            sink.line(worker, |out| out.extend_from_slice(&line));
        }
    }

    pub(super) fn ejected(&self, cluster: &str, cause: engine::outlier::Cause) {
        use engine::outlier::Cause;
        let cause = match cause {
            Cause::Consecutive5xx => "consecutive_5xx",
            Cause::ConsecutiveGateway => "consecutive_gateway_failure",
            Cause::ConsecutiveLocalOrigin => "consecutive_local_origin_failure",
            Cause::SuccessRate => "success_rate",
            Cause::SuccessRateLocalOrigin => "success_rate_local_origin",
            Cause::FailurePercentage => "failure_percentage",
            Cause::FailurePercentageLocalOrigin => "failure_percentage_local_origin",
        };
        let help = "Endpoints taken out by outlier detection.";
        self.registry.counter("tulle_outlier_ejections_total", help, &[("cluster", cluster), ("cause", cause)]).inc();
    }

    pub(super) fn keys_fetched(&self, good: bool) {
        let help = "Fetches of the key sets of token issuers, by result.";
        let result = if good { "success" } else { "failure" };
        self.registry.counter("tulle_jwks_fetches_total", help, &[("result", result)]).inc();
    }

    pub(super) fn policy(&self, policy: Option<&str>, allowed: bool, enforced: bool) -> Arc<Counter> {
        let action = if allowed { "allow" } else { "deny" };
        let labels = [("policy", policy.unwrap_or("none")), ("action", action)];
        if enforced {
            let help = "Decisions of authorization policies that were enforced; `none`: no policy matched.";
            self.registry.counter("tulle_authz_decisions_total", help, &labels)
        } else {
            let help = "Decisions that audited (shadow) authorization policies would have made.";
            self.registry.counter("tulle_authz_shadow_decisions_total", help, &labels)
        }
    }

    /// This proxy's own identity towards a peer: its certificate's; where that is not known, its service account in
    /// the peer's trust domain.
    pub(super) fn own_principal(&self, peer: Option<&str>) -> String {
        if let Some(identity) = self.identity.get().and_then(|identity| identity()) {
            return identity;
        }
        let domain = peer.and_then(|peer| peer.parse::<model::SpiffeId>().ok());
        let domain = domain.as_ref().map_or("", model::SpiffeId::trust_domain);
        let (namespace, account) = (&self.own.party.namespace, &self.own.service_account);
        model::SpiffeId::new(domain, namespace, account).map(|id| id.to_string()).unwrap_or_default()
    }

    fn visit_own(&self, visit: &mut dyn FnMut(Stat)) {
        if let Some(plan) = self.plan.get() {
            let plan = plan();
            plan.clusters().for_each(|cluster| visit_cluster(cluster, visit));
            visit(envoy_stat("cluster_manager.active_clusters", Value::Gauge(plan.clusters().count() as u64)));
            let active = plan.listeners().count() as u64;
            visit(envoy_stat("listener_manager.total_listeners_active", Value::Gauge(active)));
        }
        for log in self.sinks.all() {
            let path = match log.target() {
                telemetry::accesslog::Target::File(path) => path.display().to_string(),
                telemetry::accesslog::Target::Stdout => "/dev/stdout".to_owned(),
                telemetry::accesslog::Target::Stderr => "/dev/stderr".to_owned(),
            };
            let labels = telemetry::exposition::labels(&[("path", &path)]);
            for (family, help, value) in [
                ("tulle_access_log_dropped_total", "Lines lost because a buffer was full.", log.dropped()),
                ("tulle_access_log_failed_total", "Writes of an access log that failed.", log.failed()),
                ("tulle_access_log_written_bytes_total", "Bytes written to an access log.", log.written()),
            ] {
                visit(telemetry::registry::own_stat(family, &labels, help, Value::Counter(value)));
            }
        }
        visit(envoy_stat("server.live", Value::Gauge(1)));
        visit(envoy_stat("server.uptime", Value::Gauge(self.registry.age().as_secs())));
        if let Some(resident) = resident() {
            visit(envoy_stat("server.memory_physical_size", Value::Gauge(resident)));
        }
    }
}

/// What the plan knows of a cluster.
fn visit_cluster(cluster: &Cluster, visit: &mut dyn FnMut(Stat)) {
    use std::sync::atomic::Ordering::Relaxed;
    let name = cluster.config.alt_stat_name.as_ref().unwrap_or(&cluster.config.name);
    let [mut healthy, mut degraded, mut excluded, mut active, mut opened, mut failed] = [0_u64; 6];
    let [mut well, mut spared] = [0_u64; 2];
    for endpoint in cluster.endpoints.iter() {
        match endpoint.health {
            _ if endpoint.is_healthy() => healthy += 1,
            _ if endpoint.is_degraded() => degraded += 1,
            _ => excluded += u64::from(endpoint.health == HealthStatus::Draining),
        }
        let checks = &endpoint.state.health;
        well += u64::from(cluster.config.health_check.is_some() && !checks.is_failed());
        spared += u64::from(checks.is_degraded());
        active += u64::from(endpoint.state.connections.load(Relaxed));
        opened += endpoint.state.connections_total.load(Relaxed);
        failed += endpoint.state.connect_failures.load(Relaxed);
    }
    let usage = cluster.state.usage(Priority::Default);
    for (field, value) in [
        ("health_check.healthy", Value::Gauge(well)),
        ("health_check.degraded", Value::Gauge(spared)),
        ("membership_total", Value::Gauge(cluster.endpoints.len() as u64)),
        ("membership_healthy", Value::Gauge(healthy)),
        ("membership_degraded", Value::Gauge(degraded)),
        ("membership_excluded", Value::Gauge(excluded)),
        ("upstream_cx_active", Value::Gauge(active)),
        ("upstream_cx_total", Value::Counter(opened)),
        ("upstream_cx_connect_fail", Value::Counter(failed)),
        ("upstream_rq_active", Value::Gauge(u64::from(usage.count(Resource::Requests)))),
        ("upstream_rq_pending_active", Value::Gauge(u64::from(usage.count(Resource::Pending)))),
    ] {
        visit(cluster_stat(name, field, value));
    }
    for (priority, limits, words) in [
        (Priority::Default, &cluster.config.limits, DEFAULT_CIRCUITS),
        (Priority::High, &cluster.config.limits_high, HIGH_CIRCUITS),
    ] {
        visit_circuits(name, cluster.state.usage(priority), limits, &words, visit);
    }
}

/// What a circuit limit is called: whether it is reached, and how much is left.
type Circuits = [(Resource, &'static str, &'static str); 5];

const DEFAULT_CIRCUITS: Circuits = [
    (Resource::Connections, "circuit_breakers.default.cx_open", "circuit_breakers.default.remaining_cx"),
    (Resource::Pending, "circuit_breakers.default.rq_pending_open", "circuit_breakers.default.remaining_pending"),
    (Resource::Requests, "circuit_breakers.default.rq_open", "circuit_breakers.default.remaining_rq"),
    (Resource::Retries, "circuit_breakers.default.rq_retry_open", "circuit_breakers.default.remaining_retries"),
    (Resource::Pools, "circuit_breakers.default.cx_pool_open", "circuit_breakers.default.remaining_cx_pools"),
];
const HIGH_CIRCUITS: Circuits = [
    (Resource::Connections, "circuit_breakers.high.cx_open", "circuit_breakers.high.remaining_cx"),
    (Resource::Pending, "circuit_breakers.high.rq_pending_open", "circuit_breakers.high.remaining_pending"),
    (Resource::Requests, "circuit_breakers.high.rq_open", "circuit_breakers.high.remaining_rq"),
    (Resource::Retries, "circuit_breakers.high.rq_retry_open", "circuit_breakers.high.remaining_retries"),
    (Resource::Pools, "circuit_breakers.high.cx_pool_open", "circuit_breakers.high.remaining_cx_pools"),
];

fn visit_circuits(
    name: &Arc<str>,
    usage: &Usage,
    limits: &CircuitLimits,
    words: &Circuits,
    visit: &mut dyn FnMut(Stat),
) {
    for (resource, open, remaining) in words {
        let (now, most) = (usage.count(*resource), limits.most(*resource));
        visit(cluster_stat(name, open, Value::Gauge(u64::from(now >= most))));
        if limits.track_remaining {
            // What is left of a budget depends on requests that come and go: Envoy tells none.
            let told = *resource != Resource::Retries || limits.budget.is_none();
            let left = if told { most.saturating_sub(now) } else { 0 };
            visit(cluster_stat(name, remaining, Value::Gauge(u64::from(left))));
        }
    }
}

impl std::fmt::Debug for Watchtower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watchtower").field("node", &self.node).finish_non_exhaustive()
    }
}

/// Proportional set size of this process in bytes, where the kernel tells.
pub fn own_pss() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").ok()?;
    kilobytes(&text, "Pss:")
}

fn resident() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    kilobytes(&text, "VmRSS:")
}

fn kilobytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}
