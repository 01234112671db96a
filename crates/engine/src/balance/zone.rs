//! Zone-aware routing: a proxy prefers endpoints of its own place, as far as these can carry the proxies there.
//!
//! The proxies are the endpoints of a cluster of their own (`cluster_manager.local_cluster_name`). Where the place has at
//! least its share of the endpoints, all load stays; where it has less, what is too much goes to places that have more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;

use crate::dice::Dice;
use crate::endpoint::{Endpoint, EndpointSet, Locality};

/// When zone-aware routing is used (`ZoneAwareLbConfig`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ZoneAware {
    /// Share of the requests for which it is, per cent. Default 100.
    pub enabled: f64,
    /// Healthy endpoints that are needed. Default 6.
    pub min_size: u64,
    /// With so many healthy endpoints at the own place every request stays there, whatever the share of the proxies
    /// (`force_local_zone.min_size`; `force_locality_direct_routing` says 1). `None`: by share.
    pub force_from: Option<u64>,
    /// Shares go by the weight of healthy endpoints, not by their number (`locality_basis`). Default false.
    pub by_weight: bool,
}

impl Default for ZoneAware {
    fn default() -> Self {
        Self { enabled: 100.0, min_size: 6, force_from: None, by_weight: false }
    }
}

impl ZoneAware {
    /// How much an endpoint adds to its place.
    fn size(self, host: &Endpoint) -> u64 {
        if self.by_weight { u64::from(host.weight) } else { 1 }
    }
}

/// Where this proxy is, and its equals.
#[derive(Debug, Default)]
pub struct Home {
    place: Locality,
    /// The cluster whose endpoints are the proxies.
    pub(crate) cluster: Arc<str>,
    proxies: ArcSwap<EndpointSet>,
    changes: AtomicU64,
}

impl Home {
    /// A proxy at a place; `cluster` is the one whose endpoints are the proxies.
    #[must_use]
    pub fn new(place: Locality, cluster: Arc<str>) -> Self {
        Self { place, cluster, ..Self::default() }
    }

    /// The proxies are these now.
    pub(crate) fn proxies_are(&self, endpoints: &Arc<EndpointSet>) {
        self.proxies.store(endpoints.clone());
        self.changed();
    }

    /// The health of a proxy changed.
    pub(super) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// Counts up with every change.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }
}

/// Full share.
const ALL: u64 = 10_000;

/// How requests are spread over places; the first is the own one.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Zones {
    /// Share of the requests that are spread by place at all, per cent.
    enabled: f64,
    /// Share of those that stay, of [`ALL`].
    stay: u64,
    /// Running sums of what other places can take beyond their own proxies.
    spare: Vec<u64>,
}

impl Zones {
    /// `healthy`: healthy endpoints by place, each place once. The order of places is changed so that the own one is
    /// first. `None`: requests go anywhere.
    pub(super) fn new(
        zone: ZoneAware,
        home: &Home,
        panic_threshold: f64,
        healthy: &mut [(Arc<Locality>, Vec<Arc<Endpoint>>)],
    ) -> Option<Self> {
        let own = healthy.iter().position(|(place, _)| **place == home.place)?;
        healthy.get_mut(..=own)?.rotate_right(1);
        let number: u64 = healthy.iter().map(|(_, hosts)| hosts.len() as u64).sum();
        let here = healthy.first()?.1.len() as u64;
        if healthy.len() < 2 || here == 0 || number < zone.min_size {
            return None;
        }
        let proxies = home.proxies.load();
        let (all, working) = (proxies.len() as u64, proxies.iter().filter(|proxy| proxy.is_healthy()).count() as u64);
        let of_place = |place: &Locality| {
            let there = proxies.iter().filter(|proxy| *proxy.locality == *place && proxy.is_healthy());
            there.map(|proxy| zone.size(proxy)).sum::<u64>()
        };
        if of_place(&home.place) == 0 || (working as f64 * 100.0) < all as f64 * panic_threshold {
            return None;
        }
        if zone.force_from.is_some_and(|least| here >= least) {
            return Some(Self { enabled: zone.enabled, stay: ALL, spare: Vec::new() });
        }
        let upstream_sizes: Vec<u64> =
            healthy.iter().map(|(_, hosts)| hosts.iter().map(|host| zone.size(host)).sum()).collect();
        let upstream_all: u64 = upstream_sizes.iter().sum();
        let local_all: u64 = proxies.iter().filter(|proxy| proxy.is_healthy()).map(|proxy| zone.size(proxy)).sum();
        let share = |part: u64, whole: u64| (ALL * part).checked_div(whole).unwrap_or(0);
        let shares: Vec<(u64, u64)> = healthy
            .iter()
            .zip(upstream_sizes)
            .map(|((place, _), size)| (share(size, upstream_all), share(of_place(place), local_all)))
            .collect();
        Self::by_share(zone.enabled, &shares)
    }

    /// `shares`: of the endpoints and of the proxies at each place, of [`ALL`].
    fn by_share(enabled: f64, shares: &[(u64, u64)]) -> Option<Self> {
        let (upstream, local) = *shares.first()?;
        if upstream >= local {
            return Some(Self { enabled, stay: ALL, spare: Vec::new() });
        }
        let spare = shares.iter().enumerate().scan(0, |sum, (at, (upstream, local))| {
            *sum += if at == 0 { 0 } else { upstream.saturating_sub(*local) };
            Some(*sum)
        });
        Some(Self { enabled, stay: ALL * upstream / local, spare: spare.collect() })
    }

    /// The number of a place; `None`: any endpoint will do.
    pub(super) fn choose(&self, dice: &mut Dice) -> Option<usize> {
        if self.enabled < 100.0 && dice.unit() * 100.0 >= self.enabled {
            return None;
        }
        if self.stay >= ALL || dice.below(ALL) < self.stay {
            return Some(0);
        }
        match self.spare.last() {
            // Only rounding can lead here.
            None | Some(0) => Some(usize::try_from(dice.below(self.spare.len() as u64)).unwrap_or(0)),
            Some(total) => {
                let point = dice.below(*total);
                Some(self.spare.partition_point(|sum| *sum <= point))
            }
        }
    }
}
