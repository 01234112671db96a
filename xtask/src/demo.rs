//! The demo's own scenario, as the user that each kind of network is for.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::{cases, setup};

/// The unprivileged user that Linux systems have for such things.
const NOBODY: &str = "65534";

/// Runs `tulle demo --check --net KIND`: `netns` as root, the others as an unprivileged user. On loopback a real Envoy is the
/// cart's sidecar: our proxies call it and are called by it over mTLS, which the step `envoy` asserts, and the whole scenario
/// holds with it.
pub(crate) fn check(kind: &str) -> Result<bool> {
    let built = cases::build_tulle()?;
    // A place that every user can reach, wherever the checkout stands.
    let work = tempfile::tempdir()?;
    std::fs::set_permissions(work.path(), std::fs::Permissions::from_mode(0o755))?;
    let program = for_everybody(&built, &work.path().join("tulle"))?;
    let home = work.path().join("home");
    std::fs::create_dir(&home)?;
    std::fs::set_permissions(&home, std::fs::Permissions::from_mode(0o777))?;
    let root = setup::rootful();
    let mut command = match (kind, root) {
        ("netns", false) => {
            let mut command = Command::new("sudo");
            command.args(["-n"]).arg(&program);
            command
        }
        ("netns", true) | (_, false) => Command::new(&program),
        (_, true) => {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]).arg(&program);
            command
        }
    };
    command.args(["demo", "--check", "--net", kind]).current_dir(work.path());
    if kind == "loopback" {
        let envoy = for_everybody(&setup::envoy()?, &work.path().join("envoy"))?;
        command.arg("--envoy").arg(format!("cart-1={}", envoy.display()));
    }
    command.env("HOME", &home).env("TMPDIR", &home).env_remove("XDG_RUNTIME_DIR").stdin(Stdio::null());
    Ok(command.status().with_context(|| format!("the demo in {kind}"))?.success())
}

/// A copy of a program that every user can run.
fn for_everybody(program: &Path, copy: &Path) -> Result<PathBuf> {
    std::fs::copy(program, copy).with_context(|| program.display().to_string())?;
    std::fs::set_permissions(copy, std::fs::Permissions::from_mode(0o755))?;
    Ok(copy.to_owned())
}
