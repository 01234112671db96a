//! Kubernetes' own kinds, as far as a mesh needs them.

use std::collections::HashMap;
use std::net::IpAddr;

use model::service::{EndpointAddress, Location, Protocol, Resolution, ServicePort, StaticEndpoint, TargetPort};
use model::workload::Locality;
use model::{Declaration, Labels, Service};

use crate::document::Subject;
use crate::field::{Field, Object};
use crate::node::Value;
use crate::{codes, names};

/// Fields of a Service that say nothing to a mesh.
const SERVICE_REST: &[&str] = &[
    "allocateLoadBalancerNodePorts",
    "externalIPs",
    "externalTrafficPolicy",
    "healthCheckNodePort",
    "internalTrafficPolicy",
    "ipFamilies",
    "ipFamilyPolicy",
    "loadBalancerClass",
    "loadBalancerIP",
    "loadBalancerSourceRanges",
    "publishNotReadyAddresses",
    "sessionAffinity",
    "sessionAffinityConfig",
    "trafficDistribution",
    "topologyKeys",
    "ipFamily",
];

/// Lowers a Service.
pub(crate) fn service(spec: &Object<'_>, subject: &Subject<'_>) -> Vec<Declaration> {
    spec.ignore(SERVICE_REST);
    let kinds = [("ClusterIP", false), ("NodePort", false), ("LoadBalancer", false), ("ExternalName", true)];
    let external = spec.get("type").and_then(|field| field.word(&kinds)).unwrap_or(false);
    let name = subject.key.name.clone();
    if let (false, Err(why)) = (name.is_empty(), names::dns_label(&name)) {
        spec.field.error(codes::NAME, format!("a Service's name {why}, but this one is `{name}`"));
    }
    let target = spec.get("externalName").map(|field| field.filled());
    let endpoints = match (external, target) {
        (true, Some(name)) => vec![external_endpoint(name)],
        (true, None) => {
            spec.missing("externalName");
            Vec::new()
        }
        _ => Vec::new(),
    };
    let own = &subject.key.namespace;
    let exported = |(_, value): &(String, String)| {
        value
            .split(',')
            .map(|item| if item.trim() == "." { own.clone() } else { item.trim().to_owned() })
            .collect::<Vec<_>>()
    };
    let export_to = subject.annotations.iter().find(|(key, _)| key == "networking.istio.io/exportTo").map(exported);
    vec![Declaration::Service(Service {
        hostname: format!("{name}.{own}.svc.{}", subject.options.cluster_domain),
        name,
        namespace: subject.namespace(),
        addresses: addresses(spec),
        address_ranges: Vec::new(),
        ports: spec.get("ports").map(|field| ports(&field)).unwrap_or_default(),
        resolution: if external { Resolution::Dns } else { Resolution::Static },
        location: if external { Location::MeshExternal } else { Location::MeshInternal },
        selector: spec.get("selector").map(|field| field.labels()).unwrap_or_default(),
        endpoints,
        export_to: export_to.unwrap_or_default().into_iter().filter(|namespace| namespace != "*").collect(),
        subject_alt_names: Vec::new(),
        origin: subject.origin.clone(),
    })]
}

fn external_endpoint(name: String) -> StaticEndpoint {
    StaticEndpoint {
        address: EndpointAddress::Dns(name),
        ports: Vec::new(),
        labels: Labels::new(),
        weight: 1,
        locality: Locality::default(),
        service_account: String::new(),
    }
}

/// Virtual addresses; none for a headless service (`clusterIP: None`).
fn addresses(spec: &Object<'_>) -> Vec<IpAddr> {
    let one = spec.get("clusterIP");
    let fields = spec.get("clusterIPs").map(|field| field.items()).unwrap_or_else(|| one.into_iter().collect());
    let given =
        |field: &Field<'_>| !matches!(&field.node.value, Value::Text(text) if text == "None" || text.is_empty());
    fields.iter().filter(|field| given(field)).filter_map(Field::ip_address).collect()
}

fn ports(field: &Field<'_>) -> Vec<ServicePort> {
    let (mut names_seen, mut numbers_seen) = (HashMap::new(), HashMap::new());
    let mut ports = Vec::new();
    let items = field.items();
    for item in &items {
        let object = item.object();
        object.ignore(&["nodePort"]);
        let transport =
            object.get("protocol").and_then(|field| field.word(&[("TCP", true), ("UDP", false), ("SCTP", false)]));
        let number = object.need("port").map(|field| (field.port(), field.span()));
        let name = object.get("name");
        let text = name.as_ref().map(Field::text).unwrap_or_default();
        if items.len() > 1 && text.is_empty() {
            item.error(codes::SERVICE_PORTS, "a port of a Service with several ports needs a name");
        } else if let Some(first) = names_seen.insert(text.clone(), item.span()) {
            item.error(codes::SERVICE_PORTS, format!("port name `{text}` stands twice")).also(first, "first here");
        }
        let (number, span) = number.unwrap_or_else(|| (0, item.span()));
        if let Some(first) = numbers_seen.insert((number, transport), span).filter(|_| number != 0) {
            item.error(codes::SERVICE_PORTS, format!("port {number} stands twice")).also(first, "first here");
        }
        let app = object.get("appProtocol").map(|field| field.text());
        let target = object.get("targetPort").map(|field| target(&field));
        // Only TCP is the mesh's; other transports pass by it.
        if transport != Some(false) {
            ports.push(ServicePort {
                protocol: Protocol::from_name(app.as_deref().unwrap_or(&text)),
                name: text,
                number,
                target: target.unwrap_or(TargetPort::Number(number)),
            });
        }
    }
    ports
}

fn target(field: &Field<'_>) -> TargetPort {
    match &field.node.value {
        Value::Text(name) => match name.parse::<u16>() {
            Ok(number) if number > 0 => TargetPort::Number(number),
            _ => TargetPort::Name(name.clone()),
        },
        _ => TargetPort::Number(field.port()),
    }
}

/// Lowers a Namespace; its spec has nothing for a mesh.
pub(crate) fn namespace(spec: &Object<'_>, subject: &Subject<'_>) -> Vec<Declaration> {
    spec.ignore(&["finalizers"]);
    vec![Declaration::Namespace { name: subject.key.name.clone(), labels: subject.labels.clone() }]
}
