//! System calls, counted by strace.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The calls that these processes make, on all their threads, while `work` is done.
pub(crate) fn during(pids: &[u32], work: impl FnOnce() -> Result<()>) -> Result<u64> {
    let summary = tempfile::NamedTempFile::new()?;
    let said = tempfile::NamedTempFile::new()?;
    let mut command = Command::new("strace");
    command.args(["-c", "-f", "-o"]).arg(summary.path());
    for pid in pids {
        command.args(["-p", &pid.to_string()]);
    }
    let mut strace = command.stdin(Stdio::null()).stderr(said.reopen()?).spawn().context("strace")?;
    attached(&mut strace, said.path())?;
    let done = work();
    Command::new("kill").args(["-INT", &strace.id().to_string()]).status()?;
    strace.wait()?;
    done?;
    let calls = total(&std::fs::read_to_string(summary.path())?);
    if calls == 0 {
        bail!("strace counted no system call: {}", std::fs::read_to_string(said.path())?);
    }
    Ok(calls)
}

/// Waits until strace says that it watches all threads.
fn attached(strace: &mut Child, said: &Path) -> Result<()> {
    let patience = Instant::now() + Duration::from_secs(10);
    while !std::fs::read_to_string(said)?.contains("attached") {
        if strace.try_wait()?.is_some() || Instant::now() > patience {
            bail!("strace does not attach: {}", std::fs::read_to_string(said)?);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    // The other threads of the process follow within one message each.
    std::thread::sleep(Duration::from_millis(200));
    Ok(())
}

/// The calls of strace's table: the fourth column, without the line of totals.
fn total(table: &str) -> u64 {
    table
        .lines()
        .filter(|line| !line.ends_with(" total"))
        .filter_map(|line| line.split_whitespace().nth(3)?.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_strace_is_summed() {
        let table = "% time     seconds  usecs/call     calls    errors syscall\n\
                     ------ ----------- ----------- --------- --------- ----------------\n \
                     60.00    0.006000           6      1000           write\n \
                     40.00    0.004000           4      1000       200 read\n\
                     ------ ----------- ----------- --------- --------- ----------------\n\
                     100.00    0.010000           5      2000       200 total\n";
        assert_eq!(total(table), 2000);
    }
}
