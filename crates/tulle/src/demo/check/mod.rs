//! The demo's scenario, asserted on real traffic: one line for each step, each with what was measured.

mod envoy;
mod resilience;
mod security;
mod traffic;

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::place::Place;
use super::record::{Entry, Tally, VISITOR};
use super::world::World;
use crate::output;

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Longer than the visitor waits for an answer.
const PATIENCE: Duration = Duration::from_secs(12);

/// Runs every step, also after one that failed; true when all hold. Requests count from `opened` on: the very first.
pub(crate) async fn all(world: &Rc<World>, opened: Instant) -> bool {
    let mut good = true;
    macro_rules! step {
        ($name:literal, $step:expr) => {
            let start = Instant::now();
            good &= report($name, start, alive(world, $step.await));
        };
    }
    step!("observe", traffic::observe(world, opened));
    if !world.wish.envoys.is_empty() {
        step!("envoy", envoy::stand_ins(world));
    }
    step!("strict", security::strict(world));
    step!("canary", traffic::canary(world));
    step!("cure", resilience::cure(world));
    step!("eject", resilience::eject(world));
    step!("authz", security::authz(world));
    step!("outage", resilience::outage(world));
    step!("rotation", security::rotation(world));
    good
}

/// A step is only good if no process fell meanwhile.
fn alive(world: &World, result: anyhow::Result<String>) -> anyhow::Result<String> {
    let fallen = world.fallen();
    anyhow::ensure!(fallen.is_empty(), "{}", fallen.join(", "));
    result
}

/// Prints the line of a step; true when it holds.
pub(crate) fn report(name: &str, start: Instant, result: anyhow::Result<String>) -> bool {
    let seconds = start.elapsed().as_secs_f64();
    let (mark, text) = match &result {
        Ok(evidence) => ("ok  ", evidence.clone()),
        Err(error) => ("FAIL", format!("{error:#}")),
    };
    output::print(&format!("{mark} {name:<9} {text} ({seconds:.1} s)\n"));
    result.is_ok()
}

/// Nothing of a demo is left: no process that names its folder, no folder, nobody at its door.
pub(crate) fn gone(place: &Place, door: SocketAddr) -> anyhow::Result<String> {
    let deadline = Instant::now() + Duration::from_secs(3);
    let dir = place.dir().to_str().context("an odd folder name")?;
    loop {
        let left = processes_naming(dir);
        if left.is_empty() {
            break;
        }
        anyhow::ensure!(Instant::now() < deadline, "processes are left: {}", left.join(", "));
        std::thread::sleep(LOOK);
    }
    anyhow::ensure!(!place.dir().exists(), "{dir} is left");
    anyhow::ensure!(std::net::TcpStream::connect(door).is_err(), "somebody still answers at {door}");
    let spaces = network_namespaces_of_mine();
    anyhow::ensure!(spaces <= 1, "{} network namespaces of this user are left", spaces - 1);
    Ok("no process, namespace, file or door is left".to_owned())
}

fn processes_naming(text: &str) -> Vec<String> {
    let me = std::process::id().to_string();
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let pids = pids.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()) && *name != me);
    pids.filter_map(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        line.contains(text).then(|| format!("{pid} ({})", line.chars().take(60).collect::<String>()))
    })
    .collect()
}

/// How many network namespaces this process and its descendants are in: after the end there is one.
fn network_namespaces_of_mine() -> usize {
    let me = std::process::id();
    let Ok(entries) = std::fs::read_dir("/proc") else { return 1 };
    let mut found = std::collections::BTreeSet::new();
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if pid == me || descends_from(pid, me) {
            found.extend(std::fs::read_link(entry.path().join("ns/net")));
        }
    }
    found.len()
}

fn descends_from(pid: u32, ancestor: u32) -> bool {
    let mut pid = pid;
    for _ in 0..32 {
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
        // The name in parentheses may hold anything; the parent is the second word after it.
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        match parent {
            Some(parent) if parent == ancestor => return true,
            Some(parent) if parent > 1 => pid = parent,
            _ => return false,
        }
    }
    false
}

/// Waits until a condition holds; what it says last is the error.
async fn until<F, R>(limit: Duration, mut condition: F) -> anyhow::Result<()>
where
    F: FnMut() -> R,
    R: Future<Output = Result<(), String>>,
{
    let start = Instant::now();
    loop {
        match condition().await {
            Ok(()) => return Ok(()),
            Err(why) if start.elapsed() > limit => anyhow::bail!("after {} s: {why}", limit.as_secs()),
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

/// The visitor's requests that began in a window that starts now.
async fn visitors_for(world: &World, window: Duration) -> Vec<Entry> {
    let start = Instant::now();
    tokio::time::sleep(window).await;
    answered(world, Instant::now()).await;
    world.record.since(VISITOR, start)
}

/// Waits until everything that the visitor began before an instant has ended, well or not.
async fn answered(world: &World, before: Instant) {
    world.record.answered(VISITOR, before, PATIENCE).await;
}

/// No request of the visitor failed since an instant, and there were some.
async fn unharmed(world: &World, start: Instant) -> anyhow::Result<usize> {
    answered(world, Instant::now()).await;
    let entries = world.record.since(VISITOR, start);
    let tally = Tally::of(&entries);
    anyhow::ensure!(tally.all > 0, "the visitor asked for nothing");
    anyhow::ensure!(
        tally.failed == 0,
        "{} of {} requests of the visitor failed: {}",
        tally.failed,
        tally.all,
        tally.example
    );
    Ok(tally.all)
}
