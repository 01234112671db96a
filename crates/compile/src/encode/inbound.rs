//! Listeners for what comes to a workload: mesh mTLS and, where allowed, plaintext; then its policies; then the
//! program itself.

use std::net::SocketAddr;

use model::security::MtlsMode;
use model::service::Protocol;
use proto::envoy::config::core::v3::TrafficDirection;
use proto::envoy::config::listener::v3::{AdditionalAddress, Filter, FilterChain, FilterChainMatch, Listener};
use proto::envoy::config::route::v3::{RouteConfiguration, VirtualHost, route::Action};
use proto::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier;

use super::cluster::{BLACK_HOLE, INBOUND_PASSTHROUGH, inbound_name};
use super::http::{Connections, Side};
use super::{Encoder, endpoints, filters, origin, rbac, route, tls, wire};
use crate::reach::InboundPort;

/// Where redirected inbound connections arrive.
pub(crate) const INBOUND_PORT: u16 = 15006;
/// How HTTP looks before TLS.
pub(crate) const PLAINTEXT_HTTP: [&str; 3] = ["http/1.0", "http/1.1", "h2c"];
/// How long a connection's first bytes are waited for, to tell what is spoken; then it is taken as opaque.
const DETECTION_SECONDS: u64 = 5;

/// One way in: what the connection must look like, and what is done with it.
struct Door {
    mtls: bool,
    http: bool,
    transport: &'static str,
    alpn: &'static [&'static str],
    name: &'static str,
}

impl Encoder<'_> {
    /// The listeners of everything that comes in.
    pub(super) fn inbound(&mut self) {
        let mesh = self.mesh;
        let ports = mesh.inbound_ports(self.workload);
        for port in &ports {
            let cluster = self.inbound_cluster(port);
            self.clusters.insert(cluster.name.clone(), cluster);
        }
        if self.redirected() {
            self.virtual_inbound(&ports);
        } else {
            for port in &ports {
                self.explicit_inbound(port);
            }
        }
    }

    /// One listener for a port, at the addresses that peers know.
    fn explicit_inbound(&mut self, port: &InboundPort<'_>) {
        let Some((first, others)) = port.binds.split_first() else { return };
        let chains = self.port_chains(port, false);
        let inspect_tls = self.mode(port) != MtlsMode::Disable;
        let inspect_http = port.protocol == Protocol::Auto;
        let mut listener_filters = Vec::new();
        if inspect_tls {
            listener_filters.push(filters::tls_inspector(&[]));
        }
        if inspect_http {
            listener_filters.push(filters::http_inspector(&[]));
        }
        let listener = Listener {
            address: Some(address(first)),
            additional_addresses: others
                .iter()
                .map(|other| AdditionalAddress { address: Some(address(other)), ..AdditionalAddress::default() })
                .collect(),
            listener_filters,
            ..self.inbound_listener(&inbound_name(port.number), chains)
        };
        self.listeners.insert(listener.name.clone(), listener);
    }

    /// The one listener that redirected connections of all ports come to.
    fn virtual_inbound(&mut self, ports: &[InboundPort<'_>]) {
        let mut chains = vec![self.black_hole_chain()];
        chains.extend(self.passthrough_chains());
        for port in ports {
            chains.extend(self.port_chains(port, true));
        }
        let plain: Vec<u16> =
            ports.iter().filter(|port| self.mode(port) == MtlsMode::Disable).map(|port| port.number).collect();
        let known: Vec<u16> =
            ports.iter().filter(|port| port.protocol != Protocol::Auto).map(|port| port.number).collect();
        let listener = Listener {
            address: Some(endpoints::socket("0.0.0.0", INBOUND_PORT)),
            additional_addresses: self.any_v6(INBOUND_PORT),
            listener_filters: vec![
                filters::original_dst(),
                filters::tls_inspector(&plain),
                filters::http_inspector(&known),
            ],
            ..self.inbound_listener("virtualInbound", chains)
        };
        self.listeners.insert(listener.name.clone(), listener);
        for cluster in [self.passthrough_cluster(INBOUND_PASSTHROUGH), self.black_hole_cluster()] {
            self.clusters.insert(cluster.name.clone(), cluster);
        }
    }

    /// The wildcard address of IPv6, for workloads that have such addresses.
    pub(super) fn any_v6(&self, port: u16) -> Vec<AdditionalAddress> {
        let wanted = self.workload.addresses.iter().any(std::net::IpAddr::is_ipv6);
        let any = || AdditionalAddress { address: Some(endpoints::socket("::", port)), ..AdditionalAddress::default() };
        wanted.then(any).into_iter().collect()
    }

    fn inbound_listener(&self, name: &str, filter_chains: Vec<FilterChain>) -> Listener {
        Listener {
            name: name.to_owned(),
            filter_chains,
            traffic_direction: TrafficDirection::Inbound.into(),
            listener_filters_timeout: wire::seconds(DETECTION_SECONDS),
            continue_on_listener_filters_timeout: true,
            metadata: origin::metadata(&self.workload.origin),
            ..Listener::default()
        }
    }

    fn mode(&self, port: &InboundPort<'_>) -> MtlsMode {
        // A workload without a certificate can only be spoken to in plaintext.
        if self.workload.meshed {
            self.mesh.mtls_mode(self.workload, Some(port.number)).mode
        } else {
            MtlsMode::Disable
        }
    }

    fn port_chains(&mut self, port: &InboundPort<'_>, by_port: bool) -> Vec<FilterChain> {
        let doors = doors(self.mode(port), port.protocol);
        let seen = port.binds.first().map_or(port.number, SocketAddr::port);
        let guarded = Some((port.number, if by_port { port.number } else { seen }));
        let cluster = inbound_name(port.number);
        let chain = |door: &Door| {
            let filters = if door.http {
                self.inbound_http(door.mtls, port.number, &cluster, guarded)
            } else {
                self.inbound_tcp(&cluster, guarded)
            };
            self.chain(door, &cluster, by_port.then_some(port.number), filters)
        };
        doors.iter().map(chain).collect()
    }

    /// Ports that nobody declared pass under the policies that name no port.
    fn passthrough_chains(&mut self) -> Vec<FilterChain> {
        let mode = if self.workload.meshed { self.mesh.mtls_mode(self.workload, None).mode } else { MtlsMode::Disable };
        let doors = doors(mode, Protocol::Tcp);
        let chain = |door: &Door| {
            let filters = self.inbound_tcp(INBOUND_PASSTHROUGH, None);
            self.chain(door, "virtualInbound", None, filters)
        };
        doors.iter().map(chain).collect()
    }

    /// Connections to the listener's own port would turn in circles.
    fn black_hole_chain(&self) -> FilterChain {
        let target = ClusterSpecifier::Cluster(BLACK_HOLE.to_owned());
        FilterChain {
            name: "virtualInbound-blackhole".to_owned(),
            filter_chain_match: Some(FilterChainMatch {
                destination_port: wire::uint32(u32::from(INBOUND_PORT)),
                ..FilterChainMatch::default()
            }),
            filters: vec![self.tcp_proxy(BLACK_HOLE, target, Connections::default())],
            ..FilterChain::default()
        }
    }

    fn chain(&self, door: &Door, name: &str, port: Option<u16>, filters: Vec<Filter>) -> FilterChain {
        let alpn: &[&str] = if door.http { &["h2", "http/1.1"] } else { &[] };
        let socket = || tls::mesh_server(&self.options.secrets, self.mesh.trust_domains(), alpn);
        FilterChain {
            name: format!("{name}{}{}", if name.ends_with('|') { "" } else { "-" }, door.name),
            filter_chain_match: Some(FilterChainMatch {
                destination_port: port.map(u32::from).and_then(wire::uint32),
                transport_protocol: door.transport.to_owned(),
                application_protocols: door.alpn.iter().map(|name| (*name).to_owned()).collect(),
                ..FilterChainMatch::default()
            }),
            filters,
            transport_socket: door.mtls.then(socket),
            metadata: origin::named(rbac::origins(self.mesh, self.workload)),
            ..FilterChain::default()
        }
    }

    fn inbound_tcp(&self, cluster: &str, guarded: Option<(u16, u16)>) -> Vec<Filter> {
        let mut filters = self.external_network_filters(guarded);
        filters.extend(rbac::network_filters(self.mesh, self.workload, guarded));
        let target = ClusterSpecifier::Cluster(cluster.to_owned());
        filters.push(self.tcp_proxy(cluster, target, Connections::default()));
        filters
    }

    fn inbound_http(&mut self, mtls: bool, port: u16, cluster: &str, guarded: Option<(u16, u16)>) -> Vec<Filter> {
        let mut http_filters = vec![filters::peer_metadata()];
        // As in Istio: an authorizer may be what adds the token.
        http_filters.extend(self.external_filters(guarded));
        http_filters.extend(self.token_filter());
        http_filters.extend(rbac::http_filters(self.mesh, self.workload, guarded));
        http_filters.extend([filters::stats(), filters::router()]);
        let to_program = Action::Route(route::plain_action(cluster.to_owned()));
        let routes = RouteConfiguration {
            name: cluster.to_owned(),
            virtual_hosts: vec![VirtualHost {
                name: format!("inbound|http|{port}"),
                domains: vec!["*".to_owned()],
                routes: vec![route::plain_route("default", to_program, None)],
                ..VirtualHost::default()
            }],
            validate_clusters: wire::boolean(false),
            ..RouteConfiguration::default()
        };
        let prefix = format!("inbound_0.0.0.0_{port}");
        vec![self.http_manager(Side::Inbound { mtls }, &prefix, routes, http_filters)]
    }
}

fn address(at: &SocketAddr) -> proto::envoy::config::core::v3::Address {
    endpoints::socket(&at.ip().to_string(), at.port())
}

/// The ways in of a port by its mTLS mode and protocol.
fn doors(mode: MtlsMode, protocol: Protocol) -> Vec<Door> {
    let http = protocol.is_http();
    let mtls = |http, alpn, name| Door { mtls: true, http, transport: "tls", alpn, name };
    let plain = |http, transport, alpn, name| Door { mtls: false, http, transport, alpn, name };
    match (mode, protocol) {
        (MtlsMode::Strict, Protocol::Auto) => {
            vec![mtls(true, &tls::MESH_HTTP_ALPN, "mtls-http"), mtls(false, &[], "mtls-tcp")]
        }
        (MtlsMode::Strict, _) => vec![mtls(http, &[], "mtls")],
        (MtlsMode::Permissive, Protocol::Auto) => vec![
            mtls(true, &tls::MESH_HTTP_ALPN, "mtls-http"),
            mtls(false, &tls::MESH_TCP_ALPN, "mtls-tcp"),
            plain(true, "raw_buffer", &PLAINTEXT_HTTP, "plaintext-http"),
            plain(false, "raw_buffer", &[], "plaintext-tcp"),
            plain(false, "tls", &[], "own-tls"),
        ],
        (MtlsMode::Permissive, _) if http => {
            vec![mtls(true, &tls::MESH_ALPN, "mtls"), plain(true, "raw_buffer", &[], "plaintext")]
        }
        (MtlsMode::Permissive, _) => vec![
            mtls(false, &tls::MESH_ALPN, "mtls"),
            plain(false, "raw_buffer", &[], "plaintext"),
            plain(false, "tls", &[], "own-tls"),
        ],
        (MtlsMode::Disable, Protocol::Auto) => {
            vec![plain(true, "", &PLAINTEXT_HTTP, "plaintext-http"), plain(false, "", &[], "plaintext-tcp")]
        }
        (MtlsMode::Disable, _) => vec![plain(http, "", &[], "plaintext")],
    }
}
