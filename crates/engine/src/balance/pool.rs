//! Choosing one endpoint of a list, by weight.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::LbPolicy;
use super::bound::Bound;
use super::maglev::Maglev;
use super::ring::Ring;
use crate::dice::Dice;
use crate::endpoint::Endpoint;

/// A list of endpoints and a way to choose.
#[derive(Debug, Default)]
pub(super) struct Pool {
    hosts: Vec<Arc<Endpoint>>,
    choice: Choice,
}

#[derive(Debug, Default)]
enum Choice {
    #[default]
    None,
    /// In turn, all alike.
    Turn,
    /// In turn, by weight.
    Stride(Vec<u16>),
    /// By chance, by running sums of the weights (empty: all alike).
    Chance(Vec<u64>),
    /// The best of all.
    LeastOfAll,
    /// The best of a few.
    LeastRequest {
        choices: u32,
        bias: f64,
        sums: Vec<u64>,
    },
    Ring(Ring, Option<Bound>),
    Maglev(Maglev, Option<Bound>),
}

/// How many are compared where all were asked for but weights differ: there Envoy goes by the weights alone.
const SAMPLE: u32 = 2;
/// The stride scheduler's full weight.
const FULL: u64 = u16::MAX as u64;

impl Pool {
    /// `weights`: one for each endpoint.
    pub(super) fn new(policy: &LbPolicy, hosts: Vec<Arc<Endpoint>>, weights: &[u64]) -> Self {
        if hosts.is_empty() {
            return Self::default();
        }
        let alike = weights.windows(2).all(|pair| matches!(pair, [a, b] if a == b));
        let choice = match policy {
            LbPolicy::RoundRobin { .. } | LbPolicy::ClusterProvided if alike => Choice::Turn,
            LbPolicy::RoundRobin { .. } | LbPolicy::ClusterProvided => Choice::Stride(strides(weights)),
            LbPolicy::Random => Choice::Chance(if alike { Vec::new() } else { sums(weights) }),
            LbPolicy::LeastRequest { choices: None, .. } if alike => Choice::LeastOfAll,
            LbPolicy::LeastRequest { choices, bias, .. } => Choice::LeastRequest {
                choices: choices.unwrap_or(SAMPLE),
                bias: *bias,
                sums: if alike { Vec::new() } else { sums(weights) },
            },
            // Hashing is over a whole priority: see `hashed`.
            LbPolicy::RingHash { .. } | LbPolicy::Maglev { .. } => Choice::Turn,
        };
        Self { hosts, choice }
    }

    /// A pool for consistent hashing. `weights` are normalised: their sum is 1.
    pub(super) fn hashed(
        policy: &LbPolicy,
        hosts: Vec<Arc<Endpoint>>,
        weights: &[f64],
        by_name: bool,
        bound: Option<Bound>,
    ) -> Self {
        let keyed: Vec<(String, f64)> =
            hosts.iter().zip(weights).map(|(host, weight)| (hash_key(host, by_name), *weight)).collect();
        let choice = match policy {
            _ if hosts.is_empty() => Choice::None,
            LbPolicy::Maglev { table_size } => Choice::Maglev(Maglev::new(&keyed, *table_size), bound),
            LbPolicy::RingHash { min_size, max_size } => Choice::Ring(Ring::new(&keyed, *min_size, *max_size), bound),
            _ => Choice::Turn,
        };
        Self { hosts, choice }
    }

    pub(super) fn pick(&self, hash: u64, attempt: u32, turn: &AtomicU64, dice: &mut Dice) -> Option<&Arc<Endpoint>> {
        let count = self.hosts.len() as u64;
        let at = match &self.choice {
            Choice::None => return None,
            Choice::Turn => turn.fetch_add(1, Ordering::Relaxed).checked_rem(count)?,
            Choice::Stride(strides) => stride(strides, turn)?,
            Choice::Chance(sums) => by_chance(sums, count, dice),
            Choice::LeastOfAll => return self.least_of_all(dice),
            Choice::LeastRequest { choices, bias, sums } => return self.least(*choices, *bias, sums, dice),
            Choice::Ring(ring, bound) => self.bounded(bound.as_ref(), ring.find(hash, attempt)?, hash)?,
            Choice::Maglev(maglev, bound) => self.bounded(bound.as_ref(), maglev.find(hash, attempt)?, hash)?,
        };
        self.hosts.get(usize::try_from(at).ok()?)
    }

    fn bounded(&self, bound: Option<&Bound>, at: usize, hash: u64) -> Option<u64> {
        let at = match bound {
            None => at,
            Some(bound) => bound.find(&self.hosts, at, hash)?,
        };
        Some(at as u64)
    }

    /// Of a few endpoints taken by weight the one with the fewest requests under way; of equals the first.
    fn least(&self, choices: u32, bias: f64, sums: &[u64], dice: &mut Dice) -> Option<&Arc<Endpoint>> {
        let count = self.hosts.len() as u64;
        let mut best: Option<(&Arc<Endpoint>, f64)> = None;
        for _ in 0..choices {
            let host = self.hosts.get(usize::try_from(by_chance(sums, count, dice)).ok()?)?;
            let active = f64::from(host.state.active.load(Ordering::Relaxed));
            let cost = if sums.is_empty() { active } else { active.powf(bias) / f64::from(host.weight) };
            if best.is_none_or(|(_, lowest)| cost < lowest) {
                best = Some((host, cost));
            }
        }
        best.map(|(host, _)| host)
    }

    /// Of all endpoints the one with the fewest requests under way; of equals each has the same chance.
    fn least_of_all(&self, dice: &mut Dice) -> Option<&Arc<Endpoint>> {
        let mut best: Option<(&Arc<Endpoint>, u32)> = None;
        let mut equals = 1;
        for host in &self.hosts {
            let active = host.state.active.load(Ordering::Relaxed);
            match best {
                Some((_, lowest)) if active > lowest => {}
                Some((_, lowest)) if active == lowest => {
                    equals += 1;
                    if dice.below(equals) == 0 {
                        best = Some((host, active));
                    }
                }
                _ => {
                    equals = 1;
                    best = Some((host, active));
                }
            }
        }
        best.map(|(host, _)| host)
    }
}

/// Weights scaled so that the heaviest is full.
fn strides(weights: &[u64]) -> Vec<u16> {
    let heaviest = weights.iter().copied().max().unwrap_or(1).max(1);
    let scale = |weight: &u64| (u128::from(*weight) * u128::from(FULL) / u128::from(heaviest)).max(1) as u16;
    weights.iter().map(scale).collect()
}

/// Static stride scheduling: endpoints in turn, each sitting out rounds in proportion to the weight it lacks. No lock.
fn stride(strides: &[u16], turn: &AtomicU64) -> Option<u64> {
    let count = strides.len() as u64;
    // The heaviest endpoint never sits out, so a round finds one.
    for _ in 0..=count {
        let turn = turn.fetch_add(1, Ordering::Relaxed);
        let at = turn.checked_rem(count)?;
        let round = turn / count;
        let weight = u64::from(*strides.get(usize::try_from(at).ok()?)?);
        let phase = (weight.wrapping_mul(round % FULL) + at.wrapping_mul(FULL / 2)) % FULL;
        if phase >= FULL - weight {
            return Some(at);
        }
    }
    Some(0)
}

fn sums(weights: &[u64]) -> Vec<u64> {
    let running = weights.iter().scan(0_u64, |sum, weight| {
        *sum = sum.saturating_add(*weight);
        Some(*sum)
    });
    running.collect()
}

fn by_chance(sums: &[u64], count: u64, dice: &mut Dice) -> u64 {
    match sums.last() {
        None => dice.below(count),
        Some(total) => {
            let point = dice.below(*total);
            sums.partition_point(|sum| *sum <= point) as u64
        }
    }
}

/// What stands for an endpoint in a hash: its `hash_key`, its host name if that is wanted, or its address.
fn hash_key(host: &Endpoint, by_name: bool) -> String {
    let own = host.metadata.find("envoy.lb", ["hash_key"]).and_then(|key| key.text()).filter(|key| !key.is_empty());
    match own {
        Some(key) => key.to_owned(),
        None if by_name && !host.hostname.is_empty() => host.hostname.to_string(),
        None => host.address.to_string(),
    }
}
