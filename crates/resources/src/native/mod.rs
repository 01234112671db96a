//! Kinds of our own, for what no standard has.

use std::net::SocketAddr;

use model::workload::{AppAddress, ExplicitOutbound, Interception, Workload, WorkloadPort};
use model::{Declaration, Labels};

use crate::document::Subject;
use crate::field::{Field, Object};
use crate::istio::workload_entry::locality;
use crate::{codes, names};

/// Lowers a `Workload`: one running program on a machine without Kubernetes.
pub(crate) fn workload(spec: &Object<'_>, subject: &Subject<'_>) -> Vec<Declaration> {
    let account = spec.get("serviceAccount").map(|field| {
        let text = field.filled();
        if let (false, Err(why)) = (text.is_empty(), names::object_name(&text)) {
            field.error(codes::NAME, format!("service account `{text}` {why}"));
        }
        text
    });
    let addresses = spec.get("addresses").map(|field| field.items()).unwrap_or_default();
    let ports = spec.get("ports").map(|field| field.items()).unwrap_or_default();
    let mut labels: Labels = spec.get("labels").map(|field| field.labels()).unwrap_or_default();
    labels.extend(subject.labels.iter().map(|(key, value)| (key.clone(), value.clone())));
    let weight = spec.get("weight").map_or(1, |field| field.integer(1, i64::from(i32::MAX)));
    vec![Declaration::Workload(Workload {
        name: subject.key.name.clone(),
        namespace: subject.namespace(),
        service_account: account.unwrap_or_else(|| "default".to_owned()),
        labels,
        workload_name: spec.get("workload").map_or_else(|| subject.key.name.clone(), |field| field.filled()),
        addresses: addresses.iter().filter_map(Field::ip_address).collect(),
        ports: unique(ports.iter().map(|item| (item, port(item)))),
        meshed: spec.get("meshed").is_none_or(|field| field.boolean()),
        weight: u32::try_from(weight).unwrap_or(1),
        locality: spec.get("locality").map(|field| locality(&field)).unwrap_or_default(),
        interception: spec.get("interception").map(|field| interception(&field)).unwrap_or_default(),
        origin: subject.origin.clone(),
    })]
}

fn unique<'f, 'n: 'f>(ports: impl Iterator<Item = (&'f Field<'n>, WorkloadPort)>) -> Vec<WorkloadPort> {
    let mut all: Vec<WorkloadPort> = Vec::new();
    for (item, port) in ports {
        if all.iter().any(|other| other.number == port.number && port.number != 0) {
            item.error(codes::SERVICE_PORTS, format!("port {} stands twice", port.number));
        }
        all.push(port);
    }
    all
}

fn port(item: &Field<'_>) -> WorkloadPort {
    let object = item.object();
    WorkloadPort {
        name: object.get("name").map(|field| field.text()).unwrap_or_default(),
        number: object.need("number").map_or(0, |field| field.port()),
        app: object.get("app").map(|field| app(&field)),
        bind: object.get("bind").and_then(|field| socket(&field)),
    }
}

fn app(field: &Field<'_>) -> AppAddress {
    let text = field.filled();
    match text.strip_prefix("unix:") {
        Some(path) => {
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.len() < 2 || !path.starts_with(['/', '@']) {
                field
                    .error(codes::UNIX_ADDRESS, format!("`{text}` is no Unix socket"))
                    .help("write unix:/absolute/path or unix:@abstract");
            }
            AppAddress::Unix(path.to_owned())
        }
        None => {
            let unspecified = SocketAddr::from(([127, 0, 0, 1], 0));
            AppAddress::Socket(socket(field).unwrap_or(unspecified))
        }
    }
}

fn socket(field: &Field<'_>) -> Option<SocketAddr> {
    let text = field.filled();
    let address = text.parse::<SocketAddr>().ok();
    if address.is_none() && !text.is_empty() {
        field
            .error(codes::ADDRESS, format!("`{text}` is no IP address with a port"))
            .help("write 127.0.0.1:8080 or [::1]:8080");
    }
    address
}

fn absolute(field: &Field<'_>) -> String {
    let path = field.filled();
    if !path.is_empty() && !path.starts_with('/') {
        field.error(codes::ADDRESS, format!("`{path}` is no absolute path of a network namespace"));
    }
    path
}

fn interception(field: &Field<'_>) -> Interception {
    let object = field.object();
    object.at_most_one(&["explicit", "namespace"]);
    if let Some(namespace) = object.get("namespace") {
        return Interception::Namespace { path: absolute(&namespace) };
    }
    let Some(explicit) = object.get_even_null("explicit") else { return Interception::Redirect };
    let outbound = explicit.object().get("outbound").map(|field| field.items()).unwrap_or_default();
    let read = |item: &Field<'_>| {
        let object = item.object();
        let host = object.need("host").map(|field| field.host(names::host));
        let port = object.need("port").map(|field| field.port());
        let bind = object.need("bind").and_then(|field| socket(&field));
        Some(ExplicitOutbound { host: host?, port: port?, bind: bind? })
    };
    Interception::Explicit { outbound: outbound.iter().filter_map(read).collect() }
}
