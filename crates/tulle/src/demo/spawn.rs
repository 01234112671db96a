//! Child processes: each in a group of its own, tied to this one's life, in the namespaces it belongs to.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use node::enter::Enter;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

/// How long a child may take to end by itself.
const PATIENCE: Duration = Duration::from_secs(2);

/// A program to start.
#[derive(Debug, Default)]
pub(crate) struct Program {
    /// The program; `None` = this very one.
    pub(crate) file: Option<PathBuf>,
    /// Its arguments.
    pub(crate) args: Vec<OsString>,
    pub(crate) env: Vec<(String, String)>,
    /// Namespaces and user to start in.
    pub(crate) enter: Enter,
    /// Where its output goes.
    pub(crate) log: PathBuf,
    /// Whether standard output comes to us instead.
    pub(crate) heard: bool,
}

impl Program {
    /// This program with these arguments, logging to a file.
    pub(crate) fn new<A: Into<OsString>>(args: impl IntoIterator<Item = A>, log: PathBuf) -> Self {
        Self { args: args.into_iter().map(Into::into).collect(), log, ..Self::default() }
    }

    /// Starts it. It is killed when this process dies or the child is dropped.
    pub(crate) fn spawn(&self, myself: &Path) -> anyhow::Result<Child> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.with_context(|| format!("cannot open {}", self.log.display()))?;
        let stdout = if self.heard { Stdio::piped() } else { Stdio::from(log.try_clone()?) };
        Command::new(myself)
            .arg("enter")
            .args(self.enter.to_args())
            .arg("--")
            .arg(self.file.as_deref().unwrap_or(myself))
            .args(&self.args)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(log)
            // Ctrl-C is for us; we end the others in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| {
                format!(
                    "cannot start {}",
                    self.args.first().map_or_else(|| "a program".into(), |verb| verb.to_string_lossy())
                )
            })
    }
}

/// Asks a child to end, and insists after a while.
pub(crate) async fn end(child: &mut Child) {
    signal(child, Signal::TERM);
    if tokio::time::timeout(PATIENCE, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

/// Ends a child at once, as a crash would.
pub(crate) async fn crash(child: &mut Child) {
    let _ = child.kill().await;
}

fn signal(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
    if let Some(pid) = pid {
        // Gone already is as good.
        let _ = kill_process(pid, signal);
    }
}
