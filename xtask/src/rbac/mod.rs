//! `cargo xtask rbac`: random policies and random requests, judged by our engine and by the real Envoy.
//!
//! Each round is one Envoy with many authorization filters in a row, all of them shadow rules: every request is judged
//! by every filter, and the answer's headers carry the verdicts and the policies that matched. The engine is asked the
//! same with the same messages. Everything follows from the seed.

mod draw;
mod judge;
mod ours;

use anyhow::{Result, bail};
use engine::Dice;

/// Hold our authorization against the real Envoy's, with random policies and requests
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask rbac --pairs 20000\n  cargo xtask rbac --pairs 1000000 --seed 7")]
pub(crate) struct Args {
    /// Policy-request pairs to judge, at least
    #[arg(long, default_value_t = 20_000)]
    pairs: usize,
    /// Where chance begins
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Filters of one round.
const FILTERS: usize = 50;
/// Callers of one round: each a connection with its own addresses and identity.
const CALLERS: usize = 12;
/// Requests of each caller.
const REQUESTS: usize = 60;
/// Differences that are told.
const TOLD: usize = 10;

/// Judges; true when both agree on every pair.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut pairs, mut differences, mut matched) = (0, 0, 0);
    let mut round = args.seed;
    while pairs < args.pairs {
        let world = draw::world(&mut Dice::new(round), FILTERS, CALLERS, REQUESTS);
        let theirs = runtime.block_on(judge::ask(&world))?;
        let ours = ours::ask(&world)?;
        for (asked, (ours, theirs)) in world.requests().zip(ours.iter().zip(&theirs)) {
            if ours.len() != theirs.len() {
                bail!("{} verdicts of {} filters came back for {asked:?}", theirs.len(), ours.len());
            }
            for (filter, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
                pairs += 1;
                matched += usize::from(ours.policy.is_some());
                if ours == theirs {
                    continue;
                }
                differences += 1;
                if differences <= TOLD {
                    let rules = world.rules(filter);
                    println!("seed {round}: ours {ours:?}, Envoy's {theirs:?}\n  request {asked:?}\n  rules {rules}");
                }
            }
        }
        round += 1;
    }
    println!("{pairs} pairs, {matched} of them matched by a policy, seeds {} to {}", args.seed, round - 1);
    println!("{} passed, {differences} failed", pairs - differences);
    Ok(differences == 0)
}

/// What one filter said of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Said {
    /// It would let the request pass.
    allowed: bool,
    /// The policy that matched.
    policy: Option<String>,
}
