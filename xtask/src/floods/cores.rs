//! The proxy has a core of its own, and its attackers, the good client and the server share the others, as if they came over
//! a network: what they take from each other, and how the system shares a core, is not the proxy's doing.

use std::sync::LazyLock;

use rustix::thread::{CpuSet, Pid, sched_setaffinity};

/// How many there were before any thread left one.
static CORES: LazyLock<usize> = LazyLock::new(|| std::thread::available_parallelism().map_or(1, usize::from));

/// The proxy's core; `None` where there is only one.
pub(super) fn own() -> Option<usize> {
    (*CORES > 1).then_some(0)
}

/// Keeps every thread of this process, and those that they start, off the proxy's core.
pub(super) fn leave() {
    let Some(own) = own() else { return };
    let mut set = CpuSet::new();
    (0..*CORES).filter(|core| *core != own).for_each(|core| set.set(core));
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().filter_map(Result::ok);
    for thread in threads.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter_map(Pid::from_raw) {
        let _ = sched_setaffinity(Some(thread), &set);
    }
}
