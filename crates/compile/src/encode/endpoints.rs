//! Endpoints of a cluster, by locality, with the metadata that chooses TLS.

use std::collections::BTreeMap;

use model::destination::Subset;
use model::name::selects;
use model::service::ServicePort;
use model::workload::Locality;
use model::{Labels, Service};
use proto::envoy::config::core::v3::{
    self as core, Address, Pipe, SocketAddress, address, socket_address::PortSpecifier,
};
use proto::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint as EnvoyEndpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
};

use super::locality::Preference;
use super::{origin, wire};
use crate::mesh::Mesh;
use crate::reach::{Endpoint, Place};

/// What Envoy looks at to choose a transport socket.
pub(crate) const TLS_METADATA: &str = "envoy.transport_socket_match";

/// Endpoints of one place and priority.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) locality: Locality,
    pub(crate) members: Vec<Member>,
    /// The share of the place.
    pub(crate) weight: u32,
    /// 0 is preferred.
    pub(crate) priority: u32,
}

/// One endpoint of a group.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) labels: Labels,
    pub(crate) endpoint: LbEndpoint,
}

impl Group {
    /// A group of the first priority that counts as much as its members.
    pub(crate) fn new(locality: Locality, members: Vec<Member>) -> Self {
        let weight = |member: &Member| member.endpoint.load_balancing_weight.map_or(1, |weight| weight.value);
        let sum = members.iter().map(weight).fold(0, u32::saturating_add);
        Self { locality, members, weight: sum.max(1), priority: 0 }
    }

    fn message(self) -> LocalityLbEndpoints {
        LocalityLbEndpoints {
            // gRPC refuses endpoints whose locality is not said, even if it is empty.
            locality: Some(core_locality(&self.locality)),
            lb_endpoints: self.members.into_iter().map(|member| member.endpoint).collect(),
            load_balancing_weight: wire::uint32(self.weight),
            priority: self.priority,
            ..LocalityLbEndpoints::default()
        }
    }
}

/// The endpoints of a service's port that carry the labels of a subset, ordered as the caller prefers them.
pub(crate) fn assignment(
    mesh: &Mesh,
    cluster: &str,
    (service, port): (&Service, &ServicePort),
    labels: Option<&Labels>,
    preference: Preference<'_>,
) -> ClusterLoadAssignment {
    let endpoints = mesh.endpoints(service, port);
    let chosen = endpoints.iter().filter(|endpoint| labels.is_none_or(|labels| selects(labels, endpoint.labels)));
    let mut by_locality: BTreeMap<&Locality, Vec<Member>> = BTreeMap::new();
    for endpoint in chosen {
        let member = Member { labels: endpoint.labels.clone(), endpoint: lb_endpoint(endpoint) };
        by_locality.entry(endpoint.locality).or_default().push(member);
    }
    let groups = by_locality.into_iter().map(|(locality, members)| Group::new(locality.clone(), members)).collect();
    ClusterLoadAssignment {
        cluster_name: cluster.to_owned(),
        endpoints: preference.apply(groups).into_iter().map(Group::message).collect(),
        ..ClusterLoadAssignment::default()
    }
}

/// One fixed endpoint.
pub(crate) fn single(cluster: &str, address: Address) -> ClusterLoadAssignment {
    ClusterLoadAssignment {
        cluster_name: cluster.to_owned(),
        endpoints: vec![LocalityLbEndpoints {
            lb_endpoints: vec![LbEndpoint { host_identifier: host(address), ..LbEndpoint::default() }],
            ..LocalityLbEndpoints::default()
        }],
        ..ClusterLoadAssignment::default()
    }
}

fn lb_endpoint(endpoint: &Endpoint<'_>) -> LbEndpoint {
    let address = match &endpoint.place {
        Place::Socket(at) => socket(&at.ip().to_string(), at.port()),
        Place::Name(name, port) => socket(name, *port),
        Place::Unix(path) => pipe(path),
    };
    LbEndpoint {
        host_identifier: host(address),
        metadata: endpoint_metadata(endpoint),
        load_balancing_weight: wire::uint32(endpoint.weight.max(1)),
        ..LbEndpoint::default()
    }
}

/// `tlsMode` chooses the transport socket; `istio.workload` is what Istio's telemetry reads:
/// `WORKLOAD;NAMESPACE;CANONICAL-NAME;CANONICAL-REVISION;CLUSTER`.
fn endpoint_metadata(endpoint: &Endpoint<'_>) -> Option<core::Metadata> {
    let tls = wire::object(endpoint.mtls.then_some(("tlsMode", "istio")));
    let workload = endpoint.workload.map(|workload| {
        let label = |names: [&str; 2], otherwise: &str| {
            let found = names.iter().find_map(|name| workload.labels.get(*name));
            found.map_or_else(|| otherwise.to_owned(), String::clone)
        };
        let name = label(["service.istio.io/canonical-name", "app"], &workload.workload_name);
        let revision = label(["service.istio.io/canonical-revision", "version"], "latest");
        let text = format!("{};{};{name};{revision};Kubernetes", workload.workload_name, workload.namespace);
        wire::object([("workload", text)])
    });
    match (endpoint.mtls, workload) {
        (true, Some(workload)) => Some(origin::of([(TLS_METADATA, tls), ("istio", workload)])),
        (true, None) => Some(origin::of([(TLS_METADATA, tls)])),
        (false, Some(workload)) => Some(origin::of([("istio", workload)])),
        (false, None) => None,
    }
}

fn host(address: Address) -> Option<HostIdentifier> {
    Some(HostIdentifier::Endpoint(EnvoyEndpoint { address: Some(address), ..EnvoyEndpoint::default() }))
}

/// A TCP address.
pub(crate) fn socket(host: &str, port: u16) -> Address {
    Address { address: Some(address::Address::SocketAddress(socket_address(host, port))) }
}

/// A TCP address, bare.
pub(crate) fn socket_address(host: &str, port: u16) -> SocketAddress {
    SocketAddress {
        address: host.to_owned(),
        port_specifier: Some(PortSpecifier::PortValue(u32::from(port))),
        ..SocketAddress::default()
    }
}

/// A TCP address in the network namespace of a file.
pub(crate) fn socket_in(namespace: &str, host: &str, port: u16) -> Address {
    let socket = SocketAddress { network_namespace_filepath: namespace.to_owned(), ..socket_address(host, port) };
    Address { address: Some(address::Address::SocketAddress(socket)) }
}

/// A Unix socket.
pub(crate) fn pipe(path: &str) -> Address {
    Address { address: Some(address::Address::Pipe(Pipe { path: path.to_owned(), mode: 0 })) }
}

pub(crate) fn core_locality(locality: &Locality) -> core::Locality {
    core::Locality { region: locality.region.clone(), zone: locality.zone.clone(), sub_zone: locality.sub_zone.clone() }
}

/// Whether a service has an endpoint at all that a subset would select.
pub(crate) fn subset_has_workloads(mesh: &Mesh, service: &Service, subset: &Subset) -> bool {
    let endpoints = service.ports.iter().flat_map(|port| mesh.endpoints(service, port));
    endpoints.into_iter().any(|endpoint| selects(&subset.labels, endpoint.labels))
}
