//! How often somebody may ask.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Requests at once; then [`PER_SECOND`]. Generous: a certificate of 5 s is renewed every 2 s, and many workloads of one
/// machine may start together.
const BURST: f64 = 100.0;
/// Requests per second in the long run.
const PER_SECOND: f64 = 20.0;
/// How many askers are remembered; beyond it the memory is wiped, which forgives everybody once.
const MAX_ASKERS: usize = 10_000;

/// A token bucket per asker.
#[derive(Debug, Default)]
pub(super) struct RateLimit {
    askers: Mutex<HashMap<String, Bucket>>,
}

#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl RateLimit {
    /// Takes one request from the asker's allowance, or says how long to wait.
    pub(super) fn admit(&self, asker: &str) -> Result<(), Duration> {
        self.admit_at(asker, Instant::now())
    }

    fn admit_at(&self, asker: &str, now: Instant) -> Result<(), Duration> {
        let mut askers = self.askers.lock();
        if askers.len() >= MAX_ASKERS && !askers.contains_key(asker) {
            askers.clear();
        }
        let bucket = askers.entry(asker.to_owned()).or_insert(Bucket { left: BURST, at: now });
        let passed = now.saturating_duration_since(bucket.at).as_secs_f64();
        bucket.left = (bucket.left + passed * PER_SECOND).min(BURST);
        bucket.at = now;
        if bucket.left >= 1.0 {
            bucket.left -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - bucket.left) / PER_SECOND))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_a_trickle_and_bounded_memory() {
        let limit = RateLimit::default();
        let start = Instant::now();
        let admitted = (0..500).filter(|_| limit.admit_at("a", start).is_ok()).count();
        assert_eq!(admitted, 100);
        assert!(limit.admit_at("b", start).is_ok(), "another asker is not affected");
        let later = start + Duration::from_secs(1);
        assert_eq!((0..500).filter(|_| limit.admit_at("a", later).is_ok()).count(), 20);
        for asker in 0..30_000 {
            let _ = limit.admit_at(&asker.to_string(), later);
        }
        assert!(limit.askers.lock().len() <= MAX_ASKERS);
    }
}
