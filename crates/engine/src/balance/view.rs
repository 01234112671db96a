//! What follows from the endpoints and their health: load by priority, panic, pools.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::bound::{self, Bound};
use super::pool::Pool;
use super::zone::{Home, Zones};
use super::{LbPolicy, SlowStart};
use crate::cluster::ClusterConfig;
use crate::dice::Dice;
use crate::endpoint::{Endpoint, EndpointGroup, EndpointSet, HealthStatus, Locality};
use crate::moment::Moment;

/// How often weights are looked at again while an endpoint starts slowly.
const SLOW_START_STEP: Duration = Duration::from_millis(250);
/// Weights are scaled so that a slow start can take a small part of 1.
const SCALE: u64 = 10_000;

/// A picture of the endpoints at one moment.
#[derive(Debug, Default)]
pub(super) struct View {
    /// Load in per cent and who takes it, in order of preference.
    loads: Vec<(u32, Side)>,
    priorities: Vec<Sides>,
    /// How much of the whole load the healthy and the degraded endpoints of each priority could take, per cent.
    availability: Vec<(u32, u32)>,
    /// When the picture is too old.
    pub(super) refresh_at: Option<Moment>,
    /// Which state of [`Home`] it shows.
    pub(super) home_changes: u64,
}

/// The healthy or the degraded endpoints of a priority.
#[derive(Debug, Clone, Copy)]
pub(super) struct Side {
    priority: usize,
    degraded: bool,
}

#[derive(Debug, Default)]
struct Sides {
    /// Healthy endpoints; in panic: all.
    healthy: Localities,
    degraded: Localities,
    panic: bool,
}

/// Pools by locality, or one for all.
#[derive(Debug, Default)]
struct Localities {
    pools: Vec<Pool>,
    /// Running sums of the localities' weights; empty: there is one pool.
    sums: Vec<u64>,
    /// Zone-aware routing: the pools are everything, then one for each place.
    zones: Option<Zones>,
}

/// How many endpoints a priority has, or how much weight.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    all: u64,
    healthy: u64,
    degraded: u64,
}

impl View {
    pub(super) fn new(config: &ClusterConfig, set: &EndpointSet, home: Option<&Home>, now: Moment) -> Self {
        let top = set.groups.iter().map(|group| group.priority as usize + 1).max().unwrap_or(0);
        let groups_of = |priority: usize| -> Vec<&EndpointGroup> {
            set.groups.iter().filter(|group| group.priority as usize == priority).collect()
        };
        let ignore = config.lb_common.ignore_unchecked;
        let counts: Vec<Count> = (0..top).map(|p| count(&groups_of(p), set.weighted_priority_health, ignore)).collect();
        let plain: Vec<Count> = (0..top).map(|p| count(&groups_of(p), false, ignore)).collect();
        let availability: Vec<(u32, u32)> = counts.iter().map(|count| available(count, set.overprovisioning)).collect();
        let total: u32 = availability.iter().map(|(healthy, degraded)| healthy + degraded).sum::<u32>().min(100);
        let panics: Vec<bool> =
            plain.iter().map(|count| total < 100 && in_panic(count, config.lb_common.panic_threshold)).collect();
        let loads = if !panics.is_empty() && panics.iter().all(|panic| *panic) {
            loads_by_size(&plain)
        } else {
            distribute(&availability, total)
        };
        let home_changes = home.map_or(0, Home::changes);
        let everyone = config.lb_common.hash_balance.map(|percent| (percent, bound::everyone(set)));
        let builder = Builder { config, overprovisioning: set.overprovisioning, home, now, everyone };
        let mut slow = false;
        let priorities = panics.iter().enumerate().map(|(priority, panic)| {
            let groups = groups_of(priority);
            // A priority without load now may get some from a retry.
            let healthy = builder.healthy(priority, &groups, *panic);
            let degraded = builder.localities(&groups, false, true);
            slow |= groups.iter().flat_map(|group| &group.endpoints).any(|endpoint| builder.is_slow(endpoint));
            Sides { healthy, degraded, panic: *panic }
        });
        let priorities = priorities.collect();
        Self { loads, priorities, availability, refresh_at: slow.then(|| now + SLOW_START_STEP), home_changes }
    }

    pub(super) fn pick(
        &self,
        hash: Option<u64>,
        attempt: u32,
        other_loads: Option<&[(u32, Side)]>,
        turn: &AtomicU64,
        dice: &mut Dice,
    ) -> Option<&Arc<Endpoint>> {
        let hash = hash.unwrap_or_else(|| dice.roll());
        let side = side(other_loads.unwrap_or(&self.loads), hash)?;
        let sides = self.priorities.get(side.priority)?;
        let localities = if side.degraded { &sides.degraded } else { &sides.healthy };
        localities.pool(dice)?.pick(hash, attempt, turn, dice)
    }

    pub(super) fn priorities(&self) -> Vec<(u32, bool)> {
        let load =
            |priority: usize| self.loads.iter().filter(|(_, side)| side.priority == priority).map(|(l, _)| l).sum();
        self.priorities.iter().enumerate().map(|(at, sides)| (load(at), sides.panic)).collect()
    }

    /// Loads for a retry that leaves out the priorities already tried, looking again at every `every` attempts; `None`:
    /// as ever. When all were tried it begins anew (Envoy `previous_priorities`).
    pub(super) fn loads_without(&self, tried: &[Arc<Endpoint>], every: usize) -> Option<Vec<(u32, Side)>> {
        let mut left = self.availability.clone();
        let total =
            |left: &[(u32, u32)]| left.iter().map(|(healthy, degraded)| healthy + degraded).sum::<u32>().min(100);
        for seen in tried.chunks_exact(every) {
            for endpoint in seen {
                if let Some(priority) = left.get_mut(endpoint.priority as usize) {
                    *priority = (0, 0);
                }
            }
            if total(&left) == 0 {
                left.clone_from(&self.availability);
            }
        }
        (left != self.availability && total(&left) > 0).then(|| distribute(&left, total(&left)))
    }
}

/// The hash decides, so that the same key stays at the same priority.
fn side(loads: &[(u32, Side)], hash: u64) -> Option<Side> {
    let point = (hash % 100) as u32 + 1;
    let mut sum = 0;
    let found = loads.iter().find(|(load, _)| {
        sum += load;
        point <= sum
    });
    found.map(|(_, side)| *side)
}

impl Localities {
    fn pool(&self, dice: &mut Dice) -> Option<&Pool> {
        if let Some(zones) = &self.zones {
            return self.pools.get(zones.choose(dice).map_or(0, |place| place + 1));
        }
        let Some(total) = self.sums.last() else { return self.pools.first() };
        let point = dice.below(*total);
        self.pools.get(self.sums.partition_point(|sum| *sum <= point))
    }
}

struct Builder<'a> {
    config: &'a ClusterConfig,
    overprovisioning: u32,
    home: Option<&'a Home>,
    now: Moment,
    /// Where loads of a hashing balancer are bounded: by how much, and all endpoints.
    everyone: Option<(u32, Arc<[Arc<Endpoint>]>)>,
}

impl Builder<'_> {
    /// The healthy endpoints of a priority; in panic all of them, or none where that was asked for.
    fn healthy(&self, priority: usize, groups: &[&EndpointGroup], panic: bool) -> Localities {
        if panic && self.config.lb_common.fail_on_panic {
            return Localities::default();
        }
        let zoned = (priority == 0 && !panic).then(|| self.zoned(groups)).flatten();
        zoned.unwrap_or_else(|| self.localities(groups, panic, false))
    }

    /// Endpoints by place, where requests prefer their own.
    fn zoned(&self, groups: &[&EndpointGroup]) -> Option<Localities> {
        let (zone, home) = (self.config.lb_common.zone_aware?, self.home?);
        if matches!(self.config.lb, LbPolicy::RingHash { .. } | LbPolicy::Maglev { .. } | LbPolicy::ClusterProvided) {
            return None;
        }
        let mut places: Vec<(Arc<Locality>, Vec<Arc<Endpoint>>)> = Vec::new();
        for group in groups {
            let healthy = group.endpoints.iter().filter(|endpoint| fits(endpoint, false)).cloned();
            match places.iter_mut().find(|(place, _)| *place == group.locality) {
                Some((_, hosts)) => hosts.extend(healthy),
                None => places.push((group.locality.clone(), healthy.collect())),
            }
        }
        let zones = Zones::new(zone, home, self.config.lb_common.panic_threshold, &mut places)?;
        let everything = places.iter().flat_map(|(_, hosts)| hosts).cloned().collect();
        let mut pools = vec![self.pool(everything)];
        pools.extend(places.into_iter().map(|(_, hosts)| self.pool(hosts)));
        Some(Localities { pools, sums: Vec::new(), zones: Some(zones) })
    }

    fn localities(&self, groups: &[&EndpointGroup], all: bool, degraded: bool) -> Localities {
        let taken = |group: &EndpointGroup| -> Vec<Arc<Endpoint>> {
            group.endpoints.iter().filter(|endpoint| all || fits(endpoint, degraded)).cloned().collect()
        };
        if matches!(self.config.lb, LbPolicy::RingHash { .. } | LbPolicy::Maglev { .. }) {
            return Localities { pools: vec![self.hashed(groups, &taken)], sums: Vec::new(), zones: None };
        }
        // Where no locality has a weight they do not count (Envoy makes no schedule of localities then).
        let weighted = groups.iter().any(|group| group.weight.is_some_and(|weight| weight > 0));
        if !self.config.lb_common.locality_weighted || !weighted {
            let hosts: Vec<_> = groups.iter().flat_map(|group| taken(group)).collect();
            return Localities { pools: vec![self.pool(hosts)], sums: Vec::new(), zones: None };
        }
        let mut built = Localities::default();
        let mut sum = 0_u64;
        for group in groups {
            let hosts = taken(group);
            let weight = effective_weight(group, hosts.len(), self.overprovisioning, all);
            if weight == 0 || hosts.is_empty() {
                continue;
            }
            sum += weight;
            built.sums.push(sum);
            built.pools.push(self.pool(hosts));
        }
        built
    }

    fn pool(&self, hosts: Vec<Arc<Endpoint>>) -> Pool {
        let weights: Vec<u64> = hosts.iter().map(|host| self.weight(host)).collect();
        Pool::new(&self.config.lb, hosts, &weights)
    }

    /// One table over the whole priority; localities count by their weight, shared among their endpoints.
    fn hashed(&self, groups: &[&EndpointGroup], taken: &impl Fn(&EndpointGroup) -> Vec<Arc<Endpoint>>) -> Pool {
        let common = &self.config.lb_common;
        let mut hosts = Vec::new();
        let mut weights = Vec::new();
        for group in groups {
            let members = taken(group);
            let inside: f64 = members.iter().map(|host| f64::from(host.weight)).sum();
            let locality = if common.locality_weighted { f64::from(group.weight.unwrap_or(0)) / inside } else { 1.0 };
            weights.extend(members.iter().map(|host| f64::from(host.weight) * locality));
            hosts.extend(members);
        }
        let total: f64 = weights.iter().sum();
        let (hosts, weights): (Vec<_>, Vec<_>) =
            hosts.into_iter().zip(weights).filter(|(_, weight)| *weight > 0.0).map(|(h, w)| (h, w / total)).unzip();
        let bound = self.everyone.as_ref().map(|(percent, everyone)| Bound::new(*percent, &weights, everyone));
        Pool::hashed(&self.config.lb, hosts, &weights, common.hash_hostname, bound)
    }

    fn weight(&self, host: &Endpoint) -> u64 {
        let full = u64::from(host.weight) * SCALE;
        let Some(slow) = self.slow_start() else { return full };
        let age = self.age(host);
        if age >= slow.window {
            return full;
        }
        let time = age.max(Duration::from_secs(1)).as_secs_f64() / slow.window.as_secs_f64();
        let share = time.powf(1.0 / slow.aggression.max(0.01)).max(slow.min_percent / 100.0).min(1.0);
        ((full as f64 * share) as u64).max(1)
    }

    fn is_slow(&self, host: &Endpoint) -> bool {
        self.slow_start().is_some_and(|slow| self.age(host) < slow.window)
    }

    /// How long an endpoint has been known; its first sight is noted.
    fn age(&self, host: &Endpoint) -> Duration {
        let now = self.now.nanos().max(1);
        let since = &host.state.since;
        if self.now == Moment::START {
            return Duration::ZERO;
        }
        let first = since.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed).err().unwrap_or(now);
        Duration::from_nanos(now.saturating_sub(first))
    }

    const fn slow_start(&self) -> Option<SlowStart> {
        match self.config.lb {
            LbPolicy::RoundRobin { slow_start } | LbPolicy::LeastRequest { slow_start, .. } => slow_start,
            _ => None,
        }
    }
}

fn fits(endpoint: &Endpoint, degraded: bool) -> bool {
    if degraded { endpoint.is_degraded() } else { endpoint.is_healthy() }
}

fn count(groups: &[&EndpointGroup], by_weight: bool, ignore_unchecked: bool) -> Count {
    let mut count = Count::default();
    // One that is going away is missed by nobody.
    let counted = |endpoint: &&Arc<Endpoint>| {
        endpoint.health != HealthStatus::Draining && !(ignore_unchecked && endpoint.state.health.is_pending())
    };
    for endpoint in groups.iter().flat_map(|group| &group.endpoints).filter(counted) {
        let unit = if by_weight { u64::from(endpoint.weight) } else { 1 };
        count.all += unit;
        count.healthy += if fits(endpoint, false) { unit } else { 0 };
        count.degraded += if fits(endpoint, true) { unit } else { 0 };
    }
    count
}

/// How much of the whole load the healthy and the degraded endpoints of a priority could take, per cent.
fn available(count: &Count, overprovisioning: u32) -> (u32, u32) {
    if count.all == 0 {
        return (0, 0);
    }
    let part = |some: u64| (u64::from(overprovisioning) * some / count.all).min(100) as u32;
    let healthy = part(count.healthy);
    (healthy, part(count.degraded).min(100 - healthy))
}

fn in_panic(count: &Count, threshold: f64) -> bool {
    if threshold <= 0.0 {
        return false;
    }
    let working = count.healthy + count.degraded;
    count.all == 0 || (100.0 * working as f64 / count.all as f64) < threshold
}

/// Healthy endpoints of all priorities first, then degraded ones; what rounding leaves goes to the first.
fn distribute(availability: &[(u32, u32)], total: u32) -> Vec<(u32, Side)> {
    let mut left = 100_u32;
    let mut loads: Vec<(u32, Side)> = Vec::new();
    for degraded in [false, true] {
        for (priority, (healthy, worse)) in availability.iter().enumerate() {
            let part = if degraded { worse } else { healthy };
            let load = (part * 100).checked_div(total).unwrap_or(0).min(left);
            left -= load;
            loads.push((load, Side { priority, degraded }));
        }
    }
    if let Some((load, _)) = loads.iter_mut().find(|(load, _)| *load > 0) {
        *load += left;
    }
    loads
}

/// When every priority is in panic the load follows the number of endpoints.
fn loads_by_size(counts: &[Count]) -> Vec<(u32, Side)> {
    let total: u64 = counts.iter().map(|count| count.all).sum();
    let mut left = 100_u32;
    let mut loads: Vec<(u32, Side)> = Vec::new();
    for (priority, count) in counts.iter().enumerate() {
        let load = (count.all * 100).checked_div(total).unwrap_or(0) as u32;
        left -= load.min(left);
        loads.push((load, Side { priority, degraded: false }));
    }
    if let Some((load, _)) = loads.iter_mut().find(|(load, _)| *load > 0) {
        *load += left;
    }
    loads
}

/// A locality's weight, less where too few of its endpoints are healthy. Scaled by 100.
fn effective_weight(group: &EndpointGroup, healthy: usize, overprovisioning: u32, all: bool) -> u64 {
    let weight = u64::from(group.weight.unwrap_or(0));
    let members = group.endpoints.len() as u64;
    let part = if all { 100 } else { (u64::from(overprovisioning) * healthy as u64).checked_div(members).unwrap_or(0) };
    weight * part.min(100)
}
