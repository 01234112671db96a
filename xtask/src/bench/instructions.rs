//! User instructions and heap allocations for each request, counted by callgrind: the figures that noise does not touch.
//!
//! Two counts of the same running proxy, of N and of 3 N requests: the difference leaves out what does not grow with them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::load::{Load, Work};
use super::peers::{Peer, Subject};
use super::{Bench, Outcome, growth};

/// Under callgrind, with a file whose place is known.
const CALLGRIND: &[&str] = &["valgrind", "--quiet", "--tool=callgrind", "--callgrind-out-file=@WORK@/counted"];
/// The functions that give memory, of the C library and of the allocators that proxies bring along.
const ALLOCATORS: &[&str] = &[
    "malloc",
    "calloc",
    "realloc",
    "memalign",
    "posix_memalign",
    "aligned_alloc",
    "mi_malloc",
    "mi_malloc_aligned",
    "mi_zalloc",
    "mi_zalloc_aligned",
    "mi_realloc",
    "mi_realloc_aligned",
    "operator new(unsigned long)",
    "operator new[](unsigned long)",
    "operator new(unsigned long, std::align_val_t)",
];

/// What one request costs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cost {
    /// Instructions in user space.
    pub(super) instructions: f64,
    /// Calls that asked for memory.
    pub(super) allocations: f64,
}

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
        let setting = super::Setting { under: CALLGRIND, ..bench.setting() };
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
    let setting = super::Setting { under: CALLGRIND, ..bench.setting() };
    let subject = Subject::made(peer, Path::new("made.json"), &made.text, &setting)?;
    count(bench, &subject, &Load { path: made.path, ..bench.requests(&subject) })
}

/// Counts one request of a proxy that runs under callgrind.
fn count(bench: &Bench, subject: &Subject, load: &Load) -> Result<Cost> {
    let few = bench.counted / 4;
    let load = Load { requests: few, ..load.clone() };
    bench.served(&load)?;
    load.run()?;
    dump(subject, 0)?;
    load.run()?;
    let one = dump(subject, 1)?;
    Load { requests: few * 3, ..load }.run()?;
    let three = dump(subject, 2)?;
    #[allow(clippy::cast_precision_loss, reason = "a count of requests")]
    let more = (few * 2) as f64;
    Ok(Cost {
        instructions: (three.instructions - one.instructions) / more,
        allocations: (three.allocations - one.allocations) / more,
    })
}

/// Has the counts since the last dump written, and reads them.
fn dump(subject: &Subject, number: usize) -> Result<Cost> {
    let pid = subject.pids().last().copied().context("no process")?;
    let mut command = Command::new("vgdb");
    command.args([&format!("--pid={pid}"), "dump", &format!("part{number}")]);
    let said = command.stdin(Stdio::null()).output().context("vgdb")?;
    let file = written(subject.work(), number)
        .with_context(|| format!("callgrind wrote no counts: {}", String::from_utf8_lossy(&said.stderr)))?;
    let text = String::from_utf8_lossy(&std::fs::read(&file)?).into_owned();
    let cost = read(&text);
    if cost.instructions == 0.0 {
        bail!("{} holds no counts", file.display());
    }
    Ok(cost)
}

/// The newest file of counts: they are numbered from 1.
fn written(work: &Path, number: usize) -> Option<PathBuf> {
    let file = work.join(format!("counted.{}", number + 1));
    file.exists().then_some(file)
}

/// Reads the sum of instructions, and the calls of allocators, from callgrind's file.
fn read(text: &str) -> Cost {
    let mut cost = Cost { instructions: 0.0, allocations: 0.0 };
    let mut names: BTreeMap<&str, bool> = BTreeMap::new();
    let mut callee = false;
    for line in text.lines() {
        if let Some(sum) = line.strip_prefix("summary: ") {
            cost.instructions = sum.trim().parse().unwrap_or(0.0);
        } else if let Some(name) = line.strip_prefix("cfn=").or_else(|| line.strip_prefix("fn=")) {
            // A name is written once and then known by its number: `(12) malloc`, `(12)`.
            let (number, name) = name.split_once(' ').unwrap_or((name, ""));
            let name = name.split('\'').next().unwrap_or("");
            let known = names.entry(number).or_insert(false);
            *known |= ALLOCATORS.contains(&name);
            callee = *known && line.starts_with('c');
        } else if let Some(calls) = line.strip_prefix("calls=")
            && callee
        {
            cost.allocations += calls.split(' ').next().and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0);
        }
    }
    cost
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_allocators_are_counted_by_name_and_by_number() {
        let text = "summary: 1000\nfn=(1) main\n10 5\ncfn=(2) malloc\ncalls=7 20\n10 300\n\
                    cfn=(3) write\ncalls=9 30\n10 3\ncfn=(2)\ncalls=4 20\n11 100\nfn=(2)\n20 400\ncfn=(4) _int_malloc\n\
                    calls=11 50\n20 9\n";
        let cost = read(text);
        assert_eq!(cost.instructions, 1000.0);
        assert_eq!(cost.allocations, 11.0);
    }
}
