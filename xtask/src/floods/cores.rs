//! The proxy has a core of its own, and its attackers, the good client and the server share the others, as if they came over
//! a network: what they take from each other, and how the system shares a core, is not the proxy's doing. On machines of
//! their own, the good client and its server would not wait for attackers, nor for what the system does on their behalf.

use std::process::{Command, Stdio};
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

/// The thread that calls goes before all others, where the system allows it.
pub(super) fn goes_first() {
    schedule(&["--rr", "--pid", "1"], rustix::thread::gettid().as_raw_nonzero().get());
}

/// A low priority alone still gives a thread whole slices of the processor while others wait.
pub(super) fn gives_way(thread: i32) {
    let _ = rustix::process::nice(19);
    schedule(&["--idle", "--pid", "0"], thread);
}

/// Keeps the proxy's core from falling asleep, whoever works on it goes first: to wake a processor takes the machine below
/// milliseconds at times, and more often the less there is to do.
pub(super) fn keep_awake() {
    let Some(own) = own() else { return };
    std::thread::spawn(move || {
        let mut set = CpuSet::new();
        set.set(own);
        let _ = sched_setaffinity(None, &set);
        gives_way(rustix::thread::gettid().as_raw_nonzero().get());
        loop {
            std::hint::spin_loop();
        }
    });
}

fn schedule(policy: &[&str], thread: i32) {
    let _ =
        Command::new("chrt").args(policy).arg(thread.to_string()).stdout(Stdio::null()).stderr(Stdio::null()).status();
}
