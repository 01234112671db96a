//! Steps about where requests go: what is seen, and who gets which version.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::{unharmed, until, visitors_for};
use crate::demo::cast::{NAMESPACE, Part, Service, TRUST_DOMAIN, edges};
use crate::demo::declare;
use crate::demo::record::{Entry, Tally, VISITOR};
use crate::demo::scrape::sum;
use crate::demo::world::World;

/// Share of v2 that the canary is to get.
const SPLIT: u8 = 10;
/// Requests that measure it, in bursts of so many; one in twenty is amy's. A machine that is busy makes fewer.
const BURST: usize = 1000;
const MOST: usize = 8 * BURST;
const LEAST: usize = 4 * BURST;
/// When a busy machine has measured for long enough.
const ENOUGH: Duration = Duration::from_secs(15);
/// How far from it the share may be, in standard deviations of a sample of that size: of 7,600 independent choices with
/// one chance in ten, 1.5 percent points, of 3,800 2.1. A mesh that splits rightly is accused once in 50,000 runs, and one
/// that gives v2 a seventh or a fifteenth is found out.
const SIGMAS: f64 = 4.3;
/// A new configuration is everywhere after this; how long it really takes is measured elsewhere.
pub(super) const SETTLED: Duration = Duration::from_millis(1500);

/// Nothing failed since the shop opened. Every edge is counted by the called side's proxy, encrypted; the one outside the mesh in clear text.
pub(super) async fn observe(world: &Rc<World>, opened: Instant) -> anyhow::Result<String> {
    until(Duration::from_secs(20), || async {
        for (caller, service) in edges() {
            if edge_count(world, caller, service).await <= 0.0 {
                return Err(format!("no request from {} to {} was counted", caller.app, service.name));
            }
        }
        Ok(())
    })
    .await?;
    until(Duration::from_secs(10), || async {
        let all = world.record.since(VISITOR, opened).len();
        if all >= 40 { Ok(()) } else { Err(format!("the visitor made only {all} requests")) }
    })
    .await?;
    let all = unharmed(world, opened).await?;
    let encrypted = edges().filter(|(caller, _)| caller.meshed).count();
    Ok(format!("{encrypted} edges with mTLS, 1 in clear text (legacy to catalog); {all} requests, none failed"))
}

/// Requests (or connections) that the called side's proxies counted on this edge.
async fn edge_count(world: &World, caller: &Part, service: &Service) -> f64 {
    let metric = if service.protocol == "tcp" { "istio_tcp_connections_opened_total" } else { "istio_requests_total" };
    // Raw TCP carries no names of workloads, but every certificate names its owner.
    let principal = format!("spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/{}", caller.app);
    let (source, security) = if caller.meshed { (principal.as_str(), "mutual_tls") } else { ("unknown", "none") };
    let labels = [
        ("reporter", "destination"),
        ("source_principal", source),
        ("destination_service_name", service.name),
        ("connection_security_policy", security),
    ];
    let mut count = 0.0;
    for (_, part) in Part::meshed().filter(|(_, part)| part.app == service.name) {
        if world.wish.envoys.iter().any(|(name, _)| name == part.name) {
            // It has no such metrics of its own: its callers have, and the step about Envoys asks for its own numbers.
            let labels = [("reporter", "source"), ("destination_service_name", service.name)];
            count += sum(&world.metrics(caller.name).await, metric, &labels);
        } else {
            count += sum(&world.metrics(part.name).await, metric, &labels);
        }
    }
    count
}

/// One request in ten goes to v2, and all of amy's do.
pub(super) async fn canary(world: &Rc<World>) -> anyhow::Result<String> {
    declare::write(&world.place, "catalog.yaml", &declare::catalog_routes(SPLIT, true, false))?;
    tokio::time::sleep(SETTLED).await;
    let start = Instant::now();
    let mut entries = Vec::new();
    while entries.len() < LEAST || (entries.len() < MOST && start.elapsed() < ENOUGH) {
        entries.extend(world.burst(BURST).await?);
    }
    let seen = Tally::of(&entries);
    anyhow::ensure!(seen.failed == 0, "{} of {} requests failed: {}", seen.failed, seen.all, seen.example);
    let (amy, others) = entries.into_iter().partition::<Vec<Entry>, _>(|entry| entry.seen.user == "amy");
    let of_v2 = |entries: &[Entry]| entries.iter().filter(|entry| entry.seen.version == "v2").count();
    anyhow::ensure!(of_v2(&amy) == amy.len(), "{} of {} requests of amy went to v2", of_v2(&amy), amy.len());
    let share = 100.0 * of_v2(&others) as f64 / others.len() as f64;
    let (wanted, count) = (f64::from(SPLIT), others.len());
    let tolerance = SIGMAS * (wanted * (100.0 - wanted) / count as f64).sqrt();
    anyhow::ensure!(
        (share - wanted).abs() <= tolerance,
        "{share:.1} % of {count} requests went to v2, not {SPLIT} % (+- {tolerance:.1})"
    );
    unharmed(world, start).await?;
    Ok(format!("v2 got {share:.1} % of {count} requests ({SPLIT} +- {tolerance:.1}), and all {} of amy", amy.len()))
}

/// Success and the 95th percentile of the visitor's requests in a window.
pub(super) async fn quality(world: &World, window: Duration) -> (Tally, f64) {
    let entries = visitors_for(world, window).await;
    let tally = Tally::of(&entries);
    let mut times: Vec<f64> = entries.iter().map(|entry| entry.seen.ms).collect();
    times.sort_by(f64::total_cmp);
    let p95 = times.get(times.len() * 95 / 100).copied().unwrap_or(f64::NAN);
    (tally, p95)
}
