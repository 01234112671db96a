//! The periodic part of outlier detection: endpoints come back, rates are judged.

use std::sync::Arc;
use std::time::Duration;

use engine::{Dice, Moment};
use hashbrown::HashMap;

use crate::report::Tally;
use crate::shared::Shared;

/// How exactly intervals are kept.
const TICK: Duration = Duration::from_millis(100);

/// Sweeps each cluster with outlier detection at its interval; never ends.
pub async fn run(shared: Arc<Shared>) {
    let mut dice = Dice::new(rand::random());
    let mut due: HashMap<Arc<str>, Moment> = HashMap::new();
    let mut tick = tokio::time::interval(TICK);
    loop {
        tick.tick().await;
        let now = shared.now();
        let plan = shared.plan.load_full();
        due.retain(|name, _| plan.cluster(name).is_some());
        for cluster in plan.clusters() {
            let Some(outlier) = &cluster.config.outlier else { continue };
            cluster.state.monitor.catch_up(cluster, now);
            let next = due.entry(Arc::clone(cluster.name())).or_insert(now + outlier.interval);
            if *next > now {
                continue;
            }
            *next = now + outlier.interval;
            let events = cluster.state.monitor.sweep(cluster, now, &mut dice);
            if events.is_empty() {
                continue;
            }
            let tally = Tally::new(Arc::clone(&shared.tower), 0);
            for event in events {
                let (name, endpoint) = (cluster.name(), &event.endpoint.address);
                tracing::info!(event = "outlier", cluster = %name, %endpoint, kind = ?event.kind);
                tally.outlier(cluster, &event);
            }
        }
    }
}
