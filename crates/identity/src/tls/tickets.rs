//! What a server gives its clients to resume a session with: tickets that only it can read, and a cache for session ids.
//!
//! Both live in one configuration and end with it, so a session never crosses to another trust bundle, other name rules or
//! another client policy. Within it they end with their lifetime, and with the server's own certificate.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::{ProducesTickets, ServerSessionMemoryCache, StoresServerSessions};

use super::material::KeySlot;

/// How many session ids of TLS 1.2 one configuration remembers (about 1 KiB each with a client certificate).
const CAPACITY: usize = 256;
/// Of the stamp before each session: its time, and the number of the server's key.
const STAMP: usize = 16;

/// What a session must still fit to be resumed.
#[derive(Debug)]
struct Bounds {
    keys: Arc<KeySlot>,
    start: Instant,
    lifetime: Duration,
}

impl Bounds {
    fn new(keys: &Arc<KeySlot>, lifetime: Duration) -> Self {
        Self { keys: Arc::clone(keys), start: Instant::now(), lifetime }
    }

    /// A session with its stamp before it.
    fn stamped(&self, session: &[u8]) -> Vec<u8> {
        let mut stamped = Vec::with_capacity(STAMP + session.len());
        stamped.extend(self.now().to_be_bytes());
        stamped.extend(self.keys.number().to_be_bytes());
        stamped.extend(session);
        stamped
    }

    /// The session without its stamp, if it is young enough and of the key of the moment.
    fn fresh(&self, stored: &[u8]) -> Option<Vec<u8>> {
        let (time, rest) = stored.split_first_chunk::<8>()?;
        let (key, session) = rest.split_first_chunk::<8>()?;
        let age = self.now().saturating_sub(u64::from_be_bytes(*time));
        let young = u128::from(age) < self.lifetime.as_millis();
        (young && u64::from_be_bytes(*key) == self.keys.number()).then(|| session.to_vec())
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }
}

/// Tickets of one configuration, under keys of its own that change every six hours.
#[derive(Debug)]
pub(super) struct BoundTickets {
    inner: Arc<dyn ProducesTickets>,
    bounds: Bounds,
}

impl BoundTickets {
    /// # Errors
    /// The system gives no random bytes.
    pub(super) fn new(keys: &Arc<KeySlot>, lifetime: Duration) -> Result<Self, rustls::Error> {
        Ok(Self { inner: Ticketer::new()?, bounds: Bounds::new(keys, lifetime) })
    }
}

impl ProducesTickets for BoundTickets {
    fn enabled(&self) -> bool {
        true
    }

    /// Seconds, at least one: a client takes zero for "at once too old".
    fn lifetime(&self) -> u32 {
        let own = u32::try_from(self.bounds.lifetime.as_secs()).unwrap_or(u32::MAX).max(1);
        own.min(self.inner.lifetime())
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.inner.encrypt(&self.bounds.stamped(plain))
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.inner.decrypt(cipher).and_then(|stored| self.bounds.fresh(&stored))
    }
}

/// Session ids of one configuration.
#[derive(Debug)]
pub(super) struct BoundSessions {
    inner: Arc<ServerSessionMemoryCache>,
    bounds: Bounds,
}

impl BoundSessions {
    pub(super) fn new(keys: &Arc<KeySlot>, lifetime: Duration) -> Self {
        Self { inner: ServerSessionMemoryCache::new(CAPACITY), bounds: Bounds::new(keys, lifetime) }
    }
}

impl StoresServerSessions for BoundSessions {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        self.inner.put(key, self.bounds.stamped(&value))
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.inner.get(key).and_then(|stored| self.bounds.fresh(&stored))
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.inner.take(key).and_then(|stored| self.bounds.fresh(&stored))
    }

    fn can_cache(&self) -> bool {
        true
    }
}
