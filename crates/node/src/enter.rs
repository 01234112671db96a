//! Putting this process into namespaces, before it becomes another program.
//!
//! A process with more than one thread cannot enter a user namespace, so this is done by a process of its own: the
//! hidden verb `tulle enter [flags] -- PROGRAM`, which does as told and then `exec`s.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;

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
    /// A network namespace to make for a program whose proxy is outside, bound to this file; it is not entered.
    pub pocket: Option<PathBuf>,
    /// A network namespace that stands, by the file it is bound to.
    pub network: Option<PathBuf>,
    /// A file to be seen as `/etc/resolv.conf`.
    pub resolv_conf: Option<PathBuf>,
    /// User and group that the program is again, in a user namespace below this one, where it has no rights over the
    /// namespaces that were made here.
    pub again: Option<Ids>,
    /// The user that the program runs as.
    pub user: Option<u32>,
}

/// A user and its group, written `UID:GID`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ids {
    /// The user.
    pub user: u32,
    /// Its group.
    pub group: u32,
}

impl Ids {
    /// Those of this process.
    pub fn own() -> Self {
        Self { user: getuid().as_raw(), group: getgid().as_raw() }
    }
}

impl fmt::Display for Ids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.user, self.group)
    }
}

impl FromStr for Ids {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once(':').and_then(|(user, group)| Some((user.parse().ok()?, group.parse().ok()?)));
        let (user, group) = parsed.ok_or_else(|| format!("`{text}` is not UID:GID"))?;
        Ok(Self { user, group })
    }
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
        let files = [(&self.pocket, "--pocket"), (&self.network, "--network"), (&self.resolv_conf, "--resolv-conf")];
        for (path, flag) in files {
            if let Some(path) = path {
                args.extend([flag.into(), path.into()]);
            }
        }
        if let Some(ids) = self.again {
            args.extend(["--again".into(), ids.to_string().into()]);
        }
        if let Some(user) = self.user {
            args.extend(["--user".into(), user.to_string().into()]);
        }
        args
    }

    /// Ties this process to its parent's life, then enters everything as [`Enter::stay`] does.
    pub fn enter(&self) -> Result<(), EnterError> {
        // Whoever started us is our keeper: nothing stays behind when it dies, however it dies.
        set_parent_process_death_signal(Some(Signal::KILL)).step("cannot tie this process to its parent")?;
        self.stay()
    }

    /// Enters everything but the user, whom one becomes when starting the program. The process must have one thread
    /// only.
    pub fn stay(&self) -> Result<(), EnterError> {
        if self.new_user {
            new_user(Ids { user: 0, group: 0 })?;
        }
        if self.new_mounts || self.resolv_conf.is_some() {
            unshare(UnshareFlags::NEWNS).step("cannot make a mount namespace")?;
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            mount_change("/", private).step("cannot keep mounts private")?;
        }
        if self.new_network {
            unshare(UnshareFlags::NEWNET).step("cannot make a network namespace")?;
        }
        if let Some(path) = &self.pocket {
            crate::pocket::build(path)?;
        }
        if let Some(path) = &self.network {
            join(path)?;
        }
        if let Some(path) = &self.resolv_conf {
            mount_bind(path, "/etc/resolv.conf").step("cannot put a resolv.conf in place")?;
            silence_other_resolvers();
        }
        match self.again {
            Some(ids) => new_user(ids),
            None => Ok(()),
        }
    }
}

/// A user namespace in which this user is that one, and nobody else is anybody.
fn new_user(inside: Ids) -> Result<(), EnterError> {
    let outside = Ids::own();
    let Ids { user, group } = inside;
    unshare(UnshareFlags::NEWUSER).step("cannot make a user namespace")?;
    // A namespace below one where this was given up has given it up as well.
    let denied = std::fs::write("/proc/self/setgroups", "deny");
    if std::fs::read_to_string("/proc/self/setgroups").is_ok_and(|text| text.trim() != "deny") {
        denied.step("cannot give up setgroups")?;
    }
    std::fs::write("/proc/self/uid_map", format!("{user} {} 1", outside.user)).step("cannot map the user")?;
    std::fs::write("/proc/self/gid_map", format!("{group} {} 1", outside.group)).step("cannot map the group")
}

/// Resolvers that programs ask past `/etc/resolv.conf` would answer for the machine, not for the program's own network:
/// their sockets are covered, and libraries go on to DNS.
fn silence_other_resolvers() {
    for socket in ["/run/systemd/resolve/io.systemd.Resolve", "/run/nscd/socket", "/var/run/nscd/socket"] {
        if Path::new(socket).exists() {
            let _ = mount_bind("/dev/null", socket);
        }
    }
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
