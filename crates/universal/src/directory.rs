//! A directory of YAML and JSON files, watched.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc as threads;
use std::thread;
use std::time::{Duration, Instant};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use crate::tree::Tree;

/// After an event, how long it must be quiet before the files are read.
const QUIET: Duration = Duration::from_millis(8);
/// Longest that a stream of events can put the reading off.
const PATIENCE: Duration = Duration::from_millis(100);
/// How long an emptied file is given to be filled again.
const REFILL: Duration = Duration::from_millis(40);
/// Events can be lost (network file systems, links to elsewhere): look anyway.
const PERIOD: Duration = Duration::from_secs(2);

/// One file changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The file, named from the path it was found under.
    pub file: Arc<str>,
    /// What it holds now; `None` when it is gone.
    pub text: Option<Arc<str>>,
}

/// What files and directories held when they were read once.
#[derive(Debug, Default)]
pub struct Reading {
    /// All files that could be read, sorted by name.
    pub files: Vec<Change>,
    /// The others, and why.
    pub unreadable: Vec<(Arc<str>, io::Error)>,
}

/// Reads all configuration files (`*.yaml`, `*.yml`, `*.json`; hidden ones are skipped) of some files and
/// directories once, sorted by name, without watching.
///
/// # Errors
/// When one of the paths does not exist or cannot be read.
pub fn survey(paths: &[PathBuf]) -> io::Result<Reading> {
    check(paths)?;
    let mut tree = Tree::new(paths);
    let files = tree.look()?;
    Ok(Reading { files, unreadable: tree.take_unreadable() })
}

/// As [`survey`], leaving out what cannot be read after saying so in the log.
///
/// # Errors
/// When one of the paths does not exist or cannot be read.
pub fn read(paths: &[PathBuf]) -> io::Result<Vec<Change>> {
    check(paths)?;
    let mut tree = Tree::new(paths);
    let files = tree.look()?;
    tree.complain();
    Ok(files)
}

/// Watches some files and directories, deep. The first batch is everything there is, even when that is
/// nothing; each later one is what changed, within about 10 ms. A file replaced by renaming or through a
/// symbolic link (as Kubernetes mounts a ConfigMap) counts as changed. A file that cannot be read keeps
/// its last text and is complained about in the log. Dropping the receiver ends the watch.
///
/// # Errors
/// When one of the paths does not exist or cannot be read.
pub fn watch(paths: &[PathBuf]) -> io::Result<mpsc::Receiver<Vec<Change>>> {
    check(paths)?;
    let (events_in, events) = threads::channel();
    // The watch begins before the first look, so nothing falls between the two.
    let watcher = watcher(paths, events_in);
    let mut tree = Tree::new(paths);
    let first = tree.look()?;
    tree.complain();
    let (batches, receiver) = mpsc::channel(16);
    thread::Builder::new().name("tulle-config".to_owned()).spawn(move || {
        if batches.blocking_send(first).is_ok() {
            follow(&mut tree, &events, &batches);
        }
        drop(watcher);
    })?;
    Ok(receiver)
}

fn check(paths: &[PathBuf]) -> io::Result<()> {
    for path in paths {
        let tell = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let metadata = std::fs::metadata(path).map_err(tell)?;
        if metadata.is_dir() {
            std::fs::read_dir(path).map_err(tell)?;
        }
    }
    Ok(())
}

/// Without a watcher (no inotify left) the period alone finds changes.
fn watcher(paths: &[PathBuf], events: threads::Sender<()>) -> Option<RecommendedWatcher> {
    let tell = move |event: notify::Result<notify::Event>| {
        // Reading the files makes events of its own.
        if !event.is_ok_and(|event| event.kind.is_access()) {
            let _ = events.send(());
        }
    };
    let mut watcher = match notify::recommended_watcher(tell) {
        Ok(watcher) => watcher,
        Err(error) => {
            tracing::warn!(event = "config.watch", %error, "cannot watch: changes are found every 2 s");
            return None;
        }
    };
    for path in paths {
        let (place, mode) = match path.is_dir() {
            true => (path.as_path(), RecursiveMode::Recursive),
            // A file replaced by renaming is seen through its directory alone.
            false => (parent(path), RecursiveMode::NonRecursive),
        };
        if let Err(error) = watcher.watch(place, mode) {
            tracing::warn!(event = "config.watch", path = %path.display(), %error, "cannot watch: changes are found every 2 s");
        }
    }
    Some(watcher)
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}

fn follow(tree: &mut Tree, events: &threads::Receiver<()>, batches: &mpsc::Sender<Vec<Change>>) {
    let mut away = false;
    while !batches.is_closed() {
        match events.recv_timeout(PERIOD) {
            Ok(()) => settle(events),
            Err(threads::RecvTimeoutError::Timeout) => {}
            // No watcher: the period is kept by sleeping.
            Err(threads::RecvTimeoutError::Disconnected) => thread::sleep(PERIOD),
        }
        match tree.look() {
            Ok(changes) => {
                away = false;
                let changes = refilled(tree, changes);
                tree.complain();
                if !changes.is_empty() && batches.blocking_send(changes).is_err() {
                    return;
                }
            }
            Err(error) if !away => {
                away = true;
                tracing::warn!(event = "config.away", %error, "the configuration is away: what it said before stays");
            }
            Err(_) => {}
        }
    }
}

/// Waits until it is quiet.
fn settle(events: &threads::Receiver<()>) {
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE && events.recv_timeout(QUIET).is_ok() {}
}

/// Many editors empty a file and fill it a moment later; the moment between must not delete its objects.
fn refilled(tree: &mut Tree, mut changes: Vec<Change>) -> Vec<Change> {
    if !Tree::emptied(&changes) {
        return changes;
    }
    thread::sleep(REFILL);
    if let Ok(later) = tree.look() {
        changes.retain(|change| later.iter().all(|newer| newer.file != change.file));
        changes.extend(later);
        changes.sort_by(|a, b| a.file.cmp(&b.file));
    }
    changes
}
