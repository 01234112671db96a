//! The HTTP connection manager.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;

use proto::envoy::config::core::v3 as core;
use proto::envoy::extensions::filters::http::router::v3 as router;
use proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use proto::google::protobuf::Any;

use super::access_log::access_log;
use super::discovered::discovered;
use super::listener::SHELL_EXTENSIONS;
use super::local_reply::local_replies;
use super::value::{cidr, header_value};
use super::{Context, filters, flag, mutation, number, opened, request_filters, type_name};
use crate::cors::CorsFilter;
use crate::http_manager::{
    Codec, ForwardClientCert, ForwardClientCertMode, Http1Options, Http2Options, HttpFilter, HttpFilterKind,
    HttpManager, Keepalive, RouteSource, RouterOptions, ServerHeader, Underscores,
};
use crate::path::{EscapedSlashes, PathOptions};

const STREAM_IDLE: Duration = Duration::from_secs(300);
const CONNECTION_IDLE: Duration = Duration::from_secs(3600);
const HEADERS_TIMEOUT: Duration = Duration::from_secs(60);
/// Shortest times of pings.
const SHORTEST: Duration = Duration::from_millis(1);
pub(super) const ROUTER: &str = "envoy.extensions.filters.http.router.v3.Router";

pub(super) fn manager(cx: &mut Context<'_>, any: &Any) -> Option<HttpManager> {
    let message: hcm::HttpConnectionManager = cx.unpack(any)?;
    let routes = route_source(cx, &message);
    let (tracing, marks_request_ids) = super::tracing::tracing(cx, &message);
    let (filters, router) = http_filters(cx, &message.http_filters);
    let common = message.common_http_protocol_options.unwrap_or_default();
    Some(HttpManager {
        stat_prefix: cx.share(&message.stat_prefix),
        codec: match message.codec_type {
            0 => Codec::Auto,
            1 => Codec::Http1,
            2 => Codec::Http2,
            _ => return cx.field("codec_type", |cx| cx.refuse("only AUTO, HTTP1 and HTTP2 are implemented")),
        },
        routes: routes?,
        filters,
        router,
        path: path_options(&message),
        use_remote_address: flag(message.use_remote_address.as_ref(), false),
        xff_trusted_hops: message.xff_num_trusted_hops,
        skip_xff_append: message.skip_xff_append,
        internal_addresses: message.internal_address_config.as_ref().map_or_else(Vec::new, |config| {
            cx.field("internal_address_config", |cx| cx.list("cidr_ranges", &config.cidr_ranges, cidr))
        }),
        via: header_value(cx, "via", &message.via),
        server_name: header_value(cx, "server_name", &message.server_name).unwrap_or(HeaderValue::from_static("envoy")),
        server_header: match message.server_header_transformation {
            1 => ServerHeader::AppendIfAbsent,
            2 => ServerHeader::PassThrough,
            _ => ServerHeader::Overwrite,
        },
        client_cert: client_cert(&message),
        generate_request_id: flag(message.generate_request_id.as_ref(), true),
        preserve_external_request_id: message.preserve_external_request_id,
        request_id_in_response: message.always_set_request_id_in_response,
        tracing,
        marks_request_ids,
        stream_idle_timeout: cx.limit("stream_idle_timeout", message.stream_idle_timeout.as_ref(), Some(STREAM_IDLE)),
        request_timeout: cx.limit("request_timeout", message.request_timeout.as_ref(), None),
        request_headers_timeout: cx.limit(
            "request_headers_timeout",
            message.request_headers_timeout.as_ref(),
            Some(HEADERS_TIMEOUT),
        ),
        delayed_close: cx
            .duration("delayed_close_timeout", message.delayed_close_timeout.as_ref())
            .unwrap_or(Duration::from_secs(1)),
        drain_timeout: cx.duration("drain_timeout", message.drain_timeout.as_ref()).unwrap_or(Duration::from_secs(5)),
        max_request_headers_bytes: number(message.max_request_headers_kb.as_ref(), 60).saturating_mul(1024),
        idle_timeout: cx.limit("idle_timeout", common.idle_timeout.as_ref(), Some(CONNECTION_IDLE)),
        max_connection_duration: cx.limit("max_connection_duration", common.max_connection_duration.as_ref(), None),
        max_stream_duration: cx.limit("max_stream_duration", common.max_stream_duration.as_ref(), None),
        max_headers_count: number(common.max_headers_count.as_ref(), 100),
        max_requests_per_connection: positive(common.max_requests_per_connection.as_ref()),
        underscores: match common.headers_with_underscores_action {
            1 => Underscores::Reject,
            2 => Underscores::Drop,
            _ => Underscores::Allow,
        },
        http1: http1(cx, message.http_protocol_options.as_ref()),
        http2: http2(cx, message.http2_protocol_options.as_ref()),
        upgrades: message
            .upgrade_configs
            .iter()
            .map(|config| (cx.share(&config.upgrade_type.to_ascii_lowercase()), flag(config.enabled.as_ref(), true)))
            .collect(),
        access_log: cx.list("access_log", &message.access_log, access_log),
        local_replies: cx.optional("local_reply_config", message.local_reply_config.as_ref(), local_replies),
        relay_interim: message.proxy_100_continue,
        scheme_overwrite: message.scheme_header_transformation.as_ref().and_then(|rule| match &rule.transformation {
            Some(core::scheme_header_transformation::Transformation::SchemeToOverwrite(scheme)) => cx.text(scheme),
            None => None,
        }),
    })
}

pub(super) fn positive(value: Option<&proto::google::protobuf::UInt32Value>) -> Option<u32> {
    value.map(|value| value.value).filter(|value| *value > 0)
}

fn route_source(cx: &mut Context<'_>, message: &hcm::HttpConnectionManager) -> Option<RouteSource> {
    use hcm::http_connection_manager::RouteSpecifier as Kind;
    match &message.route_specifier {
        Some(Kind::Rds(rds)) => cx
            .field("rds", |cx| {
                super::value::from_server(cx, "config_source", rds.config_source.as_ref())?;
                cx.needed("route_config_name", &rds.route_config_name)
            })
            .map(RouteSource::Named),
        Some(Kind::RouteConfig(table)) => {
            let built = cx.field("route_config", |cx| super::route::table(cx, table, true))?;
            Some(RouteSource::Inline(Arc::new(built)))
        }
        Some(Kind::ScopedRoutes(_)) => cx.field("scoped_routes", |cx| cx.refuse("is not implemented")),
        None => cx.refuse("rds or route_config is required"),
    }
}

/// All filters but the router, which must be last.
fn http_filters(cx: &mut Context<'_>, messages: &[hcm::HttpFilter]) -> (Vec<HttpFilter>, RouterOptions) {
    let mut options = None;
    let last = messages.len().saturating_sub(1);
    let filters = cx.list_indexed("http_filters", messages, |cx, at, message| {
        let any = match &message.config_type {
            Some(hcm::http_filter::ConfigType::TypedConfig(any)) => any,
            Some(hcm::http_filter::ConfigType::ConfigDiscovery(source)) => {
                let found = cx.field("config_discovery", |cx| discovered(cx, &message.name, source))?;
                let kind = HttpFilterKind::Discovered(Arc::new(found));
                return Some(HttpFilter { name: cx.share(&message.name), disabled: message.disabled, kind });
            }
            None => return cx.field("typed_config", |cx| cx.refuse("is required")),
        };
        if type_name(any) == ROUTER {
            if at != last {
                return cx.refuse("the router must be the last filter");
            }
            options = cx.field("typed_config", |cx| router_options(cx, any));
            return None;
        }
        let kind = cx.field("typed_config", |cx| filter_kind(cx, message, any))??;
        Some(HttpFilter { name: cx.share(&message.name), disabled: message.disabled, kind })
    });
    let has_router = messages.last().is_some_and(|message| match &message.config_type {
        Some(hcm::http_filter::ConfigType::TypedConfig(any)) => type_name(any) == ROUTER,
        _ => false,
    });
    if !has_router {
        cx.field("http_filters", |cx| cx.fault("the last filter must be the router (envoy.filters.http.router)"));
    }
    (filters, options.unwrap_or_default())
}

/// `Some(None)`: an optional filter that does nothing here.
pub(super) fn filter_kind(
    cx: &mut Context<'_>,
    message: &hcm::HttpFilter,
    any: &Any,
) -> Option<Option<HttpFilterKind>> {
    if message.is_optional && matches!(proto::typed_struct::open(&any.type_url, &any.value), Some(Err(_))) {
        return Some(None);
    }
    let opened = opened(cx, any)?;
    let any: &Any = &opened;
    Some(Some(match type_name(any) {
        filters::RBAC => HttpFilterKind::Rbac(Arc::new(filters::rbac(cx, any)?)),
        filters::JWT => HttpFilterKind::Jwt(Arc::new(super::jwt::filter(cx, any)?)),
        filters::EXT_AUTHZ => HttpFilterKind::ExtAuthz(Arc::new(super::ext_authz::filter(cx, any)?)),
        filters::CORS => HttpFilterKind::Cors(CorsFilter),
        filters::FAULT => HttpFilterKind::Fault(Arc::new(filters::fault(cx, any)?)),
        mutation::FILTER => HttpFilterKind::HeaderMutation(Arc::new(mutation::filter(cx, any)?)),
        request_filters::SET_METADATA => HttpFilterKind::Metadata(request_filters::set_metadata(cx, any)?),
        request_filters::BUFFER => HttpFilterKind::Buffer(request_filters::buffer(cx, any)?),
        request_filters::HEALTH_CHECK => HttpFilterKind::HealthCheck(Arc::new(request_filters::health_check(cx, any)?)),
        request_filters::ALPN => HttpFilterKind::Alpn(Arc::new(request_filters::alpn(cx, any)?)),
        filters::LOCAL_RATE_LIMIT => HttpFilterKind::LocalRateLimit(Arc::new(super::limit::filter(cx, any, false)?)),
        "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig" => HttpFilterKind::GrpcStats,
        // Whoever accepts compressed answers takes others as well; Istio's own filters say what the proxy does anyway.
        "envoy.extensions.filters.http.compressor.v3.Compressor" => return Some(None),
        known if SHELL_EXTENSIONS.contains(&known) => return Some(None),
        _ if message.is_optional => return Some(None),
        other => return cx.refuse(not_implemented(other)),
    }))
}

pub(super) fn not_implemented(name: &str) -> String {
    format!("the HTTP filter {name} is not implemented")
}

fn router_options(cx: &mut Context<'_>, any: &Any) -> Option<RouterOptions> {
    let message: router::Router = cx.unpack(any)?;
    Some(RouterOptions { suppress_envoy_headers: message.suppress_envoy_headers })
}

fn path_options(message: &hcm::HttpConnectionManager) -> PathOptions {
    use hcm::http_connection_manager::StripPortMode;
    PathOptions {
        normalize: flag(message.normalize_path.as_ref(), true),
        merge_slashes: message.merge_slashes,
        escaped_slashes: match message.path_with_escaped_slashes_action {
            2 => EscapedSlashes::Reject,
            3 => EscapedSlashes::Redirect,
            4 => EscapedSlashes::Forward,
            _ => EscapedSlashes::Keep,
        },
        strip_matching_port: message.strip_matching_host_port,
        strip_any_port: matches!(message.strip_port_mode, Some(StripPortMode::StripAnyHostPort(true))),
        strip_trailing_dot: message.strip_trailing_host_dot,
    }
}

fn client_cert(message: &hcm::HttpConnectionManager) -> ForwardClientCert {
    let details = message.set_current_client_cert_details.unwrap_or_default();
    ForwardClientCert {
        mode: match message.forward_client_cert_details {
            1 => ForwardClientCertMode::ForwardOnly,
            2 => ForwardClientCertMode::AppendForward,
            3 => ForwardClientCertMode::SanitizeSet,
            4 => ForwardClientCertMode::AlwaysForwardOnly,
            _ => ForwardClientCertMode::Sanitize,
        },
        subject: flag(details.subject.as_ref(), false),
        issuer: details.issuer,
        uri: details.uri,
        dns: details.dns,
        certificate: details.cert,
        chain: details.chain,
    }
}

pub(super) fn http1(cx: &mut Context<'_>, message: Option<&core::Http1ProtocolOptions>) -> Http1Options {
    use core::http1_protocol_options::header_key_format::HeaderFormat;
    let Some(message) = message else {
        return Http1Options::default();
    };
    let format = message.header_key_format.as_ref().and_then(|format| format.header_format.as_ref());
    Http1Options {
        accept_http_10: message.accept_http_10,
        default_host_for_http_10: cx.text(&message.default_host_for_http_10),
        proper_case: matches!(format, Some(HeaderFormat::ProperCaseWords(_))),
        any_method: message.allow_custom_methods,
        trailers: message.enable_trailers,
        origin_form_only: !flag(message.allow_absolute_url.as_ref(), true),
    }
}

pub(super) fn http2(cx: &mut Context<'_>, message: Option<&core::Http2ProtocolOptions>) -> Http2Options {
    let default = Http2Options::default();
    let Some(message) = message else { return default };
    Http2Options {
        hpack_table_size: number(message.hpack_table_size.as_ref(), default.hpack_table_size),
        max_concurrent_streams: number(message.max_concurrent_streams.as_ref(), default.max_concurrent_streams),
        stream_window: number(message.initial_stream_window_size.as_ref(), default.stream_window),
        connection_window: number(message.initial_connection_window_size.as_ref(), default.connection_window),
        allow_connect: message.allow_connect,
        keepalive: cx.optional("connection_keepalive", message.connection_keepalive.as_ref(), keepalive),
    }
}

fn keepalive(cx: &mut Context<'_>, message: &core::KeepaliveSettings) -> Option<Keepalive> {
    let mut time = |field, value: Option<_>| match cx.duration(field, value) {
        Some(time) if time < SHORTEST => cx.field(field, |cx| cx.refuse("must be at least 1ms")),
        time => time,
    };
    let (interval, idle) = (
        time("interval", message.interval.as_ref()),
        time("connection_idle_interval", message.connection_idle_interval.as_ref()),
    );
    let Some(timeout) = time("timeout", message.timeout.as_ref()) else {
        return cx.field("timeout", |cx| cx.refuse("is required"));
    };
    let jitter = message.interval_jitter.as_ref().map_or(15.0, |percent| percent.value);
    if !(0.0..=100.0).contains(&jitter) {
        return cx.field("interval_jitter", |cx| cx.refuse("must be from 0 to 100"));
    }
    Some(Keepalive { interval, jitter, timeout, idle })
}
