//! `cargo xtask floods`: hostile clients against a running proxy, and what a good client feels of them.
//!
//! For each attack: the good client's 99th percentile stays within three times what it was before, the proxy's memory
//! grows by at most 10 MB, every attacker is cut off within two seconds, and the proxy goes on running.

mod attacks;
mod backend;
mod frames;
mod goodput;
mod world;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tokio::runtime::Handle;

use crate::cases;
use attacks::{ATTACKS, Attack};
use world::{Good, Proxy};

/// Attack a proxy in every known way and watch a good client
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask floods\n  cargo xtask floods --seconds 1 --only ping,zero-window")]
pub(crate) struct Args {
    /// How long each attack lasts, and how long the time before it is measured
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Run only these attacks
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Use this `tulle` instead of building one
    #[arg(long, value_name = "PATH")]
    tulle: Option<PathBuf>,
}

/// The one measurement that is no attack.
const GOODPUT: &str = "goodput";
/// The most that memory may grow.
const MOST_GROWTH: u64 = 10 << 20;
/// How much slower a good client may be served; and below this nobody feels it, whatever it was before.
const MOST_SLOWER: u32 = 3;
const UNFELT: Duration = Duration::from_millis(20);
/// How long an attacker may stay.
const MOST_STAY: Duration = Duration::from_secs(2);
/// A machine that does other things too may disturb one try, not each of these.
const TRIES: usize = 3;

/// Runs all attacks; true when every invariant held.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let names: Vec<_> = ATTACKS.iter().map(|attack| attack.name).chain([GOODPUT]).collect();
    if let Some(unknown) = args.only.iter().find(|only| !names.contains(&only.as_str())) {
        bail!("no attack `{unknown}`; there are {}", names.join(", "));
    }
    let Some(tulle) = cases::inside() else { return cases::run_inside(args.tulle.as_ref()) };
    cases::raise_loopback()?;
    // It has a runtime of its own, which cannot be made within another.
    backend::start()?;
    // Attackers have the processor only when nobody else wants it: in the world they are other machines.
    let attackers = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .on_thread_start(|| {
            let _ = rustix::process::nice(19);
        })
        .build()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(all(args, tulle, attackers.handle()));
    attackers.shutdown_background();
    done
}

async fn all(args: &Args, tulle: PathBuf, attackers: &Handle) -> Result<bool> {
    let mut failed = Vec::new();
    println!("{:<16} {:>9} {:>9} {:>9} {:>8} {:>6}", "attack", "before", "p99", "memory", "cut", "CPU");
    for attack in ATTACKS.iter().filter(|a| args.only.is_empty() || args.only.iter().any(|only| only == a.name)) {
        let mut wrong = Vec::new();
        for _ in 0..TRIES {
            wrong = one(attack, &tulle, Duration::from_secs(args.seconds), attackers).await?;
            if wrong.is_empty() {
                break;
            }
        }
        if !wrong.is_empty() {
            println!("FAILED {}: {}", attack.name, wrong.join("; "));
            failed.push(attack.name);
        }
    }
    if (args.only.is_empty() || args.only.iter().any(|only| only == GOODPUT))
        && !goodput::holds(&tulle, Duration::from_secs(args.seconds)).await?
    {
        failed.push(GOODPUT);
    }
    println!("floods: {} failed", failed.len());
    Ok(failed.is_empty())
}

/// One attack on a fresh proxy; everything that is not as it must be.
async fn one(attack: &Attack, tulle: &Path, time: Duration, attackers: &Handle) -> Result<Vec<String>> {
    let mut proxy = Proxy::start(tulle, attack.limit).await?;
    let good = Good::start(world::HTTP, attack.patient);
    tokio::time::sleep(Duration::from_millis(300)).await;
    good.take();
    tokio::time::sleep(time).await;
    let before = good.take();
    let (memory, cpu) = (proxy.memory()?, proxy.cpu()?);
    let running: Vec<_> =
        (0..attack.connections).map(|_| attackers.spawn(attacks::repeat(attack.run, Instant::now() + time))).collect();
    let mut most = memory;
    let end = Instant::now() + time;
    let answers = attack.limit.map(|_| tokio::task::spawn_blocking(move || world::admin_answers(end)));
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(20)).await;
        most = most.max(proxy.memory().unwrap_or(most));
    }
    let during = good.take();
    let mut stays = Vec::new();
    for attacker in running {
        stays.extend(attacker.await?);
    }
    let stay = stays.iter().max().copied().unwrap_or_default();
    let growth = most.saturating_sub(memory);
    let used = proxy.cpu()?.saturating_sub(cpu);
    println!(
        "{:<16} {:>6.1} ms {:>6.1} ms {:>6.1} MB {:>6.2} s {:>4.0} %",
        attack.name,
        millis(before.p99),
        millis(during.p99),
        growth as f64 / 1e6,
        stay.as_secs_f64(),
        100.0 * used.as_secs_f64() / time.as_secs_f64(),
    );
    let mut wrong = Vec::new();
    if let Some(status) = proxy.ended() {
        wrong.push(format!("the proxy ended: {status}"));
    }
    if during.failed > 0 || during.served == 0 {
        wrong.push(format!("the good client: {} served, {} failed", during.served, during.failed));
    }
    if during.p99 > (before.p99 * MOST_SLOWER).max(UNFELT) {
        wrong.push(format!("p99 {:.1} ms, was {:.1} ms", millis(during.p99), millis(before.p99)));
    }
    if growth > MOST_GROWTH {
        wrong.push(format!("memory grew by {:.1} MB", growth as f64 / 1e6));
    }
    if attack.must_be_cut && (stays.is_empty() || stay > MOST_STAY) {
        wrong.push(format!("an attacker stayed {:.1} s ({} cut)", stay.as_secs_f64(), stays.len()));
    }
    if let Some(answers) = answers {
        if !answers.await? {
            wrong.push("the administration did not answer".to_owned());
        }
        let back = tokio::task::spawn_blocking(world::served_again).await?;
        if back > Duration::from_secs(1) {
            wrong.push(format!("a new client was served after {:.1} s", back.as_secs_f64()));
        }
    }
    good.stop();
    proxy.end().await;
    Ok(wrong)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
