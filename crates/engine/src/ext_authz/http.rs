//! Asking by a request like the client's: 200 lets pass, 5xx is a failure, everything else is the answer.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};

use super::{Answer, BodyView, Call, Changes, ExtAuthz, Verdict, changeable};
use crate::facts::Facts;
use crate::matcher::StringMatcher;
use crate::metadata::Datum;

const REMOVE: HeaderName = HeaderName::from_static("x-envoy-auth-headers-to-remove");
const PARTIAL: HeaderName = HeaderName::from_static("x-envoy-auth-partial-body");
/// Headers of the authorizer's answer that concern only its own hop.
const OWN_HOP: [HeaderName; 4] =
    [header::CONNECTION, header::TRANSFER_ENCODING, header::CONTENT_LENGTH, HeaderName::from_static("keep-alive")];

/// An HTTP service.
#[derive(Debug)]
pub struct HttpService {
    /// The cluster.
    pub cluster: Arc<str>,
    /// Limit for the answer.
    pub timeout: Duration,
    /// Stands before the path.
    pub path_prefix: Arc<str>,
    /// Stands in the path's stead.
    pub path_override: Option<Arc<str>>,
    /// Added to every question.
    pub headers_to_add: Vec<(HeaderName, HeaderValue)>,
    /// Headers of the answer that an allowed request gets.
    pub upstream: Vec<StringMatcher>,
    /// The same, beside what is there.
    pub upstream_append: Vec<StringMatcher>,
    /// Headers of the answer that a refused client gets; empty: all.
    pub client_on_deny: Vec<StringMatcher>,
    /// Headers of the answer that an allowed client gets.
    pub client_on_allow: Vec<StringMatcher>,
    /// Headers of the answer that filters behind are told.
    pub metadata: Vec<StringMatcher>,
}

pub(super) fn call(filter: &ExtAuthz, service: &HttpService, facts: &Facts<'_>, body: Option<&BodyView>) -> Call {
    let mut headers = HeaderMap::new();
    for (name, value) in facts.headers {
        let always = *name == header::AUTHORIZATION;
        let never = *name == header::CONTENT_LENGTH || *name == header::TRANSFER_ENCODING || *name == header::TE;
        if !never && (always || filter.shows(name.as_str())) {
            headers.append(name.clone(), value.clone());
        }
    }
    if let Some(body) = body {
        headers.insert(PARTIAL, HeaderValue::from_static(if body.cut { "true" } else { "false" }));
    }
    for (name, value) in &service.headers_to_add {
        headers.append(name.clone(), value.clone());
    }
    let body = body.map(|body| body.bytes.clone()).unwrap_or_default();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    let path = match &service.path_override {
        Some(path) => path.to_string(),
        None => format!("{}{}", service.path_prefix, facts.path),
    };
    Call {
        cluster: service.cluster.clone(),
        authority: facts.authority.to_owned(),
        method: Method::from_bytes(facts.method.as_bytes()).unwrap_or(Method::GET),
        path,
        headers,
        body,
        timeout: Some(service.timeout),
        grpc: false,
    }
}

pub(super) fn understand(filter: &ExtAuthz, service: &HttpService, answer: &Answer) -> Verdict {
    if answer.status.is_server_error() {
        return Verdict::Error;
    }
    let listed = |list: &[StringMatcher]| {
        let chosen = |(name, _): &(&HeaderName, &HeaderValue)| list.iter().any(|m| m.matches(name.as_str()));
        let owned = |(name, value): (&HeaderName, &HeaderValue)| (name.clone(), value.clone());
        let free = |(name, _): &(&HeaderName, &HeaderValue)| !OWN_HOP.contains(name) && **name != header::HOST;
        answer.headers.iter().filter(free).filter(chosen).map(owned).collect::<Vec<_>>()
    };
    if answer.status != StatusCode::OK {
        return filter.denied(answer.status, denial_headers(service, &answer.headers), answer.body.clone());
    }
    let removed = answer.headers.get_all(REMOVE).iter().filter_map(|value| value.to_str().ok());
    let removed = removed.flat_map(|value| value.split(',')).map(str::trim).filter(|name| !name.is_empty());
    let told = listed(&service.metadata);
    let members = told
        .iter()
        .filter_map(|(name, value)| Some((Arc::from(name.as_str()), Datum::Text(Arc::from(value.to_str().ok()?)))));
    Verdict::Allowed(Box::new(Changes {
        set: listed(&service.upstream),
        add: listed(&service.upstream_append),
        remove: removed.filter_map(changeable).collect(),
        response: listed(&service.client_on_allow),
        metadata: (!told.is_empty()).then(|| Datum::Object(members.collect())),
        ..Changes::default()
    }))
}

/// Without a list all of the answer's headers; with one also those that such an answer cannot do without.
fn denial_headers(service: &HttpService, headers: &HeaderMap) -> Vec<(HeaderName, HeaderValue)> {
    let always = [header::WWW_AUTHENTICATE, header::LOCATION];
    let list = &service.client_on_deny;
    let chosen = |name: &HeaderName| {
        list.is_empty() || always.contains(name) || list.iter().any(|matcher| matcher.matches(name.as_str()))
    };
    let free = |name: &HeaderName| !OWN_HOP.contains(name) && *name != header::HOST;
    headers
        .iter()
        .filter(|(name, _)| free(name) && chosen(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// A path with query parameters taken away, then written.
pub(super) fn with_parameters(path: &str, remove: &[Arc<str>], set: &[(String, String)]) -> String {
    let (bare, query) = path.split_once('?').map_or((path, None), |(bare, query)| (bare, Some(query)));
    let gone = |name: &str| remove.iter().any(|known| **known == *name) || set.iter().any(|(known, _)| known == name);
    let kept = query.into_iter().flat_map(|query| query.split('&')).filter(|pair| {
        let name = pair.split_once('=').map_or(*pair, |(name, _)| name);
        !gone(&percent_encoding::percent_decode_str(name).decode_utf8_lossy())
    });
    let encode =
        |text: &str| percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string();
    let written = set.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value)));
    let all: Vec<String> = kept.map(str::to_owned).chain(written).collect();
    if all.is_empty() { bare.to_owned() } else { format!("{bare}?{}", all.join("&")) }
}
