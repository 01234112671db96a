//! Key sets that are fetched: what is known of them, and for how long it counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;

use super::keys::KeySet;
use crate::moment::Moment;

/// How long keys count on after their time when no newer ones can be had. Afterwards nothing is believed.
pub const STALE_BOUND: Duration = Duration::from_secs(3600);
/// After a failure the next try waits so long; until then requests fail at once.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);
/// Keys younger than this are not fetched anew for a token whose key is not among them.
const REFETCH_PAUSE: Duration = Duration::from_secs(10);

/// Where a key set is fetched from, and how.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RemoteSource {
    /// The cluster that serves it.
    pub cluster: Arc<str>,
    /// `Host` of the request.
    pub authority: Arc<str>,
    /// Path and query of the request.
    pub path: Arc<str>,
    /// Limit of one try.
    pub timeout: Duration,
    /// How long a fetched set counts. Default 10 min.
    pub cache: Duration,
    /// Tries after the first. Default 0 as in Envoy; with a policy 1.
    pub retries: u32,
    /// Fetch it before the first request asks for it.
    pub ahead: bool,
}

/// A key set that is fetched, shared by all providers that name the same source.
#[derive(Debug)]
pub struct RemoteKeys {
    /// Where from.
    pub source: RemoteSource,
    known: ArcSwapOption<Known>,
    /// Nanoseconds of the last failure's moment plus one; 0: the last fetch did not fail.
    failed: AtomicU64,
}

#[derive(Debug)]
struct Known {
    keys: Arc<KeySet>,
    at: Moment,
}

/// What is known of a set at a moment.
#[derive(Debug, Clone)]
pub enum Look {
    /// Keys that count; true: they should be fetched anew in the background.
    Keys(Arc<KeySet>, bool),
    /// They must be fetched first.
    Fetch,
    /// They could not be fetched just now.
    Failed,
}

impl RemoteKeys {
    /// A set that has not been fetched.
    #[must_use]
    pub fn new(source: RemoteSource) -> Self {
        Self { source, known: ArcSwapOption::empty(), failed: AtomicU64::new(0) }
    }

    /// What is known at `now`.
    #[must_use]
    pub fn look(&self, now: Moment) -> Look {
        if let Some(known) = &*self.known.load() {
            let age = now - known.at;
            if age < self.source.cache {
                return Look::Keys(known.keys.clone(), false);
            }
            if age < self.source.cache + STALE_BOUND {
                return Look::Keys(known.keys.clone(), !self.failed_lately(now));
            }
        }
        if self.failed_lately(now) { Look::Failed } else { Look::Fetch }
    }

    /// Whether a token whose key is not in the set is worth another fetch.
    #[must_use]
    pub fn may_be_outdated(&self, now: Moment) -> bool {
        let old = self.known.load().as_ref().is_some_and(|known| now - known.at >= REFETCH_PAUSE);
        old && !self.failed_lately(now)
    }

    /// Whether it should be fetched before anybody asks.
    #[must_use]
    pub fn is_due(&self, now: Moment) -> bool {
        self.source.ahead && matches!(self.look(now), Look::Fetch | Look::Keys(_, true))
    }

    /// A fetch brought keys.
    pub fn put(&self, keys: KeySet, now: Moment) {
        self.failed.store(0, Ordering::Relaxed);
        self.known.store(Some(Arc::new(Known { keys: Arc::new(keys), at: now })));
    }

    /// A fetch failed; what was known before stays.
    pub fn fail(&self, now: Moment) {
        self.failed.store(now.nanos().saturating_add(1), Ordering::Relaxed);
    }

    fn failed_lately(&self, now: Moment) -> bool {
        match self.failed.load(Ordering::Relaxed) {
            0 => false,
            at => Duration::from_nanos(now.nanos().saturating_sub(at - 1)) < FAILURE_PAUSE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::at(Duration::from_secs(seconds))
    }

    fn remote() -> RemoteKeys {
        let text = Arc::<str>::from("x");
        RemoteKeys::new(RemoteSource {
            cluster: text.clone(),
            authority: text.clone(),
            path: text,
            timeout: Duration::from_secs(1),
            cache: Duration::from_secs(300),
            retries: 0,
            ahead: true,
        })
    }

    fn keys() -> KeySet {
        KeySet::parse(br#"{"keys":[{"kty":"oct","k":"c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"}]}"#).unwrap()
    }

    #[test]
    fn keys_count_for_their_time_then_until_a_bound_then_never() {
        let remote = remote();
        assert!(matches!(remote.look(at(0)), Look::Fetch) && remote.is_due(at(0)));
        remote.put(keys(), at(10));
        assert!(matches!(remote.look(at(309)), Look::Keys(_, false)) && !remote.is_due(at(309)));
        assert!(matches!(remote.look(at(310)), Look::Keys(_, true)) && remote.is_due(at(310)));
        remote.fail(at(311));
        assert!(matches!(remote.look(at(311)), Look::Keys(_, false)), "the last good ones, and a pause");
        assert!(matches!(remote.look(at(313)), Look::Keys(_, true)));
        assert!(matches!(remote.look(at(10 + 300 + 3600)), Look::Fetch), "the bound");
    }

    #[test]
    fn a_failure_is_not_repeated_at_once() {
        let remote = remote();
        remote.fail(at(5));
        assert!(matches!(remote.look(at(5)), Look::Failed));
        assert!(matches!(remote.look(at(6)), Look::Fetch));
        assert!(!remote.may_be_outdated(at(6)), "nothing is known");
        remote.put(keys(), at(7));
        assert!(!remote.may_be_outdated(at(16)) && remote.may_be_outdated(at(17)));
    }
}
