//! HTTP filters and their settings per route.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use proto::envoy::config::route::v3 as route;
use proto::envoy::extensions::filters::common::fault::v3 as fault_common;
use proto::envoy::extensions::filters::http::{cors::v3 as cors, fault::v3 as fault, rbac::v3 as rbac};
use proto::google::protobuf::Any;

use super::value::{fraction, header, header_value, runtime_fraction, string};
use super::{Context, flag, mutation, request_filters, type_name};
use crate::cors::CorsPolicy;
use crate::dice::Fraction;
use crate::fault::{AbortKind, FaultAbort, FaultDelay, FaultPolicy};
use crate::rbac::HttpRbac;
use crate::routes::{FilterOverride, FilterOverrides, status};

pub(super) const RBAC: &str = "envoy.extensions.filters.http.rbac.v3.RBAC";
pub(super) const CORS: &str = "envoy.extensions.filters.http.cors.v3.Cors";
pub(super) const FAULT: &str = "envoy.extensions.filters.http.fault.v3.HTTPFault";
pub(super) const JWT: &str = "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication";
pub(super) const EXT_AUTHZ: &str = "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz";
pub(super) const LOCAL_RATE_LIMIT: &str = "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit";
const EXT_AUTHZ_PER_ROUTE: &str = "envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute";
const JWT_PER_ROUTE: &str = "envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig";
const RBAC_PER_ROUTE: &str = "envoy.extensions.filters.http.rbac.v3.RBACPerRoute";
const CORS_POLICY: &str = "envoy.extensions.filters.http.cors.v3.CorsPolicy";
const FILTER_CONFIG: &str = "envoy.config.route.v3.FilterConfig";
/// The name by which the CORS filter goes where a policy stands in the old `cors` field.
const CORS_NAME: &str = "envoy.filters.http.cors";

pub(super) fn rbac(cx: &mut Context<'_>, any: &Any) -> Option<HttpRbac> {
    let message: rbac::Rbac = cx.unpack(any)?;
    http_rbac(cx, &message)
}

fn http_rbac(cx: &mut Context<'_>, message: &rbac::Rbac) -> Option<HttpRbac> {
    let rules = super::rbac::optional_rules(cx, "rules", message.rules.as_ref());
    let shadow = super::rbac::optional_rules(cx, "shadow_rules", message.shadow_rules.as_ref());
    Some(HttpRbac {
        rules: rules?,
        shadow: shadow?,
        stat_prefix: cx.text(&message.rules_stat_prefix),
        shadow_stat_prefix: cx.text(&message.shadow_rules_stat_prefix),
    })
}

pub(super) fn fault(cx: &mut Context<'_>, any: &Any) -> Option<FaultPolicy> {
    let message: fault::HttpFault = cx.unpack(any)?;
    let keys = fault_keys(&message);
    Some(FaultPolicy {
        delay: cx.optional("delay", message.delay.as_ref(), |cx, message| delay(cx, message, &keys)),
        abort: cx.optional("abort", message.abort.as_ref(), |cx, message| abort(cx, message, &keys)),
        upstream_cluster: cx.text(&message.upstream_cluster),
        headers: cx.list("headers", &message.headers, header),
        downstream_nodes: message.downstream_nodes.iter().map(|node| cx.share(node)).collect(),
        max_active: max_faults(cx, &message, &keys),
        active: Arc::new(AtomicU32::new(0)),
    })
}

/// Runtime keys of a fault filter: those that it names, or Envoy's own.
struct FaultKeys<'m> {
    delay_share: &'m str,
    delay: &'m str,
    abort_share: &'m str,
    http_status: &'m str,
    grpc_status: &'m str,
    most: &'m str,
}

fn fault_keys(message: &fault::HttpFault) -> FaultKeys<'_> {
    fn or<'m>(named: &'m str, usual: &'static str) -> &'m str {
        if named.is_empty() { usual } else { named }
    }
    FaultKeys {
        delay_share: or(&message.delay_percent_runtime, "fault.http.delay.fixed_delay_percent"),
        delay: or(&message.delay_duration_runtime, "fault.http.delay.fixed_duration_ms"),
        abort_share: or(&message.abort_percent_runtime, "fault.http.abort.abort_percent"),
        http_status: or(&message.abort_http_status_runtime, "fault.http.abort.http_status"),
        grpc_status: or(&message.abort_grpc_status_runtime, "fault.http.abort.grpc_status"),
        most: or(&message.max_active_faults_runtime, "fault.http.max_active_faults"),
    }
}

fn max_faults(cx: &Context<'_>, message: &fault::HttpFault, keys: &FaultKeys<'_>) -> Option<u32> {
    let most = message.max_active_faults.as_ref().map_or(u32::MAX, |most| most.value);
    Some(cx.runtime().small(keys.most, most)).filter(|most| *most < u32::MAX)
}

fn delay(cx: &mut Context<'_>, message: &fault_common::FaultDelay, keys: &FaultKeys<'_>) -> Option<FaultDelay> {
    use fault_common::fault_delay::FaultDelaySecifier as Kind;
    let share = cx.optional("percentage", message.percentage.as_ref(), fraction).unwrap_or(Fraction::NEVER);
    let share = cx.runtime().share(keys.delay_share, share);
    let fixed = match &message.fault_delay_secifier {
        Some(Kind::FixedDelay(duration)) => match cx.duration("fixed_delay", Some(duration)) {
            Some(duration) if !duration.is_zero() => Some(cx.runtime().millis(keys.delay, duration)),
            _ => return cx.field("fixed_delay", |cx| cx.refuse("must be above zero")),
        },
        Some(Kind::HeaderDelay(_)) => None,
        None => return cx.refuse("fixed_delay or header_delay is required"),
    };
    Some(FaultDelay { fraction: share, fixed })
}

fn abort(cx: &mut Context<'_>, message: &fault::FaultAbort, keys: &FaultKeys<'_>) -> Option<FaultAbort> {
    use fault::fault_abort::ErrorType as Kind;
    let share = cx.optional("percentage", message.percentage.as_ref(), fraction).unwrap_or(Fraction::NEVER);
    let runtime = cx.runtime();
    let share = runtime.share(keys.abort_share, share);
    let kind = match &message.error_type {
        Some(Kind::HttpStatus(code)) => {
            match status(runtime.small(keys.http_status, *code)).filter(|code| (200..600).contains(&code.as_u16())) {
                Some(code) => AbortKind::Http(code),
                None => return cx.field("http_status", |cx| cx.refuse("must be from 200 to 599")),
            }
        }
        Some(Kind::GrpcStatus(code)) => AbortKind::Grpc(runtime.small(keys.grpc_status, *code)),
        Some(Kind::HeaderAbort(_)) => AbortKind::Header,
        None => return cx.refuse("http_status, grpc_status or header_abort is required"),
    };
    Some(FaultAbort { fraction: share, kind })
}

fn cors_policy(cx: &mut Context<'_>, message: &cors::CorsPolicy) -> Option<CorsPolicy> {
    Some(CorsPolicy {
        origins: cx.list("allow_origin_string_match", &message.allow_origin_string_match, string),
        allow_methods: header_value(cx, "allow_methods", &message.allow_methods),
        allow_headers: header_value(cx, "allow_headers", &message.allow_headers),
        expose_headers: header_value(cx, "expose_headers", &message.expose_headers),
        max_age: header_value(cx, "max_age", &message.max_age),
        allow_credentials: flag(message.allow_credentials.as_ref(), false),
        allow_private_network: flag(message.allow_private_network_access.as_ref(), false),
        enabled: cx
            .optional("filter_enabled", message.filter_enabled.as_ref(), runtime_fraction)
            .unwrap_or(Fraction::ALWAYS),
        shadow: cx
            .optional("shadow_enabled", message.shadow_enabled.as_ref(), runtime_fraction)
            .unwrap_or(Fraction::NEVER),
        forward_not_matching: flag(message.forward_not_matching_preflights.as_ref(), true),
    })
}

/// The old place of a CORS policy, in the route itself.
pub(super) fn old_cors(cx: &mut Context<'_>, message: &route::CorsPolicy) -> Option<(Arc<str>, FilterOverride)> {
    let enabled = message
        .enabled_specifier
        .as_ref()
        .map(|route::cors_policy::EnabledSpecifier::FilterEnabled(share)| share.clone());
    let same = cors::CorsPolicy {
        allow_origin_string_match: message.allow_origin_string_match.clone(),
        allow_methods: message.allow_methods.clone(),
        allow_headers: message.allow_headers.clone(),
        expose_headers: message.expose_headers.clone(),
        max_age: message.max_age.clone(),
        allow_credentials: message.allow_credentials,
        filter_enabled: enabled,
        shadow_enabled: message.shadow_enabled.clone(),
        allow_private_network_access: message.allow_private_network_access,
        forward_not_matching_preflights: message.forward_not_matching_preflights,
    };
    let policy = cx.field("cors", |cx| cors_policy(cx, &same))?;
    Some((cx.share(CORS_NAME), FilterOverride::Cors(Arc::new(policy))))
}

/// `typed_per_filter_config`, sorted by filter name.
pub(super) fn overrides(cx: &mut Context<'_>, message: &std::collections::HashMap<String, Any>) -> FilterOverrides {
    let mut named: Vec<_> = message.iter().collect();
    named.sort_by_key(|(name, _)| *name);
    let built = named.into_iter().filter_map(|(name, any)| {
        cx.key("typed_per_filter_config", name, |cx| Some((cx.share(name), filter_override(cx, any)??)))
    });
    FilterOverrides(built.collect())
}

/// `Some(None)`: nothing that concerns us (an optional filter).
fn filter_override(cx: &mut Context<'_>, any: &Any) -> Option<Option<FilterOverride>> {
    let setting = match type_name(any) {
        FILTER_CONFIG => {
            let message: route::FilterConfig = cx.unpack(any)?;
            if message.disabled {
                return Some(Some(FilterOverride::Disabled));
            }
            return match &message.config {
                // An empty one only switches the filter on.
                Some(inner) if inner.type_url.is_empty() => Some(Some(FilterOverride::Enabled)),
                Some(inner) if message.is_optional && !is_known(type_name(inner)) => Some(None),
                Some(inner) => cx.field("config", |cx| filter_override(cx, inner)),
                None => Some(Some(FilterOverride::Enabled)),
            };
        }
        RBAC_PER_ROUTE => {
            let message: rbac::RbacPerRoute = cx.unpack(any)?;
            match &message.rbac {
                Some(inner) => FilterOverride::Rbac(Some(Arc::new(cx.field("rbac", |cx| http_rbac(cx, inner))?))),
                None => FilterOverride::Rbac(None),
            }
        }
        CORS_POLICY => {
            let message: cors::CorsPolicy = cx.unpack(any)?;
            FilterOverride::Cors(Arc::new(cors_policy(cx, &message)?))
        }
        FAULT => FilterOverride::Fault(Arc::new(fault(cx, any)?)),
        EXT_AUTHZ_PER_ROUTE => FilterOverride::ExtAuthz(super::ext_authz::route(cx, any)?),
        LOCAL_RATE_LIMIT => FilterOverride::LocalRateLimit(Arc::new(super::limit::filter(cx, any, true)?)),
        JWT_PER_ROUTE => FilterOverride::Jwt(super::jwt::route(cx, any)?),
        mutation::PER_ROUTE => FilterOverride::Mutations(Arc::new(mutation::route(cx, any)?)),
        request_filters::BUFFER_PER_ROUTE => request_filters::buffer_per_route(cx, any)?,
        other => return cx.refuse(format!("settings of the kind {other} are not implemented")),
    };
    Some(Some(setting))
}

fn is_known(name: &str) -> bool {
    let own = [
        RBAC_PER_ROUTE,
        CORS_POLICY,
        FAULT,
        FILTER_CONFIG,
        JWT_PER_ROUTE,
        EXT_AUTHZ_PER_ROUTE,
        LOCAL_RATE_LIMIT,
        mutation::PER_ROUTE,
        request_filters::BUFFER_PER_ROUTE,
    ];
    own.contains(&name)
}
