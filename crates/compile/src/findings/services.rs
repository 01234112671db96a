//! Services without workloads, hosts declared twice, DestinationRules that add up.

use model::destination::DestinationPolicy;
use model::service::Resolution;
use model::{Diagnostic, Entry, Service};

use super::{code, info, seen_together, warning, with};
use crate::mesh::Mesh;

pub(super) fn service(mesh: &Mesh, service: &Service, found: &mut Vec<Diagnostic>) {
    if !service.selector.is_empty() && mesh.members(service).next().is_none() {
        let message = format!("no workload has the labels of {}'s selector", service.hostname);
        let help = format!("compare with the labels of the workloads in {}", service.namespace);
        found.push(with(info(&service.origin, code::NO_WORKLOAD, message), "spec.selector", help));
    } else if service.selector.is_empty() && service.endpoints.is_empty() && service.resolution == Resolution::Static {
        let message = format!("{} has neither a selector nor endpoints", service.hostname);
        let help = "give it one of both; until then its requests are answered 503";
        found.push(with(info(&service.origin, code::NO_WORKLOAD, message), "", help));
    }
    let Some(declared) = mesh.services.get(&service.hostname) else { return };
    if let Some(first) = declared.values().next()
        && first.origin != service.origin
        && seen_together(&first.export_to, &service.export_to)
    {
        let message = format!("the host {} is declared by {} already", service.hostname, first.origin);
        let help = "callers see their own namespace's, else the first by name: give one of them another host";
        found.push(with(warning(&service.origin, code::SHARED_HOST, message), "", help));
    }
}

pub(super) fn destination(mesh: &Mesh, entry: &Entry, policy: &DestinationPolicy, found: &mut Vec<Diagnostic>) {
    let host = mesh.resolve_host(&policy.host, &policy.namespace);
    if !host.starts_with('*') && !mesh.services.contains_key(&host) {
        let message = format!("no service has the host {host}");
        let help = "declare the service, or correct `spec.host`; until then the rule has no effect";
        found.push(with(warning(&policy.origin, code::UNKNOWN_HOST, message), "spec.host", help));
    }
    let Some(declared) = mesh.destinations.get(&host) else { return };
    let same = |other: &DestinationPolicy| {
        other.namespace == policy.namespace && other.client_selector == policy.client_selector
    };
    let first = declared.iter().find(|(_, other)| same(other));
    if let Some(((_, key, _), other)) = first
        && *key != entry.key
    {
        let message =
            format!("{} is for the same host and older: its trafficPolicy goes first, subsets add up", other.origin);
        let help = "put both into one DestinationRule";
        found.push(with(warning(&policy.origin, code::SECOND_DESTINATION, message), "spec.host", help));
    }
}
