//! ServiceEntry.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;
use model::service::{EndpointAddress, Location, Protocol, Resolution, ServicePort, StaticEndpoint, TargetPort};
use model::{Declaration, Service};

use super::{selector, workload_entry};
use crate::document::Subject;
use crate::field::{Field, Object};
use crate::{codes, names};

/// Protocols of a port.
pub(crate) const PROTOCOLS: &[(&str, Protocol)] = &[
    ("HTTP", Protocol::Http),
    ("HTTP2", Protocol::Http2),
    ("GRPC", Protocol::Grpc),
    ("GRPC-WEB", Protocol::Http),
    ("HTTPS", Protocol::Https),
    ("TLS", Protocol::Tls),
    ("TCP", Protocol::Tcp),
    ("MONGO", Protocol::Tcp),
    ("REDIS", Protocol::Tcp),
    ("MYSQL", Protocol::Tcp),
];

/// Lowers a ServiceEntry: one service for each host.
pub(crate) fn read(spec: &Object<'_>, subject: &Subject<'_>) -> Vec<Declaration> {
    let words = [
        ("NONE", Some(Resolution::None)),
        ("STATIC", Some(Resolution::Static)),
        ("DNS", Some(Resolution::Dns)),
        ("DNS_ROUND_ROBIN", Some(Resolution::DnsRoundRobin)),
        ("DYNAMIC_DNS", None),
    ];
    let resolution_field = spec.get("resolution");
    let resolution = match resolution_field.as_ref().and_then(|field| field.word(&words)) {
        Some(None) => {
            spec.refuse("resolution", "DYNAMIC_DNS: hosts are looked up by NONE, DNS or DNS_ROUND_ROBIN");
            Resolution::None
        }
        Some(Some(resolution)) => resolution,
        None => Resolution::None,
    };
    let hosts = spec.need("hosts").map(|field| hosts(&field)).unwrap_or_default();
    let (addresses, ranges) = spec.get("addresses").map(|field| addresses(&field, resolution)).unwrap_or_default();
    let location = spec
        .get("location")
        .and_then(|field| {
            field.word(&[("MESH_EXTERNAL", Location::MeshExternal), ("MESH_INTERNAL", Location::MeshInternal)])
        })
        .unwrap_or(Location::MeshExternal);
    if let (Some(selector), Some(endpoints)) = (spec.get("workloadSelector"), spec.get("endpoints")) {
        endpoints
            .error_at_key(codes::EXCLUSIVE, "`workloadSelector` and `endpoints` exclude each other")
            .also(selector.key_span(), "given here as well");
    }
    let ports = spec.get("ports").map(|field| ports(&field)).unwrap_or_default();
    let endpoints = spec.get("endpoints").map(|field| endpoints(&field, resolution)).unwrap_or_default();
    check(spec, resolution, &hosts, &endpoints);
    let service = |host: &String| {
        Declaration::Service(Service {
            hostname: host.clone(),
            name: host.clone(),
            namespace: subject.namespace(),
            addresses: addresses.clone(),
            address_ranges: ranges.clone(),
            ports: ports.clone(),
            resolution,
            location,
            selector: selector(spec, "workloadSelector", "labels"),
            endpoints: endpoints.clone(),
            export_to: spec.get("exportTo").map(|field| field.export_to(&subject.key.namespace)).unwrap_or_default(),
            subject_alt_names: spec.get("subjectAltNames").map(|field| field.filled_texts()).unwrap_or_default(),
            origin: subject.origin.clone(),
        })
    };
    hosts.iter().map(service).collect()
}

fn hosts(field: &Field<'_>) -> Vec<String> {
    let items = field.items();
    if items.is_empty() {
        field.error(codes::EMPTY, "`hosts` must not be empty");
    }
    let mut seen = HashMap::new();
    let mut hosts = Vec::new();
    for item in &items {
        let host = item.host(names::wildcard_host);
        if host == "*" {
            item.error(codes::HOST, "host `*` would take over every host")
                .help("write a name, or a wildcard as *.example.com");
        }
        if let Some(first) = seen.insert(host.clone(), item.span()) {
            item.error(codes::HOST_TWICE, format!("host `{host}` stands twice")).also(first, "first here");
        }
        hosts.push(host);
    }
    hosts
}

fn addresses(field: &Field<'_>, resolution: Resolution) -> (Vec<IpAddr>, Vec<IpNet>) {
    let (mut single, mut ranges) = (Vec::new(), Vec::new());
    for item in field.items() {
        let text = item.text();
        match text.parse::<IpAddr>() {
            Ok(address) => single.push(address),
            Err(_) => {
                ranges.extend(item.ip_range());
                if matches!(resolution, Resolution::Dns | Resolution::DnsRoundRobin) {
                    item.error(codes::RESOLUTION, "a range of addresses cannot have DNS resolution")
                        .help("write single addresses, or resolution: NONE or STATIC");
                }
            }
        }
    }
    (single, ranges)
}

fn ports(field: &Field<'_>) -> Vec<ServicePort> {
    let (mut names_seen, mut numbers_seen) = (HashMap::new(), HashMap::new());
    let mut ports = Vec::new();
    for item in field.items() {
        let object = item.object();
        let number = object.need("number").map(|field| (field.port(), field.span()));
        let name = object.need("name").map(|field| {
            let name = field.filled();
            if let (false, Err(why)) = (name.is_empty(), names::dns_label(&name.to_ascii_lowercase())) {
                field.error(codes::SERVICE_PORTS, format!("port name `{name}` {why}"));
            }
            if let Some(first) = names_seen.insert(name.clone(), field.span()) {
                field.error(codes::SERVICE_PORTS, format!("port name `{name}` stands twice")).also(first, "first here");
            }
            name
        });
        let (number, span) = number.unwrap_or_else(|| (0, item.span()));
        if let Some(first) = numbers_seen.insert(number, span).filter(|_| number != 0) {
            item.error(codes::SERVICE_PORTS, format!("port number {number} stands twice")).also(first, "first here");
        }
        let protocol = object.get("protocol").map(|field| protocol(&field));
        let name = name.unwrap_or_default();
        ports.push(ServicePort {
            protocol: protocol.unwrap_or_else(|| Protocol::from_name(&name)),
            target: TargetPort::Number(object.get("targetPort").map_or(number, |field| field.port())),
            number,
            name,
        });
    }
    ports
}

/// The protocol of a port; Istio compares without case.
fn protocol(field: &Field<'_>) -> Protocol {
    let text = field.text();
    let upper = text.to_ascii_uppercase();
    PROTOCOLS.iter().find(|(word, _)| *word == upper).map_or_else(
        || {
            if !text.is_empty() {
                let known = PROTOCOLS.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
                field
                    .error(codes::SERVICE_PORTS, format!("protocol `{text}` is not known"))
                    .help(format!("known: {known}"));
            }
            Protocol::Auto
        },
        |(_, protocol)| *protocol,
    )
}

fn endpoints(field: &Field<'_>, resolution: Resolution) -> Vec<StaticEndpoint> {
    let mut endpoints = Vec::new();
    for item in field.items() {
        let object = item.object();
        let Some(endpoint) = workload_entry::endpoint(&object) else { continue };
        if let Some(address) = object.get("address") {
            let dns = matches!(resolution, Resolution::Dns | Resolution::DnsRoundRobin);
            match &endpoint.address {
                EndpointAddress::Dns(name) if resolution == Resolution::Static => {
                    address
                        .error(codes::RESOLUTION, format!("`{name}` is a name, but resolution is STATIC"))
                        .help("write an IP address, or resolution: DNS");
                }
                EndpointAddress::Unix(_) if dns => {
                    address
                        .error(codes::RESOLUTION, "a Unix socket cannot be looked up")
                        .help("write resolution: STATIC");
                }
                _ => {}
            }
        }
        endpoints.push(endpoint);
    }
    endpoints
}

fn check(spec: &Object<'_>, resolution: Resolution, hosts: &[String], endpoints: &[StaticEndpoint]) {
    let field = spec.get("endpoints");
    match (resolution, &field) {
        (Resolution::None, Some(field)) if !endpoints.is_empty() => {
            field
                .error_at_key(
                    codes::RESOLUTION,
                    "with resolution NONE calls go to the address they were made to, not to endpoints",
                )
                .help("write resolution: STATIC or DNS, or remove the endpoints");
        }
        (Resolution::DnsRoundRobin, Some(field)) if endpoints.len() > 1 => {
            field.error_at_key(codes::RESOLUTION, "DNS_ROUND_ROBIN takes one endpoint").help("write resolution: DNS");
        }
        (Resolution::Dns | Resolution::DnsRoundRobin, _)
            if endpoints.is_empty() && spec.get("workloadSelector").is_none() =>
        {
            if let Some(host) = hosts.iter().find(|host| host.starts_with('*')) {
                spec.field
                    .error(codes::RESOLUTION, format!("host `{host}` cannot be looked up, and there are no endpoints"))
                    .help("add endpoints with names, or write resolution: NONE");
            }
        }
        _ => {}
    }
}
