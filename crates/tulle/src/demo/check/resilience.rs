//! Steps about what the mesh does when something is sick or dead.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::traffic::{SETTLED, quality};
use super::{unharmed, until, visitors_for};
use crate::demo::cast::{PARTS, Part};
use crate::demo::declare;
use crate::demo::record::{INTRUDER, VISITOR};
use crate::demo::scrape::{self, Sample, sum};
use crate::demo::world::World;

/// What the cure brings the 95th percentile below, in milliseconds: half of what a sick answer takes.
const QUICK_MS: f64 = 750.0;
/// Requests that may fail under the cure. A try fails with a chance of a quarter, and there are eight: of some 200
/// requests one fails in one run of 300, and two in one of 200,000.
const BAD_LUCK: usize = 1;
/// The part whose proxy falls while there is no control plane: it serves, and two others do the same work meanwhile.
const FALLEN: &str = "pricing-3";

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
    let (sick, sick_p95) = quality(world, Duration::from_secs(4)).await;
    let before = Tries::count(world).await;
    declare::write(&world.place, "catalog.yaml", &declare::catalog_routes(10, true, true))?;
    tokio::time::sleep(SETTLED).await;
    let (cured, p95) = quality(world, Duration::from_secs(6)).await;
    let tries = Tries::count(world).await.since(&before);
    for instance in instances {
        make_well(world, instance)?;
    }
    declare::write(&world.place, "catalog.yaml", &declare::catalog_routes(10, true, false))?;
    tokio::time::sleep(SETTLED).await;
    let (sick, all) = (sick.success(), cured.all);
    anyhow::ensure!(sick < 0.97, "the sick catalog was not felt: {:.1} % success", 100.0 * sick);
    let (failed, example) = (cured.failed, &cured.example);
    anyhow::ensure!(failed <= BAD_LUCK, "with retries {failed} of {all} requests fail: {example}");
    // The sickness is hidden, not gone.
    let well = tries.success();
    anyhow::ensure!(well < 0.93, "the catalog itself was not sick: {:.1} % of its answers were good", 100.0 * well);
    anyhow::ensure!(tries.again > 0.0, "nothing was tried again");
    anyhow::ensure!(p95 < QUICK_MS, "with timeouts the 95th percentile is {p95:.0} ms");
    Ok(format!(
        "success {:.1} % -> {:.1} %, 95th percentile {sick_p95:.0} -> {p95:.0} ms; of {:.0} tries {:.1} % were good, \
         {:.0} were second ones",
        100.0 * sick,
        100.0 * cured.success(),
        tries.all,
        100.0 * well,
        tries.again
    ))
}

/// What the proxies counted between web and the catalog.
struct Tries {
    /// What the catalog's own proxies saw, and how much of it was answered well.
    all: f64,
    good: f64,
    /// What web's proxy tried again.
    again: f64,
}

impl Tries {
    async fn count(world: &World) -> Self {
        let (mut all, mut good) = (0.0, 0.0);
        for part in ["catalog-v1", "catalog-v2"] {
            let samples = world.metrics(part).await;
            let labels = [("reporter", "destination"), ("destination_service_name", "catalog")];
            all += sum(&samples, "istio_requests_total", &labels);
            good += sum(&samples, "istio_requests_total", &[labels[0], labels[1], ("response_code", "200")]);
        }
        let web = world.metrics("web-1").await;
        let to_catalog = |sample: &&Sample| {
            sample.name == "envoy_cluster_upstream_rq_retry" && sample.label("envoy_cluster_name").contains("catalog")
        };
        Self { all, good, again: web.iter().filter(to_catalog).map(|sample| sample.value).sum() }
    }

    fn since(&self, before: &Self) -> Self {
        Self { all: self.all - before.all, good: self.good - before.good, again: self.again - before.again }
    }

    fn success(&self) -> f64 {
        self.good / self.all
    }
}

/// One of three prices is always wrong; its instance is left out after five failures.
pub(super) async fn eject(world: &Rc<World>) -> anyhow::Result<String> {
    make_sick(world, "pricing-2", r#"{"errors": 1.0}"#)?;
    let sick = quality(world, Duration::from_secs(3)).await.0.success();
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
        let success = quality(world, Duration::from_secs(2)).await.0.success();
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

/// Without control plane nothing fails; proxies that fall and are started anew have their configuration and their
/// identity, those that serve as those that call; and all follow the control plane once it is back.
pub(super) async fn outage(world: &Rc<World>) -> anyhow::Result<String> {
    declare::write(&world.place, "pricing.yaml", &declare::pricing_retries())?;
    tokio::time::sleep(SETTLED).await;
    world.followed().await?;
    let start = Instant::now();
    world.kill("control").await?;
    let restarted = restarts(world).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let asked = unharmed(world, start).await;
    let away = !world.has_control().await;
    let dead = start.elapsed();
    world.start_control()?;
    let followers = world.followed().await?;
    declare::remove(&world.place, "pricing.yaml")?;
    let (server, client) = restarted?;
    anyhow::ensure!(away, "somebody answered in the control plane's place");
    Ok(format!(
        "{} requests in {:.1} s without control plane, none failed; killed proxies were back: {FALLEN}'s served after \
         {} ms, the intruder's was known after {} ms; {followers} proxies follow again",
        asked?,
        dead.as_secs_f64(),
        server.as_millis(),
        client.as_millis()
    ))
}

/// Both at the same time: without control plane, the certificates do not last long.
async fn restarts(world: &World) -> anyhow::Result<(Duration, Duration)> {
    tokio::time::sleep(Duration::from_secs(1)).await;
    anyhow::ensure!(!world.has_control().await, "the control plane still answers");
    let (server, client) = tokio::join!(restart_server(world), restart_client(world));
    Ok((server?, client?))
}

/// A serving proxy is killed and started: the catalog's proxies take it for what it is, by its certificate, and give it
/// requests again, which it passes to its program.
async fn restart_server(world: &World) -> anyhow::Result<Duration> {
    let served = |since| {
        let entries = world.record.since(VISITOR, since);
        entries.iter().filter(|entry| entry.seen.pricing == FALLEN).count()
    };
    anyhow::ensure!(served(Instant::now() - Duration::from_secs(3)) > 0, "{FALLEN} did not serve before");
    let start = crash_proxy(world, FALLEN).await?;
    until(Duration::from_secs(10), || async {
        ready(world, FALLEN).await?;
        if served(start) > 0 { Ok(()) } else { Err(format!("{FALLEN} serves nothing")) }
    })
    .await?;
    Ok(start.elapsed())
}

/// The intruder's proxy is killed and started: payments refuses the intruder by name again, so the proxy has its
/// listeners and clusters, and the certificate that names it.
async fn restart_client(world: &World) -> anyhow::Result<Duration> {
    let before = world.record.since(INTRUDER, Instant::now() - Duration::from_secs(2));
    anyhow::ensure!(before.iter().any(|entry| entry.seen.status == 403), "the intruder was not refused before");
    let start = crash_proxy(world, INTRUDER).await?;
    until(Duration::from_secs(10), || async {
        ready(world, INTRUDER).await?;
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

/// Kills a part's proxy and starts it again; tells when.
async fn crash_proxy(world: &World, name: &str) -> anyhow::Result<Instant> {
    let part: &Part = PARTS.iter().find(|part| part.name == name).context("no such part")?;
    world.kill(&format!("proxy {name}")).await?;
    // A socket file that nobody listens on is in the way of nobody, but must not be mistaken for a sign of life.
    let _ = std::fs::remove_file(world.place.admin(name));
    let start = Instant::now();
    world.start_proxy(part)?;
    Ok(start)
}

async fn ready(world: &World, part: &str) -> Result<(), String> {
    let answer = scrape::get(&world.place.admin(part), "/ready").await;
    answer.map(drop).map_err(|error| format!("the proxy of {part} is not ready: {error:#}"))
}
