//! Questions about a mesh that tools ask: who is meant, who listens there, who may be seen.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use model::security::{MtlsMode, PolicyAction};
use model::service::Protocol;
use model::{AuthorizationPolicy, Service, Workload};

use crate::mesh::Mesh;

/// How a connection from one workload comes to a port of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// Where the proxy of the called workload sees it arrive.
    pub address: SocketAddr,
    /// Whether it is mesh mTLS, when no DestinationRule says otherwise.
    pub mtls: bool,
}

impl Mesh {
    /// The workloads meant by `NAME.NAMESPACE` or `NAME`: the instance of that name; else the instances of the
    /// workload, service or service account of that name.
    pub fn workloads_meant(&self, text: &str) -> Vec<&Workload> {
        let all = || self.workload_keys().filter_map(|key| self.workload(key));
        let split = text.rsplit_once('.').filter(|(_, place)| all().any(|workload| workload.namespace == *place));
        let (name, namespace) = split.map_or((text, None), |(name, namespace)| (name, Some(namespace)));
        let here = |workload: &&Workload| namespace.is_none_or(|namespace| workload.namespace == namespace);
        let ways: [&dyn Fn(&Workload) -> bool; 4] = [
            &|workload| workload.name == name,
            &|workload| workload.workload_name == name,
            &|workload| self.services_of(workload).any(|(service, _)| service.name == name),
            &|workload| workload.service_account == name,
        ];
        let found = ways.iter().map(|way| all().filter(here).filter(|workload| way(workload)).collect::<Vec<_>>());
        found.into_iter().find(|found| !found.is_empty()).unwrap_or_default()
    }

    /// The workload whose proxy listens at an address that endpoints name, and which port that is.
    pub fn workload_at(&self, at: SocketAddr) -> Option<(&Workload, u16)> {
        self.workload_keys().filter_map(|key| self.workload(key)).find_map(|workload| {
            let bound = workload.ports.iter().find(|port| port.bind == Some(at)).map(|port| port.number);
            let unbound = || {
                let elsewhere = workload.ports.iter().any(|port| port.number == at.port() && port.bind.is_some());
                (workload.addresses.contains(&at.ip()) && !elsewhere).then_some(at.port())
            };
            bound.or_else(unbound).map(|number| (workload, number))
        })
    }

    /// The ports on which a workload takes traffic in, with what is spoken there.
    pub fn served_ports(&self, workload: &Workload) -> Vec<(u16, Protocol)> {
        self.inbound_ports(workload).into_iter().map(|port| (port.number, port.protocol)).collect()
    }

    /// The service that names a port of a workload first.
    pub fn service_at(&self, workload: &Workload, number: u16) -> Option<&Service> {
        let ports = self.inbound_ports(workload);
        let port = ports.into_iter().find(|port| port.number == number)?;
        let hostname = port.service.map(|(service, _)| service.hostname.clone())?;
        self.services.get(&hostname)?.values().next().map(AsRef::as_ref)
    }

    /// How a call from one workload comes to a port of another; `None` if it has no such port or address.
    pub fn arrival(&self, from: &Workload, to: &Workload, number: u16) -> Option<Arrival> {
        let ports = self.inbound_ports(to);
        let port = ports.iter().find(|port| port.number == number)?;
        let address = port.binds.first().copied()?;
        let willing = to.meshed && self.mtls_mode(to, Some(number)).mode != MtlsMode::Disable;
        Some(Arrival { address, mtls: from.meshed && self.config().auto_mtls && willing })
    }

    /// Where each authorization rule of a workload stands, by the name it has in the proxy:
    /// `ns[shop]-policy[callers]-rule[0]`.
    pub fn policy_origins(&self, workload: &Workload) -> BTreeMap<String, String> {
        crate::encode::policy_origins(self, workload)
    }

    /// The enforced policies of one action at a workload.
    pub fn policies_at(&self, workload: &Workload, action: PolicyAction) -> Vec<&AuthorizationPolicy> {
        self.authorizations(workload, action).into_iter().filter(|policy| !policy.dry_run).collect()
    }

    /// The service that a caller means by a host as programs write it: full, or short as DNS would complete it.
    pub fn service_meant<'a>(&'a self, written: &str, caller_namespace: &'a str) -> Option<&'a Service> {
        let full = self.resolve_host(written, caller_namespace);
        if let Some(service) = self.service(&full, caller_namespace) {
            return Some(service);
        }
        let domain = &self.config().cluster_domain;
        self.visible_services(caller_namespace).find(|service| {
            let (name, namespace) = (&service.name, &service.namespace);
            crate::host::aliases(&service.hostname, name, namespace, domain, caller_namespace).contains(&full)
        })
    }
}
