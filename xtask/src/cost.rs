//! `cargo xtask cost`: what one request costs in instructions, allocations and system calls. Unlike time these do not depend
//! on what else the machine does, so that they can be a gate.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use testkit::client::{Ask, Http1};
use testkit::recorder::{Behaviour, Log, Recorder, Spoken};

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
    ("plain", "bench/plain.yaml", Limits { instructions: 40_000.0, allocations: 12.0, calls: 4.5 }),
    ("features", "bench/hop.yaml", Limits { instructions: 52_000.0, allocations: 14.0, calls: 4.5 }),
];

/// How many times as many instructions a build without optimisation may take.
const UNOPTIMISED: f64 = 5.0;

/// Requests of the two runs whose difference counts.
const FEW: usize = 640;
const MANY: usize = 2_560;
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
        let few = runtime.block_on(count(&tulle, config, FEW))?;
        let many = runtime.block_on(count(&tulle, config, MANY))?;
        let instructions = if release { limits.instructions } else { limits.instructions * UNOPTIMISED };
        let per = |pick: fn(&Counted) -> u64| each(pick(&many).saturating_sub(pick(&few)));
        held &= says(name, "instructions", per(|counted| counted.instructions), instructions);
        held &= says(name, "allocations", per(|counted| counted.allocations), limits.allocations);
        held &= says(name, "system calls", per(|counted| counted.calls), limits.calls);
    }
    Ok(held)
}

#[allow(clippy::cast_precision_loss, reason = "counts of one run")]
fn each(count: u64) -> f64 {
    count as f64 / (MANY - FEW) as f64
}

fn says(name: &str, what: &str, count: f64, limit: f64) -> bool {
    let held = count <= limit;
    println!("{}  {name}: {count:.1} {what} per request (at most {limit})", if held { "ok  " } else { "FAIL" });
    held
}

#[derive(Debug)]
struct Counted {
    instructions: u64,
    allocations: u64,
    calls: u64,
}

async fn count(tulle: &Path, config: &str, requests: usize) -> Result<Counted> {
    let work = tempfile::tempdir()?;
    let file = work.path().join("callgrind");
    let mut valgrind = Command::new("valgrind");
    valgrind.arg("--tool=callgrind").arg(format!("--callgrind-out-file={}", file.display())).arg(tulle);
    serve(valgrind, work.path(), config, requests).await.context("under valgrind")?;
    let profile = std::fs::read_to_string(&file).context("what callgrind wrote")?;
    let instructions = number_after(&profile, "totals:").context("no totals in callgrind's file")?;
    let calls = work.path().join("calls");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-c", "-U", "calls,name", "-o"]).arg(&calls).arg(tulle);
    serve(strace, work.path(), config, requests).await.context("under strace")?;
    let table = std::fs::read_to_string(&calls).context("what strace wrote")?;
    let total = table.lines().find(|line| line.trim_end().ends_with("total")).context("no total in strace's table")?;
    let calls = total.split_whitespace().next().and_then(|number| number.parse().ok()).context("strace's total")?;
    Ok(Counted { instructions, allocations: allocations(&profile), calls })
}

fn number_after(text: &str, label: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(label)?.trim().parse().ok())
}

/// Calls of the functions that allocate. In the file a name stands once, then its number.
fn allocations(profile: &str) -> u64 {
    let mut names: HashMap<&str, &str> = HashMap::new();
    let (mut callee, mut count) = ("", 0);
    for line in profile.lines() {
        if let Some(reference) = line.strip_prefix("cfn=").or_else(|| line.strip_prefix("fn=")) {
            let (id, name) = reference.split_once(' ').unwrap_or((reference, ""));
            let known = names.entry(id).or_insert(name);
            if line.starts_with('c') {
                callee = known;
            }
        } else if let Some(calls) = line.strip_prefix("calls=")
            && matches!(callee, "malloc" | "calloc" | "realloc" | "posix_memalign" | "aligned_alloc")
        {
            count += calls.split_whitespace().next().and_then(|calls| calls.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    count
}

/// Lets the proxy serve so many requests under a counting program, and end.
async fn serve(mut command: Command, work: &Path, config: &str, requests: usize) -> Result<()> {
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let log = Arc::new(Log::default());
    let backend = Recorder::start("backend", nowhere, Spoken::Http, Behaviour::default(), log).await?;
    let (port, admin) = (free_port()?, free_port()?);
    let text = std::fs::read_to_string(config).with_context(|| config.to_owned())?;
    let text = text
        .replace("@PORT@", &port.to_string())
        .replace("@ADMIN@", &admin.to_string())
        .replace("@BACKEND@", &backend.address().port().to_string())
        .replace("@LOG@", &work.join("access.log").display().to_string());
    let file = work.join("proxy.yaml");
    std::fs::write(&file, text)?;
    command.arg("proxy").arg("-c").arg(&file).args(["--concurrency", "1"]);
    let said = std::fs::File::create(work.join("said"))?;
    let child = command.stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said).spawn();
    let mut child = Ending(child.with_context(|| format!("cannot start {:?}", command.get_program()))?);
    let to = SocketAddr::from(([127, 0, 0, 1], port));
    let patience = Instant::now() + Duration::from_secs(60);
    while Http1::new(to).send(&ask()).await.ok().flatten().is_none() {
        if Instant::now() > patience {
            bail!("it does not serve: {}", std::fs::read_to_string(work.join("said"))?);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
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
    child.end(admin).await
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

impl Ending {
    /// Asks the proxy to end, so that who counts writes down what it counted.
    async fn end(&mut self, admin: u16) -> Result<()> {
        let quit = Ask {
            method: "POST".to_owned(),
            path: "/quitquitquit".to_owned(),
            authority: format!("127.0.0.1:{admin}"),
            headers: Vec::new(),
            body: Vec::new(),
        };
        let _ = Http1::new(SocketAddr::from(([127, 0, 0, 1], admin))).send(&quit).await;
        let patience = Instant::now() + Duration::from_secs(30);
        while self.0.try_wait()?.is_none() {
            if Instant::now() > patience {
                bail!("the proxy does not end");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
