//! Maglev hashing, with the table that Envoy makes: a mixed mesh agrees on endpoints.

use xxhash_rust::xxh64::xxh64;

/// For every remainder of a hash the position of its endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Maglev {
    table: Vec<u32>,
}

const EMPTY: u32 = u32::MAX;

struct Entry {
    offset: u64,
    skip: u64,
    weight: f64,
    /// The next iteration's threshold: light endpoints sit out some rounds.
    target: f64,
    next: u64,
}

impl Maglev {
    /// `hosts`: key and normalised weight. `size` is a prime, at least 2.
    pub(super) fn new(hosts: &[(String, f64)], size: u64) -> Self {
        let heaviest = hosts.iter().map(|(_, weight)| *weight).fold(0.0, f64::max);
        if heaviest <= 0.0 || size < 2 {
            return Self { table: Vec::new() };
        }
        let entry = |(key, weight): &(String, f64)| Entry {
            offset: xxh64(key.as_bytes(), 0) % size,
            skip: xxh64(key.as_bytes(), 1) % (size - 1) + 1,
            weight: *weight,
            target: 0.0,
            next: 0,
        };
        let mut entries: Vec<Entry> = hosts.iter().map(entry).collect();
        let mut table = vec![EMPTY; usize::try_from(size).unwrap_or(0)];
        let mut filled = 0;
        let mut round = 1.0;
        while filled < size {
            for (at, entry) in entries.iter_mut().enumerate() {
                if filled == size {
                    break;
                }
                if entry.weight <= 0.0 || round * entry.weight < entry.target {
                    continue;
                }
                entry.target += heaviest;
                if let Some(slot) = entry.take_free(&mut table, size) {
                    *slot = at as u32;
                }
                filled += 1;
            }
            round += 1.0;
        }
        Self { table }
    }

    /// The endpoint's position for a hash; later attempts look elsewhere.
    pub(super) fn find(&self, hash: u64, attempt: u32) -> Option<usize> {
        let hash = if attempt > 0 { hash ^ (u64::MAX - u64::from(attempt) + 1) } else { hash };
        let at = hash.checked_rem(self.table.len() as u64)?;
        self.table.get(usize::try_from(at).ok()?).map(|host| *host as usize)
    }
}

impl Entry {
    /// The next free place in this endpoint's own order. The table has one, or the caller would have stopped.
    fn take_free<'t>(&mut self, table: &'t mut [u32], size: u64) -> Option<&'t mut u32> {
        loop {
            let place = usize::try_from((self.offset + self.skip * self.next) % size).ok()?;
            self.next += 1;
            if table.get(place).copied()? == EMPTY {
                return table.get_mut(place);
            }
            if self.next > 2 * size {
                return None;
            }
        }
    }
}
