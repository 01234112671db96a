//! `cargo xtask cases`: behaviour tables over real sockets, answered by our proxy or by the real Envoy.

mod ask;
mod expect;
mod group;
mod health;
mod parallel;
pub(crate) mod single;
mod statistics;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use testkit::table::{self, Case, Table};
use testkit::topology::Fixture;
use testkit::world::{ProxyProgram, World};

/// Run behaviour tables over real sockets
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask cases tests/scenarios/*.yaml\n  \
    cargo xtask cases --judge envoy --skip ingress tests/scenarios/routes.yaml")]
pub(crate) struct Args {
    /// Tables (JSON or YAML); `fixtures.json` or `fixtures.yaml` stands beside them
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Who answers
    #[arg(long, value_enum, default_value_t)]
    judge: Judge,
    /// Leave out cases whose id, area or `via` is exactly one of these words
    #[arg(long, value_delimiter = ',')]
    skip: Vec<String>,
    /// Run only cases whose id contains this text
    #[arg(long)]
    only: Option<String>,
    /// Tell the last lines of the proxies' logs for each failing case
    #[arg(long)]
    logs: bool,
    /// How many tables run at once, each in a network namespace of its own: they wait most of the time
    #[arg(long, default_value_t = 3, value_name = "N")]
    jobs: usize,
    /// Use this `tulle` instead of building one
    #[arg(long, value_name = "PATH")]
    tulle: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum Judge {
    /// Our proxy
    #[default]
    Tulle,
    /// The real Envoy, on what `tulle translate` prints
    Envoy,
}

/// Set in the process that runs inside its own network namespace, to the path of the `tulle` to use.
const INSIDE: &str = "TULLE_XTASK_INSIDE";

/// Runs the tables; true when every counted case passed.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let Some(tulle) = inside() else {
        return if args.files.len() > 1 { parallel::run(args) } else { run_inside(args.tulle.as_ref()) };
    };
    raise_loopback()?;
    let _files = place_system_files()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run_tables(args, tulle))
}

/// The `tulle` to use, in the process that runs inside its own network namespace.
pub(crate) fn inside() -> Option<PathBuf> {
    std::env::var_os(INSIDE).map(Into::into)
}

/// A new network namespace has a loopback device that is down.
pub(crate) fn raise_loopback() -> Result<()> {
    let status = Command::new("ip").args(["link", "set", "lo", "up"]).status().context("`ip` (package iproute2)")?;
    if !status.success() {
        bail!("cannot raise the loopback device of the new network namespace");
    }
    Ok(())
}

/// Files of the system that proxies read, so that tables can say what is in them: the name server is on the loopback device,
/// and the control group holds 64 MiB. Seen by this process and its children alone.
fn place_system_files() -> Result<tempfile::NamedTempFile> {
    let resolv = tempfile::NamedTempFile::new()?;
    std::fs::write(resolv.path(), "nameserver 127.0.0.1\noptions timeout:1 attempts:2\n")?;
    let mount = |arguments: &[&std::ffi::OsStr]| -> Result<()> {
        let status = Command::new("mount").args(arguments).status().context("`mount` (package util-linux)")?;
        if status.success() { Ok(()) } else { bail!("cannot mount {arguments:?} in a namespace of its own") }
    };
    mount(&["--bind".as_ref(), resolv.path().as_os_str(), "/etc/resolv.conf".as_ref()])?;
    let groups = Path::new("/sys/fs/cgroup");
    mount(&["-t".as_ref(), "tmpfs".as_ref(), "none".as_ref(), groups.as_os_str()])?;
    std::fs::create_dir(groups.join("memory"))?;
    let held = (64 << 20).to_string();
    for (name, content) in [
        ("memory.current", held.as_str()),
        ("memory.max", "max"),
        ("memory/memory.usage_in_bytes", &held),
        ("memory/memory.limit_in_bytes", "9223372036854771712"),
    ] {
        std::fs::write(groups.join(name), format!("{content}\n"))?;
    }
    Ok(resolv)
}

/// The given `tulle`, or one that is built.
fn tulle_of(given: Option<&PathBuf>) -> Result<PathBuf> {
    match given {
        Some(path) => Ok(std::path::absolute(path)?),
        None => build_tulle(),
    }
}

/// This program with other arguments, in a network namespace of its own.
fn inside_with(tulle: &Path, arguments: &[OsString]) -> Result<Command> {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net", "--mount", "--kill-child"]);
    command.arg(std::env::current_exe()?).args(arguments).env(INSIDE, tulle);
    Ok(command)
}

/// Builds `tulle` and starts this program again in a network namespace of its own.
pub(crate) fn run_inside(tulle: Option<&PathBuf>) -> Result<bool> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let status = inside_with(&tulle_of(tulle)?, &arguments)?.status().context("`unshare` (package util-linux)")?;
    match status.code() {
        Some(0) => Ok(true),
        Some(1) => Ok(false),
        _ => bail!("the runner in its own network namespace ended with {status}; are user namespaces allowed here?"),
    }
}

/// Builds the `tulle` program in the profile of this one and tells where it is.
pub(crate) fn build_tulle() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo).args(["build", "--quiet", "--workspace", "--bin", "tulle"]).status()?;
    if !status.success() {
        bail!("`cargo build --bin tulle` failed");
    }
    let own = std::env::current_exe()?;
    let path = own.parent().context("directory of this program")?.join("tulle");
    if path.exists() { Ok(path) } else { bail!("{} is not there after the build", path.display()) }
}

async fn run_tables(args: &Args, tulle: PathBuf) -> Result<bool> {
    let program = match args.judge {
        Judge::Tulle => ProxyProgram::Tulle(tulle.clone()),
        Judge::Envoy => ProxyProgram::Envoy(crate::setup::envoy()?),
    };
    let mut world = World::new(tulle, program.clone())?;
    let mut count = Count::default();
    for file in &args.files {
        if single::is_table(file) {
            let own = single::run(file, args, &program).await?;
            count.passed += own.passed;
            count.failed += own.failed;
            continue;
        }
        let table: Table = table::read(file)?;
        let fixture = fixture(file)?;
        let cases: Vec<&Case> = table.cases.iter().filter(|case| !left_out(args, case)).collect();
        let mut own = Count::default();
        for group in group::groups(&table, &cases)? {
            group::run(&mut world, &fixture, &group, args.logs, &mut own).await?;
        }
        println!("{}: {} passed, {} failed", table.table, own.passed, own.failed);
        count.passed += own.passed;
        count.failed += own.failed;
    }
    println!("{} passed, {} failed", count.passed, count.failed);
    Ok(count.failed == 0 && count.passed > 0)
}

/// How many cases passed and failed.
#[derive(Debug, Default)]
struct Count {
    passed: usize,
    failed: usize,
}

fn left_out(args: &Args, case: &Case) -> bool {
    let via = case.request.as_ref().and_then(|ask| ask.via.as_deref());
    let skipped = args.skip.iter().any(|word| *word == case.area || *word == case.id || Some(word.as_str()) == via);
    skipped || args.only.as_ref().is_some_and(|text| !case.id.contains(text.as_str()))
}

fn fixture(table: &Path) -> Result<Fixture> {
    let beside = table.parent().unwrap_or_else(|| Path::new("."));
    ["fixtures.json", "fixtures.yaml"]
        .iter()
        .map(|name| beside.join(name))
        .find(|path| path.exists())
        .map(|path| table::read(&path))
        .with_context(|| format!("no fixtures.json or fixtures.yaml beside {}", table.display()))?
}
