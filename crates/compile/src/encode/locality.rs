//! Which endpoints a caller prefers by where they are: priorities and weights, as Istio makes them.

use std::collections::BTreeMap;

use model::Labels;
use model::destination::{Distribute, LocalityBalancing, PriorityLabel};
use model::workload::Locality;
use proto::envoy::config::cluster::v3::Cluster;
use proto::envoy::config::cluster::v3::cluster::common_lb_config::{LocalityConfigSpecifier, LocalityWeightedLbConfig};

use super::endpoints::Group;

/// Who calls, and what it was told about places.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Preference<'a> {
    pub(crate) setting: &'a LocalityBalancing,
    pub(crate) place: &'a Locality,
    pub(crate) labels: &'a Labels,
    /// Failing endpoints are noticed: without that nothing would ever fail over.
    pub(crate) watched: bool,
}

impl Preference<'_> {
    /// Orders the groups of a cluster's endpoints, which come as one for each locality.
    pub(crate) fn apply(self, groups: Vec<Group>) -> Vec<Group> {
        let setting = self.setting;
        if setting.off {
            return groups;
        }
        if !setting.distribute.is_empty() {
            return distributed(groups, &setting.distribute, self.place);
        }
        if !self.watched {
            return groups;
        }
        let mut groups = groups;
        if !setting.failover_priority.is_empty() {
            groups = self.by_labels(groups);
        }
        if setting.failover_priority.is_empty() || !setting.failover.is_empty() {
            by_place(&mut groups, self.place, &setting.failover);
        }
        groups
    }

    /// Says in the cluster that localities count by their weight, where their weights are meant.
    pub(crate) fn mark(self, cluster: &mut Cluster) {
        let setting = self.setting;
        let fails_over = self.watched && !(setting.failover.is_empty() && setting.failover_priority.is_empty());
        if setting.off || (!fails_over && setting.distribute.is_empty()) {
            return;
        }
        let common = cluster.common_lb_config.get_or_insert_default();
        common.locality_config_specifier =
            Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(LocalityWeightedLbConfig {}));
    }

    /// Endpoints that share more of the leading labels with the caller come first.
    fn by_labels(self, groups: Vec<Group>) -> Vec<Group> {
        let labels = &self.setting.failover_priority;
        if self.labels.is_empty() {
            return groups;
        }
        let mut split: Vec<Group> = Vec::new();
        for group in groups {
            let Group { locality, members, .. } = group;
            let mut by_rank: BTreeMap<u32, Vec<_>> = BTreeMap::new();
            for member in members {
                let rank = rank(labels, (self.labels, self.place), (&member.labels, &locality));
                by_rank.entry(rank).or_default().push(member);
            }
            split.extend(by_rank.into_iter().map(|(priority, members)| {
                let mut group = Group::new(locality.clone(), members);
                group.priority = priority;
                group
            }));
        }
        close_gaps(&mut split);
        split
    }
}

/// How many labels, from the last one on, no longer count because one before them differs; 0: all are shared.
fn rank(labels: &[PriorityLabel], caller: (&Labels, &Locality), endpoint: (&Labels, &Locality)) -> u32 {
    let shared = |label: &PriorityLabel| {
        let wanted = label.value.as_deref().or_else(|| value(caller, &label.key)).unwrap_or_default();
        value(endpoint, &label.key).unwrap_or_default() == wanted
    };
    let differs = labels.iter().position(|label| !shared(label));
    differs.map_or(0, |at| (labels.len() - at) as u32)
}

/// A label; the place counts as labels too.
fn value<'a>((labels, place): (&'a Labels, &'a Locality), key: &str) -> Option<&'a str> {
    let own = labels.get(key).map(String::as_str);
    own.or_else(|| match key {
        "topology.kubernetes.io/region" => Some(&*place.region),
        "topology.kubernetes.io/zone" => Some(&*place.zone),
        "topology.istio.io/subzone" => Some(&*place.sub_zone),
        _ => None,
    })
}

/// The nearer, the better: same sub-zone, same zone, same region, then others (those that a failover names first).
fn by_place(groups: &mut [Group], place: &Locality, failover: &[(String, String)]) {
    /// Steps from the same place to anywhere.
    const STEPS: u32 = 5;
    let stand_in = failover.iter().find(|(from, _)| *from == place.region).map(|(_, to)| to);
    for group in groups.iter_mut() {
        let distance = match (&group.locality, stand_in) {
            (there, _) if there == place => 0,
            (there, _) if there.region == place.region && there.zone == place.zone => 1,
            (there, _) if there.region == place.region => 2,
            (there, Some(region)) if there.region != *region => 4,
            _ => 3,
        };
        group.priority = group.priority * STEPS + distance;
    }
    close_gaps(groups);
}

/// Priorities count from 0 without gaps.
fn close_gaps(groups: &mut [Group]) {
    let mut used: Vec<u32> = groups.iter().map(|group| group.priority).collect();
    used.sort_unstable();
    used.dedup();
    for group in groups {
        group.priority = used.partition_point(|priority| *priority < group.priority) as u32;
    }
}

/// Shares of the load by place; endpoints elsewhere get none.
fn distributed(mut groups: Vec<Group>, rules: &[Distribute], place: &Locality) -> Vec<Group> {
    let Some(rule) = rules.iter().find(|rule| covers(&rule.from, place)) else { return groups };
    let mut open = vec![true; groups.len()];
    for (target, share) in &rule.to {
        let fits = |(group, open): (&Group, &bool)| *open && covers(target, &group.locality);
        let chosen: Vec<bool> = groups.iter().zip(&open).map(fits).collect();
        let total: u64 =
            groups.iter().zip(&chosen).filter(|(_, c)| **c).map(|(group, _)| u64::from(group.weight)).sum();
        for ((group, open), _) in groups.iter_mut().zip(&mut open).zip(chosen).filter(|(_, chosen)| *chosen) {
            *open = false;
            let part = (u64::from(group.weight) * u64::from(*share)).div_ceil(total.max(1));
            group.weight = u32::try_from(part).unwrap_or(u32::MAX);
        }
    }
    for (group, _) in groups.iter_mut().zip(open).filter(|(_, open)| *open) {
        group.members.clear();
    }
    groups
}

/// Whether a place with `*` covers a place; a missing part is as good as `*`.
fn covers(pattern: &str, place: &Locality) -> bool {
    let mut parts = pattern.split('/');
    [&place.region, &place.zone, &place.sub_zone].into_iter().enumerate().all(|(depth, own)| match parts.next() {
        Some("*") => true,
        Some("") if depth > 0 => true,
        None => true,
        Some(part) => part == own,
    })
}
