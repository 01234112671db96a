//! What the kernel knows of a process: time on a processor, memory, children.

use anyhow::{Context, Result};

/// Nanoseconds on a processor, of all threads of a process and of all below it.
pub(crate) fn cpu(pid: u32) -> u64 {
    let mut total = 0;
    for pid in tree(pid) {
        for thread in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let text = std::fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
            total += text.split_whitespace().next().and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    total
}

/// Nanoseconds on a processor of this process, and of what it started and waited for; to a hundredth of a second.
pub(crate) fn own() -> f64 {
    /// How often the kernel counts in a second, for what it tells programs.
    const TICKS: f64 = 100.0;
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = text.rsplit(") ").next().unwrap_or_default();
    let times = after_name.split_whitespace().skip(11).take(4).filter_map(|field| field.parse::<f64>().ok());
    times.sum::<f64>() / TICKS * 1e9
}

/// Proportional set size of a process alone, in bytes.
pub(crate) fn pss(pid: u32) -> Result<u64> {
    rolled_up(pid, "Pss:")
}

/// What a process alone has written to, in bytes: it does not depend on how the kernel caches the program's file.
pub(crate) fn dirty(pid: u32) -> Result<u64> {
    rolled_up(pid, "Private_Dirty:")
}

fn rolled_up(pid: u32, label: &'static str) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find(|line| line.starts_with(label)).context(label)?;
    let kilobytes: u64 = line.split_whitespace().nth(1).context(label)?.parse()?;
    Ok(kilobytes * 1024)
}

/// A process and all below it.
pub(crate) fn tree(root: u32) -> Vec<u32> {
    let mut found = vec![root];
    let mut next = 0;
    while let Some(pid) = found.get(next).copied() {
        next += 1;
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
    }
    found
}

/// Load average of the last minute.
pub(crate) fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|field| field.parse().ok()).unwrap_or(f64::NAN)
}

/// Processors that this process may use.
pub(crate) fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
