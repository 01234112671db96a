//! The demo's own scenario, as the user that each kind of network is for.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::{cases, setup};

/// The unprivileged user that Linux systems have for such things.
const NOBODY: &str = "65534";

/// Runs `tulle demo --check --net KIND`: `netns` as root, the others as an unprivileged user.
pub(crate) fn check(kind: &str) -> Result<bool> {
    let built = cases::build_tulle()?;
    // A place that every user can reach, wherever the checkout stands.
    let work = tempfile::tempdir()?;
    std::fs::set_permissions(work.path(), std::fs::Permissions::from_mode(0o755))?;
    let program = work.path().join("tulle");
    std::fs::copy(&built, &program).with_context(|| built.display().to_string())?;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
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
    command.env("HOME", &home).env("TMPDIR", &home).env_remove("XDG_RUNTIME_DIR").stdin(Stdio::null());
    Ok(command.status().with_context(|| format!("the demo in {kind}"))?.success())
}
