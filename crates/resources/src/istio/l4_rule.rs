//! TCP and TLS rules of a VirtualService.

use model::route::{L4Match, L4Rule};

use super::http_rule::destinations;
use super::virtual_service::gateway_names;
use crate::field::{Field, Object};
use crate::{codes, names};

/// Reads a TCP rule.
pub(super) fn tcp(rule: &Field<'_>) -> L4Rule {
    let object = rule.object();
    let matches = object.get("match").map(|field| field.items()).unwrap_or_default();
    let read = |field: &Field<'_>| {
        let object = field.object();
        object.refuse("sourceSubnet", "match callers by sourceLabels or sourceNamespace");
        conditions(&object)
    };
    L4Rule { matches: matches.iter().map(read).collect(), destinations: route(&object), origin: rule.origin() }
}

/// Reads a TLS rule. Its names must be among the hosts of the object.
pub(super) fn tls(rule: &Field<'_>, hosts: &[String], in_mesh: bool) -> L4Rule {
    let object = rule.object();
    let matches = object.need("match").map(|field| {
        let items = field.items();
        if items.is_empty() {
            field.error(codes::SNI, "a TLS rule needs a match").help("match: [{sniHosts: [NAME]}]");
        }
        items
    });
    let read = |field: &Field<'_>| {
        let object = field.object();
        let names = object.need("sniHosts").map(|names| names.items()).unwrap_or_default();
        if names.is_empty() && object.get("sniHosts").is_some() {
            field.error(codes::SNI, "`sniHosts` must not be empty");
        }
        let sni_hosts = names.iter().map(|name| sni(name, hosts, in_mesh)).collect();
        L4Match { sni_hosts, ..conditions(&object) }
    };
    L4Rule {
        matches: matches.unwrap_or_default().iter().map(read).collect(),
        destinations: route(&object),
        origin: rule.origin(),
    }
}

fn route(object: &Object<'_>) -> Vec<model::route::WeightedDestination> {
    object.need("route").map(|field| destinations(&field)).unwrap_or_default()
}

fn conditions(object: &Object<'_>) -> L4Match {
    let namespace = object.get("sourceNamespace").map(|field| field.text());
    L4Match {
        sni_hosts: Vec::new(),
        destination_subnets: object
            .get("destinationSubnets")
            .map(|field| field.items().iter().filter_map(Field::ip_range).collect())
            .unwrap_or_default(),
        port: object.get("port").map(|field| field.port()),
        source_labels: object.get("sourceLabels").map(|field| field.labels()).unwrap_or_default(),
        source_namespace: namespace.filter(|text| !text.is_empty()),
        gateways: object.get("gateways").map(|field| gateway_names(&field)).unwrap_or_default(),
    }
}

fn sni(field: &Field<'_>, hosts: &[String], in_mesh: bool) -> String {
    let text = field.host(names::wildcard_host);
    if names::wildcard_host(&text).is_ok() && !hosts.is_empty() && !hosts.iter().any(|host| covers(host, &text)) {
        let message = format!("SNI host `{text}` is none of the hosts of this VirtualService");
        // At a gateway such a rule is merely never reached.
        let finding = if in_mesh { field.error(codes::SNI, message) } else { field.warn(codes::SNI, message) };
        finding.help(format!("hosts are {}; add `{text}` to them", hosts.join(", ")));
    }
    text
}

/// Whether all names that `name` stands for belong to `host`.
fn covers(host: &str, name: &str) -> bool {
    match host.strip_prefix('*') {
        Some(suffix) => name == host || name.strip_prefix('*').unwrap_or(name).ends_with(suffix),
        None => host.eq_ignore_ascii_case(name),
    }
}
