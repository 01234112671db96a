//! What files a directory holds now, and what changed since the last look.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::directory::Change;

/// Largest file that is read; configuration by hand is never as large.
const MAX_FILE: u64 = 16 << 20;
/// Deepest directory that is looked into.
const MAX_DEPTH: usize = 16;
/// A file written this recently may change again without a new time stamp.
const RACY: Duration = Duration::from_secs(1);

/// Everything that tells one state of a file from another without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    /// Read so soon after the last write that the next look must read it again.
    racy: bool,
}

/// A file as last read.
#[derive(Debug)]
struct Known {
    stamp: Stamp,
    text: Arc<str>,
}

/// The files of some paths.
#[derive(Debug)]
pub(crate) struct Tree {
    roots: Vec<PathBuf>,
    known: BTreeMap<PathBuf, Known>,
    /// Files and directories that could not be read at the last look.
    unreadable: BTreeMap<PathBuf, io::Error>,
    /// Those of them that the log knows, so that each is complained about once.
    complained: HashSet<PathBuf>,
}

impl Tree {
    /// Nothing read yet.
    pub(crate) fn new(roots: &[PathBuf]) -> Self {
        Self { roots: roots.to_vec(), known: BTreeMap::new(), unreadable: BTreeMap::new(), complained: HashSet::new() }
    }

    /// Looks at all files and says what changed since the last look.
    ///
    /// # Errors
    /// When a root cannot be read. The state is left as it was: a directory that is away for a moment
    /// (a mount being replaced) must not look like one whose files were all deleted.
    pub(crate) fn look(&mut self) -> io::Result<Vec<Change>> {
        self.unreadable.clear();
        let mut found = BTreeMap::new();
        for root in &self.roots {
            let metadata = fs::metadata(root)?;
            if metadata.is_dir() {
                walk(root, &mut Vec::new(), &mut found, &mut self.unreadable)?;
            } else {
                found.insert(root.clone(), metadata);
            }
        }
        let mut changes = Vec::new();
        // What stands in a directory that cannot be read now is not gone.
        let hidden = |path: &Path| path.ancestors().any(|above| self.unreadable.contains_key(above));
        let absent = self.known.keys().filter(|path| !found.contains_key(*path) && !hidden(path));
        let gone = absent.cloned().collect::<Vec<_>>();
        for path in gone {
            self.known.remove(&path);
            changes.push(Change { file: name(&path), text: None });
        }
        for (path, metadata) in found {
            changes.extend(self.refresh(path, &metadata));
        }
        changes.sort_by(|a, b| a.file.cmp(&b.file));
        Ok(changes)
    }

    /// What could not be read at the last look.
    pub(crate) fn take_unreadable(&mut self) -> Vec<(Arc<str>, io::Error)> {
        std::mem::take(&mut self.unreadable).into_iter().map(|(path, error)| (name(&path), error)).collect()
    }

    /// Tells the log what could not be read at the last look, each file once until it can be read again.
    pub(crate) fn complain(&mut self) {
        for (path, error) in &self.unreadable {
            if !self.complained.contains(path) {
                let file = path.display();
                tracing::warn!(event = "config.unreadable", %file, %error, "cannot read: what it said before stays");
            }
        }
        self.complained = self.unreadable.keys().cloned().collect();
    }

    /// Whether some file became empty since it was last read: editors empty a file before they fill it.
    pub(crate) fn emptied(changes: &[Change]) -> bool {
        changes.iter().any(|change| change.text.as_deref().is_some_and(str::is_empty))
    }

    fn refresh(&mut self, path: PathBuf, metadata: &Metadata) -> Option<Change> {
        let stamp = stamp(metadata);
        if self.known.get(&path).is_some_and(|known| !known.stamp.racy && known.stamp == stamp) {
            return None;
        }
        let text = match read(&path, metadata) {
            Ok(text) => text,
            Err(error) => {
                self.unreadable.insert(path, error);
                return None;
            }
        };
        let same = self.known.get(&path).is_some_and(|known| *known.text == *text);
        let text: Arc<str> = text.into();
        let file = name(&path);
        self.known.insert(path, Known { stamp, text: text.clone() });
        (!same).then_some(Change { file, text: Some(text) })
    }
}

/// Collects the configuration files below a directory; links are followed, circles are not.
fn walk(
    directory: &Path,
    above: &mut Vec<(u64, u64)>,
    found: &mut BTreeMap<PathBuf, Metadata>,
    unreadable: &mut BTreeMap<PathBuf, io::Error>,
) -> io::Result<()> {
    let metadata = fs::metadata(directory)?;
    let id = (metadata.dev(), metadata.ino());
    if above.contains(&id) || above.len() >= MAX_DEPTH {
        return Ok(());
    }
    above.push(id);
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if is_hidden(&path) {
            continue;
        }
        // A link to nowhere is no file.
        let Ok(metadata) = fs::metadata(&path) else { continue };
        if metadata.is_dir() {
            let depth = above.len();
            if let Err(error) = walk(&path, above, found, unreadable) {
                above.truncate(depth);
                unreadable.insert(path, error);
            }
        } else if is_configuration(&path) {
            found.insert(path, metadata);
        }
    }
    above.pop();
    Ok(())
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// Whether a file's name says that it holds configuration: `.yaml`, `.yml`, `.json`.
pub(crate) fn is_configuration(path: &Path) -> bool {
    path.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known))
}

fn read(path: &Path, metadata: &Metadata) -> io::Result<String> {
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    if metadata.len() > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {} MiB", MAX_FILE >> 20)));
    }
    fs::read_to_string(path)
}

fn stamp(metadata: &Metadata) -> Stamp {
    let age = metadata.modified().ok().and_then(|time| SystemTime::now().duration_since(time).ok());
    Stamp {
        device: metadata.dev(),
        inode: metadata.ino(),
        length: metadata.len(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        racy: age.is_none_or(|age| age < RACY),
    }
}

fn name(path: &Path) -> Arc<str> {
    path.to_string_lossy().into()
}
