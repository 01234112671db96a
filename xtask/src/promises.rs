//! `cargo xtask promises`: the figures that the README speaks of, measured on this machine.
//!
//! Time is noisy on shared machines: CPU figures are ratios to the real Envoy, taken in turn in one run.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use testkit::client::{Ask, Http1};
use testkit::recorder::{Behaviour, Log, Recorder, Spoken};

use crate::setup;

/// Measure what the project promises, with the release build
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask promises\n  cargo xtask promises --only hop --rounds 9")]
pub(crate) struct Args {
    /// Only these: hop, idle, starts, rotation
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Rounds of the paired run; the first is not counted
    #[arg(long, default_value_t = 8)]
    rounds: usize,
    /// Starts of the demo
    #[arg(long, default_value_t = 20)]
    starts: usize,
    /// Measure this program instead of building one
    #[arg(long, value_name = "PATH")]
    tulle: Option<PathBuf>,
}

/// Requests of one round.
const REQUESTS: usize = 20_000;
/// Connections of one round.
const LANES: usize = 32;

/// Measures and prints a line for each promise; true when all hold.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let tulle = match &args.tulle {
        Some(path) => path.clone(),
        None => build()?,
    };
    let wanted = |name: &str| args.only.is_empty() || args.only.iter().any(|only| only == name);
    let mut held = Vec::new();
    if wanted("idle") || wanted("hop") {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        held.extend(runtime.block_on(hop(&tulle, args.rounds, wanted("hop")))?);
    }
    if wanted("starts") {
        held.extend(starts(&tulle, args.starts)?);
    }
    if wanted("rotation") {
        held.push(rotation(&tulle)?);
    }
    let failed = held.iter().filter(|held| !**held).count();
    println!("{} passed, {failed} failed", held.len() - failed);
    Ok(failed == 0)
}

/// Builds what users get.
pub(crate) fn build() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    if !Command::new(cargo).args(["build", "--quiet", "--release", "--package", "tulle"]).status()?.success() {
        bail!("`cargo build --release --package tulle` failed");
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    Ok(target.join("release/tulle"))
}

fn promise(what: &str, value: String, held: bool) -> bool {
    println!("{}  {what}: {value}", if held { "ok  " } else { "FAIL" });
    held
}

/// A proxy under measurement; it ends when dropped.
struct Subject {
    child: Child,
    port: u16,
}

impl Drop for Subject {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn hop(tulle: &Path, rounds: usize, load: bool) -> Result<Vec<bool>> {
    let work = tempfile::tempdir()?;
    let backend = Recorder::start(
        "backend",
        SocketAddr::from(([127, 0, 0, 1], 0)),
        Spoken::Http,
        Behaviour::default(),
        Arc::new(Log::default()),
    )
    .await?;
    let mut ours = Command::new(tulle);
    ours.arg("proxy");
    let ours = start(ours, work.path(), "tulle", backend.address().port()).await?;
    let mut theirs = Command::new(setup::envoy()?);
    theirs.args(["--use-dynamic-base-id", "--log-level", "error"]);
    let theirs = start(theirs, work.path(), "envoy", backend.address().port()).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let idle = pss(ours.child.id())?;
    let mut held =
        vec![promise("one proxy, idle, PSS", format!("{:.1} MB (at most 14)", mega(idle)), idle <= 14 << 20)];
    if !load {
        return Ok(held);
    }
    let mut ratios = Vec::new();
    let mut cost = (0.0, 0.0);
    for round in 0..rounds {
        let (a, b) = if round % 2 == 0 {
            let a = measure(&ours).await?;
            (a, measure(&theirs).await?)
        } else {
            let b = measure(&theirs).await?;
            (measure(&ours).await?, b)
        };
        if round > 0 {
            ratios.push(a / b);
            cost = (cost.0 + a, cost.1 + b);
        }
    }
    ratios.sort_by(f64::total_cmp);
    let median = ratios.get(ratios.len() / 2).copied().unwrap_or(f64::NAN);
    let (low, high) = (ratios.first().copied().unwrap_or(0.0), ratios.last().copied().unwrap_or(0.0));
    #[allow(clippy::cast_precision_loss, reason = "a handful of rounds")]
    let counted = ratios.len().max(1) as f64;
    let text = format!(
        "{median:.2}x Envoy's CPU per request, rounds {low:.2} to {high:.2} (at most 0.45); {:.1} and {:.1} us",
        cost.0 / counted,
        cost.1 / counted
    );
    held.push(promise("HTTP/1 hop with RBAC, JSON log, retry policy", text, median <= 0.45));
    Ok(held)
}

async fn start(mut command: Command, work: &Path, name: &str, backend: u16) -> Result<Subject> {
    let (port, admin) = (free_port()?, free_port()?);
    let text = std::fs::read_to_string("bench/hop.yaml").context("bench/hop.yaml")?;
    let log = work.join(format!("{name}.access"));
    let text = text
        .replace("@PORT@", &port.to_string())
        .replace("@ADMIN@", &admin.to_string())
        .replace("@BACKEND@", &backend.to_string())
        .replace("@LOG@", &log.display().to_string());
    let file = work.join(format!("{name}.yaml"));
    std::fs::write(&file, text)?;
    let said = std::fs::File::create(work.join(format!("{name}.log")))?;
    command.arg("-c").arg(&file).args(["--concurrency", "1"]);
    let child = command.stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said).spawn().context(name.to_owned())?;
    let subject = Subject { child, port };
    let patience = Instant::now() + Duration::from_secs(20);
    while Http1::new(SocketAddr::from(([127, 0, 0, 1], port))).send(&ask()).await.ok().flatten().is_none() {
        if Instant::now() > patience {
            bail!("{name} does not serve: {}", std::fs::read_to_string(work.join(format!("{name}.log")))?);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(subject)
}

fn ask() -> Ask {
    Ask {
        method: "GET".to_owned(),
        path: "/items/42".to_owned(),
        authority: "shop.example".to_owned(),
        headers: vec![("user-agent".to_owned(), "promises".to_owned())],
        body: Vec::new(),
    }
}

/// CPU microseconds for each request of a round.
async fn measure(subject: &Subject) -> Result<f64> {
    let before = cpu(subject.child.id())?;
    let to = SocketAddr::from(([127, 0, 0, 1], subject.port));
    let lanes = (0..LANES).map(|_| {
        tokio::spawn(async move {
            let mut connection = Http1::new(to);
            for _ in 0..REQUESTS / LANES {
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
    #[allow(clippy::cast_precision_loss, reason = "nanoseconds of one round")]
    let spent = (cpu(subject.child.id())? - before) as f64 / 1000.0;
    #[allow(clippy::cast_precision_loss, reason = "a constant")]
    Ok(spent / REQUESTS as f64)
}

/// Nanoseconds on a processor, of all threads.
fn cpu(pid: u32) -> Result<u64> {
    let mut total = 0;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
        total += text.split_whitespace().next().and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(total)
}

/// Proportional set size in bytes.
fn pss(pid: u32) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find(|line| line.starts_with("Pss:")).context("Pss")?;
    let kilobytes: u64 = line.split_whitespace().nth(1).context("Pss")?.parse()?;
    Ok(kilobytes * 1024)
}

#[allow(clippy::cast_precision_loss, reason = "sizes of processes")]
fn mega(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Starts the demo again and again: time to the first edge, and the memory of all its processes once.
fn starts(tulle: &Path, count: usize) -> Result<Vec<bool>> {
    let mut times = Vec::new();
    let mut memory = 0;
    for number in 0..count {
        let mut demo = Demo::start(tulle, &["--for", "30s"])?;
        times.push(demo.first_edge()?);
        if number == 0 {
            std::thread::sleep(Duration::from_secs(8));
            memory = tree(demo.child.id()).into_iter().map(|pid| pss(pid).unwrap_or(0)).sum();
        }
        demo.stop()?;
    }
    times.sort_unstable();
    let last = times.get((times.len() * 95).div_ceil(100).saturating_sub(1)).copied().unwrap_or(u64::MAX);
    let middle = times.get(times.len() / 2).copied().unwrap_or(0);
    Ok(vec![
        promise(
            "first edge of the demo, 95th percentile",
            format!("{last} ms of {count} starts, median {middle} (at most 3000)"),
            last <= 3000,
        ),
        promise(
            "all processes of the demo, PSS",
            format!("{:.0} MiB at 40 requests/s (at most 200)", mega(memory)),
            memory > 0 && memory <= 200 << 20,
        ),
    ])
}

/// Short-lived certificates under load.
fn rotation(tulle: &Path) -> Result<bool> {
    let mut demo = Demo::start(tulle, &["--cert-ttl", "5s", "--rate", "500", "--for", "60s"])?;
    demo.first_edge()?;
    let said = demo.finish()?;
    let line = said.lines().find(|line| line.starts_with("visitor:")).unwrap_or("no line of the visitor").to_owned();
    let clean = line.ends_with(" 0 failed");
    Ok(promise("certificates of 5 s at 500 requests/s for 60 s", line, clean))
}

/// A running demo.
struct Demo {
    child: Child,
    out: std::io::BufReader<std::process::ChildStdout>,
}

impl Demo {
    fn start(tulle: &Path, flags: &[&str]) -> Result<Self> {
        let mut child = Command::new(tulle)
            .arg("demo")
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("tulle demo")?;
        let out = std::io::BufReader::new(child.stdout.take().context("stdout")?);
        Ok(Self { child, out })
    }

    fn first_edge(&mut self) -> Result<u64> {
        use std::io::BufRead;
        let mut line = String::new();
        while self.out.read_line(&mut line)? > 0 {
            if let Some(rest) = line.trim().strip_prefix("first edge after ") {
                return rest.trim_end_matches(" ms").parse().context("the time of the first edge");
            }
            line.clear();
        }
        bail!("the demo ended without a first edge")
    }

    fn finish(&mut self) -> Result<String> {
        use std::io::Read;
        let mut said = String::new();
        self.out.read_to_string(&mut said)?;
        self.child.wait()?;
        Ok(said)
    }

    fn stop(&mut self) -> Result<()> {
        let _ = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status()?;
        self.finish().map(drop)
    }
}

/// A process and all below it.
fn tree(root: u32) -> Vec<u32> {
    let mut found = vec![root];
    let mut next = 0;
    while let Some(pid) = found.get(next).copied() {
        next += 1;
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
    }
    found
}
