//! Putting this process into namespaces, before it becomes another program.
//!
//! A process with more than one thread cannot enter a user namespace, so this is done by a process of its own: the
//! hidden verb `tulle enter [flags] -- PROGRAM`, which does as told and then `exec`s.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::process::{Signal, getgid, getuid, set_parent_process_death_signal};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

/// What is to be entered. Nothing by default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Enter {
    /// A new user namespace in which this user is root.
    pub new_user: bool,
    /// A new network namespace.
    pub new_network: bool,
    /// A new mount namespace, none of whose mounts are seen outside.
    pub new_mounts: bool,
    /// A network namespace that stands, by the file it is bound to.
    pub network: Option<PathBuf>,
    /// A file to be seen as `/etc/resolv.conf`.
    pub resolv_conf: Option<PathBuf>,
    /// The user that the program runs as.
    pub user: Option<u32>,
}

/// What could not be done.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {source}")]
pub struct EnterError {
    /// The step, as a phrase: `cannot make a user namespace`.
    pub step: String,
    /// The kernel's answer.
    pub source: io::Error,
}

/// Adds the step to the kernel's answer.
pub(crate) trait Step<T> {
    fn step(self, step: impl Into<String>) -> Result<T, EnterError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: impl Into<String>) -> Result<T, EnterError> {
        self.map_err(|error| EnterError { step: step.into(), source: error.into() })
    }
}

impl Enter {
    /// The arguments of `tulle enter` that ask for this, without the program.
    pub fn to_args(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = Vec::new();
        for (wanted, flag) in
            [(self.new_user, "--new-user"), (self.new_network, "--new-network"), (self.new_mounts, "--new-mounts")]
        {
            if wanted {
                args.push(flag.into());
            }
        }
        for (path, flag) in [(&self.network, "--network"), (&self.resolv_conf, "--resolv-conf")] {
            if let Some(path) = path {
                args.extend([flag.into(), path.into()]);
            }
        }
        if let Some(user) = self.user {
            args.extend(["--user".into(), user.to_string().into()]);
        }
        args
    }

    /// Enters everything but the user, whom one becomes when starting the program. The process must have one thread
    /// only.
    pub fn enter(&self) -> Result<(), EnterError> {
        // Whoever started us is our keeper: nothing stays behind when it dies, however it dies.
        set_parent_process_death_signal(Some(Signal::KILL)).step("cannot tie this process to its parent")?;
        if self.new_user {
            new_user()?;
        }
        if self.new_mounts || self.resolv_conf.is_some() {
            unshare(UnshareFlags::NEWNS).step("cannot make a mount namespace")?;
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            mount_change("/", private).step("cannot keep mounts private")?;
        }
        if self.new_network {
            unshare(UnshareFlags::NEWNET).step("cannot make a network namespace")?;
        }
        if let Some(path) = &self.network {
            join(path)?;
        }
        if let Some(path) = &self.resolv_conf {
            mount_bind(path, "/etc/resolv.conf").step("cannot put a resolv.conf in place")?;
        }
        Ok(())
    }
}

/// A user namespace in which this user is root, and nobody else is anybody.
fn new_user() -> Result<(), EnterError> {
    let (uid, gid) = (getuid().as_raw(), getgid().as_raw());
    unshare(UnshareFlags::NEWUSER).step("cannot make a user namespace")?;
    std::fs::write("/proc/self/setgroups", "deny").step("cannot give up setgroups")?;
    std::fs::write("/proc/self/uid_map", format!("0 {uid} 1")).step("cannot map the user")?;
    std::fs::write("/proc/self/gid_map", format!("0 {gid} 1")).step("cannot map the group")
}

/// Moves this thread into the network namespace bound to a file.
pub(crate) fn join(path: &Path) -> Result<(), EnterError> {
    let file = std::fs::File::open(path).step(format!("cannot open {}", path.display()))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .step(format!("cannot enter the network namespace {}", path.display()))
}

#[allow(unsafe_code, reason = "rustix marks it unsafe for the sake of CLONE_FILES, which is never asked for here")]
pub(crate) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    debug_assert!(!flags.contains(UnshareFlags::FILES));
    // SAFETY: the table of file descriptors stays shared.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(Into::into)
}
