//! Policies that select nothing or say less than they seem to, and workloads open to all.

use model::name::selects;
use model::security::{Attribute, Operation, PolicyAction, PolicyRule, Source};
use model::service::Protocol;
use model::{AuthorizationPolicy, Diagnostic, Entry, Labels, PeerAuthentication, RequestAuthentication, Workload};

use super::{code, info, warning, with};
use crate::mesh::Mesh;

pub(super) fn workload(mesh: &Mesh, workload: &Workload, found: &mut Vec<Diagnostic>) {
    if !workload.meshed || mesh.inbound_ports(workload).is_empty() {
        return;
    }
    let guarded = [PolicyAction::Allow, PolicyAction::Deny]
        .into_iter()
        .any(|action| mesh.authorizations(workload, action).iter().any(|policy| !policy.dry_run));
    if !guarded {
        let message = format!("{} is encrypted but open: every identity of the mesh may call it", workload.id());
        let help = "write an AuthorizationPolicy that names its callers";
        found.push(with(info(&workload.origin, code::OPEN_TO_ALL, message), "", help));
    }
}

pub(super) fn peer_authentication(
    mesh: &Mesh,
    entry: &Entry,
    policy: &PeerAuthentication,
    found: &mut Vec<Diagnostic>,
) {
    let declared = mesh.peer_authentications.get(&policy.namespace);
    let first = declared.and_then(|declared| declared.iter().find(|(_, other)| other.selector == policy.selector));
    if let Some(((_, key, _), other)) = first
        && *key != entry.key
    {
        let message = format!("{} is for the same workloads and older: this one has no effect", other.origin);
        let help = "keep one of them";
        found.push(with(warning(&policy.origin, code::SECOND_PEER_POLICY, message), "", help));
    }
    if !policy.selector.is_empty() && !selects_any(mesh, &policy.namespace, &policy.selector, false) {
        let message = "no workload has these labels".to_owned();
        let help = format!("compare with the labels of the workloads in {}", policy.namespace);
        let field = "spec.selector.matchLabels";
        found.push(with(warning(&policy.origin, code::SELECTS_NOTHING, message), field, help));
    }
}

pub(super) fn request_authentication(mesh: &Mesh, policy: &RequestAuthentication, found: &mut Vec<Diagnostic>) {
    let everywhere = policy.namespace == mesh.config.root_namespace;
    if !policy.selector.is_empty() && !selects_any(mesh, &policy.namespace, &policy.selector, everywhere) {
        let message = "no workload has these labels: no token is validated".to_owned();
        let help = format!("compare with the labels of the workloads in {}", policy.namespace);
        let field = "spec.selector.matchLabels";
        found.push(with(warning(&policy.origin, code::SELECTS_NOTHING, message), field, help));
    }
}

pub(super) fn authorization(mesh: &Mesh, policy: &AuthorizationPolicy, found: &mut Vec<Diagnostic>) {
    let everywhere = policy.namespace == mesh.config.root_namespace;
    if policy.action == PolicyAction::Custom {
        external(mesh, policy, found);
    }
    if !policy.selector.is_empty() && !selects_any(mesh, &policy.namespace, &policy.selector, everywhere) {
        let message = "no workload has these labels: the policy protects nothing".to_owned();
        let help = format!("compare with the labels of the workloads in {}", policy.namespace);
        let field = "spec.selector.matchLabels";
        found.push(with(warning(&policy.origin, code::SELECTS_NOTHING, message), field, help));
    }
    let ports = opaque_ports(mesh, policy, everywhere);
    let Some((workload, port)) = ports.first() else { return };
    for (number, rule) in policy.rules.iter().enumerate() {
        let Some(field) = request_field(rule) else { continue };
        if names_other_ports(rule, *port) {
            continue;
        }
        let effect = match policy.action {
            PolicyAction::Allow => "never matches there",
            PolicyAction::Deny => "denies all connections there that its other fields match",
            PolicyAction::Audit => "reports all connections there that its other fields match",
            PolicyAction::Custom => "asks nobody there",
        };
        let message = format!("port {port} of {workload} is not HTTP: with {field} this rule {effect}");
        let help = "name the HTTP ports in `to.operation.ports`, or give the port's protocol by its name";
        let field = format!("spec.rules[{number}]");
        found.push(with(warning(&rule.origin, code::REQUEST_FIELD, message), field, help));
    }
}

/// Whom a CUSTOM policy asks, and what it cannot ask about.
fn external(mesh: &Mesh, policy: &AuthorizationPolicy, found: &mut Vec<Diagnostic>) {
    let name = policy.provider.as_deref().unwrap_or_default();
    let problem = match mesh.authorizer(name) {
        None => Some(format!("`{name}` is no provider of the MeshConfig: what the rules match is refused")),
        Some(authorizer) if mesh.authorizer_service(authorizer, &policy.namespace).is_none() => Some(format!(
            "`{name}` asks {} at port {}, which is not known: what the rules match is refused",
            authorizer.host, authorizer.port
        )),
        Some(_) => None,
    };
    if let Some(message) = problem {
        let help = "define it under extensionProviders of the MeshConfig, with a service that the workload sees";
        found.push(with(warning(&policy.origin, code::UNKNOWN_PROVIDER, message), "spec.provider.name", help));
    }
    if policy.dry_run {
        let message = "a CUSTOM policy has no dry run: nobody is asked, and nothing is reported".to_owned();
        let help = "remove the annotation istio.io/dry-run to ask";
        found.push(with(warning(&policy.origin, code::NO_EFFECT, message), "metadata.annotations", help));
    }
    for (number, rule) in policy.rules.iter().enumerate().filter(|(_, rule)| needs_token(rule)) {
        let message = "tokens are validated after the authorizer was asked: this rule never matches".to_owned();
        let help = "move the condition into an ALLOW or DENY policy";
        let field = format!("spec.rules[{number}]");
        found.push(with(warning(&rule.origin, code::TOKEN_TOO_LATE, message), field, help));
    }
}

fn needs_token(rule: &PolicyRule) -> bool {
    let of_token = |key: &Attribute| {
        matches!(
            key,
            Attribute::RequestPrincipal
                | Attribute::RequestAudiences
                | Attribute::RequestPresenter
                | Attribute::RequestClaims(_)
        )
    };
    let source = |source: &Source| !source.request_principals.is_empty() || !source.not_request_principals.is_empty();
    rule.from.iter().any(source) || rule.when.iter().any(|condition| of_token(&condition.key))
}

fn selects_any(mesh: &Mesh, namespace: &str, selector: &Labels, everywhere: bool) -> bool {
    let chosen = |workload: &Workload| selects(selector, &workload.labels);
    if everywhere {
        return mesh.workload_keys().filter_map(|key| mesh.workload(key)).any(chosen);
    }
    mesh.workloads_of(namespace).any(chosen)
}

/// Ports without HTTP of the workloads that a policy names by a selector. (A policy of a whole namespace or mesh
/// means the HTTP ports, and saying so at each would help nobody.)
fn opaque_ports(mesh: &Mesh, policy: &AuthorizationPolicy, everywhere: bool) -> Vec<(String, u16)> {
    if policy.selector.is_empty() || everywhere {
        return Vec::new();
    }
    let opaque = |protocol: Protocol| matches!(protocol, Protocol::Tcp | Protocol::Tls | Protocol::Https);
    mesh.workloads_of(&policy.namespace)
        .filter(|workload| selects(&policy.selector, &workload.labels))
        .flat_map(|workload| mesh.inbound_ports(workload).into_iter().map(move |port| (workload.id(), port)))
        .filter(|(_, port)| opaque(port.protocol))
        .map(|(workload, port)| (workload, port.number))
        .collect()
}

/// The first field that needs a request.
fn request_field(rule: &PolicyRule) -> Option<&'static str> {
    let operation = |operation: &Operation| {
        let fields = [
            ("hosts", !operation.hosts.is_empty() || !operation.not_hosts.is_empty()),
            ("methods", !operation.methods.is_empty() || !operation.not_methods.is_empty()),
            ("paths", !operation.paths.is_empty() || !operation.not_paths.is_empty()),
        ];
        fields.into_iter().find(|(_, given)| *given).map(|(name, _)| name)
    };
    let source = |source: &Source| {
        let given = !source.request_principals.is_empty() || !source.not_request_principals.is_empty();
        given.then_some("requestPrincipals")
    };
    let condition = rule.when.iter().any(|condition| {
        matches!(
            condition.key,
            Attribute::RequestHeader(_)
                | Attribute::RequestPrincipal
                | Attribute::RequestAudiences
                | Attribute::RequestPresenter
                | Attribute::RequestClaims(_)
        )
    });
    let found = rule.to.iter().find_map(operation).or_else(|| rule.from.iter().find_map(source));
    found.or_else(|| condition.then_some("a condition on the request"))
}

/// Whether every operation is limited to ports that do not include this one.
fn names_other_ports(rule: &PolicyRule, port: u16) -> bool {
    !rule.to.is_empty()
        && rule.to.iter().all(|operation| {
            !operation.ports.is_empty() && !operation.ports.contains(&port) || operation.not_ports.contains(&port)
        })
}
