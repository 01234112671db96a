//! A server's session cache with a lifetime, bound to what was verified when a session began.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::server::{ServerSessionMemoryCache, StoresServerSessions};

/// How many sessions one configuration remembers (about 1 KiB each with a client certificate).
const CAPACITY: usize = 1024;

/// Sessions of one configuration. Each configuration has its own, so a session never crosses to another trust bundle,
/// other name rules or another client policy.
#[derive(Debug)]
pub(super) struct BoundSessions {
    inner: Arc<ServerSessionMemoryCache>,
    start: Instant,
    lifetime: Duration,
}

impl BoundSessions {
    pub(super) fn new(lifetime: Duration) -> Self {
        Self { inner: ServerSessionMemoryCache::new(CAPACITY), start: Instant::now(), lifetime }
    }

    /// The value without its time stamp, if it is young enough.
    fn fresh(&self, stored: Vec<u8>) -> Option<Vec<u8>> {
        let (stamp, value) = stored.split_first_chunk::<8>()?;
        let age = self.now().saturating_sub(u64::from_be_bytes(*stamp));
        (u128::from(age) < self.lifetime.as_millis()).then(|| value.to_vec())
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }
}

impl StoresServerSessions for BoundSessions {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        let mut stamped = self.now().to_be_bytes().to_vec();
        stamped.extend(value);
        self.inner.put(key, stamped)
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.inner.get(key).and_then(|stored| self.fresh(stored))
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.inner.take(key).and_then(|stored| self.fresh(stored))
    }

    fn can_cache(&self) -> bool {
        true
    }
}
