//! Which processor runs what: the proxies have the last one to themselves, the client and the backend share the others.
//! So a proxy is measured while it is busy, and never competes with its own load.

use std::process::Command;

use rustix::thread::{CpuSet, sched_setaffinity};

use super::process::processors;

/// A command that runs on the proxies' processor, or anywhere.
pub(crate) fn proxy(program: &std::path::Path, alone: bool) -> Command {
    match processors() {
        cores @ 2.. if alone => taskset(&(cores - 1).to_string(), program),
        _ => Command::new(program),
    }
}

/// A command that runs where the client runs.
pub(crate) fn beside_client(program: &std::path::Path) -> Command {
    match processors() {
        cores @ 2.. => taskset(&format!("0-{}", cores - 2), program),
        _ => Command::new(program),
    }
}

/// Puts the calling thread where the client runs.
pub(crate) fn client() {
    let cores = processors();
    if cores < 2 {
        return;
    }
    let mut set = CpuSet::new();
    (0..cores - 1).for_each(|core| set.set(core));
    // Where the system forbids it the client runs anywhere: the figures are of the proxies alone.
    let _ = sched_setaffinity(None, &set);
}

fn taskset(list: &str, program: &std::path::Path) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", list]).arg(program);
    command
}
