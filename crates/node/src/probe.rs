//! What this machine allows, and why not.

use std::ffi::OsString;
use std::process::{Command, Stdio};

use rustix::process::geteuid;

use crate::enter::{Enter, Ids};

/// Why a way of interception cannot be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// What is in the way.
    pub reason: String,
    /// What would help.
    pub hint: &'static str,
}

/// Whether this process is root.
pub fn is_root() -> bool {
    geteuid().is_root()
}

/// Tries whether an unprivileged user may make a user namespace with a network in it. `program` is this very program:
/// its hidden verb `enter` does the trying in a process of its own.
pub fn user_namespaces(program: &std::path::Path) -> Result<(), Obstacle> {
    trial(program, Enter { new_user: true, new_mounts: true, new_network: true, ..Enter::default() }.to_args())
}

/// Tries the whole of what a program with its proxy outside needs: namespaces, link, rules, a `resolv.conf` of its own.
/// The pocket is bound to `file` in a mount namespace that ends with the trial; an empty file stays.
pub fn pocket(program: &std::path::Path, file: &std::path::Path) -> Result<(), Obstacle> {
    let user = !is_root();
    let enter = Enter {
        new_user: user,
        new_mounts: true,
        pocket: Some(file.to_owned()),
        network: Some(file.to_owned()),
        resolv_conf: Some("/dev/null".into()),
        again: user.then(Ids::own),
        ..Enter::default()
    };
    trial(program, enter.to_args())
}

/// Runs `enter` with these arguments and a program that does nothing.
fn trial(program: &std::path::Path, args: Vec<OsString>) -> Result<(), Obstacle> {
    let output = Command::new(program).arg("enter").args(args).args(["--", "/bin/true"]).stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let reason = said.lines().next().unwrap_or("the trial failed").trim_start_matches("error: ").to_owned();
            Err(Obstacle { reason, hint: hint() })
        }
        Err(error) => Err(Obstacle { reason: error.to_string(), hint: hint() }),
    }
}

/// The usual culprits, in the order of how often they are met.
fn hint() -> &'static str {
    let knob = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    if knob("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1" {
        return "AppArmor forbids it: sysctl kernel.apparmor_restrict_unprivileged_userns=0, or a profile for tulle";
    }
    if knob("/proc/sys/kernel/unprivileged_userns_clone") == "0" {
        return "sysctl kernel.unprivileged_userns_clone=1";
    }
    if knob("/proc/sys/user/max_user_namespaces") == "0" {
        return "sysctl user.max_user_namespaces=15000";
    }
    "containers often forbid user namespaces: run outside, or relax the container's seccomp profile"
}
