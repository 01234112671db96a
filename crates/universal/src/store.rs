//! The embedded store: objects as texts, with revisions, optimistic locking and history, in one redb file.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use model::ObjectKey;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// Key -> (revision of its last change, text).
const OBJECTS: TableDefinition<'_, &str, (u64, &str)> = TableDefinition::new("objects");
/// Revision -> [`Revision`] as JSON.
const HISTORY: TableDefinition<'_, u64, &str> = TableDefinition::new("history");
/// `revision` -> the newest one, `format` -> [`FORMAT`].
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// Layout of the tables.
const FORMAT: u64 = 1;
/// Revisions that history keeps.
const KEPT: u64 = 1000;
/// Longest text of one object.
const MAX_TEXT: usize = 1 << 20;

/// An object in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Its name.
    pub key: ObjectKey,
    /// The store's revision at its last change.
    pub revision: u64,
    /// Its text as it was put.
    pub text: Arc<str>,
}

/// One change to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Create or replace.
    Put {
        /// Which object.
        key: ObjectKey,
        /// Its whole text; at most 1 MiB.
        text: Arc<str>,
        /// Only if its revision is this; 0 = only if there is none. `None` = in any case.
        expected: Option<u64>,
    },
    /// Remove.
    Delete {
        /// Which object.
        key: ObjectKey,
        /// Only if its revision is this. `None` = in any case.
        expected: Option<u64>,
    },
}

/// What one commit changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    /// Its number.
    pub revision: u64,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// Who, as given to [`Store::commit`].
    pub by: String,
    /// What.
    pub changes: Vec<Changed>,
}

/// One object's change in a [`Revision`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// `GROUP/KIND/NAMESPACE/NAME`; a part may be empty.
    pub key: String,
    /// Text before; `None` if it was created.
    pub before: Option<String>,
    /// Text after; `None` if it was deleted.
    pub after: Option<String>,
}

/// Why the store did not do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Someone else changed the object first.
    #[error("{key} is at revision {found}, not at the expected one: somebody changed it")]
    Conflict {
        /// Which object.
        key: ObjectKey,
        /// Its revision; 0 if there is none.
        found: u64,
    },
    /// There is no such object to delete.
    #[error("{key} does not exist")]
    NotFound {
        /// Which object.
        key: ObjectKey,
    },
    /// A text is too long or a name cannot be stored.
    #[error("{key}: {why}")]
    Refused {
        /// Which object.
        key: ObjectKey,
        /// Why.
        why: &'static str,
    },
    /// The file cannot be opened.
    #[error("cannot open {path}: {why}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The file was written by a newer version.
    #[error("the store has format {found}, this program knows {FORMAT}: use the newer program")]
    Format {
        /// The file's format.
        found: u64,
    },
    /// Reading or writing failed.
    #[error("store: {0}")]
    Database(Box<redb::Error>),
}

macro_rules! from_redb {
    ($($error:ty),*) => {$(
        impl From<$error> for StoreError {
            fn from(error: $error) -> Self {
                Self::Database(Box::new(error.into()))
            }
        }
    )*};
}
from_redb!(redb::TransactionError, redb::TableError, redb::StorageError, redb::CommitError);

/// A store. Calls block for the time of a disk write; share it by reference.
pub struct Store {
    database: Database,
    revision: watch::Sender<u64>,
}

impl Store {
    /// Opens a store, making the file (0600) if there is none.
    ///
    /// # Errors
    /// When the file cannot be made or read, is no store, or another process has it open.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |why: String| StoreError::Open { path: path.to_owned(), why };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(|error| failed(error.to_string()))?;
        let database = redb::Builder::new().create_file(file).map_err(|error| match error {
            redb::DatabaseError::DatabaseAlreadyOpen => failed("another program has it open".to_owned()),
            other => failed(other.to_string()),
        })?;
        let begin = database.begin_write()?;
        let revision = {
            let mut meta = begin.open_table(META)?;
            begin.open_table(OBJECTS)?;
            begin.open_table(HISTORY)?;
            let format = meta.get("format")?.map_or(FORMAT, |value| value.value());
            if format > FORMAT {
                return Err(StoreError::Format { found: format });
            }
            meta.insert("format", FORMAT)?;
            meta.get("revision")?.map_or(0, |value| value.value())
        };
        begin.commit()?;
        Ok(Self { database, revision: watch::Sender::new(revision) })
    }

    /// The newest revision; 0 before the first commit. Survives restarts.
    pub fn revision(&self) -> u64 {
        *self.revision.borrow()
    }

    /// Follows the newest revision.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// All objects, sorted by key.
    ///
    /// # Errors
    /// When reading fails.
    pub fn objects(&self) -> Result<Vec<Object>, StoreError> {
        let table = self.database.begin_read()?.open_table(OBJECTS)?;
        let mut objects = Vec::new();
        for row in table.iter()? {
            let (key, value) = row?;
            let (revision, text) = value.value();
            if let Some(key) = decode(key.value()) {
                objects.push(Object { key, revision, text: text.into() });
            }
        }
        Ok(objects)
    }

    /// One object.
    ///
    /// # Errors
    /// When reading fails.
    pub fn object(&self, key: &ObjectKey) -> Result<Option<Object>, StoreError> {
        let table = self.database.begin_read()?.open_table(OBJECTS)?;
        let found = table.get(encode(key).as_str())?;
        Ok(found.map(|value| {
            let (revision, text) = value.value();
            Object { key: key.clone(), revision, text: text.into() }
        }))
    }

    /// Makes all writes or none, as one revision; `by` says who, for the history. Returns the new
    /// revision, or the newest one when the writes change nothing.
    ///
    /// # Errors
    /// [`StoreError::Conflict`], [`StoreError::NotFound`] or [`StoreError::Refused`] for one of the
    /// writes, or when writing fails; then nothing is changed.
    pub fn commit(&self, writes: &[Write], by: &str) -> Result<u64, StoreError> {
        let begin = self.database.begin_write()?;
        // Only one write transaction is open at a time: the number cannot be taken twice.
        let next = self.revision() + 1;
        let changes = apply(&begin, writes, next)?;
        if changes.is_empty() {
            begin.abort()?;
            return Ok(next - 1);
        }
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at_ms = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
        record(&begin, &Revision { revision: next, at_ms, by: by.to_owned(), changes })?;
        begin.commit()?;
        self.revision.send_replace(next);
        Ok(next)
    }

    /// The newest revisions, newest first; at most `limit`, and never more than the 1000 that are kept.
    ///
    /// # Errors
    /// When reading fails.
    pub fn history(&self, limit: usize) -> Result<Vec<Revision>, StoreError> {
        let table = self.database.begin_read()?.open_table(HISTORY)?;
        let mut revisions = Vec::new();
        for row in table.iter()?.rev().take(limit) {
            let (_, text) = row?;
            revisions.extend(serde_json::from_str::<Revision>(text.value()).ok());
        }
        Ok(revisions)
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("revision", &self.revision()).finish_non_exhaustive()
    }
}

fn apply(begin: &WriteTransaction, writes: &[Write], next: u64) -> Result<Vec<Changed>, StoreError> {
    let mut table = begin.open_table(OBJECTS)?;
    let mut changes = Vec::new();
    for write in writes {
        let (key, expected, after) = match write {
            Write::Put { key, text, expected } => (key, *expected, Some(text)),
            Write::Delete { key, expected } => (key, *expected, None),
        };
        let name = encode(key);
        refuse(key, after)?;
        let before = table.get(name.as_str())?.map(|value| {
            let (revision, text) = value.value();
            (revision, text.to_owned())
        });
        let found = before.as_ref().map_or(0, |(revision, _)| *revision);
        if expected.is_some_and(|expected| expected != found) {
            return Err(StoreError::Conflict { key: key.clone(), found });
        }
        let before = before.map(|(_, text)| text);
        match (after, &before) {
            (None, None) => return Err(StoreError::NotFound { key: key.clone() }),
            (Some(text), Some(before)) if **text == **before => continue,
            (Some(text), _) => drop(table.insert(name.as_str(), (next, &**text))?),
            (None, Some(_)) => drop(table.remove(name.as_str())?),
        }
        changes.push(Changed { key: path(key), before, after: after.map(|text| text.to_string()) });
    }
    Ok(changes)
}

fn refuse(key: &ObjectKey, text: Option<&Arc<str>>) -> Result<(), StoreError> {
    let why = if key.kind.is_empty() || key.name.is_empty() {
        "an object needs a kind and a name"
    } else if [&key.group, &key.kind, &key.namespace, &key.name].iter().any(|part| part.contains(['\0', '/'])) {
        "its name holds a character that no name may have"
    } else if text.is_some_and(|text| text.len() > MAX_TEXT) {
        "its text is longer than 1 MiB"
    } else {
        return Ok(());
    };
    Err(StoreError::Refused { key: key.clone(), why })
}

fn record(begin: &WriteTransaction, revision: &Revision) -> Result<(), StoreError> {
    begin.open_table(META)?.insert("revision", revision.revision)?;
    let mut history = begin.open_table(HISTORY)?;
    // Strings and numbers alone: this cannot fail.
    let text = serde_json::to_string(revision).unwrap_or_default();
    history.insert(revision.revision, text.as_str())?;
    if let Some(old) = revision.revision.checked_sub(KEPT) {
        history.retain_in(..=old, |_, _| false)?;
    }
    Ok(())
}

/// Names hold no NUL, so this is unambiguous and sorts by group, kind, namespace, name.
fn encode(key: &ObjectKey) -> String {
    [key.group.as_str(), &key.kind, &key.namespace, &key.name].join("\0")
}

fn path(key: &ObjectKey) -> String {
    [key.group.as_str(), &key.kind, &key.namespace, &key.name].join("/")
}

fn decode(text: &str) -> Option<ObjectKey> {
    let mut parts = text.split('\0').map(str::to_owned);
    Some(ObjectKey { group: parts.next()?, kind: parts.next()?, namespace: parts.next()?, name: parts.next()? })
}
