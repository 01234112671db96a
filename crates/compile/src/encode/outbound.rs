//! Listeners for what a workload calls.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use model::Service;
use model::destination::{BalancerKind, HashOn};
use model::route::{L4Match, WeightedDestination};
use model::service::{Protocol, Resolution, ServicePort};
use model::workload::{ExplicitOutbound, Interception};
use proto::envoy::config::core::v3::{CidrRange, TrafficDirection};
use proto::envoy::config::listener::v3::{FilterChain, FilterChainMatch, Listener, listener};
use proto::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::{
    ClusterSpecifier, WeightedCluster, weighted_cluster::ClusterWeight,
};

use super::cluster::{BLACK_HOLE, PASSTHROUGH};
use super::http::{Connections, Side};
use super::inbound::PLAINTEXT_HTTP;
use super::virtual_host::{Unknown, is_auto};
use super::{Encoder, Target, endpoints, filters, origin, route, wire};
use crate::mesh::Mesh;
use crate::routes::ConnectionRule;

/// Where redirected outbound connections arrive.
pub(crate) const OUTBOUND_PORT: u16 = 15001;
/// How long the first bytes are waited for where the protocol is not known.
const DETECTION_SECONDS: u64 = 5;

impl<'a> Encoder<'a> {
    /// The listeners of everything the workload calls.
    pub(super) fn outbound(&mut self) {
        match &self.workload.interception {
            Interception::Explicit { outbound } => {
                for bound in outbound {
                    self.explicit_outbound(bound);
                }
            }
            Interception::Redirect | Interception::Namespace { .. } => self.redirected_outbound(),
        }
    }

    /// One listener that stands for a host and port of the mesh.
    fn explicit_outbound(&mut self, bound: &ExplicitOutbound) {
        let hostname = self.mesh.resolve_host(&bound.host, &self.workload.namespace);
        let service = self.service(&hostname);
        let port = service.and_then(|service| service.ports.iter().find(|port| port.number == bound.port));
        let protocol = match (service, port) {
            (_, Some(port)) => port.protocol,
            // A host that only rules know; rules are about HTTP unless they say otherwise.
            (None, None) if self.mesh.table(self.caller(), &hostname).is_some_and(|table| !table.http.is_empty()) => {
                Protocol::Http
            }
            _ => return,
        };
        let name = format!("outbound|{}||{hostname}", bound.port);
        let own = Some((hostname.as_str(), bound.bind.ip()));
        let chains = self.service_chains(&name, service, protocol, &hostname, bound.port, own);
        let listener = Listener {
            address: Some(endpoints::socket(&bound.bind.ip().to_string(), bound.bind.port())),
            metadata: service.and_then(|service| origin::metadata(&service.origin)),
            ..outbound_listener(&name, chains, protocol)
        };
        self.listeners.insert(name, listener);
    }

    /// What is done with connections to one service's port.
    fn service_chains(
        &mut self,
        name: &str,
        service: Option<&'a Service>,
        protocol: Protocol,
        hostname: &str,
        port: u16,
        own: Option<(&str, IpAddr)>,
    ) -> Vec<FilterChain> {
        let mut chains = Vec::new();
        if protocol.is_http() || is_auto(protocol) {
            let unknown = match (self.mesh.config().outbound_allow_any, service) {
                (true, Some(service)) if own.is_some() => Unknown::Service(service),
                _ if own.is_some() => Unknown::Refuse,
                _ => self.unknown_hosts(),
            };
            chains.push(self.http_chain(name, port, &unknown, own));
        }
        if is_auto(protocol)
            && let Some(http) = chains.first_mut()
        {
            http.name = format!("{name}-http");
            http.filter_chain_match = Some(FilterChainMatch {
                application_protocols: PLAINTEXT_HTTP.map(str::to_owned).to_vec(),
                ..FilterChainMatch::default()
            });
        }
        if !protocol.is_http()
            && let Some(service) = service
        {
            chains.extend(self.connection_chains(name, service, protocol, hostname, port));
        }
        chains
    }

    fn http_chain(&mut self, name: &str, port: u16, unknown: &Unknown<'_>, own: Option<(&str, IpAddr)>) -> FilterChain {
        let routes = self.route_configuration(name, port, unknown, own);
        let http_filters = vec![
            filters::peer_metadata(),
            filters::alpn(),
            filters::cors(),
            filters::fault(),
            filters::stats(),
            filters::router(),
        ];
        let prefix = format!("outbound_0.0.0.0_{port}");
        FilterChain {
            name: name.to_owned(),
            filters: vec![self.http_manager(Side::Outbound, &prefix, routes, http_filters)],
            ..FilterChain::default()
        }
    }

    /// Chains of a port on which requests are not seen: the rules of its table, then the service itself.
    fn connection_chains(
        &mut self,
        name: &str,
        service: &Service,
        protocol: Protocol,
        hostname: &str,
        port: u16,
    ) -> Vec<FilterChain> {
        let mesh = self.mesh;
        let secure = matches!(protocol, Protocol::Tls | Protocol::Https);
        let rules = match mesh.table(self.caller(), hostname) {
            Some(table) if secure && !table.tls.is_empty() => {
                Mesh::connection_rules(table, &table.tls, self.caller(), port)
            }
            Some(table) => Mesh::connection_rules(table, &table.tcp, self.caller(), port),
            None => Vec::new(),
        };
        let mut chains = Vec::new();
        let mut taken = BTreeSet::new();
        for rule in &rules {
            self.rule_chains(name, rule, port, &mut taken, &mut chains);
        }
        let everything = FilterChainMatch::default();
        if taken.insert(key(&everything)) {
            let filters = match mesh.split(hostname) {
                Some(split) if rules.is_empty() => {
                    let destinations = route::split_destinations(split);
                    vec![self.forward_connections(name, &destinations, &split.namespace, port)]
                }
                _ => {
                    let target = Target { hostname: hostname.to_owned(), port, subset: None };
                    let settings = self.connections(service, &target);
                    let cluster = self.want(target);
                    vec![self.tcp_proxy(&cluster, ClusterSpecifier::Cluster(cluster.clone()), settings)]
                }
            };
            chains.push(FilterChain {
                name: format!("{name}-default"),
                filter_chain_match: Some(everything),
                filters,
                metadata: origin::metadata(&service.origin),
                ..FilterChain::default()
            });
        }
        chains
    }

    fn rule_chains(
        &mut self,
        name: &str,
        rule: &ConnectionRule<'_>,
        port: u16,
        taken: &mut BTreeSet<String>,
        chains: &mut Vec<FilterChain>,
    ) {
        let matches: Vec<FilterChainMatch> = match rule.matches.as_slice() {
            [] => vec![FilterChainMatch::default()],
            several => several.iter().map(|wanted| connection_match(wanted)).collect(),
        };
        for wanted in matches {
            if !taken.insert(key(&wanted)) {
                continue;
            }
            let filters = vec![self.forward_connections(name, rule.destinations, rule.namespace, port)];
            chains.push(FilterChain {
                name: format!("{name}-{}", chains.len()),
                filter_chain_match: Some(wanted),
                filters,
                metadata: origin::metadata(rule.origin),
                ..FilterChain::default()
            });
        }
    }

    fn forward_connections(
        &mut self,
        name: &str,
        destinations: &[WeightedDestination],
        namespace: &str,
        port: u16,
    ) -> proto::envoy::config::listener::v3::Filter {
        let weighted: Vec<&WeightedDestination> = match destinations {
            [only] => vec![only],
            several => several.iter().filter(|share| share.weight > 0).collect(),
        };
        let specifier = match weighted.as_slice() {
            [] => ClusterSpecifier::Cluster(BLACK_HOLE.to_owned()),
            [only] => ClusterSpecifier::Cluster(self.destination(&only.destination, namespace, port)),
            several => {
                let cluster = |share: &&WeightedDestination| ClusterWeight {
                    name: self.destination(&share.destination, namespace, port),
                    weight: share.weight,
                    ..ClusterWeight::default()
                };
                let clusters = several.iter().map(cluster).collect();
                ClusterSpecifier::WeightedClusters(WeightedCluster { clusters })
            }
        };
        let by_source = weighted.first().is_some_and(|share| {
            let target = self.target(&share.destination, namespace, port);
            self.service(&target.hostname).is_some_and(|service| self.connections(service, &target).by_source)
        });
        self.tcp_proxy(name, specifier, Connections { idle_timeout: None, by_source })
    }

    fn connections(&self, service: &Service, target: &Target) -> Connections {
        let effective = self.mesh.effective(self.caller(), service, target.port, target.subset.as_deref());
        let Some(effective) = effective else { return Connections::default() };
        let by_source = effective
            .balancer
            .is_some_and(|balancer| matches!(balancer.kind, BalancerKind::ConsistentHash { on: HashOn::SourceIp, .. }));
        Connections { idle_timeout: effective.pool.and_then(|pool| pool.tcp_idle_timeout), by_source }
    }

    /// Everything visible, behind the one port that connections are redirected to.
    fn redirected_outbound(&mut self) {
        let mesh = self.mesh;
        let mut http_ports: BTreeSet<u16> = BTreeSet::new();
        let mut shared: BTreeMap<u16, Vec<(&'a Service, &'a ServicePort)>> = BTreeMap::new();
        for service in mesh.visible_services(&self.workload.namespace) {
            for port in &service.ports {
                self.want_all(service, port);
                if port.protocol.is_http() || (is_auto(port.protocol) && service.addresses.is_empty()) {
                    http_ports.insert(port.number);
                } else if service.addresses.is_empty() && service.address_ranges.is_empty() {
                    shared.entry(port.number).or_default().push((service, port));
                } else {
                    self.addressed(service, port);
                }
            }
        }
        for port in &http_ports {
            let listener = self.http_port(*port, shared.remove(port).unwrap_or_default());
            self.add(listener);
        }
        for (port, services) in shared {
            let listener = self.shared_port(port, &services);
            self.add(listener);
        }
        let listener = self.virtual_outbound();
        self.listeners.insert(listener.name.clone(), listener);
        for cluster in [self.passthrough_cluster(PASSTHROUGH), self.black_hole_cluster()] {
            self.clusters.insert(cluster.name.clone(), cluster);
        }
    }

    /// A proxy that redirects may be asked for any cluster of a service it sees.
    fn want_all(&mut self, service: &Service, port: &ServicePort) {
        let target = |subset| Target { hostname: service.hostname.clone(), port: port.number, subset };
        self.want(target(None));
        let mesh = self.mesh;
        for subset in mesh.subsets(self.caller(), service) {
            self.want(target(Some(subset.name.clone())));
        }
    }

    /// `0.0.0.0_8080`: all HTTP services of a port; and connection services without an address of their own there.
    fn http_port(&mut self, port: u16, others: Vec<(&'a Service, &'a ServicePort)>) -> Listener {
        let name = format!("0.0.0.0_{port}");
        let unknown = self.unknown_hosts();
        let mut http = self.http_chain(&name, port, &unknown, None);
        http.filter_chain_match = Some(FilterChainMatch {
            application_protocols: PLAINTEXT_HTTP.map(str::to_owned).to_vec(),
            ..FilterChainMatch::default()
        });
        let mut taken = BTreeSet::new();
        let mut chains = vec![http];
        for (service, service_port) in others {
            chains.extend(self.shared_chains(&name, service, service_port, &mut taken));
        }
        self.virtual_listener(&name, "0.0.0.0", port, chains, true)
    }

    /// `0.0.0.0_9000`: connection services without an address of their own, told apart by server name or endpoint.
    fn shared_port(&mut self, port: u16, services: &[(&'a Service, &'a ServicePort)]) -> Listener {
        let name = format!("0.0.0.0_{port}");
        let mut taken = BTreeSet::new();
        let mut chains = Vec::new();
        for (service, service_port) in services {
            chains.extend(self.shared_chains(&name, service, service_port, &mut taken));
        }
        let secure = services.iter().any(|(_, port)| matches!(port.protocol, Protocol::Tls | Protocol::Https));
        self.virtual_listener(&name, "0.0.0.0", port, chains, secure)
    }

    fn shared_chains(
        &mut self,
        name: &str,
        service: &'a Service,
        port: &'a ServicePort,
        taken: &mut BTreeSet<String>,
    ) -> Vec<FilterChain> {
        let mesh = self.mesh;
        let secure = matches!(port.protocol, Protocol::Tls | Protocol::Https);
        let mut chains = self.connection_chains(name, service, port.protocol, &service.hostname, port.number);
        let places: Vec<IpNet> = mesh
            .endpoints(service, port)
            .iter()
            .filter_map(|endpoint| match endpoint.place {
                crate::reach::Place::Socket(at) => Some(IpNet::from(at.ip())),
                _ => None,
            })
            .collect();
        for chain in &mut chains {
            let wanted = chain.filter_chain_match.get_or_insert_default();
            if secure && wanted.server_names.is_empty() {
                wanted.server_names = vec![service.hostname.clone()];
            } else if !secure && service.resolution == Resolution::Static {
                wanted.prefix_ranges = places.iter().map(cidr).collect();
            }
            chain.name = format!("{}-{}", chain.name, service.hostname);
        }
        // Without endpoints or a server name nothing tells the service from the others.
        chains.retain(|chain| chain.filter_chain_match.as_ref().is_some_and(|wanted| taken.insert(key(wanted))));
        chains
    }

    /// `10.0.0.7_9000`: a service with addresses of its own.
    fn addressed(&mut self, service: &'a Service, port: &'a ServicePort) {
        for address in &service.addresses {
            let name = format!("{address}_{}", port.number);
            let chains = self.service_chains(&name, Some(service), port.protocol, &service.hostname, port.number, None);
            let inspect = port.protocol != Protocol::Tcp;
            let mut listener = self.virtual_listener(&name, &address.to_string(), port.number, chains, inspect);
            listener.metadata = origin::of_service(&service.origin, Some(service));
            self.listeners.insert(name, listener);
        }
        if service.address_ranges.is_empty() {
            return;
        }
        let name = format!("0.0.0.0_{}", port.number);
        let mut chains = self.connection_chains(&name, service, port.protocol, &service.hostname, port.number);
        for chain in &mut chains {
            let wanted = chain.filter_chain_match.get_or_insert_default();
            wanted.prefix_ranges = service.address_ranges.iter().map(cidr).collect();
            chain.name = format!("{}-{}", chain.name, service.hostname);
        }
        let listener = self.virtual_listener(&name, "0.0.0.0", port.number, chains, false);
        self.add(listener);
    }

    /// Adds a listener, or its chains to the one of that name that is there. Of equal matches the first stays.
    fn add(&mut self, listener: Listener) {
        let Some(known) = self.listeners.get_mut(&listener.name) else {
            self.listeners.insert(listener.name.clone(), listener);
            return;
        };
        let of = |chain: &FilterChain| chain.filter_chain_match.as_ref().map(key).unwrap_or_default();
        let taken: BTreeSet<String> = known.filter_chains.iter().map(of).collect();
        known.filter_chains.extend(listener.filter_chains.into_iter().filter(|chain| !taken.contains(&of(chain))));
        if known.listener_filters.is_empty() {
            known.listener_filters = listener.listener_filters;
            known.listener_filters_timeout = listener.listener_filters_timeout;
            known.continue_on_listener_filters_timeout = listener.continue_on_listener_filters_timeout;
        }
        if known.default_filter_chain.is_none() {
            known.default_filter_chain = listener.default_filter_chain;
        }
    }

    /// A listener that is not bound: the virtual one hands connections over by their original destination.
    /// What no chain takes goes where it wanted to go, if the mesh allows.
    fn virtual_listener(
        &self,
        name: &str,
        host: &str,
        port: u16,
        filter_chains: Vec<FilterChain>,
        inspect: bool,
    ) -> Listener {
        let catch_all = filter_chains
            .iter()
            .any(|chain| chain.filter_chain_match.as_ref().is_none_or(|wanted| *wanted == FilterChainMatch::default()));
        let listener_filters =
            if inspect { vec![filters::tls_inspector(&[]), filters::http_inspector(&[])] } else { Vec::new() };
        Listener {
            name: name.to_owned(),
            address: Some(endpoints::socket(host, port)),
            additional_addresses: if host == "0.0.0.0" { self.any_v6(port) } else { Vec::new() },
            filter_chains,
            default_filter_chain: (!catch_all).then(|| self.unknown_chain(name)),
            listener_filters,
            bind_to_port: wire::boolean(false),
            ..outbound_listener(name, Vec::new(), Protocol::Tcp)
        }
        .with_detection(inspect)
    }

    fn unknown_chain(&self, name: &str) -> FilterChain {
        let cluster = self.unknown_cluster();
        FilterChain {
            name: format!("{name}-unknown"),
            filters: vec![self.tcp_proxy(
                cluster,
                ClusterSpecifier::Cluster(cluster.to_owned()),
                Connections::default(),
            )],
            ..FilterChain::default()
        }
    }

    fn virtual_outbound(&self) -> Listener {
        let target = ClusterSpecifier::Cluster(BLACK_HOLE.to_owned());
        let circles = FilterChain {
            name: "virtualOutbound-blackhole".to_owned(),
            filter_chain_match: Some(FilterChainMatch {
                destination_port: wire::uint32(u32::from(OUTBOUND_PORT)),
                ..FilterChainMatch::default()
            }),
            filters: vec![self.tcp_proxy(BLACK_HOLE, target, Connections::default())],
            ..FilterChain::default()
        };
        let rest =
            FilterChain { name: "virtualOutbound-catchall-tcp".to_owned(), ..self.unknown_chain("virtualOutbound") };
        let (address, additional_addresses) = match &self.workload.interception {
            // Only IPv4 leads out of such a namespace.
            Interception::Namespace { path } => (endpoints::socket_in(path, "0.0.0.0", OUTBOUND_PORT), Vec::new()),
            _ => (endpoints::socket("0.0.0.0", OUTBOUND_PORT), self.any_v6(OUTBOUND_PORT)),
        };
        Listener {
            address: Some(address),
            additional_addresses,
            use_original_dst: wire::boolean(true),
            metadata: origin::metadata(&self.workload.origin),
            ..outbound_listener("virtualOutbound", vec![circles, rest], Protocol::Tcp)
        }
    }
}

/// A builder's step that reads better at the end.
trait Detection {
    fn with_detection(self, inspect: bool) -> Self;
}

impl Detection for Listener {
    fn with_detection(mut self, inspect: bool) -> Self {
        if inspect {
            self.listener_filters_timeout = wire::seconds(DETECTION_SECONDS);
            self.continue_on_listener_filters_timeout = true;
        }
        self
    }
}

fn outbound_listener(name: &str, filter_chains: Vec<FilterChain>, protocol: Protocol) -> Listener {
    let listener_filters = match protocol {
        Protocol::Auto => vec![filters::http_inspector(&[])],
        Protocol::Tls | Protocol::Https => vec![filters::tls_inspector(&[])],
        Protocol::Http | Protocol::Http2 | Protocol::Grpc | Protocol::Tcp => Vec::new(),
    };
    let inspect = !listener_filters.is_empty();
    Listener {
        name: name.to_owned(),
        filter_chains,
        listener_filters,
        traffic_direction: TrafficDirection::Outbound.into(),
        drain_type: listener::DrainType::Default.into(),
        ..Listener::default()
    }
    .with_detection(inspect)
}

fn connection_match(wanted: &L4Match) -> FilterChainMatch {
    FilterChainMatch {
        server_names: wanted
            .sni_hosts
            .iter()
            .map(|host| host.to_ascii_lowercase())
            .filter(|host| host != "*")
            .collect(),
        prefix_ranges: wanted.destination_subnets.iter().map(cidr).collect(),
        ..FilterChainMatch::default()
    }
}

fn cidr(block: &IpNet) -> CidrRange {
    CidrRange { address_prefix: block.network().to_string(), prefix_len: wire::uint32(u32::from(block.prefix_len())) }
}

/// Tells equal matches: Envoy refuses a listener with two.
fn key(wanted: &FilterChainMatch) -> String {
    let ranges: Vec<String> = wanted
        .prefix_ranges
        .iter()
        .map(|range| format!("{}/{}", range.address_prefix, range.prefix_len.map_or(0, |length| length.value)))
        .collect();
    format!("{};{};{}", wanted.server_names.join(","), ranges.join(","), wanted.application_protocols.join(","))
}
