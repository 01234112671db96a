//! Consistent hashing with bounded loads (<https://arxiv.org/abs/1608.01350>): an endpoint that has too much of the
//! cluster's requests under way gives what comes to others, in an order that follows from the hash, as Envoy's does.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::endpoint::{Endpoint, EndpointSet};

/// How much of the load each endpoint of a pool may have (`hash_balance_factor`).
#[derive(Debug)]
pub(super) struct Bound {
    /// Of the average, per cent; at least 100.
    percent: u32,
    /// By position; their sum is 1.
    weights: Vec<f64>,
    /// All endpoints of the cluster, whose requests make the average.
    everyone: Arc<[Arc<Endpoint>]>,
}

impl Bound {
    pub(super) fn new(percent: u32, weights: &[f64], everyone: &Arc<[Arc<Endpoint>]>) -> Self {
        Self { percent, weights: weights.to_vec(), everyone: everyone.clone() }
    }

    /// The endpoint at `first` where it has room; else the next that has, else the one that is least over its bound.
    pub(super) fn find(&self, hosts: &[Arc<Endpoint>], first: usize, hash: u64) -> Option<usize> {
        let active = |host: &Arc<Endpoint>| u64::from(host.state.active.load(Ordering::Relaxed));
        let all: u64 = self.everyone.iter().map(active).sum();
        let slots = ((all + 1) * u64::from(self.percent)).div_ceil(100) as f64;
        let load = |at: usize| -> Option<f64> {
            let most = (slots * self.weights.get(at)?).ceil().max(1.0);
            Some(active(hosts.get(at)?) as f64 / most)
        };
        let mut best = (first, load(first)?);
        if best.1 <= 1.0 {
            return Some(first);
        }
        for at in Shuffle::new(hosts.len(), hash).filter(|at| *at != first) {
            let other = load(at)?;
            if other <= 1.0 {
                return Some(at);
            }
            if other < best.1 {
                best = (at, other);
            }
        }
        Some(best.0)
    }
}

/// All endpoints of a cluster, in the form that bounds share.
pub(super) fn everyone(set: &EndpointSet) -> Arc<[Arc<Endpoint>]> {
    set.iter().cloned().collect()
}

/// The numbers below a count, each once, in an order that follows from a seed.
struct Shuffle {
    left: Vec<usize>,
    done: usize,
    random: Twister,
}

impl Shuffle {
    fn new(count: usize, seed: u64) -> Self {
        // Envoy's generator takes the lower half of the hash.
        Self { left: (0..count).collect(), done: 0, random: Twister::new(seed as u32) }
    }
}

impl Iterator for Shuffle {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let open = u32::try_from(self.left.len().checked_sub(self.done)?).ok()?;
        let width = (1_u64 << 32).checked_div(u64::from(open))?;
        let step = loop {
            let step = u64::from(self.random.next()?).checked_div(width)?;
            if step < u64::from(open) {
                break usize::try_from(step).ok()?;
            }
        };
        self.left.swap(self.done, self.done + step);
        let found = self.left.get(self.done).copied();
        self.done += 1;
        found
    }
}

/// The Mersenne Twister MT19937 (Matsumoto, Nishimura 1998).
struct Twister {
    words: Vec<u32>,
    at: usize,
}

const WORDS: usize = 624;
const MIDDLE: usize = 397;

impl Twister {
    fn new(seed: u32) -> Self {
        let next = |last: &u32| Some((last ^ (last >> 30)).wrapping_mul(1_812_433_253));
        let words = (1..WORDS as u32).scan(seed, |last, number| {
            *last = next(last)?.wrapping_add(number);
            Some(*last)
        });
        Self { words: std::iter::once(seed).chain(words).collect(), at: 0 }
    }

    /// The next number. Words are renewed one by one, as they are used.
    fn next(&mut self) -> Option<u32> {
        let word = |at: usize| self.words.get(at % WORDS).copied();
        let both = (word(self.at)? & 0x8000_0000) | (word(self.at + 1)? & 0x7fff_ffff);
        let odd = if both & 1 == 1 { 0x9908_b0df } else { 0 };
        let mut number = word(self.at + MIDDLE)? ^ (both >> 1) ^ odd;
        *self.words.get_mut(self.at)? = number;
        self.at = (self.at + 1) % WORDS;
        number ^= number >> 11;
        number ^= (number << 7) & 0x9d2c_5680;
        number ^= (number << 15) & 0xefc6_0000;
        Some(number ^ (number >> 18))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_twister_gives_its_published_numbers() {
        let mut twister = Twister::new(5489);
        let numbers: Vec<u32> = (0..10_000).filter_map(|_| twister.next()).collect();
        assert_eq!(numbers.first(), Some(&3_499_211_612));
        // What C++ demands of the 10,000th number of `std::mt19937`.
        assert_eq!(numbers.last(), Some(&4_123_659_995));
    }

    #[test]
    fn a_shuffle_has_every_number_once() {
        let mut order: Vec<usize> = Shuffle::new(50, 7).collect();
        assert_ne!(order, (0..50).collect::<Vec<_>>());
        assert_eq!(order, Shuffle::new(50, 7).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..50).collect::<Vec<_>>());
        assert_eq!(Shuffle::new(0, 7).count(), 0);
    }
}
