//! `cargo xtask cost`: what one request costs in instructions, allocations and system calls. Unlike time these do not depend
//! on what else the machine does, so that they can be a gate.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use testkit::client::{Ask, Http1};
use testkit::recorder::{Behaviour, Log, Recorder, Spoken};
use tokio::runtime::Runtime;

use crate::counted::callgrind::{self, Cost};
use crate::counted::strace;

/// Count what one HTTP/1 request costs the proxy, and compare with the limits
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Needs valgrind and strace.\n\nExamples:\n  cargo xtask cost\n  cargo xtask cost --tulle target/debug/tulle"
)]
pub(crate) struct Args {
    /// Measure this program instead of the release build; the limits of instructions are then not those of a release build
    #[arg(long, value_name = "PATH")]
    tulle: Option<PathBuf>,
}

/// The most that a request may cost.
struct Limits {
    /// Instructions in user space, of a release build; of any other [`UNOPTIMISED`] times as many.
    instructions: f64,
    /// Allocations.
    allocations: f64,
    /// System calls.
    calls: f64,
}

/// A configuration, and what a request may cost with it: about a tenth more than was last seen.
const SUBJECTS: [(&str, &str, Limits); 2] = [
    ("plain", "bench/plain.yaml", Limits { instructions: 36_000.0, allocations: 7.0, calls: 4.5 }),
    ("features", "bench/hop.yaml", Limits { instructions: 45_000.0, allocations: 7.0, calls: 4.5 }),
];

/// How many times as many instructions a build without optimisation may take.
const UNOPTIMISED: f64 = 5.0;

/// Requests of a count.
const FEW: usize = 640;
/// Connections.
const LANES: usize = 32;

/// Counts and prints a line for each number; true when all are within their limits.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let (tulle, release) = match &args.tulle {
        Some(path) => (path.clone(), path.components().any(|part| part.as_os_str() == "release")),
        None => (crate::promises::build()?, true),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let mut held = true;
    for (name, config, limits) in SUBJECTS {
        let instructions = if release { limits.instructions } else { limits.instructions * UNOPTIMISED };
        let cost = instructions_of(&runtime, &tulle, config).with_context(|| format!("{name} under callgrind"))?;
        held &= says(name, "instructions", cost.instructions, instructions);
        held &= says(name, "allocations", cost.allocations, limits.allocations);
        let calls = calls_of(&runtime, &tulle, config).with_context(|| format!("{name} under strace"))?;
        held &= says(name, "system calls", calls, limits.calls);
    }
    Ok(held)
}

fn says(name: &str, what: &str, count: f64, limit: f64) -> bool {
    let held = count <= limit;
    println!("{}  {name}: {count:.1} {what} per request (at most {limit})", if held { "ok  " } else { "FAIL" });
    held
}

fn instructions_of(runtime: &Runtime, tulle: &Path, config: &str) -> Result<Cost> {
    let served = runtime.block_on(Served::start(tulle, config, callgrind::UNDER))?;
    callgrind::each(served.child.0.id(), served.work.path(), FEW, |requests| runtime.block_on(served.ask(requests)))
}

fn calls_of(runtime: &Runtime, tulle: &Path, config: &str) -> Result<f64> {
    let served = runtime.block_on(Served::start(tulle, config, &[]))?;
    runtime.block_on(served.ask(FEW))?;
    let count = |requests| strace::during(&[served.child.0.id()], || runtime.block_on(served.ask(requests)));
    // The difference leaves out what the connections cost.
    let (one, three) = (count(FEW)?, count(FEW * 3)?);
    #[allow(clippy::cast_precision_loss, reason = "counts of one run")]
    Ok(three.saturating_sub(one) as f64 / (FEW * 2) as f64)
}

/// A proxy that serves, before a backend in this process.
struct Served {
    child: Ending,
    front: SocketAddr,
    work: tempfile::TempDir,
    _backend: Recorder,
}

impl Served {
    /// Starts it behind the words of `under`, and waits until it answers.
    async fn start(tulle: &Path, config: &str, under: &[&str]) -> Result<Self> {
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let log = Arc::new(Log::default());
        let backend = Recorder::start("backend", nowhere, Spoken::Http, Behaviour::default(), log).await?;
        let (port, work) = (free_port()?, tempfile::tempdir()?);
        let text = std::fs::read_to_string(config).with_context(|| config.to_owned())?;
        let text = text
            .replace("@PORT@", &port.to_string())
            .replace("@ADMIN@", &free_port()?.to_string())
            .replace("@BACKEND@", &backend.address().port().to_string())
            .replace("@LOG@", &work.path().join("access.log").display().to_string());
        let file = work.path().join("proxy.yaml");
        std::fs::write(&file, text)?;
        let mut words: Vec<_> =
            under.iter().map(|word| word.replace("@WORK@", &work.path().display().to_string())).collect();
        words.push(tulle.display().to_string());
        let (program, arguments) = words.split_first().context("no program")?;
        let mut command = Command::new(program);
        command.args(arguments).arg("proxy").arg("-c").arg(&file).args(["--concurrency", "1"]);
        let said = std::fs::File::create(work.path().join("said"))?;
        let child = command.stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said).spawn();
        let child = Ending(child.with_context(|| format!("cannot start {program}"))?);
        let front = SocketAddr::from(([127, 0, 0, 1], port));
        let patience = Instant::now() + Duration::from_secs(60);
        while Http1::new(front).send(&ask()).await.ok().flatten().is_none() {
            if Instant::now() > patience {
                bail!("it does not serve: {}", std::fs::read_to_string(work.path().join("said"))?);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(Self { child, front, work, _backend: backend })
    }

    /// Makes so many requests; each must be answered well.
    async fn ask(&self, requests: usize) -> Result<()> {
        let to = self.front;
        let lanes = (0..LANES).map(|_| {
            tokio::spawn(async move {
                let mut connection = Http1::new(to);
                for _ in 0..requests / LANES {
                    match connection.send(&ask()).await {
                        Ok(Some(reply)) if reply.status == 200 => {}
                        other => bail!("a request failed: {other:?}"),
                    }
                }
                Ok(())
            })
        });
        for lane in futures_util::future::join_all(lanes).await {
            lane??;
        }
        Ok(())
    }
}

fn ask() -> Ask {
    Ask {
        method: "GET".to_owned(),
        path: "/items/42".to_owned(),
        authority: "shop.example".to_owned(),
        headers: vec![("user-agent".to_owned(), "cost".to_owned())],
        body: Vec::new(),
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// A program that must not outlive the measurement.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
