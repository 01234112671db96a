//! User instructions and heap allocations for each request, counted by callgrind: the figures that noise does not touch.
//!
//! Two counts of the same running program, of N and of 3 N requests: the difference leaves out what does not grow with them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// What stands before the program's command line; `@WORK@` is the folder where the counts go.
pub(crate) const UNDER: &[&str] = &["valgrind", "--quiet", "--tool=callgrind", "--callgrind-out-file=@WORK@/counted"];

/// The functions that give memory, of the C library and of the allocators that proxies bring along.
const ALLOCATORS: &[&str] = &[
    "malloc",
    "calloc",
    "realloc",
    "memalign",
    "posix_memalign",
    "aligned_alloc",
    "mi_malloc",
    "mi_malloc_aligned",
    "mi_zalloc",
    "mi_zalloc_aligned",
    "mi_realloc",
    "mi_realloc_aligned",
    "operator new(unsigned long)",
    "operator new[](unsigned long)",
    "operator new(unsigned long, std::align_val_t)",
];

/// What one request costs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Cost {
    /// Instructions in user space.
    pub(crate) instructions: f64,
    /// Calls that asked for memory.
    pub(crate) allocations: f64,
}

/// Counts one of the requests that `ask` makes, so many at a time as it is told, of the program `pid` that runs under [`UNDER`] with
/// this folder. `few` are made to warm up, then twice counted: as many, and three times as many.
pub(crate) fn each(pid: u32, work: &Path, few: usize, mut ask: impl FnMut(usize) -> Result<()>) -> Result<Cost> {
    ask(few)?;
    dump(pid, work, 0)?;
    ask(few)?;
    let one = dump(pid, work, 1)?;
    ask(few * 3)?;
    let three = dump(pid, work, 2)?;
    #[allow(clippy::cast_precision_loss, reason = "a count of requests")]
    let more = (few * 2) as f64;
    Ok(Cost {
        instructions: (three.instructions - one.instructions) / more,
        allocations: (three.allocations - one.allocations) / more,
    })
}

/// Has the counts since the last dump written, and reads them.
fn dump(pid: u32, work: &Path, number: usize) -> Result<Cost> {
    let mut command = Command::new("vgdb");
    command.args([&format!("--pid={pid}"), "dump", &format!("part{number}")]);
    let said = command.stdin(Stdio::null()).output().context("vgdb")?;
    let file = written(work, number)
        .with_context(|| format!("callgrind wrote no counts: {}", String::from_utf8_lossy(&said.stderr)))?;
    let text = String::from_utf8_lossy(&std::fs::read(&file)?).into_owned();
    let cost = read(&text);
    if cost.instructions == 0.0 {
        bail!("{} holds no counts", file.display());
    }
    Ok(cost)
}

/// The newest file of counts: they are numbered from 1.
fn written(work: &Path, number: usize) -> Option<PathBuf> {
    let file = work.join(format!("counted.{}", number + 1));
    file.exists().then_some(file)
}

/// Reads the sum of instructions, and the calls of allocators, from callgrind's file.
fn read(text: &str) -> Cost {
    let mut cost = Cost { instructions: 0.0, allocations: 0.0 };
    let mut names: HashMap<&str, bool> = HashMap::new();
    let mut callee = false;
    for line in text.lines() {
        if let Some(sum) = line.strip_prefix("summary: ") {
            cost.instructions = sum.trim().parse().unwrap_or(0.0);
        } else if let Some(name) = line.strip_prefix("cfn=").or_else(|| line.strip_prefix("fn=")) {
            // A name is written once and then known by its number: `(12) malloc`, `(12)`.
            let (number, name) = name.split_once(' ').unwrap_or((name, ""));
            let name = name.split('\'').next().unwrap_or("");
            let known = names.entry(number).or_insert(false);
            *known |= ALLOCATORS.contains(&name);
            callee = *known && line.starts_with('c');
        } else if let Some(calls) = line.strip_prefix("calls=")
            && callee
        {
            cost.allocations += calls.split(' ').next().and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0);
        }
    }
    cost
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_allocators_are_counted_by_name_and_by_number() {
        let text = "summary: 1000\nfn=(1) main\n10 5\ncfn=(2) malloc\ncalls=7 20\n10 300\n\
                    cfn=(3) write\ncalls=9 30\n10 3\ncfn=(2)\ncalls=4 20\n11 100\nfn=(2)\n20 400\ncfn=(4) _int_malloc\n\
                    calls=11 50\n20 9\n";
        assert_eq!(read(text), Cost { instructions: 1000.0, allocations: 11.0 });
    }
}
