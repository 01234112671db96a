//! Steps about identity and who may do what.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::{unharmed, until};
use crate::demo::cast::{NAMESPACE, Part};
use crate::demo::declare;
use crate::demo::record::{INTRUDER, LEGACY};
use crate::demo::scrape::Sample;
use crate::demo::world::World;
use crate::verbs::mesh::Mesh;
use crate::verbs::stat;

/// Edges of so long ago count.
const WINDOW: Duration = Duration::from_secs(10);

/// First only counted: the one caller without identity is found. Then mTLS is demanded, and only that caller fails.
pub(super) async fn strict(world: &Rc<World>) -> anyhow::Result<String> {
    declare::write(&world.place, "strict.yaml", &declare::strict_rehearsal())?;
    let start = Instant::now();
    let rehearsed = rehearsal(world).await;
    let meanwhile = unharmed(world, start).await;
    declare::write(&world.place, "strict.yaml", &declare::strict())?;
    let counted = rehearsed?;
    meanwhile?;
    let start = Instant::now();
    until(Duration::from_secs(15), || async {
        let entries = world.record.since(LEGACY, start);
        let last: Vec<u16> = entries.iter().rev().take(3).map(|entry| entry.seen.status).collect();
        if last.len() == 3 && last.iter().all(|status| *status == 0) {
            return Ok(());
        }
        Err(format!("legacy still gets answers: {last:?}"))
    })
    .await?;
    let intruder = world.record.since(INTRUDER, start);
    anyhow::ensure!(
        intruder.iter().all(|entry| entry.seen.status == 200),
        "strict mTLS refused one with a certificate"
    );
    let all = unharmed(world, start).await?;
    Ok(format!(
        "the rehearsal named catalog's plaintext caller ({counted} times); now it fails, and none of {all} others"
    ))
}

/// Only the catalog's proxies count requests that would be denied, and the one plaintext caller is known by name.
async fn rehearsal(world: &World) -> anyhow::Result<u64> {
    until(Duration::from_secs(15), || async {
        let counted = would_be_denied(world, "catalog").await;
        if counted >= 3 { Ok(()) } else { Err(format!("the shadow counters of catalog say {counted}")) }
    })
    .await?;
    for (_, part) in Part::meshed().filter(|(_, part)| part.app != "catalog") {
        let counted = would_be_denied(world, part.app).await;
        anyhow::ensure!(counted == 0, "the shadow counters of {} say {counted}", part.app);
    }
    let mesh = Mesh::of_run_dir(world.place.control());
    let stat =
        stat::gather(&mesh, WINDOW).await.map_err(|_| anyhow::anyhow!("the proxies do not tell of their edges"))?;
    let named: Vec<String> =
        stat.plaintext.iter().map(|edge| format!("{} -> {}", edge.source, edge.destination)).collect();
    anyhow::ensure!(named == [format!("{LEGACY} -> catalog")], "plaintext edges are {named:?}");
    Ok(would_be_denied(world, "catalog").await)
}

/// Requests that the rehearsed policy would have denied, at all proxies of a service.
async fn would_be_denied(world: &World, app: &str) -> u64 {
    let policy = format!("ns[{NAMESPACE}]-policy[no-plaintext]");
    let denials = |sample: &Sample| {
        sample.name == "tulle_authz_shadow_decisions_total"
            && sample.label("action") == "deny"
            && sample.label("policy").starts_with(&policy)
    };
    let mut count = 0.0;
    for (_, part) in Part::meshed().filter(|(_, part)| part.app == app) {
        let samples = world.metrics(part.name).await;
        count += samples.iter().filter(|sample| denials(sample)).map(|sample| sample.value).sum::<f64>();
    }
    count as u64
}

/// Only the cart may charge; the intruder is told 403, and the log names policy and rule.
pub(super) async fn authz(world: &Rc<World>) -> anyhow::Result<String> {
    let earlier = world.record.since(INTRUDER, Instant::now() - Duration::from_secs(3));
    anyhow::ensure!(earlier.iter().any(|entry| entry.seen.status == 200), "the intruder was refused before the policy");
    let start = Instant::now();
    declare::write(&world.place, "payments.yaml", &declare::payments_guard())?;
    until(Duration::from_secs(10), || async {
        let entries = world.record.since(INTRUDER, start);
        let last: Vec<u16> = entries.iter().rev().take(5).map(|entry| entry.seen.status).collect();
        if last.len() == 5 && last.iter().all(|status| *status == 403) {
            return Ok(());
        }
        Err(format!("the intruder gets {last:?}"))
    })
    .await?;
    let wanted = format!("rbac_access_denied_matched_policy[ns[{NAMESPACE}]-policy[payments-callers]-rule[0]]");
    let log = world.place.of("payments-1").join("proxy.log");
    until(Duration::from_secs(5), || async {
        let text = std::fs::read_to_string(&log).map_err(|error| error.to_string())?;
        let named = text.lines().any(|line| line.contains(&wanted) && line.contains("403"));
        if named { Ok(()) } else { Err(format!("the access log of payments does not name {wanted}")) }
    })
    .await?;
    let all = unharmed(world, start).await?;
    Ok(format!(
        "intruder -> payments 403 by AuthorizationPolicy {NAMESPACE}/payments-callers rule 0; none of {all} others failed"
    ))
}

/// Every workload gets new certificates while requests go on.
pub(super) async fn rotation(world: &Rc<World>) -> anyhow::Result<String> {
    let start = Instant::now();
    let serial = |name: &str| world.identity(name).map(|material| material.chain_pem.clone());
    let before: Vec<_> = Part::meshed().map(|(_, part)| (part.name, serial(part.name))).collect();
    let (received, _) = world.certificates();
    // Half of a life is the latest moment of a renewal.
    let limit = world.wish.cert_ttl.mul_f64(0.75) + Duration::from_secs(5);
    until(limit, || async {
        for (name, old) in &before {
            let new = serial(name);
            if new.is_none() || new == *old {
                return Err(format!("{name} has no new certificate"));
            }
        }
        Ok(())
    })
    .await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let all = unharmed(world, start).await?;
    let issued = world.certificates().0.checked_sub(received).context("the agents forgot")?;
    Ok(format!(
        "{issued} certificates of {} s renewed in {:.0} s, none of {all} requests failed",
        world.wish.cert_ttl.as_secs(),
        start.elapsed().as_secs_f64()
    ))
}
