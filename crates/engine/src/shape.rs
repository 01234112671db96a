//! Changing heads: what routes add, remove and rewrite, in Envoy's order.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::decide::{Decision, Matched};
use crate::endpoint::Endpoint;
use crate::facts::Facts;
use crate::format::{RequestValues, Values};
use crate::http_manager::{HttpFilter, HttpFilterKind, HttpManager};
use crate::mutation::{HeaderMutationFilter, TrailerChanges};
use crate::plan::Plan;
use crate::routes::{AppendAction, HeaderAddition, HeaderMutation, HostRewrite, PathChange, PathRule, RouteMatch};

const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
const HEALTH_CHECKED_CLUSTER: HeaderName = HeaderName::from_static("x-envoy-upstream-healthchecked-cluster");
const IMMEDIATE_HEALTH_CHECK_FAIL: HeaderName = HeaderName::from_static("x-envoy-immediate-health-check-fail");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// The parts of a request that routes may change, as they go upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestHead {
    /// `:path` with its query.
    pub path: String,
    /// `:authority`.
    pub authority: String,
    /// All other headers.
    pub headers: HeaderMap,
}

/// Applies a route's changes to a request: removes and adds headers at all levels, rewrites path and authority, sets
/// `x-envoy-original-path` where the path changed (unless the router suppresses such headers).
pub fn request(matched: &Matched, facts: &Facts<'_>, values: &impl Values, head: &mut RequestHead) {
    for level in levels(matched) {
        for name in &level.request_remove {
            head.headers.remove(name);
        }
        for addition in &level.request_add {
            add(addition, values, &mut head.headers);
        }
    }
    let Some(action) = matched.forward() else { return };
    if let Some(host) = rewritten_host(matched, facts) {
        if action.append_forwarded_host
            && let Ok(old) = HeaderValue::from_str(&head.authority)
        {
            head.headers.append(FORWARDED_HOST, old);
        }
        head.authority = host;
    }
    let changed = action.path.as_ref().and_then(|change| match change {
        PathChange::Format(template) => {
            let mut text = String::new();
            template.render(values, "", &mut text);
            (!text.is_empty()).then_some(text)
        }
        change => changed_path(change, &matched.route.rule, facts),
    });
    if let Some(path) = changed {
        if !matched.plain
            && let Ok(old) = HeaderValue::from_str(&head.path)
        {
            head.headers.insert(ORIGINAL_PATH, old);
        }
        head.path = match facts.query() {
            Some(query) if !path.contains('?') => format!("{path}?{query}"),
            _ => path,
        };
    }
}

/// Whether [`request`] would change anything: if not, the head can go on as it is.
#[must_use]
pub fn changes_request(matched: &Matched) -> bool {
    let rewrites = matched.forward().is_some_and(|action| {
        action.path.is_some() || action.host.is_some() || matched.weighted_cluster().is_some_and(|c| c.host.is_some())
    });
    rewrites || levels(matched).any(|level| !level.request_add.is_empty() || !level.request_remove.is_empty())
}

/// The authority for an endpoint, where the route rewrites it to the endpoint's own name.
#[must_use]
pub fn auto_host<'e>(matched: &Matched, endpoint: &'e Endpoint) -> Option<&'e str> {
    let auto = matched.forward().is_some_and(|action| action.host == Some(HostRewrite::Auto));
    (auto && !endpoint.hostname.is_empty()).then_some(&*endpoint.hostname)
}

/// Applies a decision's changes to a response, an upstream's or one of the proxy's own: header changes of the route where
/// they apply ([`Decision::shapes_response`]), what authorizers say, and the cookie of the hash policy. `matched` is the decision's
/// own, or was.
pub fn response(decision: &Decision, matched: Option<&Matched>, values: &impl Values, headers: &mut HeaderMap) {
    if let Some(matched) = matched.filter(|_| decision.shapes_response) {
        for level in levels(matched) {
            for name in &level.response_remove {
                headers.remove(name);
            }
            for addition in &level.response_add {
                add(addition, values, headers);
            }
        }
    }
    for (name, value) in decision.asked.iter().flat_map(|asked| &asked.external) {
        headers.append(name, value.clone());
    }
    if let Some(cookie) = &decision.set_cookie {
        headers.append(http::header::SET_COOKIE, cookie.clone());
    }
}

/// What those are told who check the workload's health.
#[derive(Debug, Clone, Copy)]
pub struct Health<'a> {
    /// The node's cluster, where its name may stand in a header.
    pub cluster: Option<&'a HeaderValue>,
    /// The process fails its checks.
    pub failing: bool,
}

/// Then does what filters do to responses, the last one first.
pub fn filtered(
    (plan, manager): (&Plan, &HttpManager),
    decision: &Decision,
    matched: Option<&Matched>,
    health: Health<'_>,
    values: &impl Values,
    headers: &mut HeaderMap,
) {
    let is_on = |filter: &HttpFilter| filter.is_on(matched.and_then(|matched| matched.filter_override(&filter.name)));
    let checks = decision.asked.as_ref().map_or(&[][..], |asked| &asked.checks);
    for filter in manager.filters.iter().rev() {
        match plan.kind_of(filter) {
            // Who was switched off has nothing to add.
            HttpFilterKind::Cors(_) => {
                for (name, value) in &decision.cors {
                    headers.insert(name, value.clone());
                }
            }
            HttpFilterKind::HeaderMutation(mutations) if is_on(filter) => {
                mutations.response(|level| &level.response, &filter.name, matched, values, headers);
            }
            HttpFilterKind::HealthCheck(own) if checks.iter().any(|check| Arc::ptr_eq(&check.filter, own)) => {
                headers.extend(health.cluster.map(|cluster| (HEALTH_CHECKED_CLUSTER, cluster.clone())));
            }
            HttpFilterKind::HealthCheck(_) if health.failing && is_on(filter) => {
                headers.insert(IMMEDIATE_HEALTH_CHECK_FAIL, HeaderValue::from_static("true"));
            }
            _ => {}
        }
    }
}

/// What filters will change of a request's trailers.
#[must_use]
pub fn request_trailers(around: (&Plan, &HttpManager), matched: Option<&Matched>, facts: &Facts<'_>) -> TrailerChanges {
    let mut changes = TrailerChanges::default();
    let values = RequestValues::of(facts, matched);
    for (name, filter) in mutations(around, matched) {
        filter.request_trailers(name, matched, &values, &mut changes);
    }
    changes
}

/// What filters change of an answer's trailers.
pub fn response_trailers(
    around: (&Plan, &HttpManager),
    matched: Option<&Matched>,
    values: &impl Values,
    trailers: &mut HeaderMap,
) {
    for (name, filter) in mutations(around, matched).rev() {
        filter.response(|level| &level.response_trailers, name, matched, values, trailers);
    }
}

/// The filters that change headers and trailers, where they are on, with their names.
fn mutations<'a>(
    (plan, manager): (&'a Plan, &'a HttpManager),
    matched: Option<&'a Matched>,
) -> impl DoubleEndedIterator<Item = (&'a str, &'a HeaderMutationFilter)> {
    manager.filters.iter().filter_map(move |filter| match plan.kind_of(filter) {
        HttpFilterKind::HeaderMutation(mutations)
            if filter.is_on(matched.and_then(|matched| matched.filter_override(&filter.name))) =>
        {
            Some((&*filter.name, &**mutations))
        }
        _ => None,
    })
}

/// Header changes from the most specific level up, or down where the table says that the most specific wins.
fn levels(matched: &Matched) -> impl Iterator<Item = &HeaderMutation> {
    let weighted = matched.weighted_cluster().map(|cluster| &cluster.headers);
    let mut levels =
        [weighted, Some(&matched.route.headers), Some(&matched.host.headers), Some(&matched.table.headers)];
    if matched.table.most_specific_wins {
        levels.reverse();
    }
    levels.into_iter().flatten().filter(|level| !level.is_empty())
}

/// Adds one header; a value that comes out empty is added only if that is wanted.
pub fn add(addition: &HeaderAddition, values: &impl Values, headers: &mut HeaderMap) {
    if let Some(value) = value_of(addition, values) {
        put(addition, value, headers);
    }
}

/// The value of a header that is to be added; `None`: it is not added.
pub(crate) fn value_of(addition: &HeaderAddition, values: &impl Values) -> Option<HeaderValue> {
    let value = match addition.value.as_literal() {
        Some(text) => HeaderValue::from_str(text),
        None => {
            let mut text = String::new();
            addition.value.render(values, "", &mut text);
            HeaderValue::from_str(&text)
        }
    };
    // A value from the request that no header may carry is left out rather than sent maimed.
    value.ok().filter(|value| !value.is_empty() || addition.keep_empty)
}

/// Puts a value where its addition wants it.
pub(crate) fn put(addition: &HeaderAddition, value: HeaderValue, headers: &mut HeaderMap) {
    let present = headers.contains_key(&addition.name);
    match addition.action {
        AppendAction::Append => {
            headers.append(&addition.name, value);
        }
        AppendAction::AddIfAbsent if present => {}
        AppendAction::OverwriteIfExists if !present => {}
        AppendAction::AddIfAbsent | AppendAction::Overwrite | AppendAction::OverwriteIfExists => {
            headers.insert(&addition.name, value);
        }
    }
}

fn rewritten_host(matched: &Matched, facts: &Facts<'_>) -> Option<String> {
    if let Some(host) = matched.weighted_cluster().and_then(|cluster| cluster.host.as_ref()) {
        return Some(host.to_string());
    }
    match matched.forward()?.host.as_ref()? {
        HostRewrite::Literal(host) => Some(host.to_string()),
        HostRewrite::Auto => None,
        HostRewrite::Header(key) => {
            let value = key.value(facts).filter(|value| !value.is_empty())?;
            String::from_utf8(value.into_owned()).ok()
        }
        HostRewrite::PathRegex(rule) => {
            Some(rule.apply(facts.path_only()).unwrap_or_else(|| facts.path_only().to_owned()))
        }
    }
}

/// The path (without query) that a change makes of a request's; `None`: unchanged. Formatters are the caller's.
pub(crate) fn changed_path(change: &PathChange, rule: &RouteMatch, facts: &Facts<'_>) -> Option<String> {
    let path = facts.path_only();
    match change {
        PathChange::Prefix(new) => {
            let matched = match &rule.path {
                PathRule::Prefix(text) | PathRule::SeparatedPrefix(text) => text.len(),
                _ => path.len(),
            };
            path.get(matched..).map(|rest| format!("{new}{rest}"))
        }
        PathChange::Regex(rule) => rule.apply(path),
        PathChange::Template(template, rewrite) => template.rewrite(path, rewrite),
        PathChange::Format(template) => {
            let mut text = String::new();
            template.render(&RequestValues::of(facts, None), "", &mut text);
            (!text.is_empty()).then_some(text)
        }
    }
}
