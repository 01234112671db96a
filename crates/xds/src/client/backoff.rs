//! How long to wait before the next try.

use std::time::Duration;

/// Exponential back-off with full jitter, as Envoy's: the n-th wait is uniform in `[0, min(base * 2^n, max))`,
/// but never under a tenth of that bound, so that many clients neither come together nor spin.
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    max: Duration,
    tries: u32,
}

impl Backoff {
    /// With a first bound and a last one.
    pub fn new(base: Duration, max: Duration) -> Self {
        Self { base, max, tries: 0 }
    }

    /// The next wait. `unit` is a random number in `[0, 1)`.
    pub fn next(&mut self, unit: f64) -> Duration {
        let bound = self.base.saturating_mul(1 << self.tries.min(20)).min(self.max);
        self.tries = self.tries.saturating_add(1);
        bound.mul_f64(unit.clamp(0.1, 1.0))
    }

    /// It worked: begin anew next time.
    pub fn reset(&mut self) {
        self.tries = 0;
    }
}

impl Default for Backoff {
    /// From 250 ms to 3 s: a thousand proxies come back within that at a pace that one control plane serves.
    fn default() -> Self {
        Self::new(Duration::from_millis(250), Duration::from_secs(3))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_its_bound_and_starts_anew() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let waits: Vec<u128> = (0..6).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1000, 1000]);
        backoff.reset();
        assert_eq!(backoff.next(0.5).as_millis(), 50);
        assert_eq!(backoff.next(0.0).as_millis(), 20);
    }

    #[test]
    fn a_long_outage_does_not_overflow() {
        let mut backoff = Backoff { base: Duration::from_secs(1), max: Duration::from_secs(10), tries: u32::MAX };
        assert_eq!(backoff.next(1.0), Duration::from_secs(10));
    }
}
