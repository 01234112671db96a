//! Route configurations: one for each HTTP port, a virtual host for each service and declared host.

use std::collections::BTreeSet;
use std::net::IpAddr;

use model::Service;
use proto::envoy::config::route::v3::{Route, RouteConfiguration, VirtualHost, route::Action};

use super::cluster::{BLACK_HOLE, PASSTHROUGH};
use super::{Encoder, origin, route, route_action, wire};
use crate::host;

/// Where requests go whose host nobody knows.
pub(super) enum Unknown<'a> {
    /// Where the caller wanted to go.
    Passthrough,
    /// To the service this listener stands for.
    Service(&'a Service),
    /// Nowhere.
    Refuse,
}

impl<'a> Encoder<'a> {
    /// The routes of a port: all hosts that the caller knows there, and a catch-all. `own` adds names to one
    /// host: the address under which an explicit listener stands for it.
    pub(super) fn route_configuration(
        &mut self,
        name: &str,
        port: u16,
        unknown: &Unknown<'_>,
        own: Option<(&str, IpAddr)>,
    ) -> RouteConfiguration {
        let mut taken = BTreeSet::new();
        let mut virtual_hosts = Vec::new();
        for (hostname, service) in self.http_hosts(port) {
            let mut domains = domains(&hostname, service, self.workload.namespace.as_str(), self.mesh);
            if let Some((_, address)) = own.filter(|(host, _)| *host == hostname) {
                domains.push(literal(address));
            }
            domains.retain(|domain| taken.insert(domain.clone()));
            if !domains.is_empty() {
                virtual_hosts.extend(self.virtual_host(&hostname, service, port, domains));
            }
        }
        if taken.insert("*".to_owned()) {
            virtual_hosts.push(self.catch_all(port, unknown));
        }
        RouteConfiguration {
            name: name.to_owned(),
            virtual_hosts,
            // A route may name a cluster that is not there: such requests are answered 503, the rest works.
            validate_clusters: wire::boolean(false),
            ignore_port_in_host_matching: true,
            max_direct_response_body_size_bytes: wire::uint32(1 << 20),
            ..RouteConfiguration::default()
        }
    }

    /// The hosts with HTTP on a port: services, and hosts that only a table knows.
    fn http_hosts(&self, port: u16) -> Vec<(String, Option<&'a Service>)> {
        let mesh = self.mesh;
        let namespace = self.workload.namespace.as_str();
        let speaks = |service: &&Service| {
            let protocol = |known: &model::service::ServicePort| known.protocol.is_http() || is_auto(known.protocol);
            service.ports.iter().any(|known| known.number == port && protocol(known))
        };
        let mut hosts: Vec<(String, Option<&'a Service>)> = mesh
            .visible_services(namespace)
            .filter(speaks)
            .map(|service| (service.hostname.clone(), Some(service)))
            .collect();
        for written in mesh.hosts_with_rules() {
            let known = mesh.service(written, namespace).is_some();
            let covers = written.starts_with('*') && hosts.iter().any(|(host, _)| covers(written, host));
            if !known && !covers {
                hosts.push((written.to_owned(), None));
            }
        }
        hosts
    }

    /// The virtual host of a host; `None` when no rule is for this caller and there is no service either.
    fn virtual_host(
        &mut self,
        hostname: &str,
        service: Option<&Service>,
        port: u16,
        domains: Vec<String>,
    ) -> Option<VirtualHost> {
        let (routes, from) = self.host_routes(hostname, service, port)?;
        Some(VirtualHost {
            name: format!("{hostname}:{port}"),
            domains,
            routes,
            include_request_attempt_count: true,
            metadata: origin::metadata(&from),
            ..VirtualHost::default()
        })
    }

    /// A host's routes and whose they are: its table's, its split's, or the plain way to the service.
    pub(super) fn host_routes(
        &mut self,
        hostname: &str,
        service: Option<&Service>,
        port: u16,
    ) -> Option<(Vec<Route>, model::Origin)> {
        let mesh = self.mesh;
        if let Some(table) = mesh.table(self.caller(), hostname) {
            let rules = mesh.http_rules(table, self.caller(), port);
            if !rules.is_empty() {
                return Some((self.routes(&rules, port), table.origin.clone()));
            }
        }
        let service = service?;
        if let Some(split) = mesh.split(hostname) {
            return Some((vec![self.split_route(split, port)], split.origin.clone()));
        }
        Some((vec![self.default_route(service, port)], service.origin.clone()))
    }

    fn catch_all(&mut self, port: u16, unknown: &Unknown<'_>) -> VirtualHost {
        let (name, route) = match unknown {
            Unknown::Passthrough => ("allow_any", passthrough(PASSTHROUGH)),
            Unknown::Service(service) => ("allow_any", self.default_route(service, port)),
            Unknown::Refuse => {
                let refuse = Action::DirectResponse(route_action::direct_response(502, None));
                ("block_all", route::plain_route("block_all", refuse, None))
            }
        };
        VirtualHost {
            name: name.to_owned(),
            domains: vec!["*".to_owned()],
            routes: vec![route],
            include_request_attempt_count: true,
            ..VirtualHost::default()
        }
    }

    /// What the mesh's settings say of unknown hosts where nothing stands for a service.
    pub(super) fn unknown_hosts(&self) -> Unknown<'static> {
        if self.mesh.config().outbound_allow_any { Unknown::Passthrough } else { Unknown::Refuse }
    }

    /// The cluster for connections of unknown destinations.
    pub(super) fn unknown_cluster(&self) -> &'static str {
        if self.mesh.config().outbound_allow_any { PASSTHROUGH } else { BLACK_HOLE }
    }
}

fn passthrough(cluster: &str) -> Route {
    route::plain_route("allow_any", Action::Route(route::plain_action(cluster.to_owned())), None)
}

pub(super) fn is_auto(protocol: model::service::Protocol) -> bool {
    protocol == model::service::Protocol::Auto
}

fn covers(pattern: &str, hostname: &str) -> bool {
    host::covering(hostname).any(|covering| covering == pattern)
}

/// The names by which callers of a namespace call a host, without port.
fn domains(hostname: &str, service: Option<&Service>, caller: &str, mesh: &crate::mesh::Mesh) -> Vec<String> {
    let mut names = vec![hostname.to_ascii_lowercase()];
    if let Some(service) = service {
        let domain = &mesh.config().cluster_domain;
        names.extend(host::aliases(hostname, &service.name, &service.namespace, domain, caller));
        names.extend(service.addresses.iter().map(|address| literal(*address)));
    }
    names
}

/// An address as it stands in an authority.
fn literal(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}
