//! `cargo xtask growth`: what one question to a large configuration costs, against a small one, in instructions.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Count instructions of the engine's questions: 10,000 routes, hosts and endpoints and 1,000 rules, against 10
#[derive(Debug, clap::Args)]
#[command(after_help = "Needs valgrind.\n\nExamples:\n  cargo xtask growth\n  cargo xtask growth --only routes,maglev")]
pub(crate) struct Args {
    /// Only these subjects
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

/// How much more a large configuration may cost.
const MOST: f64 = 1.5;
/// Questions that are counted.
const TIMES: u32 = 400;

/// Counts; true when nothing grows too much.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let program = build()?;
    let mut fine = true;
    println!("{:<14} {:>10} {:>10} {:>7}", "subject", "10", "large", "growth");
    let subjects = subjects(&program)?;
    if let Some(unknown) = args.only.iter().find(|only| !subjects.iter().any(|(subject, _)| subject == *only)) {
        bail!("there is no subject `{unknown}`");
    }
    for (subject, size) in subjects.iter().filter(|(subject, _)| args.only.is_empty() || args.only.contains(subject)) {
        let (small, large) = (cost(&program, subject, 10)?, cost(&program, subject, *size)?);
        let growth = large / small;
        fine &= growth <= MOST;
        let word = if growth <= MOST { "" } else { "  too much" };
        println!("{subject:<14} {small:>10.0} {large:>10.0} {growth:>6.2}x{word}");
    }
    Ok(fine)
}

/// What the program can be asked, each with the size that counts as large.
fn subjects(program: &Path) -> Result<Vec<(String, u32)>> {
    let output = Command::new(program).output().with_context(|| program.display().to_string())?;
    let text = String::from_utf8(output.stdout)?;
    let line = |line: &str| {
        let (subject, large) = line.split_once(' ').with_context(|| format!("{line:?} names no subject and size"))?;
        Ok((subject.to_owned(), large.parse()?))
    };
    text.lines().map(line).collect()
}

/// Instructions of one question: many less none.
fn cost(program: &Path, subject: &str, size: u32) -> Result<f64> {
    let (many, none) = (count(program, subject, size, TIMES)?, count(program, subject, size, 0)?);
    Ok((many - none) / f64::from(TIMES))
}

fn count(program: &Path, subject: &str, size: u32, times: u32) -> Result<f64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args([subject, &size.to_string(), &times.to_string()])
        .stdin(Stdio::null())
        .output()
        .context("`valgrind` (Debian package valgrind)")?;
    let text = String::from_utf8_lossy(&output.stderr);
    let collected = text.lines().find_map(|line| line.split_once("Collected :")).map(|(_, number)| number.trim());
    match collected.and_then(|number| number.parse().ok()) {
        Some(number) if output.status.success() => Ok(number),
        _ => bail!("{subject} of {size}: {}", text.trim()),
    }
}

fn build() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo).args(["build", "--quiet", "-p", "engine", "--example", "growth"]).status()?;
    if !status.success() {
        bail!("`cargo build --example growth` failed");
    }
    let own = std::env::current_exe()?;
    Ok(own.parent().context("directory of this program")?.join("examples/growth"))
}
