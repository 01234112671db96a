//! The external authorization filter and what routes say about it.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, StatusCode};

use proto::envoy::config::core::v3 as core;
use proto::envoy::extensions::filters::http::ext_authz::v3 as xds;
use proto::envoy::r#type::matcher::v3 as matcher;
use proto::google::protobuf::Any;

use super::Context;
use super::value::{header_name, metadata, runtime_flag, runtime_fraction, string};
use crate::dice::Fraction;
use crate::ext_authz::{BodySettings, CheckSettings, ExtAuthz, ExtAuthzOverride, GrpcService, HttpService, Service};
use crate::matcher::StringMatcher;
use crate::routes::status;

pub(super) fn filter(cx: &mut Context<'_>, any: &Any) -> Option<ExtAuthz> {
    let message: xds::ExtAuthz = cx.unpack(any)?;
    let old = old_allowed(&message);
    let service = service(cx, message.services.as_ref());
    let status_on_error = match &message.status_on_error {
        None => StatusCode::FORBIDDEN,
        Some(code) => match u32::try_from(code.code).ok().and_then(status) {
            Some(status) => status,
            None => return cx.field("status_on_error", |cx| cx.refuse("is no HTTP status")),
        },
    };
    let body = match &message.with_request_body {
        None => None,
        Some(body) => Some(cx.field("with_request_body", |cx| buffer(cx, body))?),
    };
    let enabled_metadata = match &message.filter_enabled_metadata {
        None => None,
        Some(matcher) => Some(cx.field("filter_enabled_metadata", |cx| metadata(cx, matcher))?),
    };
    let allowed = list(cx, "allowed_headers", message.allowed_headers.as_ref().or(old));
    let disallowed = list(cx, "disallowed_headers", message.disallowed_headers.as_ref());
    Some(ExtAuthz {
        service: service?,
        failure_allow: message.failure_mode_allow,
        failure_header: message.failure_mode_allow_header_add,
        status_on_error,
        body,
        clear_route: message.clear_route_cache,
        enabled: cx
            .optional("filter_enabled", message.filter_enabled.as_ref(), runtime_fraction)
            .unwrap_or(Fraction::ALWAYS),
        enabled_metadata,
        deny_at_disable: runtime_flag(cx, message.deny_at_disable.as_ref(), false),
        peer_certificate: message.include_peer_certificate,
        shadow: message.shadow_mode,
        tls_session: message.include_tls_session,
        allowed_headers: allowed,
        disallowed_headers: disallowed.unwrap_or_default(),
        metadata_spaces: message.metadata_context_namespaces.iter().map(|name| cx.share(name)).collect(),
        route_metadata_spaces: message.route_metadata_context_namespaces.iter().map(|name| cx.share(name)).collect(),
        max_denied_body: match message.max_denied_response_body_bytes {
            0 => None,
            most => Some(most as usize),
        },
    })
}

pub(super) fn route(cx: &mut Context<'_>, any: &Any) -> Option<ExtAuthzOverride> {
    use xds::ext_authz_per_route::Override as Kind;
    let message: xds::ExtAuthzPerRoute = cx.unpack(any)?;
    match &message.r#override {
        Some(Kind::Disabled(true)) => Some(ExtAuthzOverride::Disabled),
        Some(Kind::Disabled(false)) => cx.field("disabled", |cx| cx.refuse("must be true")),
        Some(Kind::CheckSettings(message)) => {
            let settings = cx.field("check_settings", |cx| check_settings(cx, message))?;
            Some(ExtAuthzOverride::Settings(Arc::new(settings)))
        }
        None => cx.refuse("disabled or check_settings is required"),
    }
}

fn check_settings(cx: &mut Context<'_>, message: &xds::CheckSettings) -> Option<CheckSettings> {
    if message.service_override.is_some() {
        return cx.refuse("another service for a route is not implemented");
    }
    let body = match &message.with_request_body {
        None => None,
        Some(body) => Some(cx.field("with_request_body", |cx| buffer(cx, body))?),
    };
    let mut context: Vec<_> =
        message.context_extensions.iter().map(|(name, value)| (cx.share(name), cx.share(value))).collect();
    context.sort();
    Some(CheckSettings { context, no_body: message.disable_request_body_buffering, body })
}

fn buffer(cx: &mut Context<'_>, message: &xds::BufferSettings) -> Option<BodySettings> {
    if message.max_request_bytes == 0 {
        return cx.field("max_request_bytes", |cx| cx.refuse("must be above zero"));
    }
    Some(BodySettings {
        max_bytes: message.max_request_bytes as usize,
        partial: message.allow_partial_message,
        as_bytes: message.pack_as_bytes,
    })
}

/// The old place of the list of headers, inside the HTTP service.
#[allow(deprecated, reason = "control planes still send it")]
fn old_allowed(message: &xds::ExtAuthz) -> Option<&matcher::ListStringMatcher> {
    match &message.services {
        Some(xds::ext_authz::Services::HttpService(http)) => {
            http.authorization_request.as_ref().and_then(|request| request.allowed_headers.as_ref())
        }
        _ => None,
    }
}

fn list(
    cx: &mut Context<'_>,
    name: &'static str,
    message: Option<&matcher::ListStringMatcher>,
) -> Option<Vec<StringMatcher>> {
    let message = message?;
    Some(cx.field(name, |cx| cx.list("patterns", &message.patterns, string)))
}

fn service(cx: &mut Context<'_>, message: Option<&xds::ext_authz::Services>) -> Option<Service> {
    match message {
        Some(xds::ext_authz::Services::GrpcService(message)) => {
            cx.field("grpc_service", |cx| grpc(cx, message)).map(Service::Grpc)
        }
        Some(xds::ext_authz::Services::HttpService(message)) => {
            cx.field("http_service", |cx| http(cx, message)).map(Service::Http)
        }
        None => cx.refuse("grpc_service or http_service is required"),
    }
}

fn grpc(cx: &mut Context<'_>, message: &core::GrpcService) -> Option<GrpcService> {
    let Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(target)) = &message.target_specifier else {
        return cx.refuse("envoy_grpc is required");
    };
    let cluster = cx.field("envoy_grpc", |cx| cx.needed("cluster_name", &target.cluster_name))?;
    let authority = cx.text(&target.authority).unwrap_or_else(|| cluster.clone());
    Some(GrpcService {
        cluster,
        authority,
        timeout: cx.limit("timeout", message.timeout.as_ref(), None),
        metadata: cx.list("initial_metadata", &message.initial_metadata, header),
    })
}

fn http(cx: &mut Context<'_>, message: &xds::HttpService) -> Option<HttpService> {
    let (cluster, timeout) = cx.required("server_uri", message.server_uri.as_ref(), |cx, uri| {
        let cluster = match &uri.http_upstream_type {
            Some(core::http_uri::HttpUpstreamType::Cluster(name)) => cx.needed("cluster", name)?,
            None => return cx.field("cluster", |cx| cx.refuse("is required")),
        };
        match cx.duration("timeout", uri.timeout.as_ref()) {
            Some(timeout) => Some((cluster, timeout)),
            None => cx.field("timeout", |cx| cx.refuse("is required")),
        }
    })?;
    for (name, path) in [("path_prefix", &message.path_prefix), ("path_override", &message.path_override)] {
        if !path.is_empty() && !path.starts_with('/') {
            cx.field(name, |cx| cx.fault("must begin with a slash"));
        }
    }
    let added = message.authorization_request.as_ref().map(|request| {
        cx.field("authorization_request", |cx| cx.list("headers_to_add", &request.headers_to_add, header))
    });
    let answer = message.authorization_response.clone().unwrap_or_default();
    let mut names = |name, list_of: Option<&matcher::ListStringMatcher>| {
        cx.field("authorization_response", |cx| list(cx, name, list_of)).unwrap_or_default()
    };
    Some(HttpService {
        upstream: names("allowed_upstream_headers", answer.allowed_upstream_headers.as_ref()),
        upstream_append: names(
            "allowed_upstream_headers_to_append",
            answer.allowed_upstream_headers_to_append.as_ref(),
        ),
        client_on_deny: names("allowed_client_headers", answer.allowed_client_headers.as_ref()),
        client_on_allow: names("allowed_client_headers_on_success", answer.allowed_client_headers_on_success.as_ref()),
        metadata: names("dynamic_metadata_from_headers", answer.dynamic_metadata_from_headers.as_ref()),
        cluster,
        timeout,
        path_prefix: cx.share(&message.path_prefix),
        path_override: cx.text(&message.path_override),
        headers_to_add: added.unwrap_or_default(),
    })
}

fn header(cx: &mut Context<'_>, message: &core::HeaderValue) -> Option<(HeaderName, HeaderValue)> {
    let name = cx.field("key", |cx| header_name(cx, &message.key))?;
    match HeaderValue::from_str(&message.value) {
        Ok(value) => Some((name, value)),
        Err(_) => cx.field("value", |cx| cx.refuse("has a character no header may have")),
    }
}
