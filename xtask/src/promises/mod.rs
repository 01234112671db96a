//! `cargo xtask promises`: the figures that the README speaks of, measured on this machine.
//!
//! Time is noisy on shared machines: CPU figures are ratios to the real Envoy, taken in turn in one run.

mod demo;
mod hop;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

/// Measure what the project promises, with the release build
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask promises\n  cargo xtask promises --only hop --rounds 9")]
pub(crate) struct Args {
    /// Only these: hop, idle, starts, rotation, outage
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Counted rounds of the paired run; one more warms up
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Starts of the demo
    #[arg(long, default_value_t = 20)]
    starts: usize,
    /// Measure this program instead of building one
    #[arg(long, value_name = "PATH")]
    tulle: Option<PathBuf>,
}

/// Measures and prints a line for each promise; true when all hold.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let tulle = match &args.tulle {
        Some(path) => path.clone(),
        None => build()?,
    };
    let wanted = |name: &str| args.only.is_empty() || args.only.iter().any(|only| only == name);
    let mut held = Vec::new();
    if wanted("idle") || wanted("hop") {
        held.extend(hop::hop(&tulle, args.rounds, wanted("hop"))?);
    }
    if wanted("starts") {
        held.extend(demo::starts(&tulle, args.starts)?);
    }
    if wanted("rotation") {
        held.push(demo::rotation(&tulle)?);
    }
    if wanted("outage") {
        held.push(demo::outage(&tulle)?);
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

#[allow(clippy::cast_precision_loss, reason = "sizes of processes")]
fn mega(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
