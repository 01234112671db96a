//! Rows of numbers by key, each row with one shard per worker.

use std::borrow::Borrow;
use std::hash::Hash;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use hashbrown::HashMap;
use parking_lot::RwLock;

/// A worker's part of a row. Callers keep it as long as they like; once [`Shard::is_retired`] says so, nobody
/// reads its numbers any more and they should resolve it again.
#[derive(Debug, Default)]
pub struct Shard<T> {
    cells: T,
    retired: AtomicBool,
}

impl<T> Shard<T> {
    /// Whether the row was evicted after lying idle.
    #[inline]
    pub fn is_retired(&self) -> bool {
        self.retired.load(Relaxed)
    }
}

impl<T> Deref for Shard<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.cells
    }
}

/// One row: a shard for each worker that ever wrote to it.
#[derive(Debug)]
pub struct Row<T> {
    shards: Box<[OnceLock<Arc<Shard<T>>>]>,
    /// Sweeps in a row that found nothing new.
    idle: AtomicU32,
    /// What `activity` said at the last sweep.
    last_seen: AtomicU64,
}

impl<T: Default> Row<T> {
    fn new(workers: usize) -> Self {
        Self {
            shards: std::iter::repeat_with(OnceLock::new).take(workers.max(1)).collect(),
            idle: AtomicU32::new(0),
            last_seen: AtomicU64::new(0),
        }
    }

    /// The shard of a worker; workers beyond the number announced share.
    pub fn shard(&self, worker: usize) -> Arc<Shard<T>> {
        let index = worker % self.shards.len();
        match self.shards.get(index) {
            Some(slot) => Arc::clone(slot.get_or_init(Arc::default)),
            None => Arc::default(),
        }
    }

    /// The shards that exist.
    pub fn shards(&self) -> impl Iterator<Item = &T> {
        self.shards.iter().filter_map(|slot| slot.get()).map(|shard| &shard.cells)
    }

    fn retire(&self) {
        for shard in self.shards.iter().filter_map(|slot| slot.get()) {
            shard.retired.store(true, Relaxed);
        }
    }
}

/// Rows by key. Looking a row up takes a lock and is done once per handle, never per request.
#[derive(Debug)]
pub struct Table<K, T> {
    rows: RwLock<HashMap<K, Arc<Row<T>>>>,
    workers: usize,
    most: usize,
}

impl<K: Eq + Hash, T: Default> Table<K, T> {
    /// An empty table with `workers` shards per row and at most `most` rows.
    pub fn new(workers: usize, most: usize) -> Self {
        Self { rows: RwLock::default(), workers, most }
    }

    /// The row of `key`, made if need be; `None` when the table is full.
    pub fn row<Q>(&self, key: &Q) -> Option<Arc<Row<T>>>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ToOwned<Owned = K> + ?Sized,
    {
        if let Some(row) = self.rows.read().get(key) {
            return Some(Arc::clone(row));
        }
        let mut rows = self.rows.write();
        if !rows.contains_key(key) && rows.len() >= self.most {
            return None;
        }
        let row = rows.entry(key.to_owned()).or_insert_with(|| Arc::new(Row::new(self.workers)));
        Some(Arc::clone(row))
    }

    /// The row of `key`, made even when the table is full: for the few rows that take what others refuse.
    pub fn row_beyond(&self, key: &K) -> Arc<Row<T>>
    where
        K: Clone,
    {
        let mut rows = self.rows.write();
        Arc::clone(rows.entry(key.clone()).or_insert_with(|| Arc::new(Row::new(self.workers))))
    }

    /// Calls `visit` with every row, in no particular order.
    pub fn each(&self, mut visit: impl FnMut(&K, &Arc<Row<T>>)) {
        for (key, row) in self.rows.read().iter() {
            visit(key, row);
        }
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.rows.read().len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Drops the rows whose key `keep` refuses.
    pub fn retain(&self, mut keep: impl FnMut(&K) -> bool) {
        self.rows.write().retain(|key, row| {
            let kept = keep(key);
            if !kept {
                row.retire();
            }
            kept
        });
    }

    /// Drops rows that `activity` showed unchanged for `idle_sweeps` calls of this function. `activity` returns
    /// a number that changes whenever the row was used, `None` for a row that must stay (something is open).
    pub fn sweep(&self, idle_sweeps: u32, activity: impl Fn(&Row<T>) -> Option<u64>) {
        self.rows.write().retain(|_, row| {
            let now = activity(row);
            if now.is_none() || now != Some(row.last_seen.load(Relaxed)) {
                row.last_seen.store(now.unwrap_or_default(), Relaxed);
                row.idle.store(0, Relaxed);
                return true;
            }
            let stays = row.idle.fetch_add(1, Relaxed) + 1 < idle_sweeps;
            if !stays {
                row.retire();
            }
            stays
        });
    }
}
