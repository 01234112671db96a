//! Route tables, virtual hosts and what routes match.

use std::sync::Arc;

use prost::Message;
use proto::envoy::config::route::v3 as xds;

use super::value::{header, header_name, metadata, pattern, runtime_fraction, string};
use super::{Context, filters, flag};
use crate::matcher::PathTemplate;
use crate::metadata::Metadata;
use crate::retry::RetryPolicy;
use crate::routes::{
    HeaderMutation, HostIndex, PathRule, QueryMatcher, QueryPattern, RequireTls, Route, RouteAction, RouteIndex,
    RouteMatch, RouteTable, TlsContextRule, VirtualHost,
};

use super::route_action::{self, Defaults};

/// Envoy's default for `max_direct_response_body_size_bytes`.
const MAX_DIRECT_BODY: u32 = 4096;

pub(crate) fn route_table(cx: &mut Context<'_>, bytes: &[u8]) -> Option<RouteTable> {
    match xds::RouteConfiguration::decode(bytes) {
        Ok(message) => table(cx, &message, false),
        Err(error) => cx.refuse(format!("is not a well-formed route configuration: {error}")),
    }
}

/// `inline`: part of a listener, where clusters are validated unless said otherwise.
pub(super) fn table(cx: &mut Context<'_>, message: &xds::RouteConfiguration, inline: bool) -> Option<RouteTable> {
    if message.vhds.is_some() {
        return cx.field("vhds", |cx| cx.refuse("is not implemented"));
    }
    let mirrors = cx.list("request_mirror_policies", &message.request_mirror_policies, route_action::mirror);
    let virtual_hosts: Vec<Arc<VirtualHost>> =
        cx.list("virtual_hosts", &message.virtual_hosts, |cx, host| virtual_host(cx, host, &mirrors).map(Arc::new));
    let hosts = host_index(cx, &message.virtual_hosts);
    let limit = super::number(message.max_direct_response_body_size_bytes.as_ref(), MAX_DIRECT_BODY);
    check_bodies(cx, &virtual_hosts, limit);
    Some(RouteTable {
        name: cx.share(&message.name),
        virtual_hosts,
        hosts,
        headers: header_mutation(
            cx,
            &message.request_headers_to_remove,
            &message.request_headers_to_add,
            &message.response_headers_to_remove,
            &message.response_headers_to_add,
        ),
        most_specific_wins: message.most_specific_header_mutations_wins,
        ignore_port: message.ignore_port_in_host_matching,
        filters: filters::overrides(cx, &message.typed_per_filter_config),
        validate_clusters: flag(message.validate_clusters.as_ref(), inline),
        metadata: Metadata::from_proto(message.metadata.as_ref()),
        version: cx.hash,
    })
}

/// The bodies of direct responses must not be longer than the table allows.
fn check_bodies(cx: &mut Context<'_>, hosts: &[Arc<VirtualHost>], limit: u32) {
    for (at, host) in hosts.iter().enumerate() {
        for (place, route) in host.routes.iter().enumerate() {
            let RouteAction::Direct(direct) = &route.action else { continue };
            if direct.body.len() > limit as usize {
                cx.item("virtual_hosts", at, |cx| {
                    cx.item("routes", place, |cx| {
                        cx.fault(format!("the body is longer than max_direct_response_body_size_bytes ({limit})"));
                    });
                });
            }
        }
    }
}

fn host_index(cx: &mut Context<'_>, hosts: &[xds::VirtualHost]) -> HostIndex {
    let mut index = HostIndex::default();
    for (at, host) in hosts.iter().enumerate() {
        for (place, domain) in host.domains.iter().enumerate() {
            if let Err(other) = index.insert(domain, at) {
                let name = hosts.get(other).map(|host| host.name.as_str()).unwrap_or_default();
                cx.item("virtual_hosts", at, |cx| {
                    cx.item("domains", place, |cx| {
                        cx.fault(format!("{domain:?} belongs to virtual host {name:?} already"))
                    });
                });
            }
        }
    }
    index
}

#[allow(deprecated, reason = "cors is still sent")]
fn virtual_host(
    cx: &mut Context<'_>,
    message: &xds::VirtualHost,
    table_mirrors: &[crate::routes::MirrorPolicy],
) -> Option<VirtualHost> {
    if message.matcher.is_some() {
        return cx.field("matcher", |cx| cx.refuse("is not implemented; use routes"));
    }
    let name = cx.needed("name", &message.name);
    if message.domains.is_empty() {
        cx.field("domains", |cx| cx.fault("at least one is required"));
    }
    let domains = cx.list("domains", &message.domains, |cx, domain| {
        let stars = domain.matches('*').count();
        if domain.is_empty() || stars > 1 || (stars == 1 && !domain.starts_with('*') && !domain.ends_with('*')) {
            return cx.refuse(format!("{domain:?}: a domain has one wildcard at most, at its beginning or its end"));
        }
        Some(cx.share(domain))
    });
    let retry: Option<Arc<RetryPolicy>> =
        cx.optional("retry_policy", message.retry_policy.as_ref(), route_action::retry).map(Arc::new);
    let own_mirrors = cx.list("request_mirror_policies", &message.request_mirror_policies, route_action::mirror);
    let mirrors = if own_mirrors.is_empty() { table_mirrors } else { &own_mirrors };
    let defaults = Defaults { retry: retry.as_ref(), mirrors };
    let routes: Vec<Arc<Route>> =
        cx.list("routes", &message.routes, |cx, route| build_route(cx, route, &defaults).map(Arc::new));
    let mut host_filters = filters::overrides(cx, &message.typed_per_filter_config);
    host_filters.0.extend(message.cors.as_ref().and_then(|cors| filters::old_cors(cx, cors)));
    let index = RouteIndex::new(&routes);
    Some(VirtualHost {
        name: name?,
        domains,
        index,
        routes,
        require_tls: match message.require_tls {
            1 => RequireTls::External,
            2 => RequireTls::All,
            _ => RequireTls::None,
        },
        headers: header_mutation(
            cx,
            &message.request_headers_to_remove,
            &message.request_headers_to_add,
            &message.response_headers_to_remove,
            &message.response_headers_to_add,
        ),
        filters: host_filters,
        limits: cx.list("rate_limits", &message.rate_limits, super::limit::rule).into(),
        attempt_count_in_request: message.include_request_attempt_count,
        attempt_count_in_response: message.include_attempt_count_in_response,
        metadata: Metadata::from_proto(message.metadata.as_ref()),
    })
}

#[allow(deprecated, reason = "The old buffer limit and cors are still sent")]
fn build_route(cx: &mut Context<'_>, message: &xds::Route, defaults: &Defaults<'_>) -> Option<Route> {
    let rule = cx.required("match", message.r#match.as_ref(), route_match);
    let template = rule.as_ref().and_then(|rule| match &rule.path {
        PathRule::Template(template) => Some(template.clone()),
        _ => None,
    });
    let action = action(cx, message, defaults, template);
    let mut route_filters = filters::overrides(cx, &message.typed_per_filter_config);
    if let Some(xds::route::Action::Route(action)) = &message.action {
        let old = action.cors.as_ref().and_then(|cors| cx.field("route", |cx| filters::old_cors(cx, cors)));
        route_filters.0.extend(old);
    }
    let old_limit = message.per_request_buffer_limit_bytes.as_ref().map(|limit| u64::from(limit.value));
    Some(Route {
        name: cx.share(&message.name),
        rule: rule?,
        action: action?,
        headers: header_mutation(
            cx,
            &message.request_headers_to_remove,
            &message.request_headers_to_add,
            &message.response_headers_to_remove,
            &message.response_headers_to_add,
        ),
        filters: route_filters,
        buffer_limit: message.request_body_buffer_limit.as_ref().map(|limit| limit.value).or(old_limit),
        metadata: Metadata::from_proto(message.metadata.as_ref()),
    })
}

fn action(
    cx: &mut Context<'_>,
    message: &xds::Route,
    defaults: &Defaults<'_>,
    template: Option<Arc<PathTemplate>>,
) -> Option<RouteAction> {
    match &message.action {
        Some(xds::route::Action::Route(action)) => cx
            .field("route", |cx| route_action::forward(cx, action, defaults, template))
            .map(|action| RouteAction::Forward(Box::new(action))),
        Some(xds::route::Action::Redirect(redirect)) => cx
            .field("redirect", |cx| route_action::redirect(cx, redirect))
            .map(|redirect| RouteAction::Redirect(Box::new(redirect))),
        Some(xds::route::Action::DirectResponse(direct)) => cx
            .field("direct_response", |cx| route_action::direct_response(cx, direct))
            .map(|direct| RouteAction::Direct(Box::new(direct))),
        Some(xds::route::Action::NonForwardingAction(_)) => Some(RouteAction::NonForwarding),
        Some(xds::route::Action::FilterAction(_)) => cx.field("filter_action", |cx| cx.refuse("is not implemented")),
        None => cx.refuse("route, redirect, direct_response or non_forwarding_action is required"),
    }
}

pub(super) fn route_match(cx: &mut Context<'_>, message: &xds::RouteMatch) -> Option<RouteMatch> {
    use xds::route_match::PathSpecifier as Kind;
    let path = match &message.path_specifier {
        Some(Kind::Prefix(text)) => PathRule::Prefix(cx.share(text)),
        Some(Kind::Path(text)) => PathRule::Exact(cx.share(text)),
        Some(Kind::PathSeparatedPrefix(text)) => {
            if !text.starts_with('/') || text.ends_with('/') || text.contains(['?', '#']) {
                return cx.field("path_separated_prefix", |cx| {
                    cx.refuse("must begin with a slash, must not end with one, and has no query")
                });
            }
            PathRule::SeparatedPrefix(cx.share(text))
        }
        Some(Kind::SafeRegex(regex)) => PathRule::Regex(cx.field("safe_regex", |cx| pattern(cx, regex))?),
        Some(Kind::PathMatchPolicy(config)) => {
            PathRule::Template(cx.field("path_match_policy", |cx| super::rbac::template(cx, config))?)
        }
        Some(Kind::ConnectMatcher(_)) => PathRule::Connect,
        None => {
            return cx.refuse(
                "prefix, path, safe_regex, path_separated_prefix, path_match_policy or connect_matcher is required",
            );
        }
    };
    if !message.filter_state.is_empty() {
        cx.field("filter_state", |cx| cx.fault("is not implemented"));
    }
    Some(RouteMatch {
        path,
        case_sensitive: flag(message.case_sensitive.as_ref(), true),
        headers: cx.list("headers", &message.headers, header),
        query: cx.list("query_parameters", &message.query_parameters, query),
        cookies: cx.list("cookies", &message.cookies, |cx, cookie| {
            let matcher = cx.required("string_match", cookie.string_match.as_ref(), string)?;
            Some((cx.needed("name", &cookie.name)?, matcher, cookie.invert_match))
        }),
        grpc: message.grpc.is_some(),
        fraction: cx.optional("runtime_fraction", message.runtime_fraction.as_ref(), runtime_fraction),
        tls: message.tls_context.as_ref().map(|rule| TlsContextRule {
            presented: rule.presented.as_ref().map(|wanted| wanted.value),
            validated: rule.validated.as_ref().map(|wanted| wanted.value),
        }),
        metadata: cx.list("dynamic_metadata", &message.dynamic_metadata, metadata),
    })
}

pub(super) fn query(cx: &mut Context<'_>, message: &xds::QueryParameterMatcher) -> Option<QueryMatcher> {
    use xds::query_parameter_matcher::QueryParameterMatchSpecifier as Kind;
    let name = cx.needed("name", &message.name)?;
    let pattern = match &message.query_parameter_match_specifier {
        None => QueryPattern::Present(true),
        Some(Kind::PresentMatch(wanted)) => QueryPattern::Present(*wanted),
        Some(Kind::StringMatch(text)) => QueryPattern::Value(cx.field("string_match", |cx| string(cx, text))?),
    };
    Some(QueryMatcher { name, pattern })
}

pub(super) fn header_mutation(
    cx: &mut Context<'_>,
    request_remove: &[String],
    request_add: &[proto::envoy::config::core::v3::HeaderValueOption],
    response_remove: &[String],
    response_add: &[proto::envoy::config::core::v3::HeaderValueOption],
) -> HeaderMutation {
    HeaderMutation {
        request_remove: cx.list("request_headers_to_remove", request_remove, removable),
        request_add: cx.list("request_headers_to_add", request_add, route_action::header_addition),
        response_remove: cx.list("response_headers_to_remove", response_remove, removable),
        response_add: cx.list("response_headers_to_add", response_add, route_action::header_addition),
    }
}

pub(super) fn removable(cx: &mut Context<'_>, name: &String) -> Option<http::HeaderName> {
    if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
        return cx.refuse(format!("{name:?} must not be removed"));
    }
    header_name(cx, name)
}
