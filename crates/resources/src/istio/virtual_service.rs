//! VirtualService.

use std::collections::HashMap;
use std::net::IpAddr;

use model::{Declaration, RouteTable};

use super::http_rule::{self, Role};
use super::l4_rule;
use crate::document::Subject;
use crate::field::{Field, Object};
use crate::node::Value;
use crate::{codes, names};

/// Lowers a VirtualService.
pub(crate) fn read(spec: &Object<'_>, subject: &Subject<'_>) -> Vec<Declaration> {
    let gateways_field = spec.get("gateways");
    let mut gateways = gateways_field.as_ref().map(gateway_names).unwrap_or_default();
    let in_mesh = gateways.is_empty() || gateways.iter().any(|gateway| gateway == "mesh");
    // Bound to gateways as well, `*` means all hosts there; sidecars it must not take over.
    let hosts = hosts(spec, subject, in_mesh && gateways.len() < 2);
    if let (false, Some(field)) = (in_mesh, &gateways_field) {
        field
            .warn(
                codes::UNKNOWN_GATEWAY,
                "these rules do nothing: gateways are not supported yet, and `mesh` is not among them",
            )
            .help("add `mesh` to have them for calls between workloads");
    }
    if in_mesh && hosts.iter().any(|host| host == "*") && gateways.len() > 1 {
        gateways.retain(|gateway| gateway != "mesh");
        spec.field.warn(codes::WILDCARD_IN_MESH, "host `*` is taken for the gateways alone, not for the mesh");
    }
    let in_mesh = gateways.is_empty() || gateways.iter().any(|gateway| gateway == "mesh");
    // Wrong `hosts` do not make a delegate.
    let delegate = hosts.is_empty() && spec.get("hosts").is_none_or(|field| matches!(field.node.value, Value::List(_)));
    if let (true, true, Some(field)) = (delegate, subject.named(), &gateways_field) {
        field.error(codes::DELEGATE, "a VirtualService without hosts is a delegate, and a delegate has no gateways");
    }
    let http = spec.get("http");
    let (tls, tcp) = (spec.get("tls"), spec.get("tcp"));
    for field in [&tls, &tcp].into_iter().flatten().filter(|_| delegate) {
        field.error(codes::DELEGATE, format!("a delegate (no hosts) has http routes only, not `{}`", field.name()));
    }
    let role = if delegate { Role::Delegate } else { Role::Plain };
    let table = RouteTable {
        namespace: subject.namespace(),
        http: rules(&http).iter().map(|rule| http_rule::read(rule, role, subject)).collect(),
        tls: rules(&tls).iter().map(|rule| l4_rule::tls(rule, &hosts, in_mesh)).collect(),
        tcp: rules(&tcp).iter().map(l4_rule::tcp).collect(),
        gateways,
        export_to: spec.get("exportTo").map(|field| field.export_to(&subject.key.namespace)).unwrap_or_default(),
        created: subject.created.clone(),
        origin: subject.origin.clone(),
        hosts,
    };
    if table.http.is_empty() && table.tls.is_empty() && table.tcp.is_empty() {
        spec.field
            .error(codes::NO_RULES, "none of `http`, `tls` and `tcp` is given: there is nothing to route by")
            .help("add a rule: http: [{route: [{destination: {host: ...}}]}]");
    }
    vec![Declaration::Routes(table)]
}

fn rules<'a>(field: &Option<Field<'a>>) -> Vec<Field<'a>> {
    field.as_ref().map(Field::items).unwrap_or_default()
}

/// Names of gateways: `mesh`, `NAME` or `NAMESPACE/NAME`.
pub(super) fn gateway_names(field: &Field<'_>) -> Vec<String> {
    let check = |item: &Field<'_>| {
        let text = item.text();
        let (namespace, name) = text.split_once('/').unwrap_or(("default", &text));
        // `~` joins the name of a Gateway API object to a marker that Istio adds.
        let fault = names::dns_label(namespace).and_then(|()| name.split('~').try_for_each(names::object_name));
        if let Err(why) = fault {
            item.error(codes::GATEWAY_NAME, format!("`{text}` is no gateway name: a part {why}"))
                .help("write `mesh`, NAME or NAMESPACE/NAME");
        }
        text
    };
    field.items().iter().map(check).collect()
}

fn hosts(spec: &Object<'_>, subject: &Subject<'_>, in_mesh: bool) -> Vec<String> {
    let Some(field) = spec.get("hosts").filter(|field| !field.items().is_empty()) else {
        // Without hosts it is a delegate, which others call by name; without a name it is nothing.
        if !subject.named() {
            spec.missing("hosts").help("say which hosts the rules are for: hosts: [NAME]");
        }
        return Vec::new();
    };
    let mut seen = HashMap::new();
    let mut hosts = Vec::new();
    for item in field.items() {
        let host = item
            .host(|text| names::wildcard_host(text).or_else(|why| text.parse::<IpAddr>().map(drop).map_err(|_| why)));
        if host == "*" && in_mesh {
            item.error(codes::WILDCARD_IN_MESH, "host `*` is not allowed for rules bound to the mesh gateway")
                .help("name the hosts, or name a gateway under `gateways`");
        }
        if let Some(first) = seen.insert(host.clone(), item.span()) {
            item.error(codes::HOST_TWICE, format!("host `{host}` stands twice")).also(first, "first here");
        }
        hosts.push(host);
    }
    hosts
}
