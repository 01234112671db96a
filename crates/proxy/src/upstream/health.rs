//! Active health checks: one task for each endpoint that is checked, on the control thread.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use engine::endpoint::CheckAddress;
use engine::health::{CheckResult, HealthCheck};
use engine::{Address, Cluster, Dice, Endpoint, Plan};
use hashbrown::HashMap;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::probe::{Asked, Line};
use crate::report::Tally;
use crate::shared::Shared;

/// How soon a changed plan is followed.
const TICK: Duration = Duration::from_millis(50);

/// What is checked: another setting or address is another check.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    cluster: Arc<str>,
    version: u64,
    address: Address,
    check: Option<Box<CheckAddress>>,
}

/// Checks what the plan says; never ends.
pub async fn run(shared: Arc<Shared>) {
    let mut tasks: HashMap<Key, JoinHandle<()>> = HashMap::new();
    let mut seen = None;
    let mut tick = tokio::time::interval(TICK);
    loop {
        tick.tick().await;
        let plan = shared.plan.load_full();
        if seen.replace(plan.generation) == Some(plan.generation) {
            continue;
        }
        let wanted = wanted(&plan);
        tasks.retain(|key, task| {
            let kept = wanted.contains_key(key);
            if !kept {
                task.abort();
            }
            kept
        });
        for (key, (cluster, check, endpoint)) in wanted {
            tasks.entry(key).or_insert_with(|| {
                let watch = Watch { shared: Arc::clone(&shared), cluster, check, endpoint };
                tokio::spawn(watch.run())
            });
        }
    }
}

type Wanted = (Arc<Cluster>, Arc<HealthCheck>, Arc<Endpoint>);

fn wanted(plan: &Plan) -> HashMap<Key, Wanted> {
    let mut wanted = HashMap::new();
    for cluster in plan.clusters() {
        let Some(check) = &cluster.config.health_check else { continue };
        let checked = |endpoint: &&Arc<Endpoint>| !endpoint.check.as_ref().is_some_and(|check| check.disabled);
        for endpoint in cluster.endpoints.iter().filter(checked) {
            let key = Key {
                cluster: Arc::clone(cluster.name()),
                version: cluster.config.version,
                address: endpoint.address.clone(),
                check: endpoint.check.clone(),
            };
            wanted.insert(key, (Arc::clone(cluster), Arc::clone(check), Arc::clone(endpoint)));
        }
    }
    wanted
}

/// The checks of one endpoint.
struct Watch {
    shared: Arc<Shared>,
    cluster: Arc<Cluster>,
    check: Arc<HealthCheck>,
    endpoint: Arc<Endpoint>,
}

impl Watch {
    async fn run(self) {
        let mut dice = Dice::new(rand::random());
        sleep(self.check.first_wait(&mut dice)).await;
        let mut line: Option<Line> = None;
        let asked =
            Asked { shared: &self.shared, cluster: &self.cluster, check: &self.check, endpoint: &self.endpoint };
        loop {
            let result = match timeout(self.check.timeout, asked.ask(&mut line)).await {
                Ok(result) => result,
                Err(_) => {
                    line = None;
                    CheckResult::Timeout
                }
            };
            let verdict = self.endpoint.state.health.note(&self.check, result, self.has_traffic(), &mut dice);
            self.count(result);
            if verdict.changed {
                self.changed();
            }
            if matches!(result, CheckResult::Good { .. }) {
                self.pardon();
            }
            sleep(verdict.next).await;
        }
    }

    /// Whether the cluster was connected to before.
    fn has_traffic(&self) -> bool {
        let plan = self.shared.plan.load();
        let cluster = plan.cluster(self.cluster.name()).unwrap_or(&self.cluster);
        cluster.endpoints.iter().any(|endpoint| endpoint.state.connections_total.load(Ordering::Relaxed) > 0)
    }

    fn count(&self, result: CheckResult) {
        let cells = self.tally().cluster(&self.cluster);
        cells.health_check_attempt.inc();
        match result {
            CheckResult::Good { .. } => cells.health_check_success.inc(),
            CheckResult::Network | CheckResult::Timeout => {
                cells.health_check_failure.inc();
                cells.health_check_network_failure.inc();
            }
            CheckResult::Bad { .. } => cells.health_check_failure.inc(),
        }
    }

    fn tally(&self) -> Tally {
        Tally::new(Arc::clone(&self.shared.tower), 0)
    }

    fn changed(&self) {
        let state = &self.endpoint.state.health;
        let (cluster, endpoint) = (self.cluster.name(), &self.endpoint.address);
        let (healthy, degraded) = (!state.is_failed(), state.is_degraded());
        tracing::info!(event = "health_check", %cluster, %endpoint, healthy, degraded);
        let plan = self.shared.plan.load();
        if let Some(cluster) = plan.cluster(cluster) {
            cluster.balancer.refresh(self.shared.now());
        }
    }

    /// An endpoint that outlier detection put out and that is well again comes back at once.
    fn pardon(&self) {
        let plan = self.shared.plan.load();
        let Some(cluster) = plan.cluster(self.cluster.name()) else { return };
        if let Some(event) = cluster.state.monitor.pardon(cluster, &self.endpoint, self.shared.now()) {
            let (name, endpoint) = (cluster.name(), &event.endpoint.address);
            tracing::info!(event = "outlier", cluster = %name, %endpoint, kind = ?event.kind);
            self.tally().outlier(cluster, &event);
        }
    }
}
