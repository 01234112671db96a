//! Several tables at once, each in a process and a network namespace of its own.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::sync::mpsc;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};

use super::{Args, Judge, inside_with, tulle_of};

/// What became of a table.
struct Outcome {
    /// What it printed, but the last line.
    said: String,
    passed: usize,
    failed: usize,
}

/// Runs the tables, the longest first, and prints what they said in the order in which they were given.
pub(super) fn run(args: &Args) -> Result<bool> {
    let tulle = tulle_of(args.tulle.as_ref())?;
    let size =
        |index: &usize| args.files.get(*index).and_then(|file| std::fs::metadata(file).ok()).map(|data| data.len());
    let mut order: Vec<usize> = (0..args.files.len()).collect();
    order.sort_by_key(size);
    let waiting = Mutex::new(order);
    let (sender, outcomes) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..args.jobs.max(1) {
            let (waiting, sender, tulle) = (&waiting, sender.clone(), &tulle);
            scope.spawn(move || {
                let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop();
                while let Some((index, file)) = next().and_then(|index| Some((index, args.files.get(index)?))) {
                    if sender.send((index, one(args, tulle, file))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        report(outcomes)
    })
}

fn report(outcomes: mpsc::Receiver<(usize, Result<Outcome>)>) -> Result<bool> {
    let (mut passed, mut failed, mut next) = (0, 0, 0);
    let mut early = BTreeMap::new();
    for (index, outcome) in outcomes {
        let outcome = outcome?;
        passed += outcome.passed;
        failed += outcome.failed;
        early.insert(index, outcome.said);
        while let Some(said) = early.remove(&next) {
            print!("{said}");
            next += 1;
        }
    }
    println!("{passed} passed, {failed} failed");
    Ok(failed == 0 && passed > 0)
}

/// One table in a process of its own.
fn one(args: &Args, tulle: &Path, file: &Path) -> Result<Outcome> {
    let judge = if args.judge == Judge::Envoy { "envoy" } else { "tulle" };
    let mut arguments: Vec<OsString> = ["cases", "--judge", judge].map(OsString::from).into();
    for word in &args.skip {
        arguments.extend(["--skip".into(), word.into()]);
    }
    if let Some(only) = &args.only {
        arguments.extend(["--only".into(), only.into()]);
    }
    if args.logs {
        arguments.push("--logs".into());
    }
    arguments.push(file.into());
    let output = inside_with(tulle, &arguments)?.output().context("`unshare` (package util-linux)")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let said = said.trim_end();
    let (said, last) = said.rsplit_once('\n').unwrap_or(("", said));
    let Some((passed, failed)) = counts(last) else {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("{} ended with {}: {said}\n{last}\n{}", file.display(), output.status, complaint.trim_end());
    };
    Ok(Outcome { said: format!("{said}\n"), passed, failed })
}

/// Of `12 passed, 3 failed`.
fn counts(line: &str) -> Option<(usize, usize)> {
    let (passed, failed) = line.split_once(", ")?;
    Some((passed.strip_suffix(" passed")?.parse().ok()?, failed.strip_suffix(" failed")?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_counts() {
        assert_eq!(counts("12 passed, 3 failed"), Some((12, 3)));
        assert_eq!(counts("routes: 12 passed, 3 failed"), None);
        assert_eq!(counts(""), None);
    }
}
