//! AuthorizationPolicies as RBAC filters: audit first, then deny, then allow.
//!
//! On a port without HTTP the fields that need a request cannot be judged. As in Istio, a rule of an ALLOW policy
//! that has one never matches, and in DENY and AUDIT policies the field is left out: both ways less passes.

use std::collections::BTreeMap;

use ipnet::IpNet;
use model::matching::StringMatch;
use model::security::{Attribute, Condition, Operation, PathMatch, PolicyAction, PolicyRule, Source};
use model::{AuthorizationPolicy, Workload};
use proto::envoy::config::core::v3::{CidrRange, TypedExtensionConfig};
use proto::envoy::config::listener::v3::Filter;
use proto::envoy::config::rbac::v3::{
    Permission, Policy, Principal, Rbac, SourcedMetadata, permission, principal, rbac,
};
use proto::envoy::extensions::filters::http::rbac::v3::Rbac as HttpRbac;
use proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use proto::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkRbac;
use proto::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use proto::envoy::r#type::matcher::v3::{
    ListMatcher, MetadataMatcher, PathMatcher, StringMatcher, ValueMatcher, list_matcher,
    metadata_matcher::{PathSegment, path_segment::Segment},
    path_matcher, value_matcher,
};

use super::{ext_authz, filters, route_match, wire};
use crate::mesh::Mesh;

/// What a set of filters guards.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Guarded {
    /// Whether requests are seen.
    pub(crate) http: bool,
    /// The port as policies speak of it, and as the proxy sees it; `None` where many ports share the filters.
    pub(crate) port: Option<(u16, u16)>,
}

/// The HTTP filters for a workload's port.
pub(crate) fn http_filters(mesh: &Mesh, workload: &Workload, port: Option<(u16, u16)>) -> Vec<HttpFilter> {
    let filters = Builder { mesh, guarded: Guarded { http: true, port } }.sets(workload);
    let filter = |set: RuleSet| {
        let message = HttpRbac {
            rules: set.rules,
            shadow_rules: set.shadow,
            shadow_rules_stat_prefix: set.shadow_prefix.to_owned(),
            ..HttpRbac::default()
        };
        filters::http("envoy.filters.http.rbac", wire::any(&message, &wire::RBAC_FILTER))
    };
    filters.into_iter().map(filter).collect()
}

/// The network filters for a workload's port.
pub(crate) fn network_filters(mesh: &Mesh, workload: &Workload, port: Option<(u16, u16)>) -> Vec<Filter> {
    let filters = Builder { mesh, guarded: Guarded { http: false, port } }.sets(workload);
    let filter = |set: RuleSet| {
        let message = NetworkRbac {
            rules: set.rules,
            shadow_rules: set.shadow,
            shadow_rules_stat_prefix: set.shadow_prefix.to_owned(),
            stat_prefix: "tcp.".to_owned(),
            ..NetworkRbac::default()
        };
        filters::network("envoy.filters.network.rbac", wire::any(&message, &wire::RBAC_FILTER))
    };
    filters.into_iter().map(filter).collect()
}

/// Where each policy of a workload was written, by the names they have in the filters.
pub(crate) fn origins(mesh: &Mesh, workload: &Workload) -> BTreeMap<String, String> {
    let actions = [PolicyAction::Custom, PolicyAction::Audit, PolicyAction::Deny, PolicyAction::Allow];
    let policies = actions.into_iter().flat_map(|action| mesh.authorizations(workload, action));
    let rules = policies.flat_map(|policy| {
        policy.rules.iter().enumerate().flat_map(|(number, rule)| {
            let name = rule_name(policy, number);
            // The rules of an authorizer that cannot be asked have another name.
            let bad = policy.provider.as_ref().map(|_| format!("{name}{}", ext_authz::BAD_SUFFIX));
            bad.into_iter().chain([name]).map(|name| (name, rule.origin.to_string()))
        })
    });
    rules.collect()
}

/// Istio's name of a rule.
fn rule_name(policy: &AuthorizationPolicy, number: usize) -> String {
    let prefix = policy.provider.as_deref().map(ext_authz::rule_prefix).unwrap_or_default();
    format!("{prefix}ns[{}]-policy[{}]-rule[{number}]", policy.namespace, policy.name)
}

/// One filter's rules.
struct RuleSet {
    rules: Option<Rbac>,
    shadow: Option<Rbac>,
    shadow_prefix: &'static str,
}

/// Makes rules of policies.
pub(super) struct Builder<'a> {
    pub(super) mesh: &'a Mesh,
    pub(super) guarded: Guarded,
}

/// A rule that cannot be judged here.
struct NeedsRequest;

impl Builder<'_> {
    fn sets(&self, workload: &Workload) -> Vec<RuleSet> {
        let shadow_prefixes = [
            (PolicyAction::Audit, "istio_dry_run_audit_"),
            (PolicyAction::Deny, "istio_dry_run_deny_"),
            (PolicyAction::Allow, "istio_dry_run_allow_"),
        ];
        shadow_prefixes.into_iter().filter_map(|(action, prefix)| self.set(workload, action, prefix)).collect()
    }

    fn set(&self, workload: &Workload, action: PolicyAction, shadow_prefix: &'static str) -> Option<RuleSet> {
        let policies = self.mesh.authorizations(workload, action);
        let (tried, enforced): (Vec<_>, Vec<_>) = policies.into_iter().partition(|policy| policy.dry_run);
        let rules = self.rules(&enforced, action);
        let shadow = self.rules(&tried, action);
        if rules.is_none() && shadow.is_none() {
            return None;
        }
        let shadow_prefix = if shadow.is_some() { shadow_prefix } else { "" };
        Some(RuleSet { rules, shadow, shadow_prefix })
    }

    /// The rules of some policies. No ALLOW policy: nothing is asked; one without rules: nothing passes.
    pub(super) fn rules(&self, policies: &[&AuthorizationPolicy], action: PolicyAction) -> Option<Rbac> {
        let mut named = std::collections::HashMap::new();
        for policy in policies {
            for (number, rule) in policy.rules.iter().enumerate() {
                if let Ok(written) = self.rule(policy, rule, action) {
                    named.insert(rule_name(policy, number), written);
                }
            }
            if policy.rules.is_empty() && action == PolicyAction::Allow {
                named.insert(rule_name(policy, 0), never());
            }
        }
        let nothing = named.is_empty() && (policies.is_empty() || action != PolicyAction::Allow);
        let action = match action {
            PolicyAction::Allow => rbac::Action::Allow,
            PolicyAction::Deny | PolicyAction::Custom => rbac::Action::Deny,
            PolicyAction::Audit => rbac::Action::Log,
        };
        (!nothing).then(|| Rbac { action: action.into(), policies: named, ..Rbac::default() })
    }

    fn rule(
        &self,
        policy: &AuthorizationPolicy,
        rule: &PolicyRule,
        action: PolicyAction,
    ) -> Result<Policy, NeedsRequest> {
        let lenient = matches!(action, PolicyAction::Deny | PolicyAction::Audit);
        let mut for_all_ids = Vec::new();
        let mut for_all_rules = Vec::new();
        for condition in &rule.when {
            self.condition(policy, condition, lenient, &mut for_all_ids, &mut for_all_rules)?;
        }
        let mut principals = Vec::new();
        for source in &rule.from {
            let mut ids = self.source(policy, source, lenient)?;
            ids.extend(for_all_ids.iter().cloned());
            principals.push(all_ids(ids));
        }
        if rule.from.is_empty() {
            principals.push(all_ids(for_all_ids));
        }
        let mut permissions = Vec::new();
        for operation in &rule.to {
            let mut rules = self.operation(operation, lenient)?;
            rules.extend(for_all_rules.iter().cloned());
            permissions.push(all_rules(rules));
        }
        if rule.to.is_empty() {
            permissions.push(all_rules(for_all_rules));
        }
        Ok(Policy { permissions, principals, ..Policy::default() })
    }

    fn source(
        &self,
        policy: &AuthorizationPolicy,
        source: &Source,
        lenient: bool,
    ) -> Result<Vec<Principal>, NeedsRequest> {
        let mut ids = Vec::new();
        let principals = |values: &[StringMatch]| values.iter().flat_map(|value| self.peer(value)).collect();
        put_ids(&mut ids, principals(&source.principals), principals(&source.not_principals));
        let namespaces = |values: &[StringMatch]| values.iter().map(namespace_id).collect();
        put_ids(&mut ids, namespaces(&source.namespaces), namespaces(&source.not_namespaces));
        let accounts = |values: &[String]| values.iter().map(|value| account_id(value, &policy.namespace)).collect();
        put_ids(&mut ids, accounts(&source.service_accounts), accounts(&source.not_service_accounts));
        let direct = |blocks: &[IpNet]| blocks.iter().map(direct_ip).collect();
        put_ids(&mut ids, direct(&source.ip_blocks), direct(&source.not_ip_blocks));
        let remote = |blocks: &[IpNet]| blocks.iter().map(remote_ip).collect();
        put_ids(&mut ids, remote(&source.remote_ip_blocks), remote(&source.not_remote_ip_blocks));
        if !source.request_principals.is_empty() || !source.not_request_principals.is_empty() {
            if self.guarded.http {
                let tokens = |values: &[StringMatch]| values.iter().map(request_principal).collect();
                put_ids(&mut ids, tokens(&source.request_principals), tokens(&source.not_request_principals));
            } else if !lenient {
                return Err(NeedsRequest);
            }
        }
        Ok(ids)
    }

    fn operation(&self, operation: &Operation, lenient: bool) -> Result<Vec<Permission>, NeedsRequest> {
        let mut rules = Vec::new();
        let ports = |values: &[u16]| values.iter().map(|port| self.port(*port)).collect();
        put_rules(&mut rules, ports(&operation.ports), ports(&operation.not_ports));
        let needs_request = [&operation.hosts, &operation.not_hosts, &operation.methods, &operation.not_methods]
            .into_iter()
            .any(|values| !values.is_empty())
            || !operation.paths.is_empty()
            || !operation.not_paths.is_empty();
        if !needs_request {
            return Ok(rules);
        }
        if !self.guarded.http {
            return if lenient { Ok(rules) } else { Err(NeedsRequest) };
        }
        let hosts = |values: &[StringMatch]| values.iter().map(host_rule).collect();
        put_rules(&mut rules, hosts(&operation.hosts), hosts(&operation.not_hosts));
        let methods = |values: &[StringMatch]| values.iter().map(|value| header_rule(":method", value)).collect();
        put_rules(&mut rules, methods(&operation.methods), methods(&operation.not_methods));
        let paths = |values: &[PathMatch]| values.iter().map(path_rule).collect();
        put_rules(&mut rules, paths(&operation.paths), paths(&operation.not_paths));
        Ok(rules)
    }

    /// A condition is a matter of the caller or of the request; it lands in the one list or the other.
    fn condition(
        &self,
        policy: &AuthorizationPolicy,
        condition: &Condition,
        lenient: bool,
        ids: &mut Vec<Principal>,
        rules: &mut Vec<Permission>,
    ) -> Result<(), NeedsRequest> {
        let key = &condition.key;
        let request_only = matches!(
            key,
            Attribute::RequestHeader(_)
                | Attribute::RequestPrincipal
                | Attribute::RequestAudiences
                | Attribute::RequestPresenter
                | Attribute::RequestClaims(_)
        );
        if request_only && !self.guarded.http {
            return if lenient { Ok(()) } else { Err(NeedsRequest) };
        }
        let of_request =
            matches!(key, Attribute::DestinationIp | Attribute::DestinationPort | Attribute::ConnectionSni);
        if of_request {
            let list = |values: &[String]| values.iter().filter_map(|value| self.permission(key, value)).collect();
            put_rules(rules, known_rules(list(&condition.values), &condition.values), list(&condition.not_values));
        } else {
            let list = |values: &[String]| {
                values.iter().flat_map(|value| self.principal(policy, key, value)).collect::<Vec<_>>()
            };
            put_ids(ids, known_ids(list(&condition.values), &condition.values), list(&condition.not_values));
        }
        Ok(())
    }

    fn permission(&self, key: &Attribute, value: &str) -> Option<Permission> {
        match key {
            Attribute::DestinationIp => Some(rule(permission::Rule::DestinationIp(cidr(&network_of(value)?)))),
            Attribute::DestinationPort => value.parse().ok().map(|port| self.port(port)),
            Attribute::ConnectionSni => {
                let wanted = route_match::string(&StringMatch::from_policy_value(value));
                Some(rule(permission::Rule::RequestedServerName(wanted)))
            }
            _ => None,
        }
    }

    fn principal(&self, policy: &AuthorizationPolicy, key: &Attribute, value: &str) -> Vec<Principal> {
        let wanted = StringMatch::from_policy_value(value);
        let one = |identifier: Option<Principal>| identifier.into_iter().collect();
        match key {
            Attribute::RequestHeader(name) => {
                one(Some(id(principal::Identifier::Header(route_match::header(name, &wanted)))))
            }
            Attribute::SourceIp => one(network_of(value).map(|block| direct_ip(&block))),
            Attribute::RemoteIp => one(network_of(value).map(|block| remote_ip(&block))),
            Attribute::SourceNamespace => one(Some(namespace_id(&wanted))),
            Attribute::SourcePrincipal => self.peer(&wanted),
            Attribute::SourceServiceAccount => one(Some(account_id(value, &policy.namespace))),
            Attribute::RequestPrincipal => one(Some(request_principal(&wanted))),
            Attribute::RequestAudiences => one(Some(claim(&["aud"], &wanted))),
            Attribute::RequestPresenter => one(Some(claim(&["azp"], &wanted))),
            Attribute::RequestClaims(path) => {
                let path: Vec<&str> = path.iter().map(String::as_str).collect();
                one(Some(claim(&path, &wanted)))
            }
            Attribute::DestinationIp | Attribute::DestinationPort | Attribute::ConnectionSni => Vec::new(),
        }
    }

    /// A peer by its identity. A principal of one of the mesh's trust domains stands for those of all.
    fn peer(&self, value: &StringMatch) -> Vec<Principal> {
        let (text, again): (&str, fn(String) -> StringMatch) = match value {
            StringMatch::Exact(text) => (text, StringMatch::Exact),
            StringMatch::Prefix(text) => (text, StringMatch::Prefix),
            StringMatch::Suffix(text) => {
                let expression = format!("spiffe://.*{}", regex::escape(text));
                return vec![authenticated(&StringMatch::Regex(expression))];
            }
            StringMatch::Regex(expression) => {
                return vec![authenticated(&StringMatch::Regex(format!("spiffe://(?:{expression})")))];
            }
            StringMatch::Present => return vec![authenticated(&StringMatch::Present)],
        };
        let text = text.strip_prefix("spiffe://").unwrap_or(text);
        let Some((domain, rest)) = text.split_once('/') else {
            return vec![authenticated(&again(format!("spiffe://{text}")))];
        };
        // Istio lets `cluster.local` stand for the mesh's own trust domain.
        let own = domain == "cluster.local" || self.mesh.trust_domains().any(|known| known == domain);
        if !own {
            return vec![authenticated(&again(format!("spiffe://{text}")))];
        }
        self.mesh.trust_domains().map(|known| authenticated(&again(format!("spiffe://{known}/{rest}")))).collect()
    }

    /// A port as policies know it: on a listener that stands for one port under another number, that number.
    fn port(&self, port: u16) -> Permission {
        match self.guarded.port {
            Some((known, seen)) if port == known => rule(permission::Rule::DestinationPort(u32::from(seen))),
            Some((_, seen)) if port == seen => not_rule(rule(permission::Rule::Any(true))),
            _ => rule(permission::Rule::DestinationPort(u32::from(port))),
        }
    }
}

/// Values that could not be read match nothing, rather than dropping the whole condition.
fn known_ids(found: Vec<Principal>, written: &[String]) -> Vec<Principal> {
    if found.is_empty() && !written.is_empty() { vec![not_id(id(principal::Identifier::Any(true)))] } else { found }
}

fn known_rules(found: Vec<Permission>, written: &[String]) -> Vec<Permission> {
    if found.is_empty() && !written.is_empty() { vec![not_rule(rule(permission::Rule::Any(true)))] } else { found }
}

fn put_ids(ids: &mut Vec<Principal>, any_of: Vec<Principal>, none_of: Vec<Principal>) {
    if !any_of.is_empty() {
        ids.push(id(principal::Identifier::OrIds(principal::Set { ids: any_of })));
    }
    if !none_of.is_empty() {
        ids.push(not_id(id(principal::Identifier::OrIds(principal::Set { ids: none_of }))));
    }
}

fn put_rules(rules: &mut Vec<Permission>, any_of: Vec<Permission>, none_of: Vec<Permission>) {
    if !any_of.is_empty() {
        rules.push(rule(permission::Rule::OrRules(permission::Set { rules: any_of })));
    }
    if !none_of.is_empty() {
        rules.push(not_rule(rule(permission::Rule::OrRules(permission::Set { rules: none_of }))));
    }
}

fn all_ids(ids: Vec<Principal>) -> Principal {
    if ids.is_empty() {
        return id(principal::Identifier::Any(true));
    }
    id(principal::Identifier::AndIds(principal::Set { ids }))
}

fn all_rules(rules: Vec<Permission>) -> Permission {
    if rules.is_empty() {
        return rule(permission::Rule::Any(true));
    }
    rule(permission::Rule::AndRules(permission::Set { rules }))
}

/// A rule that nothing matches.
fn never() -> Policy {
    Policy {
        permissions: vec![not_rule(rule(permission::Rule::Any(true)))],
        principals: vec![not_id(id(principal::Identifier::Any(true)))],
        ..Policy::default()
    }
}

fn id(identifier: principal::Identifier) -> Principal {
    Principal { identifier: Some(identifier) }
}

fn not_id(inner: Principal) -> Principal {
    id(principal::Identifier::NotId(Box::new(inner)))
}

fn rule(rule: permission::Rule) -> Permission {
    Permission { rule: Some(rule) }
}

fn not_rule(inner: Permission) -> Permission {
    rule(permission::Rule::NotRule(Box::new(inner)))
}

fn authenticated(name: &StringMatch) -> Principal {
    let principal_name = Some(route_match::string(name));
    id(principal::Identifier::Authenticated(principal::Authenticated { principal_name }))
}

fn namespace_id(value: &StringMatch) -> Principal {
    let namespace = match value {
        StringMatch::Exact(text) => regex::escape(text),
        StringMatch::Prefix(text) => format!("{}[^/]*", regex::escape(text)),
        StringMatch::Suffix(text) => format!("[^/]*{}", regex::escape(text)),
        StringMatch::Regex(expression) => format!("(?:{expression})"),
        StringMatch::Present => "[^/]+".to_owned(),
    };
    authenticated(&StringMatch::Regex(format!("spiffe://[^/]+/ns/{namespace}/sa/.+")))
}

fn account_id(value: &str, own_namespace: &str) -> Principal {
    let (namespace, account) = value.split_once('/').unwrap_or((own_namespace, value));
    let (namespace, account) = (regex::escape(namespace), regex::escape(account));
    authenticated(&StringMatch::Regex(format!("spiffe://[^/]+/ns/{namespace}/sa/{account}")))
}

fn network_of(value: &str) -> Option<IpNet> {
    value.parse().ok().or_else(|| value.parse::<std::net::IpAddr>().ok().map(IpNet::from))
}

fn cidr(block: &IpNet) -> CidrRange {
    CidrRange { address_prefix: block.network().to_string(), prefix_len: wire::uint32(u32::from(block.prefix_len())) }
}

fn direct_ip(block: &IpNet) -> Principal {
    id(principal::Identifier::DirectRemoteIp(cidr(block)))
}

fn remote_ip(block: &IpNet) -> Principal {
    id(principal::Identifier::RemoteIp(cidr(block)))
}

fn header_rule(name: &str, wanted: &StringMatch) -> Permission {
    rule(permission::Rule::Header(route_match::header(name, wanted)))
}

/// Hosts compare without case.
fn host_rule(wanted: &StringMatch) -> Permission {
    let ignoring_case = match wanted {
        StringMatch::Present => return header_rule(":authority", wanted),
        StringMatch::Regex(expression) => route_match::string(&StringMatch::Regex(format!("(?i){expression}"))),
        other => StringMatcher { ignore_case: true, ..route_match::string(other) },
    };
    let mut matcher = route_match::header(":authority", wanted);
    matcher.header_match_specifier =
        Some(proto::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier::StringMatch(ignoring_case));
    rule(permission::Rule::Header(matcher))
}

fn path_rule(wanted: &PathMatch) -> Permission {
    match wanted {
        PathMatch::Text(text) => {
            let matcher = PathMatcher { rule: Some(path_matcher::Rule::Path(route_match::string(text))) };
            rule(permission::Rule::UrlPath(matcher))
        }
        PathMatch::Template(template) => {
            let config = UriTemplateMatchConfig { path_template: template.replace("{**}", "**").replace("{*}", "*") };
            rule(permission::Rule::UriTemplate(TypedExtensionConfig {
                name: "envoy.path.match.uri_template.uri_template_matcher".to_owned(),
                typed_config: Some(wire::any(&config, &wire::FLAT)),
            }))
        }
    }
}

/// A token's principal `ISSUER/SUBJECT`, as Istio's request authentication leaves it.
fn request_principal(wanted: &StringMatch) -> Principal {
    let both = |issuer: StringMatch, subject: StringMatch| {
        let ids = vec![claim(&["iss"], &issuer), claim(&["sub"], &subject)];
        id(principal::Identifier::AndIds(principal::Set { ids }))
    };
    // A part of which a wildcard leaves nothing may be anything.
    let part = |text: &str, kind: fn(String) -> StringMatch| {
        if text.is_empty() { StringMatch::Present } else { kind(text.to_owned()) }
    };
    let split = |text: &'_ str| text.rsplit_once('/').map(|(issuer, subject)| (issuer.to_owned(), subject.to_owned()));
    match wanted {
        StringMatch::Exact(text) => match split(text) {
            Some((issuer, subject)) => both(StringMatch::Exact(issuer), StringMatch::Exact(subject)),
            None => both(StringMatch::Exact(text.clone()), StringMatch::Present),
        },
        StringMatch::Prefix(text) => match split(text) {
            Some((issuer, subject)) => both(StringMatch::Exact(issuer), part(&subject, StringMatch::Prefix)),
            None => both(part(text, StringMatch::Prefix), StringMatch::Present),
        },
        StringMatch::Suffix(text) => match split(text) {
            Some((issuer, subject)) => both(part(&issuer, StringMatch::Suffix), StringMatch::Exact(subject)),
            None => both(StringMatch::Present, part(text, StringMatch::Suffix)),
        },
        other => both(other.clone(), StringMatch::Present),
    }
}

/// A claim of a validated token: the text itself or one of a list.
fn claim(path: &[&str], wanted: &StringMatch) -> Principal {
    let segment = |key: &str| PathSegment { segment: Some(Segment::Key(key.to_owned())) };
    let path = std::iter::once("payload").chain(path.iter().copied()).map(segment).collect::<Vec<_>>();
    let value = |pattern| ValueMatcher { match_pattern: Some(pattern) };
    let text = || value(value_matcher::MatchPattern::StringMatch(route_match::string(wanted)));
    let listed = ListMatcher { match_pattern: Some(list_matcher::MatchPattern::OneOf(Box::new(text()))) };
    let list = value(value_matcher::MatchPattern::ListMatch(Box::new(listed)));
    let matched = |value| {
        id(principal::Identifier::SourcedMetadata(SourcedMetadata {
            metadata_matcher: Some(MetadataMatcher {
                filter: "envoy.filters.http.jwt_authn".to_owned(),
                path: path.clone(),
                value: Some(value),
                ..MetadataMatcher::default()
            }),
            ..SourcedMetadata::default()
        }))
    };
    id(principal::Identifier::OrIds(principal::Set { ids: vec![matched(text()), matched(list)] }))
}
