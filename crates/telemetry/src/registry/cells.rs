//! The numbers themselves: relaxed atomics, one set per worker, so that nobody waits and no cache line is shared.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    #[inline]
    pub fn inc(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// Adds `n`.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The number now.
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that goes up and down. One worker may count down what another counted up: single shards wrap
/// around, their sum is right.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Adds one.
    #[inline]
    pub fn inc(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// Takes one away.
    #[inline]
    pub fn dec(&self) {
        self.0.fetch_sub(1, Relaxed);
    }

    /// Sets this shard's part.
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// This shard's part now (may have wrapped below zero).
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Upper bounds of the histograms, as Envoy and Istio have them by default, in thousandths of the unit.
pub const BOUNDS: [u64; 19] = [
    500,
    1_000,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    600_000_000,
    1_800_000_000,
    3_600_000_000,
];

/// The bounds as Prometheus' text prints them.
pub const BOUND_TEXTS: [&str; 20] = [
    "0.5", "1", "5", "10", "25", "50", "100", "250", "500", "1000", "2500", "5000", "10000", "30000", "60000",
    "300000", "600000", "1800000", "3600000", "+Inf",
];

/// A histogram with Envoy's default buckets. Values are kept in thousandths: microseconds for a histogram in
/// milliseconds.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; 20],
    sum: AtomicU64,
}

impl Histogram {
    /// Counts a duration (the histogram's unit is milliseconds).
    #[inline]
    pub fn observe_duration(&self, duration: Duration) {
        self.observe_thousandths(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
    }

    /// Counts a whole number (bytes, connections).
    #[inline]
    pub fn observe(&self, value: u64) {
        self.observe_thousandths(value.saturating_mul(1_000));
    }

    #[inline]
    fn observe_thousandths(&self, value: u64) {
        let index = BOUNDS.partition_point(|bound| *bound < value);
        if let Some(bucket) = self.buckets.get(index) {
            bucket.fetch_add(1, Relaxed);
        }
        self.sum.fetch_add(value, Relaxed);
    }

    /// Adds this shard's numbers to `snapshot`.
    pub fn add_to(&self, snapshot: &mut HistogramSnapshot) {
        for (total, bucket) in snapshot.buckets.iter_mut().zip(&self.buckets) {
            *total += bucket.load(Relaxed);
        }
        snapshot.sum = snapshot.sum.wrapping_add(self.sum.load(Relaxed));
    }
}

/// What a histogram held at one moment; buckets are not cumulative.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HistogramSnapshot {
    /// How many values fell in each bucket; the last is everything above the last bound.
    pub buckets: [u64; 20],
    /// Sum of the values in thousandths.
    pub sum: u64,
}

impl HistogramSnapshot {
    /// How many values there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The value below which `share` (0 to 1) of the values lie, by linear interpolation in its bucket.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let wanted = share.clamp(0.0, 1.0) * count as f64;
        let (mut below, mut lower) = (0_u64, 0_u64);
        for (index, inside) in self.buckets.iter().enumerate() {
            let upper = BOUNDS.get(index).copied().unwrap_or(lower);
            if *inside > 0 && (below + inside) as f64 >= wanted {
                let part = ((wanted - below as f64) / *inside as f64).clamp(0.0, 1.0);
                return Some((lower as f64 + part * (upper - lower) as f64) / 1_000.0);
            }
            below += inside;
            lower = upper;
        }
        Some(lower as f64 / 1_000.0)
    }
}

/// Steps per doubling of a [`Latency`]: a quantile is off by less than 1/8.
const STEPS: u32 = 8;
/// Number of buckets of a [`Latency`]: from 64 us to over an hour.
pub const LATENCY_BUCKETS: usize = 200;

/// A finer histogram of durations for quantiles (`tulle stat`): eight steps per doubling from 64 us on.
#[derive(Debug)]
pub struct Latency([AtomicU32; LATENCY_BUCKETS]);

impl Default for Latency {
    fn default() -> Self {
        Self([const { AtomicU32::new(0) }; LATENCY_BUCKETS])
    }
}

impl Latency {
    /// Counts a duration.
    #[inline]
    pub fn observe(&self, duration: Duration) {
        if let Some(bucket) = self.0.get(latency_index(duration)) {
            bucket.fetch_add(1, Relaxed);
        }
    }

    /// Adds this shard's numbers to `totals`, which wrap around at 2^32 as the shards do.
    pub fn add_to(&self, totals: &mut [u32; LATENCY_BUCKETS]) {
        for (total, bucket) in totals.iter_mut().zip(&self.0) {
            *total = total.wrapping_add(bucket.load(Relaxed));
        }
    }
}

/// The bucket of a duration in a [`Latency`].
fn latency_index(duration: Duration) -> usize {
    let units = u32::try_from(duration.as_micros() >> 6).unwrap_or(u32::MAX);
    if units < STEPS {
        return units as usize;
    }
    let exponent = 31 - units.leading_zeros();
    let step = (units >> (exponent - 3)) - STEPS;
    (((exponent - 2) * STEPS + step) as usize).min(LATENCY_BUCKETS - 1)
}

/// The upper end of a [`Latency`] bucket, in milliseconds.
pub fn latency_bound_ms(index: usize) -> f64 {
    let next = u32::try_from(index).unwrap_or(0) + 1;
    let units = if next <= STEPS {
        f64::from(next)
    } else {
        f64::from(STEPS + next % STEPS) * f64::powi(2.0, (next / STEPS) as i32 - 1)
    };
    units * 0.064
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histogram_counts_at_the_bound_below_it() {
        let histogram = Histogram::default();
        for micros in [500, 501, 1_000, 4_000_000_000_000] {
            histogram.observe_duration(Duration::from_micros(micros));
        }
        let mut snapshot = HistogramSnapshot::default();
        histogram.add_to(&mut snapshot);
        assert_eq!(snapshot.buckets[..3], [1, 2, 0]);
        assert_eq!(snapshot.buckets[19], 1);
        assert_eq!(snapshot.count(), 4);
        assert_eq!(snapshot.sum, 4_000_000_002_001);
    }

    #[test]
    fn quantiles_interpolate() {
        let mut snapshot = HistogramSnapshot::default();
        snapshot.buckets[2] = 10; // 1 ms .. 5 ms
        assert_eq!(snapshot.quantile(0.5), Some(3.0));
        assert_eq!(HistogramSnapshot::default().quantile(0.5), None);
    }

    #[test]
    fn latency_buckets_are_ordered_and_close() {
        let mut last = 0;
        for micros in (0..5_000_000_u64).step_by(977) {
            let index = latency_index(Duration::from_micros(micros));
            assert!(index >= last, "{micros}");
            last = index;
            let (bound, value) = (latency_bound_ms(index), micros as f64 / 1_000.0);
            assert!(bound >= value && bound <= value * 1.13 + 0.065, "{micros} us in a bucket up to {bound} ms");
        }
        assert_eq!(latency_index(Duration::from_secs(1 << 40)), LATENCY_BUCKETS - 1);
    }
}
