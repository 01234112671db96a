//! Where a service's traffic goes: its workloads and endpoints, and what a workload serves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use model::name::selects;
use model::security::MtlsMode;
use model::service::{EndpointAddress, Location, Protocol, ServicePort, StaticEndpoint, TargetPort};
use model::workload::{AppAddress, Locality};
use model::{Labels, Service, Workload};

use crate::mesh::{Mesh, WorkloadKey};

/// Where one endpoint listens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    Socket(SocketAddr),
    Name(String, u16),
    Unix(String),
}

/// One endpoint of a service's port.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Endpoint<'a> {
    pub(crate) place: Place,
    pub(crate) labels: &'a Labels,
    pub(crate) weight: u32,
    pub(crate) locality: &'a Locality,
    pub(crate) namespace: &'a str,
    pub(crate) service_account: &'a str,
    /// Whether mesh mTLS is spoken to it.
    pub(crate) mtls: bool,
    /// The workload behind it, where it is one.
    pub(crate) workload: Option<&'a Workload>,
}

/// One port on which a workload's proxy takes traffic in.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct InboundPort<'a> {
    /// As peers and policies know it.
    pub(crate) number: u16,
    pub(crate) protocol: Protocol,
    pub(crate) app: Option<&'a AppAddress>,
    /// Where the proxy listens when nothing redirects to it.
    pub(crate) binds: Vec<SocketAddr>,
    /// The service that names this port first.
    pub(crate) service: Option<(&'a Service, &'a ServicePort)>,
}

impl Mesh {
    /// Whether a service sends traffic to a workload.
    pub(crate) fn serves(service: &Service, workload: &Workload) -> bool {
        !service.selector.is_empty()
            && service.namespace == workload.namespace
            && selects(&service.selector, &workload.labels)
    }

    /// The workloads behind a service.
    pub(crate) fn members<'a>(&'a self, service: &'a Service) -> impl Iterator<Item = &'a Workload> {
        let namespace = if service.selector.is_empty() { "" } else { service.namespace.as_str() };
        self.workloads_of(namespace).filter(move |workload| Self::serves(service, workload))
    }

    /// All endpoints of a service's port, in stable order.
    pub(crate) fn endpoints<'a>(&'a self, service: &'a Service, port: &ServicePort) -> Vec<Endpoint<'a>> {
        let members = self.members(service).filter_map(|workload| self.member_endpoint(service, port, workload));
        let given = service.endpoints.iter().filter_map(|endpoint| given_endpoint(service, port, endpoint));
        let mut endpoints: Vec<Endpoint<'a>> = members.chain(given).collect();
        endpoints.sort_by(|a, b| (a.locality, &a.place).cmp(&(b.locality, &b.place)));
        endpoints.dedup_by(|a, b| a.place == b.place);
        endpoints
    }

    fn member_endpoint<'a>(
        &'a self,
        service: &'a Service,
        port: &ServicePort,
        workload: &'a Workload,
    ) -> Option<Endpoint<'a>> {
        let number = target(&port.target, workload)?;
        let bind = workload.ports.iter().find(|known| known.number == number).and_then(|known| known.bind);
        let socket = match bind {
            Some(bind) => bind,
            None => SocketAddr::new(*workload.addresses.first()?, number),
        };
        let inside = service.location == Location::MeshInternal;
        let mode = self.mtls_mode(workload, Some(number)).mode;
        Some(Endpoint {
            place: Place::Socket(socket),
            labels: &workload.labels,
            weight: workload.weight,
            locality: &workload.locality,
            namespace: &workload.namespace,
            service_account: &workload.service_account,
            mtls: inside && workload.meshed && mode != MtlsMode::Disable,
            workload: Some(workload),
        })
    }

    /// What a workload serves: its own ports and those that services expect of it.
    pub(crate) fn inbound_ports<'a>(&'a self, workload: &'a Workload) -> Vec<InboundPort<'a>> {
        let mut ports: BTreeMap<u16, InboundPort<'a>> = BTreeMap::new();
        for port in &workload.ports {
            let own = || workload.addresses.iter().map(|address| SocketAddr::new(*address, port.number)).collect();
            ports.entry(port.number).or_insert_with(|| InboundPort {
                number: port.number,
                protocol: Protocol::from_name(&port.name),
                app: port.app.as_ref(),
                binds: port.bind.map_or_else(own, |bind| vec![bind]),
                service: None,
            });
        }
        for (service, port) in self.services_of(workload) {
            let Some(number) = target(&port.target, workload) else { continue };
            let known = ports.entry(number).or_insert_with(|| InboundPort {
                number,
                protocol: port.protocol,
                app: None,
                binds: workload.addresses.iter().map(|address| SocketAddr::new(*address, number)).collect(),
                service: None,
            });
            if known.service.is_none() {
                known.protocol = port.protocol;
                known.service = Some((service, port));
            }
        }
        ports.into_values().collect()
    }

    /// The services with a workload behind them, with their ports.
    pub(crate) fn services_of<'a>(
        &'a self,
        workload: &'a Workload,
    ) -> impl Iterator<Item = (&'a Service, &'a ServicePort)> {
        let hosts = self.selecting.get(&workload.namespace).into_iter().flatten();
        hosts
            .filter_map(|hostname| self.services.get(hostname))
            .flat_map(|declared| declared.values())
            .map(AsRef::as_ref)
            .filter(move |service: &&Service| Self::serves(service, workload))
            .flat_map(|service| service.ports.iter().map(move |port| (service, port)))
    }

    /// The identities that servers of a service's port may have.
    pub(crate) fn server_names(&self, service: &Service, port: &ServicePort) -> BTreeSet<String> {
        let mut names: BTreeSet<String> = service.subject_alt_names.iter().cloned().collect();
        for endpoint in self.endpoints(service, port) {
            names.extend(self.identities(endpoint.namespace, endpoint.service_account));
        }
        names
    }

    /// The keys of the workloads behind a service.
    pub(crate) fn member_keys<'a>(&'a self, service: &'a Service) -> impl Iterator<Item = WorkloadKey> {
        self.members(service).map(WorkloadKey::of)
    }
}

fn target(target: &TargetPort, workload: &Workload) -> Option<u16> {
    match target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => workload.ports.iter().find(|port| &port.name == name).map(|port| port.number),
    }
}

fn given_endpoint<'a>(service: &'a Service, port: &ServicePort, given: &'a StaticEndpoint) -> Option<Endpoint<'a>> {
    let own = given.ports.iter().find(|(name, _)| *name == port.name).map(|(_, number)| *number);
    let number = own.unwrap_or(match port.target {
        TargetPort::Number(number) => number,
        TargetPort::Name(_) => port.number,
    });
    let place = match &given.address {
        EndpointAddress::Ip(address) => Place::Socket(SocketAddr::new(*address, number)),
        EndpointAddress::Socket(socket) => Place::Socket(*socket),
        EndpointAddress::Dns(name) => match name.parse::<IpAddr>() {
            Ok(address) => Place::Socket(SocketAddr::new(address, number)),
            Err(_) => Place::Name(name.clone(), number),
        },
        EndpointAddress::Unix(path) => Place::Unix(path.clone()),
    };
    Some(Endpoint {
        place,
        labels: &given.labels,
        weight: given.weight,
        locality: &given.locality,
        namespace: &service.namespace,
        service_account: &given.service_account,
        mtls: service.location == Location::MeshInternal
            && given.labels.get("security.istio.io/tlsMode").is_some_and(|mode| mode == "istio"),
        workload: None,
    })
}
