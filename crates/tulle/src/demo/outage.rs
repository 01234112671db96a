//! A demo without its control plane: killed as a crash would, away for a while, and back.

use std::rc::Rc;
use std::time::{Duration, Instant};

use control::client::Client;

use super::cast::Part;
use super::record::{Tally, VISITOR};
use super::world::World;
use crate::output;

/// How often something that must come is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// How long proxies may take to find a control plane that came back: they wait 3 s between two tries at most.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longer than the visitor waits for an answer.
const LAST_ANSWER: Duration = Duration::from_secs(12);

/// Kills the control plane by SIGKILL, starts it again after `time`, and tells what the visitor saw meanwhile.
///
/// # Errors
/// When the proxies do not follow it before, or do not find it again.
pub(crate) async fn stage(world: &Rc<World>, time: Duration) -> anyhow::Result<()> {
    world.followed().await?;
    let start = Instant::now();
    world.kill("control").await?;
    output::print(&format!("control plane killed (SIGKILL); it stays away for {} s\n", time.as_secs()));
    let end = start + time;
    while Instant::now() < end {
        anyhow::ensure!(!world.has_control().await, "somebody answers in the control plane's place");
        tokio::time::sleep(LOOK.min(end - Instant::now())).await;
    }
    let away = start.elapsed();
    world.record.answered(VISITOR, Instant::now(), LAST_ANSWER).await;
    let tally = Tally::of(&world.record.since(VISITOR, start));
    output::print(&format!(
        "visitor without control plane: {} requests in {:.0} s, {} failed\n",
        tally.all,
        away.as_secs_f64(),
        tally.failed
    ));
    if tally.failed > 0 {
        eprintln!("failed: {}", tally.example);
    }
    let start = Instant::now();
    world.start_control()?;
    let proxies = world.followed().await?;
    output::print(&format!(
        "control plane back: {proxies} proxies follow it again after {:.1} s\n",
        start.elapsed().as_secs_f64()
    ));
    Ok(())
}

impl World {
    /// Whether somebody accepts connections at the control plane's socket.
    pub(crate) async fn has_control(&self) -> bool {
        tokio::net::UnixStream::connect(self.control_socket()).await.is_ok()
    }

    /// Waits until every proxy is connected to the control plane and has acknowledged all it must have; tells how many.
    ///
    /// # Errors
    /// Who has not, after a while.
    pub(crate) async fn followed(&self) -> anyhow::Result<usize> {
        let client = Client::in_run_dir(&self.place.control());
        let start = Instant::now();
        loop {
            let proxies = client.proxies().await.unwrap_or_default();
            let follows = |part: &Part| {
                let own = |workload: &str| workload.split_once('.').is_some_and(|(name, _)| name == part.name);
                proxies.iter().any(|proxy| own(&proxy.workload) && proxy.acknowledged > 0 && proxy.is_synced())
            };
            let (with, without): (Vec<_>, Vec<_>) =
                Part::meshed().map(|(_, part)| part).partition(|part| follows(part));
            if without.is_empty() {
                return Ok(with.len());
            }
            if start.elapsed() > PATIENCE {
                let names: Vec<&str> = without.iter().map(|part| part.name).collect();
                anyhow::bail!(
                    "after {} s these proxies do not follow the control plane: {}",
                    PATIENCE.as_secs(),
                    names.join(", ")
                );
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}
