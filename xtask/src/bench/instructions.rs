//! User instructions and heap allocations for each request: the figures that noise does not touch.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};

use super::load::{Load, Work};
use super::peers::{Peer, Subject};
use super::{Bench, Outcome, growth};
use crate::counted::callgrind::{self, Cost};

/// D2, D3 and D11: plain and with features.
pub(crate) fn requests(bench: &Bench) -> Result<Vec<Outcome>> {
    let plain = all(bench, "plain", &["tulle", "haproxy", "nginx", "envoy"])?;
    let featured = all(bench, "features", &["tulle", "envoy"])?;
    let thousands = |costs: &Costs| costs.pick(|cost| cost.instructions / 1000.0);
    let allocations = |costs: &Costs| costs.pick(|cost| cost.allocations);
    Ok(vec![
        Outcome::absolute("D2", thousands(&plain), plain.files.clone(), "k instructions"),
        Outcome::ratio("D3", ("tulle", "envoy"), thousands(&featured), featured.files.clone(), "k instructions"),
        Outcome::absolute("D11", only_ours(allocations(&featured)), featured.files.clone(), "allocations"),
        Outcome::absolute("D11-plain", only_ours(allocations(&plain)), plain.files.clone(), "allocations"),
    ])
}

/// The rivals' allocators may be inlined where callgrind does not see them.
fn only_ours(mut all: BTreeMap<String, Vec<f64>>) -> BTreeMap<String, Vec<f64>> {
    all.retain(|name, _| name.starts_with("tulle"));
    all
}

struct Costs {
    costs: BTreeMap<String, Cost>,
    files: BTreeMap<String, String>,
}

impl Costs {
    fn pick(&self, what: impl Fn(&Cost) -> f64) -> BTreeMap<String, Vec<f64>> {
        self.costs.iter().map(|(name, cost)| (name.clone(), vec![what(cost)])).collect()
    }
}

fn all(bench: &Bench, part: &str, names: &[&str]) -> Result<Costs> {
    let mut costs = Costs { costs: BTreeMap::new(), files: BTreeMap::new() };
    for peer in bench.peers.for_parts(names, &[part]) {
        let setting = super::Setting { under: callgrind::UNDER, ..bench.setting() };
        let mut subject = Subject::start(peer, &[part], &setting)?;
        costs.files.append(&mut subject.files);
        costs.costs.insert(peer.name.clone(), count(bench, &subject, &bench.requests(&subject))?);
    }
    Ok(costs)
}

/// Makes a configuration of so many things.
type Make = fn(usize) -> growth::Made;

/// D17: what one request costs where it is one of 10, and one of 10,000.
pub(crate) fn growth(bench: &Bench) -> Result<Vec<Outcome>> {
    let peer = bench.peers.get("tulle")?;
    let kinds: [(&str, Make, usize); 2] = [("D17", growth::routes, 10_000), ("D17-rules", growth::rules, 1_000)];
    let mut outcomes = Vec::new();
    for (id, make, many) in kinds {
        let few = made(bench, peer, &make(10))?;
        let many = made(bench, peer, &make(many))?;
        let all = [("tulle", many), ("few", few)];
        let all = all.map(|(name, cost)| (name.to_owned(), vec![cost.instructions / 1000.0])).into();
        outcomes.push(Outcome::ratio(id, ("tulle", "few"), all, BTreeMap::new(), "k instructions"));
    }
    Ok(outcomes)
}

fn made(bench: &Bench, peer: &Peer, made: &growth::Made) -> Result<Cost> {
    let setting = super::Setting { under: callgrind::UNDER, ..bench.setting() };
    let subject = Subject::made(peer, Path::new("made.json"), &made.text, &setting)?;
    count(bench, &subject, &Load { path: made.path, ..bench.requests(&subject) })
}

/// Counts one request of a proxy that runs under callgrind.
fn count(bench: &Bench, subject: &Subject, load: &Load) -> Result<Cost> {
    let load = Load { requests: bench.counted / 4, ..load.clone() };
    bench.served(&load)?;
    let pid = subject.pids().last().copied().context("no process")?;
    callgrind::each(pid, subject.work(), load.requests, |requests| Load { requests, ..load.clone() }.run())
}
