//! `cargo xtask bench`: our proxy and its rivals, side by side in one run.
//!
//! How it is measured, and what differs from what: `bench/README.md`.

mod backend;
mod calls;
mod calls_http2;
mod cpu;
mod goals;
mod growth;
mod instructions;
mod load;
mod memory;
mod page;
mod paired;
mod peers;
mod pinned;
mod pki;
pub(crate) mod process;
mod report;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Resource, getrlimit, setrlimit};

use self::backend::Backend;
use self::goals::{PARTS, Part};
use self::load::{Load, Work};
use self::peers::{Peers, Setting, Subject};
use self::report::{Outcome, Report, Verdict};
use crate::{promises, setup};

/// Measure our proxy beside Envoy, HAProxy and nginx
#[derive(Debug, Default, clap::Args)]
#[command(
    after_help = "Examples:\n  cargo xtask bench --quick\n  cargo xtask bench --only D1,D5 --json figures.json\n  \
                        cargo xtask bench --only D4 --peer tulle-before=/tmp/tulle"
)]
pub(crate) struct Args {
    /// Only these lines of the table
    #[arg(long, value_delimiter = ',', value_name = "ID")]
    only: Vec<String>,
    /// One more proxy: its name in `bench/peers.toml` (or that and `-anything`), and its program
    #[arg(long, value_name = "NAME=PATH")]
    peer: Vec<String>,
    /// More descriptions of proxies, in the form of `bench/peers.toml`
    #[arg(long, value_name = "FILE")]
    peers: Option<PathBuf>,
    /// Counted rounds of paired runs; one more warms up
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// A look: few rounds, few requests, too few to judge by
    #[arg(long)]
    quick: bool,
    /// Where the figures go, with the configurations in force
    #[arg(long, value_name = "FILE", default_value = "target/bench.json")]
    json: PathBuf,
    /// Write what was measured into `docs/performance.md`
    #[arg(long)]
    docs: bool,
    /// Measure this program instead of building one
    #[arg(long, value_name = "PATH")]
    tulle: Option<PathBuf>,
}

/// The proxies that always run where they can.
const OWN: &[&str] = &["tulle", "envoy", "haproxy", "nginx"];
/// Connections of a load.
const LANES: usize = 32;
/// Load average from which on times are noisy.
const NOISY: f64 = 4.0;

/// What all parts share.
pub(crate) struct Bench {
    work: tempfile::TempDir,
    /// Whether this is only a look.
    pub(crate) quick: bool,
    pki: PathBuf,
    backend: Backend,
    /// The proxies.
    pub(crate) peers: Peers,
    /// Counted rounds.
    pub(crate) rounds: usize,
    /// Requests of one run in a paired round, which has two.
    requests: usize,
    /// Requests of a run whose calls or instructions are counted.
    pub(crate) counted: usize,
}

/// Measures and prints; true when no goal is missed.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let parts = chosen(&args.only)?;
    let load_at_start = process::load();
    let noisy = load_at_start > NOISY;
    println!("load average {load_at_start}{}", if noisy { ": noisy, judge by counts alone" } else { "" });
    let bench = Bench::new(args)?;
    let mut report = Report {
        load_at_start,
        noisy,
        quick: args.quick,
        rounds: bench.rounds,
        processors: process::processors(),
        kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
        versions: bench.peers.all().iter().map(|peer| (peer.name.clone(), peer.version())).collect(),
        failed: Vec::new(),
        outcomes: Vec::new(),
        files: BTreeMap::new(),
    };
    for part in parts {
        let start = Instant::now();
        let outcomes = (part.run)(&bench).unwrap_or_else(|error| {
            println!("{}: FAILED: {error:#}", part.ids.join(", "));
            report.failed.push(format!("{}: {error:#}", part.ids.join(", ")));
            Vec::new()
        });
        for mut outcome in outcomes {
            outcome.print(noisy);
            report.files.append(&mut outcome.files);
            report.outcomes.push(outcome);
        }
        println!("{:<12} ({:.0} s)", "", start.elapsed().as_secs_f64());
    }
    std::fs::write(&args.json, serde_json::to_string_pretty(&report)?)
        .with_context(|| args.json.display().to_string())?;
    if args.docs {
        page::write(&report)?;
    }
    let of = |verdict| report.outcomes.iter().filter(|outcome| outcome.verdict == verdict).count();
    let (holds, gate, missed) = (of(Verdict::Holds), of(Verdict::GateOnly), of(Verdict::Missed));
    let failed = report.failed.len();
    println!("{holds} hold, {gate} gate only, {missed} missed, {failed} failed; figures in {}", args.json.display());
    Ok(missed + failed == 0)
}

/// The lines of these names for a program, as the table would have them.
pub(crate) fn measured(only: &[&str], rounds: usize, tulle: &Path) -> Result<Vec<Outcome>> {
    let args = Args {
        only: only.iter().map(|&line| line.to_owned()).collect(),
        rounds: Some(rounds),
        tulle: Some(tulle.to_owned()),
        ..Args::default()
    };
    let bench = Bench::new(&args)?;
    let mut outcomes = Vec::new();
    for part in chosen(&args.only)? {
        outcomes.extend((part.run)(&bench)?);
    }
    Ok(outcomes)
}

fn chosen(only: &[String]) -> Result<Vec<&'static Part>> {
    let known = || PARTS.iter().flat_map(|part| part.ids.iter().copied());
    if let Some(unknown) = only.iter().find(|only| !known().any(|id| id == only.as_str())) {
        bail!("there is no line `{unknown}`; there are {}", known().collect::<Vec<_>>().join(", "));
    }
    Ok(PARTS.iter().filter(|part| only.is_empty() || part.ids.iter().any(|id| only.iter().any(|o| o == id))).collect())
}

impl Bench {
    fn new(args: &Args) -> Result<Self> {
        setup::bench()?;
        many_files();
        let programs = programs(args)?;
        let work = tempfile::Builder::new().prefix("bench-").tempdir()?;
        let pki = work.path().join("pki");
        pki::write(&pki)?;
        Ok(Self {
            backend: Backend::start(work.path())?,
            peers: Peers::read(args.peers.as_deref(), &programs)?,
            rounds: args.rounds.unwrap_or(if args.quick { 3 } else { 7 }),
            requests: if args.quick { 160 * LANES } else { 640 * LANES },
            counted: 64 * LANES,
            quick: args.quick,
            pki,
            work,
        })
    }

    /// One worker with a processor of its own.
    pub(crate) fn setting(&self) -> Setting<'_> {
        Setting {
            work: self.work.path(),
            pki: &self.pki,
            backend: self.backend.port,
            workers: 1,
            alone: true,
            under: &[],
        }
    }

    /// Small requests over plain connections that stay.
    pub(crate) fn requests(&self, subject: &Subject) -> Load {
        Load {
            to: subject.front,
            path: "/items/42",
            body: self.backend.body.clone(),
            lanes: LANES,
            requests: self.requests,
            tls: None,
            fresh: false,
            by_bytes: false,
            backend: self.backend.pid(),
        }
    }

    /// Bodies of 1 MiB over eight connections.
    pub(crate) fn large(&self, subject: &Subject) -> Load {
        Load {
            path: "/files/large",
            body: self.backend.large.clone(),
            lanes: 8,
            requests: self.requests / 80,
            by_bytes: true,
            ..self.requests(subject)
        }
    }

    /// Requests of one run in a paired round.
    pub(crate) fn per_run(&self) -> usize {
        self.requests
    }

    /// The folder of this run.
    pub(crate) fn work(&self) -> &Path {
        self.work.path()
    }

    /// The certificates.
    pub(crate) fn pki(&self) -> &Path {
        &self.pki
    }

    /// Waits until the least of a load is served: listening is not yet being ready.
    pub(crate) fn served(&self, load: &impl Work) -> Result<()> {
        let patience = Instant::now() + Duration::from_secs(30);
        while let Err(error) = load.once() {
            if Instant::now() > patience {
                return Err(error.context("no good answer within 30 s"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

/// Every proxy of the run by name: our own first.
fn programs(args: &Args) -> Result<Vec<(String, PathBuf)>> {
    let tulle = match &args.tulle {
        Some(path) => path.canonicalize().with_context(|| path.display().to_string())?,
        None => promises::build()?.canonicalize()?,
    };
    let mut programs = vec![("tulle".to_owned(), tulle), ("envoy".to_owned(), setup::envoy()?)];
    for name in ["haproxy", "nginx"] {
        programs.push((name.to_owned(), setup::locate(name).with_context(|| format!("{name} is not there"))?));
    }
    for peer in &args.peer {
        let (name, path) = peer.split_once('=').with_context(|| format!("--peer {peer}: say NAME=PATH"))?;
        programs.retain(|(known, _)| known != name);
        programs.push((name.to_owned(), Path::new(path).canonicalize().with_context(|| path.to_owned())?));
    }
    Ok(programs)
}

/// Lets this process, and the proxies that it starts, have as many open files as the system allows.
fn many_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Where that is refused the rows of many connections say so themselves.
    let _ = setrlimit(Resource::Nofile, limit);
}
