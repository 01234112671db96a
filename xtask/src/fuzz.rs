//! `cargo xtask fuzz`: the fuzz targets with libFuzzer, on the toolchain that builds everything else.
//!
//! Only the workspace's own crates are instrumented (a wrapper adds the flags), so that nothing else is built anew.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// Run the fuzz targets
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask fuzz\n  cargo xtask fuzz http1 xds --runs 10000000\n  \
    cargo xtask fuzz streams --jobs 16\n\n\
    A finding is written to target/fuzz/TARGET/ and can be run again by giving its path to the fuzzer.")]
pub(crate) struct Args {
    /// Which targets [default: all of them]
    targets: Vec<String>,
    /// Inputs for each
    #[arg(long, default_value_t = 1_000_000)]
    runs: u64,
    /// Bytes of the longest input
    #[arg(long, default_value_t = 4096)]
    longest: usize,
    /// Fuzzers at once, which share the runs: a target that waits for sockets and clocks leaves the processors idle
    #[arg(long, default_value_t = 1)]
    jobs: u64,
}

/// LLVM's coverage of edges, comparisons and tables of counters, as libFuzzer reads them.
const WRAPPER: &str = r#"#!/bin/sh
# Build scripts and macros run in the compiler, which is no fuzzer.
case " $* " in
  *" build_script_"*|*"--crate-type proc-macro"*|*"--crate-type=proc-macro"*) exec "$@" ;;
  *" --crate-name "*) exec "$@" -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing ;;
  *) exec "$@" ;;
esac
"#;

/// Builds and runs; true when there is no finding.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let known: Vec<String> = targets()?;
    if let Some(unknown) = args.targets.iter().find(|target| !known.contains(target)) {
        bail!("no target `{unknown}`; there are {}", known.join(", "));
    }
    let program = build()?;
    let mut findings = 0;
    for target in known.iter().filter(|target| args.targets.is_empty() || args.targets.contains(target)) {
        let start = Instant::now();
        let fine = fuzz(&program, target, args)?;
        let word = if fine { "no finding" } else { "A FINDING" };
        println!("fuzz {target}: {} runs, {word}, {:.1} s", args.runs, start.elapsed().as_secs_f64());
        findings += usize::from(!fine);
    }
    println!("fuzz: {findings} targets with findings");
    Ok(findings == 0)
}

/// Every target has a corpus.
fn targets() -> Result<Vec<String>> {
    let entries = std::fs::read_dir("fuzz/corpus").context("fuzz/corpus")?.filter_map(Result::ok);
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(names)
}

fn build() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let target = own.parent().and_then(Path::parent).context("the target directory")?;
    let wrapper = target.join("fuzz").join("rustc-for-fuzzing");
    std::fs::create_dir_all(target.join("fuzz"))?;
    if std::fs::read_to_string(&wrapper).unwrap_or_default() != WRAPPER {
        std::fs::write(&wrapper, WRAPPER)?;
        std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755))?;
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "-p", "fuzz", "--features", "libfuzzer", "--bin", "fuzz-run"])
        .env("RUSTC_WORKSPACE_WRAPPER", &wrapper)
        .status()?;
    if !status.success() {
        bail!("the fuzzer does not build");
    }
    Ok(target.join("debug").join("fuzz-run"))
}

/// Runs one target; true when there is no finding.
fn fuzz(program: &Path, target: &str, args: &Args) -> Result<bool> {
    let grown = Path::new("target/fuzz").join(target);
    std::fs::create_dir_all(grown.join("corpus"))?;
    let jobs = args.jobs.max(1);
    let jobs: Vec<(Child, PathBuf)> = (0..jobs)
        .map(|job| {
            let log = grown.join(format!("log{job}"));
            Ok((begin(program, target, &grown, &log, args.runs.div_ceil(jobs), args.longest)?, log))
        })
        .collect::<Result<_>>()?;
    let mut fine = true;
    for (mut job, log) in jobs {
        let ended = job.wait().context("the fuzzer")?.success();
        fine &= ended;
        report(target, &std::fs::read_to_string(log).unwrap_or_default(), ended);
    }
    Ok(fine)
}

fn begin(program: &Path, target: &str, grown: &Path, log: &Path, runs: u64, longest: usize) -> Result<Child> {
    let log = std::fs::File::create(log)?;
    let mut command = Command::new(program);
    command
        .arg(grown.join("corpus"))
        .arg(Path::new("fuzz/corpus").join(target))
        .arg(format!("-runs={runs}"))
        .arg(format!("-max_len={longest}"))
        .arg(format!("-artifact_prefix={}/", grown.display()))
        .args(["-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1"])
        .env("FUZZ_TARGET", target)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    command.spawn().context("the fuzzer")
}

/// Its own count, and the end of the log of one that found something.
fn report(target: &str, log: &str, fine: bool) {
    if !fine {
        let lines: Vec<&str> = log.lines().rev().take(30).collect();
        println!("{}", lines.into_iter().rev().collect::<Vec<_>>().join("\n"));
    }
    for line in log.lines().filter(|line| line.contains("number_of_executed_units")) {
        println!("{target}: {line}");
    }
}
