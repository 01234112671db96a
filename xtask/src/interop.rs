//! `cargo xtask interop`: programs of other projects against ours, driven by the scripts in `tests/interop`.
//!
//! A script is a Python program that gets `TULLE` (our program), `ENVOY` (the real Envoy) and `WORK` (an empty
//! directory) in its environment, says what it does, and exits with 0 only if all of it held.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::{cases, setup};

/// Run the programs of other projects against ours
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask interop\n  cargo xtask interop proxyless_grpc")]
pub(crate) struct Args {
    /// Run only scripts whose name contains this text
    only: Option<String>,
}

/// Runs every script; true when all passed.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let tulle = cases::build_tulle()?;
    let mut scripts: Vec<_> = std::fs::read_dir("tests/interop")
        .context("tests/interop")?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|ending| ending == "py"))
        // Modules that scripts share begin with an underscore.
        .filter(|path| path.file_name().is_some_and(|name| !name.to_string_lossy().starts_with('_')))
        .filter(|path| args.only.as_ref().is_none_or(|only| path.display().to_string().contains(only)))
        .collect();
    scripts.sort();
    let (mut passed, mut failed) = (0, 0);
    for script in scripts {
        let work = tempfile::tempdir()?;
        let start = Instant::now();
        let status = Command::new(setup::python()?)
            .arg(&script)
            .env("TULLE", &tulle)
            .env("ENVOY", setup::envoy()?)
            .env("WORK", work.path())
            .stdin(Stdio::null())
            .status()
            .context("python: run `cargo xtask setup` first")?;
        let word = if status.success() { "passed" } else { "FAILED" };
        println!("{word} {} in {:.1} s", script.display(), start.elapsed().as_secs_f64());
        if status.success() {
            passed += 1;
        } else {
            failed += 1;
        }
    }
    println!("{passed} passed, {failed} failed");
    Ok(failed == 0 && passed > 0)
}
