//! Memory, and the time from start to ready: idle, with many services, and for each idle connection.

use std::collections::BTreeMap;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::load::{Load, Work};
use super::peers::{Peer, Subject};
use super::{Bench, Outcome, growth, paired, pki};

/// How long a proxy settles before its memory is read. Ours gives back what only its start needed two seconds after it.
const SETTLE: Duration = Duration::from_secs(4);
/// The same after work: ours looks once a second, and gives back after two looks without work.
const REST: Duration = Duration::from_secs(6);
const MEGA: f64 = (1 << 20) as f64;

/// D13: one instance that has served one request; beside it the same after a load.
pub(crate) fn idle(bench: &Bench) -> Result<Vec<Outcome>> {
    let (mut idle, mut dirty, mut loaded) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let mut files = BTreeMap::new();
    for part in ["features", "plain"] {
        // The rivals that have no such features run without.
        for peer in bench.peers.for_parts(&["tulle", "envoy", "haproxy", "nginx"], &[part]) {
            if idle.contains_key(&peer.name) {
                continue;
            }
            let mut subject = Subject::start(peer, &[part], &bench.setting())?;
            let load = bench.requests(&subject);
            bench.served(&load)?;
            sleep(SETTLE);
            idle.insert(peer.name.clone(), vec![mega(subject.pss()?)]);
            dirty.insert(peer.name.clone(), vec![mega(subject.dirty()?)]);
            load.run()?;
            sleep(REST);
            loaded.insert(peer.name.clone(), vec![mega(subject.pss()?)]);
            files.append(&mut subject.files);
        }
    }
    let lines = [("D13", idle), ("D13-dirty", dirty), ("D13-loaded", loaded)];
    Ok(lines.map(|(id, figures)| Outcome::absolute(id, figures, files.clone(), "MB")).into())
}

/// D14: the slope of memory over services that are known but never asked for. What a process has written to, as the pages
/// of its file come and go.
pub(crate) fn services(bench: &Bench) -> Result<Vec<Outcome>> {
    let counts = if bench.quick { [100, 300, 1000] } else { [100, 1000, 10_000] };
    let mut slopes = BTreeMap::new();
    for peer in pair(bench) {
        let mut sizes = Vec::new();
        for count in counts {
            let subject = made(bench, peer, &growth::services(count))?;
            sleep(SETTLE);
            sizes.push(mega(subject.dirty()?) * 1024.0);
        }
        let slope = |from: usize, to: usize| {
            let more = counts.get(to).zip(counts.get(from)).map(|(to, from)| to - from)?;
            #[allow(clippy::cast_precision_loss, reason = "a count of services")]
            Some((sizes.get(to)? - sizes.get(from)?) / more as f64)
        };
        slopes.insert(peer.name.clone(), vec![slope(1, 2).unwrap_or(f64::NAN)]);
        slopes.insert(format!("{} (fewer)", peer.name), vec![slope(0, 1).unwrap_or(f64::NAN)]);
    }
    Ok(vec![Outcome::ratio("D14", ("tulle", "envoy"), slopes, BTreeMap::new(), "KiB/service")])
}

/// D15: from the start of the process to the first good answer, with one service and with many.
pub(crate) fn starts(bench: &Bench) -> Result<Vec<Outcome>> {
    let (count, unit) = match bench.quick {
        true => (1000, "ms from start to answer (quick: 1,000 services)"),
        false => (10_000, "ms from start to answer"),
    };
    let many = growth::services(count);
    let peers = pair(bench);
    let mut outcomes = Vec::new();
    for (id, services, unit) in [("D15-empty", &growth::services(0), "ms from start to answer"), ("D15", &many, unit)] {
        let figures = paired::rounds(peers.len(), bench.rounds.min(3), |index| {
            let Some(peer) = peers.get(index) else { return Ok(f64::NAN) };
            Ok(made(bench, peer, services)?.ready.as_secs_f64() * 1000.0)
        })?;
        let all = peers.iter().zip(figures).map(|(peer, list)| (peer.name.clone(), list)).collect();
        outcomes.push(Outcome::ratio(id, ("tulle", "envoy"), all, BTreeMap::new(), unit));
    }
    Ok(outcomes)
}

/// D19 and idle plain connections: what a thousand of them add, each after one request.
pub(crate) fn connections(bench: &Bench) -> Result<Vec<Outcome>> {
    let tls = pki::client(bench.pki())?;
    let (secure, secure_files) =
        each(bench, "inbound", &["tulle", "envoy", "haproxy"], &|load| Load { tls: Some(tls.clone()), ..load })?;
    let (plain, plain_files) = each(bench, "plain", &["tulle", "envoy", "haproxy", "nginx"], &|load| load)?;
    Ok(vec![
        Outcome::ratio("D19", ("tulle", "envoy"), secure, secure_files, "KiB/connection"),
        Outcome::absolute("idle-http", plain, plain_files, "KiB/connection"),
    ])
}

type Figures = BTreeMap<String, Vec<f64>>;

fn each(
    bench: &Bench,
    part: &str,
    names: &[&str],
    with: &dyn Fn(Load) -> Load,
) -> Result<(Figures, BTreeMap<String, String>)> {
    const CONNECTIONS: usize = 1000;
    let (mut all, mut files) = (BTreeMap::new(), BTreeMap::new());
    for peer in bench.peers.for_parts(names, &[part]) {
        let mut list = Vec::new();
        for _ in 0..if bench.quick { 1 } else { 3 } {
            let mut subject = Subject::start(peer, &[part], &bench.setting())?;
            let load = with(Load { lanes: CONNECTIONS, ..bench.requests(&subject) });
            bench.served(&load)?;
            sleep(SETTLE);
            let before = subject.dirty()?;
            let held = load.hold(|| {
                sleep(REST);
                subject.dirty()
            })?;
            #[allow(clippy::cast_precision_loss, reason = "bytes of a process, and a constant")]
            list.push(held.saturating_sub(before) as f64 / 1024.0 / CONNECTIONS as f64);
            files.append(&mut subject.files);
        }
        all.insert(peer.name.clone(), list);
    }
    Ok((all, files))
}

/// Ours and Envoy, and guests that read Envoy's configuration.
fn pair(bench: &Bench) -> Vec<&Peer> {
    bench.peers.for_parts(&["tulle", "envoy"], &["features"])
}

/// Starts a proxy with a configuration that was made, and waits for its first answer.
fn made(bench: &Bench, peer: &Peer, made: &growth::Made) -> Result<Subject> {
    let mut subject = Subject::made(peer, Path::new("made.json"), &made.text, &bench.setting())?;
    let load = Load { path: made.path, ..bench.requests(&subject) };
    let patience = Instant::now() + Duration::from_secs(120);
    while let Err(error) = load.once() {
        if Instant::now() > patience {
            return Err(error.context("no good answer within 120 s"));
        }
        sleep(Duration::from_millis(2));
    }
    subject.ready = subject.started.elapsed();
    Ok(subject)
}

#[allow(clippy::cast_precision_loss, reason = "sizes of processes")]
fn mega(bytes: u64) -> f64 {
    bytes as f64 / MEGA
}
