//! References that lead nowhere: hosts, ports, subsets, delegates, backends.

use model::mesh::TrafficSplit;
use model::route::{Destination, HttpAction};
use model::{Diagnostic, Labels, Origin, RouteTable, Service};

use super::{code, info, warning, with};
use crate::destination::Caller;
use crate::mesh::Mesh;
use crate::routes;

pub(super) fn table(mesh: &Mesh, table: &RouteTable, found: &mut Vec<Diagnostic>) {
    let namespace = table.namespace.as_str();
    for (destination, origin, field) in routes::destinations_of(table) {
        destination_at(mesh, namespace, destination, origin, &field, found);
    }
    for (number, rule) in table.http.iter().enumerate() {
        let HttpAction::Delegate { name, namespace: wanted } = &rule.action else { continue };
        let field = format!("spec.http[{number}].delegate");
        match mesh.delegate(table, wanted, name) {
            None => {
                let place = if wanted.is_empty() { namespace } else { wanted };
                let message = format!("there is no VirtualService without hosts named {place}/{name}");
                let help = "create it, or leave the rule's delegate out; until then nothing matches this rule";
                found.push(with(warning(&rule.origin, code::UNKNOWN_DELEGATE, message), field, help));
            }
            Some(delegate) if delegate.http.iter().any(|rule| matches!(rule.action, HttpAction::Delegate { .. })) => {
                let message = format!("{name} delegates again, and only one step is followed");
                let help = "move the second step's rules into the first delegate";
                found.push(with(warning(&rule.origin, code::UNKNOWN_DELEGATE, message), field, help));
            }
            Some(_) => {}
        }
    }
}

pub(super) fn split(mesh: &Mesh, split: &TrafficSplit, found: &mut Vec<Diagnostic>) {
    let known = |name: &str| mesh.service(&mesh.resolve_host(name, &split.namespace), &split.namespace).is_some();
    if !known(&split.service) {
        let message = format!("there is no service {} to split", split.service);
        let help = "declare the root service: callers use its name";
        found.push(with(warning(&split.origin, code::UNKNOWN_BACKEND, message), "spec.service", help));
    }
    for (number, (backend, _)) in split.backends.iter().enumerate() {
        if !known(backend) {
            let message = format!("there is no service {backend}: its share of the requests is answered 503");
            let field = format!("spec.backends[{number}].service");
            let help = "declare the service, or take the backend out";
            found.push(with(warning(&split.origin, code::UNKNOWN_BACKEND, message), field, help));
        }
    }
    let root = mesh.resolve_host(&split.service, &split.namespace);
    let no_labels = Labels::new();
    let caller = Caller { namespace: &split.namespace, labels: &no_labels };
    if let Some(table) = mesh.table(caller, &root) {
        let message = format!("{} has a VirtualService, which goes before this split", split.service);
        let help = format!("keep either this split or {}", table.origin);
        found.push(with(warning(&split.origin, code::SECOND_TABLE, message), "", help));
    }
}

fn destination_at(
    mesh: &Mesh,
    namespace: &str,
    destination: &Destination,
    origin: &Origin,
    field: &str,
    found: &mut Vec<Diagnostic>,
) {
    let hostname = mesh.resolve_host(&destination.host, namespace);
    let Some(service) = mesh.service(&hostname, namespace) else {
        let mut message = format!("no service has the host {hostname}: these requests are answered 503");
        if hostname != destination.host {
            message = format!(
                "no service has the host {hostname} (written {}): these requests are answered 503",
                destination.host
            );
        }
        let help = match near(mesh, &destination.host, namespace) {
            Some(known) => format!("write {known}"),
            None => "declare the service, or a ServiceEntry for a host outside the mesh".to_owned(),
        };
        found.push(with(warning(origin, code::UNKNOWN_HOST, message), format!("{field}.host"), help));
        return;
    };
    if let Some(port) = destination.port
        && !service.ports.iter().any(|known| known.number == port)
    {
        let message = format!("{hostname} has no port {port}");
        let help = format!("its ports are {}", ports(service));
        found.push(with(warning(origin, code::UNKNOWN_PORT, message), format!("{field}.port"), help));
    }
    if let Some(subset) = &destination.subset {
        subset_at(mesh, namespace, service, subset, origin, field, found);
    }
}

fn subset_at(
    mesh: &Mesh,
    namespace: &str,
    service: &Service,
    subset: &str,
    origin: &Origin,
    field: &str,
    found: &mut Vec<Diagnostic>,
) {
    let no_labels = Labels::new();
    let caller = Caller { namespace, labels: &no_labels };
    let known = mesh.subsets(caller, service);
    match known.iter().find(|known| known.name == subset) {
        None => {
            let names: Vec<&str> = known.iter().map(|known| known.name.as_str()).collect();
            let message =
                format!("no DestinationRule defines the subset {subset} of {}: 503 for its requests", service.hostname);
            let help = match names.as_slice() {
                [] => format!("add a DestinationRule for {} with this subset", service.hostname),
                names => format!("defined are {}", names.join(", ")),
            };
            found.push(with(warning(origin, code::UNDEFINED_SUBSET, message), format!("{field}.subset"), help));
        }
        Some(known) if !crate::encode::subset_has_workloads(mesh, service, known) => {
            let message =
                format!("no endpoint of {} has the labels of subset {subset} at the moment", service.hostname);
            let help = "requests to it are answered 503 until one appears";
            found.push(with(info(origin, code::NO_WORKLOAD, message), format!("{field}.subset"), help));
        }
        Some(_) => {}
    }
}

fn ports(service: &Service) -> String {
    service.ports.iter().map(|port| port.number.to_string()).collect::<Vec<_>>().join(", ")
}

/// A host that was probably meant: the same name in another form or namespace, or one letter off.
fn near(mesh: &Mesh, written: &str, namespace: &str) -> Option<String> {
    let wanted = written.split('.').next().unwrap_or(written);
    let mut best: Option<(usize, &Service)> = None;
    for service in mesh.visible_services(namespace) {
        let distance = distance(wanted, &service.name);
        if distance <= 2 && distance < wanted.len() && best.is_none_or(|(other, _)| distance < other) {
            best = Some((distance, service));
        }
    }
    best.map(|(_, service)| service.hostname.clone())
}

/// Edits from one name to the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(64).enumerate() {
        let mut next = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let replace = row.get(j).copied().unwrap_or(usize::MAX - 1) + usize::from(x != *y);
            let insert = next.get(j).copied().unwrap_or(usize::MAX - 1) + 1;
            let delete = row.get(j + 1).copied().unwrap_or(usize::MAX - 1) + 1;
            next.push(replace.min(insert).min(delete));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::distance;

    #[test]
    fn edits() {
        assert_eq!(distance("reviews", "reviews"), 0);
        assert_eq!(distance("review", "reviews"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", ""), 3);
    }
}
