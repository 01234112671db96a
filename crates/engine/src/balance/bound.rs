//! Consistent hashing with bounded loads (<https://arxiv.org/abs/1608.01350>): an endpoint that has too much of the
//! cluster's requests under way gives what comes to others, in an order that follows from the hash, as Envoy's does.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rand_mt::Mt;

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
    /// Envoy's generator, `std::mt19937`.
    random: Mt,
}

impl Shuffle {
    fn new(count: usize, seed: u64) -> Self {
        // It takes the lower half of the hash.
        Self { left: (0..count).collect(), done: 0, random: Mt::new(seed as u32) }
    }
}

impl Iterator for Shuffle {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let open = u32::try_from(self.left.len().checked_sub(self.done)?).ok()?;
        let width = (1_u64 << 32).checked_div(u64::from(open))?;
        let step = loop {
            let step = u64::from(self.random.next_u32()).checked_div(width)?;
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

#[cfg(test)]
mod tests {
    use super::*;

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
