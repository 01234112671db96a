//! Time on a processor for each request, connection or byte: paired runs, side by side with the rivals.

use anyhow::Result;

use super::load::{Load, Work};
use super::paired;
use super::peers::{Peer, Setting, Subject};
use super::report::Beside;
use super::{Bench, Outcome, calls_http2, pki, process};

/// What is held against what.
#[derive(Clone, Copy)]
struct Contest<'a> {
    /// Goals, and the rival of each.
    goals: &'a [(&'a str, &'a str)],
    /// The proxies beside our own.
    rivals: &'a [&'a str],
    /// The parts of one subject, from the client to the backend.
    parts: &'a [&'a str],
    /// The unit of a single figure, and its nanoseconds.
    unit: (&'static str, f64),
}

const MICROS: (&str, f64) = ("us/request", 1e3);

/// D1: one hop with what a mesh asks of it.
pub(crate) fn features(bench: &Bench) -> Result<Vec<Outcome>> {
    let goals = &[("D1", "envoy")];
    let contest = Contest { goals, rivals: &["envoy"], parts: &["features"], unit: MICROS };
    contest.run(bench, |subject| bench.requests(subject))
}

/// D4: one hop with nothing on.
pub(crate) fn plain(bench: &Bench) -> Result<Vec<Outcome>> {
    let (goals, rivals) = (&[("D4", "haproxy")], &["haproxy", "nginx", "envoy"]);
    let contest = Contest { goals, rivals, parts: &["plain"], unit: MICROS };
    contest.run(bench, |subject| bench.requests(subject))
}

/// D5: plain to the client's sidecar, mTLS to the server's, plain to the backend.
pub(crate) fn sidecars(bench: &Bench) -> Result<Vec<Outcome>> {
    let (goals, rivals) = (&[("D5", "envoy"), ("D5-haproxy", "haproxy")], &["envoy", "haproxy"]);
    let contest = Contest { goals, rivals, parts: &["outbound", "inbound"], unit: ("us/request, both sides", 1e3) };
    contest.run(bench, |subject| bench.requests(subject))
}

/// D7: one hop with D1's features, gRPC calls over HTTP/2 on both sides.
pub(crate) fn grpc(bench: &Bench) -> Result<Vec<Outcome>> {
    let backend = calls_http2::Backend::start(bench.work())?;
    let contest = Contest { goals: &[("D7", "envoy")], rivals: &["envoy"], parts: &["grpc"], unit: ("us/call", 1e3) };
    let setting = Setting { backend: backend.port, ..bench.setting() };
    contest.run_with(bench, &setting, |subject| backend.calls(subject.front, bench.per_run()))
}

/// D12: full handshakes with a client's certificate, one request, and the close.
pub(crate) fn handshakes(bench: &Bench) -> Result<Vec<Outcome>> {
    let (goals, rivals) = (&[("D12", "envoy")], &["envoy", "haproxy"]);
    let contest = Contest { goals, rivals, parts: &["inbound"], unit: ("us/connection", 1e3) };
    let tls = pki::client(bench.pki())?;
    let requests = bench.per_run() / 40;
    contest.run(bench, |subject| Load {
        tls: Some(tls.clone()),
        fresh: true,
        lanes: 8,
        requests,
        ..bench.requests(subject)
    })
}

/// A new connection of bytes over the mesh, with one request in it.
pub(crate) fn opaque(bench: &Bench) -> Result<Vec<Outcome>> {
    let (goals, rivals) = (&[("opaque", "envoy")], &["envoy", "haproxy"]);
    let parts = &["outbound-tcp", "inbound-tcp"];
    let contest = Contest { goals, rivals, parts, unit: ("us/connection, both sides", 1e3) };
    let requests = bench.per_run() / 40;
    contest.run(bench, |subject| Load { fresh: true, lanes: 8, requests, ..bench.requests(subject) })
}

/// D18: bodies of 1 MiB through a plain hop, and through two sidecars.
pub(crate) fn bulk(bench: &Bench) -> Result<Vec<Outcome>> {
    let large = |subject: &Subject| bench.large(subject);
    let unit = ("ms/GB", 1e6);
    let (goals, rivals) = (&[("D18", "envoy")], &["envoy", "haproxy", "nginx"]);
    let mut outcomes = Contest { goals, rivals, parts: &["plain"], unit }.run(bench, large)?;
    let (goals, rivals) = (&[("D18-mtls", "envoy")], &["envoy", "haproxy"]);
    outcomes.extend(Contest { goals, rivals, parts: &["outbound", "inbound"], unit }.run(bench, large)?);
    Ok(outcomes)
}

/// What a request costs more when a second worker shares the load; nothing is pinned.
pub(crate) fn workers(bench: &Bench) -> Result<Vec<Outcome>> {
    let free = Setting { alone: false, ..bench.setting() };
    let mut outcomes = Vec::new();
    for peer in bench.peers.for_parts(&["tulle", "envoy", "haproxy"], &["plain"]) {
        let mut subjects = Vec::new();
        for workers in [1, 2] {
            let mut subject = Subject::start(peer, &["plain"], &Setting { workers, ..free })?;
            subject.name = format!("{} with {workers}", peer.name);
            subjects.push(subject);
        }
        let loads: Vec<Load> = subjects.iter().map(|subject| bench.requests(subject)).collect();
        let (figures, beside) = contend(bench, &subjects, &loads, MICROS.1)?;
        let (one, two) = (format!("{} with 1", peer.name), format!("{} with 2", peer.name));
        let files = subjects.iter().flat_map(|subject| subject.files.clone()).collect();
        let all = subjects.iter().zip(figures).map(|(subject, list)| (subject.name.clone(), list)).collect();
        let id = if peer.name == "tulle" { "workers".to_owned() } else { format!("workers-{}", peer.name) };
        let outcome = Outcome::ratio(&id, (&two, &one), all, files, MICROS.0);
        outcomes.push(outcome.with(beside));
    }
    Ok(outcomes)
}

impl Contest<'_> {
    fn run<W: Work>(&self, bench: &Bench, load: impl Fn(&Subject) -> W) -> Result<Vec<Outcome>> {
        self.run_with(bench, &bench.setting(), load)
    }

    fn run_with<W: Work>(
        &self,
        bench: &Bench,
        setting: &Setting,
        load: impl Fn(&Subject) -> W,
    ) -> Result<Vec<Outcome>> {
        let start = |peer: &&Peer| Subject::start(peer, self.parts, setting);
        let peers = bench.peers.for_parts(&[&["tulle"], self.rivals].concat(), self.parts);
        let subjects = peers.iter().map(start).collect::<Result<Vec<_>>>()?;
        let loads: Vec<W> = subjects.iter().map(load).collect();
        let (figures, beside) = contend(bench, &subjects, &loads, self.unit.1)?;
        let outcomes = Outcome::against(self.goals, &subjects, &figures, self.unit.0).into_iter();
        Ok(outcomes.map(|outcome| outcome.with(beside)).collect())
    }
}

/// The paired run: nanoseconds on a processor for each unit of work, divided by `nanos`; and what the others spent.
fn contend<W: Work>(bench: &Bench, subjects: &[Subject], loads: &[W], nanos: f64) -> Result<(paired::Rounds, Beside)> {
    for load in loads {
        bench.served(load)?;
    }
    let backend = loads.first().map_or(0, Work::backend);
    let (own, served, mut amount) = (process::own(), process::cpu(backend), 0.0);
    let figures = paired::rounds(subjects.len(), bench.rounds, |index| {
        let (Some(subject), Some(load)) = (subjects.get(index), loads.get(index)) else { return Ok(f64::NAN) };
        let before = subject.cpu();
        load.run()?;
        amount += load.amount();
        #[allow(clippy::cast_precision_loss, reason = "nanoseconds of one run")]
        Ok(subject.cpu().saturating_sub(before) as f64 / nanos / load.amount())
    })?;
    #[allow(clippy::cast_precision_loss, reason = "nanoseconds of one line")]
    let served = process::cpu(backend).saturating_sub(served) as f64;
    let beside = Beside { client: (process::own() - own) / nanos / amount, backend: served / nanos / amount };
    Ok((figures, beside))
}
