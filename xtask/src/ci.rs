//! `cargo xtask ci`: everything that must pass before a change lands.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::{demo, deny, layers, setup, tidy};

/// Run everything that must pass, and install what that needs
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask ci\n  cargo xtask ci --only test,scenarios")]
pub(crate) struct Args {
    /// Run only these steps
    #[arg(long, value_delimiter = ',', value_name = "STEP")]
    only: Vec<String>,
}

type Step = (&'static str, fn() -> Result<bool>);

const STEPS: &[Step] = &[
    ("setup", setup::run),
    ("format", || cargo(&["fmt", "--all", "--", "--check"])),
    ("layers", layers::run),
    ("tidy", tidy::run),
    ("deny", deny::run),
    ("clippy", || cargo(&["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"])),
    ("test", || cargo(&["test", "--workspace", "--no-fail-fast"])),
    ("docs", || xtask(&["docs", "--check"])),
    ("scenarios", || scenarios(&[])),
    ("scenarios-envoy", || scenarios(&["--judge", "envoy"])),
    ("rbac-envoy", || xtask(&["rbac", "--pairs", "30000"])),
    ("cost", || xtask(&["cost", "--tulle", "target/debug/tulle"])),
    ("floods", || xtask(&["floods", "--short", "--tulle", "target/debug/tulle"])),
    ("interop", || xtask(&["interop"])),
    ("demo-loopback", || demo::check("loopback")),
    ("demo-userns", || demo::check("userns")),
    ("demo-netns", || demo::check("netns")),
];

/// Runs the steps in order; true when all passed.
pub(crate) fn run(args: &Args) -> Result<bool> {
    if let Some(unknown) = args.only.iter().find(|only| STEPS.iter().all(|(name, _)| only != name)) {
        let names: Vec<_> = STEPS.iter().map(|(name, _)| *name).collect();
        bail!("no step `{unknown}`; there are {}", names.join(", "));
    }
    let mut failed = Vec::new();
    let mut passed = 0;
    let mut times = Vec::new();
    for (name, step) in STEPS.iter().filter(|(name, _)| args.only.is_empty() || args.only.iter().any(|o| o == name)) {
        println!("==> {name}");
        let start = Instant::now();
        let outcome = step();
        times.push((*name, start.elapsed()));
        match outcome {
            Ok(true) => passed += 1,
            Ok(false) => failed.push(*name),
            Err(error) => {
                println!("error: {error:#}");
                failed.push(*name);
            }
        }
    }
    report(&times, &failed, passed);
    Ok(failed.is_empty())
}

fn report(times: &[(&str, Duration)], failed: &[&str], passed: usize) {
    println!();
    for (name, time) in times {
        let word = if failed.contains(name) { "FAILED" } else { "ok" };
        println!("{word:>6}  {name:<18} {:>7.1} s", time.as_secs_f64());
    }
    println!("steps: {passed} passed, {} failed", failed.len());
}

fn cargo(arguments: &[&str]) -> Result<bool> {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    Ok(Command::new(program).args(arguments).stdin(Stdio::null()).status()?.success())
}

fn xtask(arguments: &[&str]) -> Result<bool> {
    Ok(Command::new(std::env::current_exe()?).args(arguments).stdin(Stdio::null()).status()?.success())
}

/// The files of the repository's own behaviour tables.
pub(crate) fn scenario_files() -> Result<Vec<String>> {
    let mut files = Vec::new();
    for directory in ["tests/scenarios", "tests/scenarios/xds"] {
        let entries = std::fs::read_dir(Path::new(directory))?.filter_map(Result::ok);
        let paths = entries.map(|entry| entry.path().display().to_string());
        files.extend(paths.filter(|file| file.ends_with(".yaml") && !file.ends_with("fixtures.yaml")));
    }
    files.sort();
    Ok(files)
}

/// The repository's own behaviour tables.
fn scenarios(flags: &[&str]) -> Result<bool> {
    let files = scenario_files()?;
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    xtask(&[&["cases"], flags, files.as_slice()].concat())
}
