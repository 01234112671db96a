//! How much memory this process has, and how much it may have.

use std::io;
use std::path::{Path, PathBuf};

/// Control groups of version 2.
const UNIFIED: &str = "/sys/fs/cgroup";
/// Those of version 1, for memory.
const OLD: &str = "/sys/fs/cgroup/memory";
/// A limit beyond this is none (version 1 writes a huge number).
const NO_LIMIT: u64 = 1 << 50;

/// Bytes that this process holds of its own: resident, without what files share with it.
pub(super) fn own() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kilobytes.map(|kilobytes| kilobytes * 1024).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no RssAnon"))
}

/// The limit that the system sets this process's control group, if it sets one.
pub(super) fn limit() -> Option<u64> {
    let limits = places().into_iter().map(|(directory, unified)| {
        number(&directory.join(if unified { "memory.max" } else { "memory.limit_in_bytes" })).ok()
    });
    limits.flatten().filter(|limit| *limit < NO_LIMIT).min()
}

/// The share of its limit, or of `most` where that is lower, that the control group holds.
pub(super) fn group(most: Option<u64>) -> io::Result<f64> {
    let usage = places().into_iter().find_map(|(directory, unified)| {
        number(&directory.join(if unified { "memory.current" } else { "memory.usage_in_bytes" })).ok()
    });
    let usage = usage.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no control group with memory"))?;
    let most = [limit(), most].into_iter().flatten().min();
    Ok(most.map_or(0.0, |most| usage as f64 / most as f64))
}

/// Folders of this process's control group, the nearest first; true: of version 2.
fn places() -> Vec<(PathBuf, bool)> {
    let text = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut places = Vec::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(kinds), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let (root, unified) = match kinds {
            "" => (UNIFIED, true),
            kinds if kinds.split(',').any(|kind| kind == "memory") => (OLD, false),
            _ => continue,
        };
        // Inside a container the path is the host's and the root is already the group's own folder.
        places.push((Path::new(root).join(path.trim_start_matches('/')), unified));
        places.push((PathBuf::from(root), unified));
    }
    places
}

fn number(path: &Path) -> io::Result<u64> {
    let text = std::fs::read_to_string(path)?;
    text.trim().parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "no limit"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_has_some_memory() {
        let before = own().unwrap();
        assert!(before > 100_000, "{before}");
        let more = vec![1_u8; 32 << 20];
        let after = own().unwrap();
        assert!(after > before + (16 << 20), "{before} -> {after} with {}", more.len());
    }
}
