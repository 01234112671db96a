//! Consistent hashing on a ring, with the entries that Envoy makes: a mixed mesh agrees on endpoints.

use xxhash_rust::xxh64::xxh64;

/// Points on the ring with the position of their endpoint, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ring {
    points: Vec<(u64, u32)>,
}

impl Ring {
    /// `hosts`: key and normalised weight (the sum is 1).
    pub(super) fn new(hosts: &[(String, f64)], min_size: u64, max_size: u64) -> Self {
        let lowest = hosts.iter().map(|(_, weight)| *weight).filter(|w| *w > 0.0).fold(1.0, f64::min);
        // The lightest endpoint gets a whole number of entries, unless that is too many in all.
        let scale = ((lowest * min_size as f64).ceil() / lowest).min(max_size as f64);
        let mut points = Vec::with_capacity(scale.ceil() as usize);
        let (mut made, mut target) = (0.0, 0.0);
        let mut key = String::new();
        for (at, (name, weight)) in hosts.iter().enumerate() {
            target += scale * weight;
            let mut number = 0_u64;
            while made < target {
                key.clear();
                key.push_str(name);
                key.push('_');
                crate::format::push_number(&mut key, number);
                points.push((xxh64(key.as_bytes(), 0), at as u32));
                number += 1;
                made += 1.0;
            }
        }
        points.sort_by_key(|(hash, _)| *hash);
        Self { points }
    }

    /// The endpoint's position for a hash; later attempts go round the ring.
    pub(super) fn find(&self, hash: u64, attempt: u32) -> Option<usize> {
        let first = self.points.partition_point(|(point, _)| *point < hash);
        let at = (first % self.points.len().max(1) + attempt as usize).checked_rem(self.points.len())?;
        self.points.get(at).map(|(_, host)| *host as usize)
    }
}
