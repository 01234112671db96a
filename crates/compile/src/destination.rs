//! How a caller calls a host: DestinationRules found, merged and inherited.

use model::destination::{
    ClientTls, ConnectionPool, DestinationPolicy, LoadBalancer, OutlierDetection, RetryBudget, Subset, TrafficPolicy,
};
use model::name::selects;
use model::{Labels, Origin, Service};

use crate::host;
use crate::mesh::Mesh;

/// Who calls: it decides which policies are seen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) labels: &'a Labels,
}

/// The settings for one host, port and subset after inheritance: subset over port over host.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Effective<'a> {
    pub(crate) balancer: Option<&'a LoadBalancer>,
    pub(crate) pool: Option<&'a ConnectionPool>,
    pub(crate) outlier: Option<&'a OutlierDetection>,
    pub(crate) tls: Option<&'a ClientTls>,
    pub(crate) budget: Option<RetryBudget>,
    /// Labels of the subset; `None` when no subset was asked for.
    pub(crate) labels: Option<&'a Labels>,
    pub(crate) origin: Option<&'a Origin>,
}

impl Mesh {
    /// The DestinationRules in force for calls to a service, the leading one first. Istio looks in the caller's
    /// namespace, then in the service's, then in the root namespace; the first place with a rule for the most
    /// specific host wins, and rules for the same host in that place add up.
    pub(crate) fn destination_policies(&self, caller: Caller<'_>, service: &Service) -> Vec<&DestinationPolicy> {
        let root = self.config.root_namespace.as_str();
        for place in [caller.namespace, service.namespace.as_str(), root] {
            for pattern in host::covering(&service.hostname) {
                let Some(declared) = self.destinations.get(&pattern) else { continue };
                let mut found: Vec<&DestinationPolicy> = declared
                    .values()
                    .map(AsRef::as_ref)
                    .filter(|policy| policy.namespace == place && sees(policy, caller))
                    .collect();
                if found.is_empty() {
                    continue;
                }
                // A rule for certain callers is more specific than one for all.
                found.sort_by_key(|policy| policy.client_selector.is_empty());
                return found;
            }
        }
        Vec::new()
    }

    /// The settings for a port and subset of a service. `None` when the subset is not defined.
    pub(crate) fn effective(
        &self,
        caller: Caller<'_>,
        service: &Service,
        port: u16,
        subset: Option<&str>,
    ) -> Option<Effective<'_>> {
        let policies = self.destination_policies(caller, service);
        let leading = policies.iter().find(|policy| policy.traffic != TrafficPolicy::default());
        let mut effective = leading.map(|policy| of_host(policy, port)).unwrap_or_default();
        if let Some(name) = subset {
            let subset = policies.iter().flat_map(|policy| &policy.subsets).find(|subset| subset.name == name)?;
            override_with(&mut effective, subset, port);
        }
        Some(effective)
    }

    /// The subsets a caller knows of a service, each name once.
    pub(crate) fn subsets(&self, caller: Caller<'_>, service: &Service) -> Vec<&Subset> {
        let mut subsets: Vec<&Subset> = Vec::new();
        for policy in self.destination_policies(caller, service) {
            for subset in &policy.subsets {
                if !subsets.iter().any(|known| known.name == subset.name) {
                    subsets.push(subset);
                }
            }
        }
        subsets
    }
}

fn sees(policy: &DestinationPolicy, caller: Caller<'_>) -> bool {
    host::exported(&policy.export_to, &policy.namespace, caller.namespace)
        && (policy.client_selector.is_empty()
            || (policy.namespace == caller.namespace && selects(&policy.client_selector, caller.labels)))
}

fn of_host(policy: &DestinationPolicy, port: u16) -> Effective<'_> {
    let traffic = port_level(&policy.traffic, port).unwrap_or(&policy.traffic);
    Effective {
        balancer: traffic.load_balancer.as_ref(),
        pool: traffic.connection_pool.as_ref(),
        outlier: traffic.outlier.as_ref(),
        tls: traffic.tls.as_ref(),
        budget: policy.traffic.retry_budget,
        labels: None,
        origin: Some(&policy.origin),
    }
}

fn override_with<'a>(effective: &mut Effective<'a>, subset: &'a Subset, port: u16) {
    let traffic = &subset.traffic;
    if let Some(at_port) = port_level(traffic, port) {
        effective.balancer = at_port.load_balancer.as_ref();
        effective.pool = at_port.connection_pool.as_ref();
        effective.outlier = at_port.outlier.as_ref();
        effective.tls = at_port.tls.as_ref();
    } else {
        effective.balancer = traffic.load_balancer.as_ref().or(effective.balancer);
        effective.pool = traffic.connection_pool.as_ref().or(effective.pool);
        effective.outlier = traffic.outlier.as_ref().or(effective.outlier);
        effective.tls = traffic.tls.as_ref().or(effective.tls);
    }
    effective.budget = traffic.retry_budget.or(effective.budget);
    effective.labels = Some(&subset.labels);
    effective.origin = Some(&subset.origin);
}

/// The settings for a port replace all of its level (Istio does not merge them).
fn port_level(traffic: &TrafficPolicy, port: u16) -> Option<&TrafficPolicy> {
    traffic.ports.iter().find(|(number, _)| *number == port).map(|(_, policy)| policy)
}
