//! `cargo xtask floods`: hostile clients against a running proxy, and what a good client feels of them.
//!
//! For each attack: the good client's 99th percentile stays within three times what it was before, the proxy's memory
//! grows by at most 10 MB, every attacker is cut off within two seconds, the proxy uses at most three times the processor
//! time of its attackers, and goes on running.

mod attackers;
mod attacks;
mod backend;
mod cores;
mod frames;
mod goodput;
mod world;

use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::cases;
use attackers::Attackers;
use attacks::{ATTACKS, Attack, SENT};
use world::{Felt, Good, Proxy};

/// Attack a proxy in every known way and watch a good client
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask floods\n  cargo xtask floods --seconds 1 --only ping,zero-window\n  \
    cargo xtask floods --short")]
pub(crate) struct Args {
    /// How long each of three rounds lasts: so long nothing happens, and so long the attack goes on
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Run only these attacks
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only until each attacker was cut off once, and without anything that other load on the machine can spoil: no
    /// percentiles, no goodput
    #[arg(long)]
    short: bool,
    /// Use this `tulle` instead of building one
    #[arg(long, value_name = "PATH")]
    tulle: Option<PathBuf>,
}

/// The one measurement that is no attack.
const GOODPUT: &str = "goodput";
/// The most that memory may grow.
const MOST_GROWTH: u64 = 10 << 20;
/// And of a bomb, times what was sent.
const MOST_UNFOLDED: u64 = 10;
/// How much slower a good client may be served.
const MOST_SLOWER: u32 = 3;
/// How long an attacker may stay.
const MOST_STAY: Duration = Duration::from_secs(2);
/// The same where other load counts too.
const SHORT_STAY: Duration = Duration::from_secs(15);
/// The most of the attackers' processor time that the proxy may use, and what is not worth dividing.
const MOST_CPU: f64 = 3.0;
const LITTLE_CPU: Duration = Duration::from_millis(300);
/// Of calm and attack in turn.
const ROUNDS: usize = 3;
/// A machine that does other things too may disturb one try, not each of these.
const TRIES: usize = 2;

/// Runs all attacks; true when every invariant held.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let names: Vec<_> = ATTACKS.iter().map(|attack| attack.name).chain([GOODPUT]).collect();
    if let Some(unknown) = args.only.iter().find(|only| !names.contains(&only.as_str())) {
        bail!("no attack `{unknown}`; there are {}", names.join(", "));
    }
    let Some(tulle) = cases::inside() else { return cases::run_inside(args.tulle.as_ref()) };
    cases::raise_loopback()?;
    cores::leave();
    // It has a runtime of its own, which cannot be made within another.
    backend::start()?;
    let attackers = Attackers::new(!args.short)?;
    if !args.short {
        cores::keep_awake();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(all(args, tulle, &attackers));
    attackers.end();
    done
}

async fn all(args: &Args, tulle: PathBuf, attackers: &Attackers) -> Result<bool> {
    let mut failed = Vec::new();
    let time = Duration::from_secs(args.seconds);
    let wanted = |name: &str| args.only.is_empty() || args.only.iter().any(|only| only == name);
    println!(
        "{:<16} {:>9} {:>9} {:>9} {:>9} {:>8} {:>6} {:>9}",
        "attack", "before", "p99", "memory", "sent", "cut", "CPU", "attackers"
    );
    for attack in ATTACKS.iter().filter(|attack| wanted(attack.name)) {
        let mut wrong = Vec::new();
        for _ in 0..if args.short { 1 } else { TRIES } {
            let proxy = Proxy::start(&tulle, attack.limit).await?;
            wrong = if args.short {
                short(attack, proxy, attackers).await?
            } else {
                one(attack, proxy, time, attackers).await?
            };
            if wrong.is_empty() {
                break;
            }
            println!("again {}: {}", attack.name, wrong.join("; "));
        }
        if !wrong.is_empty() {
            println!("FAILED {}: {}", attack.name, wrong.join("; "));
            failed.push(attack.name);
        }
    }
    if !args.short && wanted(GOODPUT) && !goodput::holds(&tulle, time).await? {
        failed.push(GOODPUT);
    }
    println!("floods: {} failed", failed.len());
    Ok(failed.is_empty())
}

/// What was seen of one attack.
#[derive(Default)]
struct Seen {
    /// The good client's 99th percentile in calm and under attack: the least of the rounds, for what else the machine does only adds.
    before: Option<Duration>,
    p99: Option<Duration>,
    during: Felt,
    growth: u64,
    /// Bytes that the attackers sent.
    sent: u64,
    stays: Vec<Duration>,
    /// Processor time: the proxy's, and the attackers'.
    used: Duration,
    spent: Duration,
    time: Duration,
}

/// One attack on a fresh proxy, in rounds of calm and attack: what else the machine does meets both. Everything that is not as it
/// must be.
async fn one(attack: &Attack, mut proxy: Proxy, time: Duration, attackers: &Attackers) -> Result<Vec<String>> {
    let good = Good::start(world::HTTP, attack.patient);
    good.is_served().await;
    let mut seen = Seen::default();
    let mut wrong = Vec::new();
    let sent = SENT.load(Ordering::Relaxed);
    let mut memory = None;
    for _ in 0..ROUNDS {
        // What the good client alone costs is not the attackers'.
        let served = calm(&good, &proxy, time, attackers, &mut seen).await?;
        // After the start a proxy gives memory back: what it has grown by counts from the first calm.
        let memory = *memory.get_or_insert(proxy.memory()?);
        let (used, spent) = (proxy.cpu()?, attackers.cpu());
        let end = Instant::now() + time;
        let running = attackers.attack(attack, end);
        let answers = attack.limit.map(|_| tokio::task::spawn_blocking(move || world::admin_answers(end)));
        let growth = most_growth(&proxy, memory, async { tokio::time::sleep_until(end.into()).await }).await;
        seen.growth = seen.growth.max(growth);
        seen.feel(good.take());
        seen.used += proxy.cpu()?.saturating_sub(used + served);
        seen.spent += attackers.cpu().saturating_sub(spent);
        seen.time += time;
        for attacker in running {
            seen.stays.extend(attacker.await?);
        }
        if let Some(answers) = answers {
            wrong.extend(recovered(answers.await?, Duration::from_secs(1)).await?);
        }
    }
    seen.sent = SENT.load(Ordering::Relaxed) - sent;
    seen.print(attack.name);
    wrong.extend(seen.wrong(attack, MOST_STAY));
    wrong.extend(seen.slow());
    wrong.extend(proxy.ended().map(|status| format!("the proxy ended: {status}")));
    good.stop();
    proxy.end().await;
    Ok(wrong)
}

/// As busy as under the attack, with nothing for the proxy: what a busy machine costs the good client is not the proxy's. Returns
/// what the good client costs the proxy.
async fn calm(good: &Good, proxy: &Proxy, time: Duration, attackers: &Attackers, seen: &mut Seen) -> Result<Duration> {
    const SETTLE: Duration = Duration::from_millis(300);
    let busy = attackers.spin(Instant::now() + SETTLE + time);
    tokio::time::sleep(SETTLE).await;
    good.take();
    let idle = proxy.cpu()?;
    tokio::time::sleep(time).await;
    let before = good.take().p99();
    seen.before = Some(seen.before.map_or(before, |least| least.min(before)));
    let served = proxy.cpu()?.saturating_sub(idle);
    for spinning in busy {
        spinning.await?;
    }
    Ok(served)
}

/// Until every attacker was cut off once: nothing here becomes wrong because the machine does other things too.
async fn short(attack: &Attack, mut proxy: Proxy, attackers: &Attackers) -> Result<Vec<String>> {
    let good = Good::start(world::HTTP, attack.patient);
    good.is_served().await;
    good.take();
    let (memory, begun, sent) = (proxy.memory()?, Instant::now(), SENT.load(Ordering::Relaxed));
    let end = begun + if attack.must_be_cut { SHORT_STAY + Duration::from_secs(1) } else { Duration::from_secs(1) };
    let running = attackers.once(attack, end);
    let answers = attack.limit.map(|_| tokio::task::spawn_blocking(move || world::admin_answers(end)));
    let mut stays = Vec::new();
    let cut = async {
        for attacker in running {
            stays.extend(attacker.await.ok().flatten());
        }
    };
    let growth = most_growth(&proxy, memory, cut).await;
    // Some attacks are over before the good client has asked at all.
    good.is_served().await;
    let sent = SENT.load(Ordering::Relaxed) - sent;
    let mut seen = Seen { growth, sent, stays, time: begun.elapsed(), ..Seen::default() };
    seen.feel(good.take());
    seen.print(attack.name);
    let mut wrong = seen.wrong(attack, SHORT_STAY);
    if let Some(answers) = answers {
        wrong.extend(recovered(answers.await?, Duration::from_secs(10)).await?);
    }
    wrong.extend(proxy.ended().map(|status| format!("the proxy ended: {status}")));
    good.stop();
    proxy.end().await;
    Ok(wrong)
}

/// How much more memory than `before` the proxy has at most, until something is over.
async fn most_growth(proxy: &Proxy, before: u64, over: impl Future<Output = ()>) -> u64 {
    let mut over = pin!(over);
    let mut most = before;
    loop {
        tokio::select! {
            () = &mut over => return most.saturating_sub(before),
            () = tokio::time::sleep(Duration::from_millis(20)) => most = most.max(proxy.memory().unwrap_or(most)),
        }
    }
}

/// After the descriptors were used up.
async fn recovered(answered: bool, within: Duration) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    if !answered {
        wrong.push("the administration did not answer".to_owned());
    }
    let back = tokio::task::spawn_blocking(world::served_again).await?;
    if back > within {
        wrong.push(format!("a new client was served after {:.1} s", back.as_secs_f64()));
    }
    Ok(wrong)
}

impl Seen {
    /// What the good client felt in a round of the attack.
    fn feel(&mut self, felt: Felt) {
        let p99 = felt.p99();
        self.p99 = Some(self.p99.map_or(p99, |least| least.min(p99)));
        self.during.add(felt);
    }

    fn print(&self, name: &str) {
        println!(
            "{name:<16} {:>6.2} ms {:>6.2} ms {:>6.1} MB {:>6.1} MB {:>6.2} s {:>4.0} % {:>7.0} %",
            millis(self.before.unwrap_or_default()),
            millis(self.p99.unwrap_or_default()),
            self.growth as f64 / 1e6,
            self.sent as f64 / 1e6,
            self.stay().as_secs_f64(),
            100.0 * self.used.as_secs_f64() / self.time.as_secs_f64(),
            100.0 * self.spent.as_secs_f64() / self.time.as_secs_f64(),
        );
    }

    fn stay(&self) -> Duration {
        self.stays.iter().max().copied().unwrap_or_default()
    }

    fn wrong(&self, attack: &Attack, most_stay: Duration) -> Vec<String> {
        let mut wrong = Vec::new();
        let (during, stay) = (&self.during, self.stay());
        if during.failed > 0 || during.served() == 0 {
            wrong.push(format!("the good client: {} served, {} failed", during.served(), during.failed));
        }
        if self.growth > MOST_GROWTH {
            wrong.push(format!("memory grew by {:.1} MB", self.growth as f64 / 1e6));
        }
        if attack.bomb && self.growth > MOST_UNFOLDED * self.sent {
            wrong.push(format!("{} bytes became {} in memory", self.sent, self.growth));
        }
        if attack.must_be_cut && (self.stays.is_empty() || stay > most_stay) {
            wrong.push(format!("an attacker stayed {:.1} s ({} cut)", stay.as_secs_f64(), self.stays.len()));
        }
        wrong
    }

    fn slow(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let (before, during) = (self.before.unwrap_or_default(), self.p99.unwrap_or_default());
        if during > before * MOST_SLOWER {
            wrong.push(format!("p99 {:.1} ms, was {:.1} ms", millis(during), millis(before)));
        }
        if self.used > LITTLE_CPU && self.used.as_secs_f64() > MOST_CPU * self.spent.as_secs_f64() {
            let times = self.used.as_secs_f64() / self.spent.as_secs_f64().max(0.001);
            wrong.push(format!("the proxy uses {times:.1} times the attackers' processor time"));
        }
        wrong
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
