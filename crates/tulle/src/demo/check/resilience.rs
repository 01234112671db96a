//! Steps about what the mesh does when something is sick or dead.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::traffic::{SETTLED, quality};
use super::{unharmed, until, visitors_for};
use crate::demo::cast::{PARTS, Part};
use crate::demo::declare;
use crate::demo::record::INTRUDER;
use crate::demo::scrape::{self, sum};
use crate::demo::world::World;

/// What a cured service must reach.
const GOOD: f64 = 0.99;
/// What the cure brings the 95th percentile below, in milliseconds; the sick answers take 1500.
const QUICK_MS: f64 = 1000.0;

fn make_sick(world: &World, part: &str, symptoms: &str) -> anyhow::Result<()> {
    std::fs::write(world.place.sick(part), symptoms).context("cannot make an instance sick")
}

fn make_well(world: &World, part: &str) -> anyhow::Result<()> {
    std::fs::remove_file(world.place.sick(part)).context("cannot make an instance well")
}

/// A catalog that fails and dawdles; retries with a timeout for each try hide it.
pub(super) async fn cure(world: &Rc<World>) -> anyhow::Result<String> {
    let instances = ["catalog-v1", "catalog-v2"];
    for instance in instances {
        make_sick(world, instance, r#"{"errors": 0.15, "slow": 0.1, "slow_ms": 1500}"#)?;
    }
    let (sick, sick_p95, _) = quality(world, Duration::from_secs(4)).await;
    declare::write(&world.place, "catalog.yaml", &declare::catalog_routes(10, true, true))?;
    tokio::time::sleep(SETTLED).await;
    let (cured, p95, all) = quality(world, Duration::from_secs(6)).await;
    for instance in instances {
        make_well(world, instance)?;
    }
    declare::write(&world.place, "catalog.yaml", &declare::catalog_routes(10, true, false))?;
    tokio::time::sleep(SETTLED).await;
    anyhow::ensure!(sick < 0.97, "the sick catalog was not felt: {:.1} % success", 100.0 * sick);
    anyhow::ensure!(cured >= GOOD, "with retries only {:.1} % of {all} requests succeed", 100.0 * cured);
    anyhow::ensure!(p95 < QUICK_MS, "with timeouts the 95th percentile is {p95:.0} ms");
    Ok(format!("success {:.1} % -> {:.1} %, 95th percentile {sick_p95:.0} -> {p95:.0} ms", 100.0 * sick, 100.0 * cured))
}

/// One of three prices is always wrong; its instance is left out after five failures.
pub(super) async fn eject(world: &Rc<World>) -> anyhow::Result<String> {
    make_sick(world, "pricing-2", r#"{"errors": 1.0}"#)?;
    let (sick, _, _) = quality(world, Duration::from_secs(3)).await;
    declare::write(&world.place, "pricing.yaml", &declare::pricing_ejection())?;
    let result = ejected(world, sick).await;
    make_well(world, "pricing-2")?;
    declare::remove(&world.place, "pricing.yaml")?;
    tokio::time::sleep(SETTLED).await;
    result
}

async fn ejected(world: &World, sick: f64) -> anyhow::Result<String> {
    anyhow::ensure!(sick < 0.9, "the sick instance was not felt: {:.1} % success", 100.0 * sick);
    let start = Instant::now();
    until(Duration::from_secs(15), || async {
        let mut active = 0.0;
        for part in ["catalog-v1", "catalog-v2"] {
            let samples = world.metrics(part).await;
            active += sum(&samples, "envoy_cluster_outlier_detection_ejections_active", &[]);
        }
        if active >= 1.0 { Ok(()) } else { Err("no catalog proxy ejected anybody".to_owned()) }
    })
    .await?;
    let after = start.elapsed();
    // Both catalogs must have seen five failures; v2 gets few requests.
    until(Duration::from_secs(20), || async {
        let (success, _, _) = quality(world, Duration::from_secs(2)).await;
        if success >= 0.995 { Ok(()) } else { Err(format!("{:.1} % success", 100.0 * success)) }
    })
    .await?;
    let entries = visitors_for(world, Duration::from_secs(3)).await;
    let served = entries.iter().filter(|entry| entry.seen.pricing == "pricing-2").count();
    anyhow::ensure!(served == 0, "pricing-2 still answered {served} times");
    let failed = entries.iter().filter(|entry| !entry.seen.is_success()).count();
    let share = 1.0 - failed as f64 / entries.len().max(1) as f64;
    anyhow::ensure!(share >= 0.995, "after the ejection {failed} of {} requests failed", entries.len());
    Ok(format!(
        "success {:.1} % -> {:.1} %, pricing-2 ejected after {:.1} s",
        100.0 * sick,
        100.0 * share,
        after.as_secs_f64()
    ))
}

/// Without control plane nothing fails, and a proxy that is started anew has its configuration and its identity.
pub(super) async fn outage(world: &Rc<World>) -> anyhow::Result<String> {
    let start = Instant::now();
    world.kill("control").await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let restarted = restart_without_control(world).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let asked = unharmed(world, start).await;
    let dead = start.elapsed();
    world.start_control()?;
    until(Duration::from_secs(10), || async {
        let connected = tokio::net::UnixStream::connect(world.control_socket()).await;
        connected.map(|_| ()).map_err(|error| format!("the control plane does not come back: {error}"))
    })
    .await?;
    let restarted = restarted?;
    Ok(format!(
        "{} requests in {:.1} s without control plane, none failed; a restarted proxy served after {} ms",
        asked?,
        dead.as_secs_f64(),
        restarted.as_millis()
    ))
}

/// The intruder's proxy is killed and started: payments refuses the intruder by name again, so the proxy has its
/// listeners and clusters, and the certificate that names it.
async fn restart_without_control(world: &World) -> anyhow::Result<Duration> {
    let part: &Part = PARTS.iter().find(|part| part.name == INTRUDER).context("no intruder")?;
    let before = world.record.since(INTRUDER, Instant::now() - Duration::from_secs(2));
    anyhow::ensure!(before.iter().any(|entry| entry.seen.status == 403), "the intruder was not refused before");
    anyhow::ensure!(
        tokio::net::UnixStream::connect(world.control_socket()).await.is_err(),
        "the control plane still answers"
    );
    world.kill(&format!("proxy {}", part.name)).await?;
    // A socket file that nobody listens on is in the way of nobody, but must not be mistaken for a sign of life.
    let _ = std::fs::remove_file(world.place.admin(part.name));
    let start = Instant::now();
    world.start_proxy(part)?;
    until(Duration::from_secs(10), || async {
        scrape::get(&world.place.admin(part.name), "/ready")
            .await
            .map_err(|error| format!("the proxy is not ready: {error:#}"))?;
        let entries = world.record.since(INTRUDER, start);
        match entries.iter().rev().find(|entry| entry.seen.status != 0) {
            Some(entry) if entry.seen.status == 403 => Ok(()),
            Some(entry) => Err(format!("payments answered {} to the restarted proxy", entry.seen.status)),
            None => Err("the restarted proxy passes nothing".to_owned()),
        }
    })
    .await?;
    Ok(start.elapsed())
}
