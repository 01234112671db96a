//! WorkloadEntry, alone and as an endpoint of a ServiceEntry.

use std::net::IpAddr;

use model::service::{EndpointAddress, StaticEndpoint};
use model::workload::{Interception, Locality, WorkloadPort};
use model::{Declaration, Workload};

use crate::document::Subject;
use crate::field::{Field, Object};
use crate::{codes, names};

/// The label by which Istio knows that a workload has a proxy.
const TLS_MODE: &str = "security.istio.io/tlsMode";

/// Lowers a WorkloadEntry.
pub(crate) fn read(spec: &Object<'_>, subject: &Subject<'_>) -> Vec<Declaration> {
    let Some(endpoint) = endpoint(spec) else { return Vec::new() };
    let mut labels = endpoint.labels;
    labels.extend(subject.labels.iter().map(|(key, value)| (key.clone(), value.clone())));
    let addresses = match endpoint.address {
        EndpointAddress::Ip(address) => vec![address],
        EndpointAddress::Socket(address) => vec![address.ip()],
        EndpointAddress::Dns(_) | EndpointAddress::Unix(_) => {
            if let Some(field) = spec.get("address") {
                field
                    .error(
                        codes::UNSUPPORTED_FIELD,
                        "a workload with a name or a Unix socket as address is not supported yet",
                    )
                    .help("write its IP address, or make it an endpoint of a ServiceEntry");
            }
            Vec::new()
        }
    };
    let port = |(name, number): (String, u16)| WorkloadPort { name, number, app: None, bind: None };
    vec![Declaration::Workload(Workload {
        name: subject.key.name.clone(),
        namespace: subject.namespace(),
        service_account: Some(endpoint.service_account)
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| "default".into()),
        meshed: labels.get(TLS_MODE).is_some_and(|mode| mode == "istio"),
        labels,
        workload_name: subject.key.name.clone(),
        addresses,
        ports: endpoint.ports.into_iter().map(port).collect(),
        weight: endpoint.weight,
        locality: endpoint.locality,
        interception: Interception::Redirect,
        origin: subject.origin.clone(),
    })]
}

/// The fields of a WorkloadEntry. `None` when there is no address (an error, or an endpoint of another network).
pub(super) fn endpoint(object: &Object<'_>) -> Option<StaticEndpoint> {
    let ports = object.get("ports");
    if let Some(network) = object.get("network") {
        network.warn(codes::NO_EFFECT, "`network` has no effect: every workload is reached directly");
    }
    let labels = object.get("labels").map(|field| field.labels()).unwrap_or_default();
    let weight = object.get("weight").map_or(1, |field| field.count());
    let place = object.get("locality").map(|field| locality(&field)).unwrap_or_default();
    let account = object.get("serviceAccount").map(|field| field.text()).unwrap_or_default();
    let numbers = ports.as_ref().map(named_ports).unwrap_or_default();
    let Some(field) = object.get("address") else {
        if object.get("network").is_none() {
            object.missing("address").help("write an IP address, a name, or unix:///path");
        }
        return None;
    };
    let address = address(&field);
    if let (EndpointAddress::Unix(_), Some(ports)) = (&address, ports) {
        ports.error_at_key(codes::UNIX_ADDRESS, "a Unix socket has no ports").also(field.span(), "because of this");
    }
    Some(StaticEndpoint { address, ports: numbers, labels, weight, locality: place, service_account: account })
}

fn address(field: &Field<'_>) -> EndpointAddress {
    let text = field.filled();
    if let Some(path) = text.strip_prefix("unix://") {
        let absolute = path.starts_with('/') && !path.ends_with('/') && path.len() > 1;
        if !absolute && (!path.starts_with('@') || path.len() < 2) {
            field
                .error(codes::UNIX_ADDRESS, format!("`{text}` is no Unix socket"))
                .help("write unix:///absolute/path or unix://@abstract");
        }
        return EndpointAddress::Unix(path.to_owned());
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return EndpointAddress::Ip(address);
    }
    if let (false, Err(why)) = (text.is_empty(), names::host(&text)) {
        field.error(codes::ADDRESS, format!("`{text}` is no address: a name {why}"));
    }
    EndpointAddress::Dns(text)
}

fn named_ports(field: &Field<'_>) -> Vec<(String, u16)> {
    let read = |pair: &Field<'_>| {
        if let Err(why) = names::dns_label(&pair.key().to_ascii_lowercase()) {
            pair.error_at_key(codes::SERVICE_PORTS, format!("port name `{}` {why}", pair.key()));
        }
        (pair.key().to_owned(), pair.port())
    };
    field.pairs().iter().map(read).collect()
}

/// REGION, REGION/ZONE or REGION/ZONE/SUBZONE.
pub(crate) fn locality(field: &Field<'_>) -> Locality {
    let text = field.text();
    let mut parts = text.split('/');
    let mut next = || parts.next().unwrap_or_default().to_owned();
    let locality = Locality { region: next(), zone: next(), sub_zone: next() };
    if parts.next().is_some() {
        field
            .error(codes::LOCALITY, format!("locality `{text}` has more than three parts"))
            .help("write REGION/ZONE/SUBZONE");
    }
    locality
}
