//! Token buckets: so many at once, and so many more as time goes on.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::moment::Moment;

/// Envoy's slowest refill: one token in a year.
const LEAST_RATE: f64 = 1.0 / (365.0 * 24.0 * 60.0 * 60.0);

/// How a bucket is made (`envoy.type.v3.TokenBucket`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BucketPlan {
    /// Tokens at most, and at first.
    pub max_tokens: u32,
    /// Tokens that come in each interval. Default 1.
    pub tokens_per_fill: u32,
    /// The interval. Tokens come evenly over it, as in Envoy, and not all at its end.
    pub fill_interval: Duration,
}

impl BucketPlan {
    /// A full bucket.
    #[must_use]
    pub fn open(&self) -> Arc<TokenBucket> {
        let level = Level { tokens: f64::from(self.max_tokens), at: Moment::START };
        Arc::new(TokenBucket { max: f64::from(self.max_tokens), rate: self.rate(), level: Mutex::new(level) })
    }

    /// Tokens in a second.
    fn rate(&self) -> f64 {
        let rate = f64::from(self.tokens_per_fill) / self.fill_interval.as_secs_f64();
        // An interval of zero is no interval: the bucket never holds anything then, and nothing is divided by zero.
        if rate.is_finite() { rate.max(LEAST_RATE) } else { f64::MAX }
    }
}

/// A bucket that all workers share.
#[derive(Debug)]
pub struct TokenBucket {
    max: f64,
    rate: f64,
    /// Tokens are counted, not read off a clock: two workers whose clocks were read in another order than they come here
    /// still find every whole token.
    level: Mutex<Level>,
}

#[derive(Debug)]
struct Level {
    tokens: f64,
    /// When it held that many.
    at: Moment,
}

impl TokenBucket {
    /// Takes so many tokens, all or none. Nobody can take none: Envoy refuses that as well.
    #[must_use]
    pub fn take(&self, tokens: u64, now: Moment) -> bool {
        let wanted = tokens as f64;
        self.with_level(now, |level| {
            let enough = tokens > 0 && level.tokens >= wanted;
            if enough {
                level.tokens -= wanted;
            }
            enough
        })
    }

    /// Gives tokens back, up to the bucket's size.
    pub fn give_back(&self, tokens: u64, now: Moment) {
        self.with_level(now, |level| level.tokens = (level.tokens + tokens as f64).min(self.max));
    }

    /// The size.
    #[must_use]
    pub fn max_tokens(&self) -> u64 {
        self.max as u64
    }

    /// Tokens in a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// Whole tokens that are left, and whole seconds (rounded up) until there is one; zero where there is one.
    #[must_use]
    pub fn left(&self, now: Moment) -> (u64, u64) {
        let tokens = self.with_level(now, |level| level.tokens);
        let seconds = if tokens >= 1.0 { 0.0 } else { ((1.0 - tokens) / self.rate).ceil() };
        (tokens as u64, seconds as u64)
    }

    fn with_level<T>(&self, now: Moment, act: impl FnOnce(&mut Level) -> T) -> T {
        let mut level = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        if now > level.at {
            level.tokens = (level.tokens + (now - level.at).as_secs_f64() * self.rate).min(self.max);
            level.at = now;
        }
        act(&mut level)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(max_tokens: u32, tokens_per_fill: u32, seconds: u64) -> Arc<TokenBucket> {
        BucketPlan { max_tokens, tokens_per_fill, fill_interval: Duration::from_secs(seconds) }.open()
    }

    fn at(millis: u64) -> Moment {
        Moment::at(Duration::from_millis(millis))
    }

    #[test]
    fn full_at_first_and_filled_evenly() {
        let bucket = bucket(2, 1, 10);
        assert!(bucket.take(1, at(5_000)) && bucket.take(1, at(5_000)));
        assert!(!bucket.take(1, at(5_000)));
        assert_eq!(bucket.left(at(5_000)), (0, 10));
        assert!(!bucket.take(1, at(14_999)), "not yet a whole one");
        assert_eq!(bucket.left(at(14_000)), (0, 1));
        assert!(bucket.take(1, at(15_000)));
        assert_eq!(bucket.left(at(1_000_000)), (2, 0), "never more than its size");
    }

    #[test]
    fn several_at_once() {
        let bucket = bucket(4, 8, 2);
        assert!(bucket.take(3, at(0)));
        assert!(!bucket.take(3, at(0)), "all or none");
        assert_eq!(bucket.left(at(0)).0, 1);
        assert!(!bucket.take(0, at(0)), "none is never given");
        bucket.give_back(2, at(0));
        assert_eq!(bucket.left(at(0)), (3, 0));
        bucket.give_back(9, at(0));
        assert_eq!(bucket.left(at(0)), (4, 0));
        assert!(bucket.take(4, at(0)) && bucket.take(1, at(250)), "four tokens a second");
    }

    #[test]
    fn clocks_that_go_back_take_nothing_away() {
        let bucket = bucket(3, 1, 3600);
        assert!(bucket.take(1, at(9_000)) && bucket.take(1, at(8_000)) && bucket.take(1, at(7_000)));
        assert!(!bucket.take(1, at(9_001)));
    }

    #[test]
    fn nothing_in_it() {
        let bucket = bucket(0, 1, 0);
        assert!(!bucket.take(1, at(1)));
        assert_eq!(bucket.left(at(2)), (0, 1));
    }

    #[test]
    fn workers_share_it() {
        let bucket = bucket(1_000, 1, 3600);
        let taken: usize = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|worker| {
                    let bucket = &bucket;
                    scope.spawn(move || (0..600).filter(|n| bucket.take(1, at(n * 4 + worker))).count())
                })
                .collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        assert_eq!(taken, 1_000);
    }
}
