//! What the world outside gives the control plane: texts that come, change and go, and a store to write to.

use std::sync::Arc;

use model::ObjectKey;

/// A text changed: a file of a directory, or an object of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The file's name as messages print it (`shop/catalog.yaml`), or `redb:KIND/NAMESPACE/NAME`.
    pub file: Arc<str>,
    /// Its text; `None` when it is gone.
    pub text: Option<Arc<str>>,
    /// The revision of a stored object; `None` for a file.
    pub revision: Option<u64>,
}

/// Changes that came together. The first batch is everything there is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// What changed.
    pub changes: Vec<Change>,
    /// The store's revision that these changes bring it to; `None` from a directory.
    pub revision: Option<u64>,
}

/// One write to a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Creates or replaces an object.
    Put {
        /// Its name.
        key: ObjectKey,
        /// Its text.
        text: Arc<str>,
        /// The revision that it must have; `None` = whatever.
        expected: Option<u64>,
    },
    /// Removes an object.
    Delete {
        /// Its name.
        key: ObjectKey,
        /// The revision that it must have; `None` = whatever.
        expected: Option<u64>,
    },
}

impl Write {
    /// The object written.
    pub fn key(&self) -> &ObjectKey {
        match self {
            Self::Put { key, .. } | Self::Delete { key, .. } => key,
        }
    }
}

/// Why a store refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Somebody else changed it meanwhile.
    #[error("{key} is at revision {}, not {expected}: somebody changed it meanwhile", found.map_or_else(|| "none".to_owned(), |found| found.to_string()))]
    Conflict {
        /// The object.
        key: Box<ObjectKey>,
        /// What the writer thought.
        expected: u64,
        /// What it is.
        found: Option<u64>,
    },
    /// The store itself failed.
    #[error("the store failed: {0}")]
    Failed(String),
}

/// Where `apply` and `delete` write. All writes of one call happen together or not at all.
pub trait Store: Send + Sync + 'static {
    /// Writes, and gives the revision back that the store has then.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when an object is not at the expected revision.
    fn commit(&self, writes: &[Write]) -> Result<u64, StoreError>;

    /// Its name, for messages: `redb:/var/lib/tulle/mesh.redb`.
    fn name(&self) -> &str;
}

/// How a stored object is called among the inputs.
pub fn stored_name(key: &ObjectKey) -> Arc<str> {
    format!("redb:{}/{}/{}", key.kind, key.namespace, key.name).into()
}
