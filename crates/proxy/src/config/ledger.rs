//! Every resource as it was received, with its version and what became of it: what `/config_dump` shows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use parking_lot::Mutex;

/// One resource.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The message; `None` while only refused versions of it came.
    pub body: Option<Bytes>,
    /// The version that the server gave it; empty for static ones.
    pub version: String,
    /// When it came into force.
    pub updated: SystemTime,
    /// From the bootstrap file rather than from a server.
    pub is_static: bool,
    /// A later version that was refused: when and why.
    pub refused: Option<(SystemTime, String)>,
}

/// Type and name of a resource.
type Key = (Arc<str>, Arc<str>);

/// All resources by type and name.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: Mutex<BTreeMap<Key, Entry>>,
}

impl Ledger {
    /// A resource came into force.
    pub fn accepted(&self, type_url: &Arc<str>, name: &Arc<str>, body: Bytes, version: &str, is_static: bool) {
        let entry = Entry {
            body: Some(body),
            version: version.to_owned(),
            updated: SystemTime::now(),
            is_static,
            refused: None,
        };
        self.entries.lock().insert((Arc::clone(type_url), Arc::clone(name)), entry);
    }

    /// A resource is gone.
    pub fn removed(&self, type_url: &Arc<str>, name: &Arc<str>) {
        self.entries.lock().remove(&(Arc::clone(type_url), Arc::clone(name)));
    }

    /// Of one type only these names are wanted any more.
    pub fn keep(&self, type_url: &str, names: &[Arc<str>]) {
        self.entries.lock().retain(|(kind, name), _| **kind != *type_url || names.contains(name));
    }

    /// A version of a resource was refused; what was in force stays.
    pub fn refused(&self, type_url: &Arc<str>, name: &Arc<str>, why: String) {
        let now = SystemTime::now();
        let mut entries = self.entries.lock();
        let entry = entries.entry((Arc::clone(type_url), Arc::clone(name))).or_insert_with(|| Entry {
            body: None,
            version: String::new(),
            updated: now,
            is_static: false,
            refused: None,
        });
        entry.refused = Some((now, why));
    }

    /// The resources of one type, by name.
    pub fn of(&self, type_url: &str) -> Vec<(Arc<str>, Entry)> {
        let entries = self.entries.lock();
        let of_type = entries.iter().filter(|((kind, _), _)| **kind == *type_url);
        of_type.map(|((_, name), entry)| (Arc::clone(name), entry.clone())).collect()
    }
}
