//! Active health checks.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use proto::envoy::config::core::v3::health_check as probe;
use proto::envoy::config::core::v3::{self as core, HeaderValueOption};
use proto::envoy::config::endpoint::v3::endpoint::HealthCheckConfig;
use proto::envoy::r#type::v3::Int64Range;
use proto::google::protobuf::{Duration as ProtoDuration, UInt32Value};

use super::value::{address, header_name, header_value, string};
use super::{Context, flag, number};
use crate::cluster::UpstreamProtocol;
use crate::endpoint::CheckAddress;
use crate::health::{HealthCheck, HttpProbe, Probe};

const NO_TRAFFIC: Duration = Duration::from_secs(60);
/// Envoy's limit of what is kept of an answer's body.
const BODY: u64 = 1024;

/// The check of a cluster; there may be one.
pub(super) fn checks(
    cx: &mut Context<'_>,
    messages: &[core::HealthCheck],
    protocol: UpstreamProtocol,
) -> Option<HealthCheck> {
    match messages {
        [] => None,
        [one] => cx.item("health_checks", 0, |cx| {
            let check = check(cx, one)?;
            if matches!(check.probe, Probe::Grpc { .. }) && protocol == UpstreamProtocol::Http1 {
                cx.field("grpc_health_check", |cx| cx.fault("needs a cluster that speaks HTTP/2"));
            }
            Some(check)
        }),
        _ => cx.field("health_checks", |cx| cx.refuse("only one check is possible")),
    }
}

fn check(cx: &mut Context<'_>, message: &core::HealthCheck) -> Option<HealthCheck> {
    let positive = |cx: &mut Context<'_>, name, value: Option<&ProtoDuration>| {
        let time = cx.required(name, value, |_, value| Some(*value))?;
        cx.limit(name, Some(&time), None).or_else(|| cx.field(name, |cx| cx.refuse("must be above zero")))
    };
    let timeout = positive(cx, "timeout", message.timeout.as_ref());
    let interval = positive(cx, "interval", message.interval.as_ref());
    let threshold =
        |cx: &mut Context<'_>, name, value: Option<&UInt32Value>| match cx
            .required(name, value, |_, value| Some(*value))
        {
            Some(value) if value.value > 0 => Some(value.value),
            Some(_) => cx.field(name, |cx| cx.refuse("must be at least 1")),
            None => None,
        };
    let unhealthy_threshold = threshold(cx, "unhealthy_threshold", message.unhealthy_threshold.as_ref());
    let healthy_threshold = threshold(cx, "healthy_threshold", message.healthy_threshold.as_ref());
    let probe = probe(cx, message)?;
    let (timeout, interval) = (timeout?, interval?);
    let unhealthy = cx.limit("unhealthy_interval", message.unhealthy_interval.as_ref(), None).unwrap_or(interval);
    let quiet = cx.limit("no_traffic_interval", message.no_traffic_interval.as_ref(), None).unwrap_or(NO_TRAFFIC);
    let edge = message.unhealthy_edge_interval.as_ref();
    let quiet_healthy = message.no_traffic_healthy_interval.as_ref();
    Some(HealthCheck {
        timeout,
        interval,
        no_traffic_interval: quiet,
        no_traffic_healthy_interval: cx.limit("no_traffic_healthy_interval", quiet_healthy, None).unwrap_or(quiet),
        unhealthy_interval: unhealthy,
        unhealthy_edge_interval: cx.limit("unhealthy_edge_interval", edge, None).unwrap_or(unhealthy),
        healthy_edge_interval: cx
            .limit("healthy_edge_interval", message.healthy_edge_interval.as_ref(), None)
            .unwrap_or(interval),
        initial_jitter: cx.duration("initial_jitter", message.initial_jitter.as_ref()).unwrap_or_default(),
        interval_jitter: cx.duration("interval_jitter", message.interval_jitter.as_ref()).unwrap_or_default(),
        interval_jitter_percent: message.interval_jitter_percent,
        unhealthy_threshold: unhealthy_threshold?,
        healthy_threshold: healthy_threshold?,
        reuse_connection: flag(message.reuse_connection.as_ref(), true),
        port: port(cx, "alt_port", number(message.alt_port.as_ref(), 0)),
        probe,
    })
}

fn port(cx: &mut Context<'_>, name: &'static str, number: u32) -> Option<u16> {
    match u16::try_from(number) {
        Ok(0) => None,
        Ok(port) => Some(port),
        Err(_) => cx.field(name, |cx| cx.refuse("must be at most 65535")),
    }
}

fn probe(cx: &mut Context<'_>, message: &core::HealthCheck) -> Option<Probe> {
    use probe::HealthChecker as Kind;
    match &message.health_checker {
        Some(Kind::HttpHealthCheck(message)) => cx.field("http_health_check", |cx| http(cx, message)),
        Some(Kind::TcpHealthCheck(message)) => cx.field("tcp_health_check", |cx| {
            if message.proxy_protocol_config.is_some() {
                cx.field("proxy_protocol_config", |cx| cx.fault("is not implemented"));
            }
            let send = cx.optional("send", message.send.as_ref(), payload).unwrap_or_default();
            Some(Probe::Tcp { send, receive: cx.list("receive", &message.receive, payload) })
        }),
        Some(Kind::GrpcHealthCheck(message)) => cx.field("grpc_health_check", |cx| {
            Some(Probe::Grpc {
                service: cx.share(&message.service_name),
                authority: cx.share(&message.authority),
                headers: headers(cx, "initial_metadata", &message.initial_metadata),
            })
        }),
        Some(Kind::CustomHealthCheck(_)) => cx.field("custom_health_check", |cx| cx.refuse("is not implemented")),
        None => cx.refuse("http_health_check, tcp_health_check or grpc_health_check is required"),
    }
}

fn http(cx: &mut Context<'_>, message: &probe::HttpHealthCheck) -> Option<Probe> {
    let path = cx.needed("path", &message.path)?;
    // `core.v3.RequestMethod`: unspecified is GET; CONNECT and methods that it does not know are none here.
    let methods = ["GET", "GET", "HEAD", "POST", "PUT", "DELETE", "", "OPTIONS", "TRACE", "PATCH"];
    let named = usize::try_from(message.method).ok().and_then(|at| methods.get(at)).filter(|name| !name.is_empty());
    let Some(method) = named.and_then(|name| Method::from_bytes(name.as_bytes()).ok()) else {
        return cx.field("method", |cx| cx.refuse("is not possible for a check"));
    };
    let send = cx.optional("send", message.send.as_ref(), payload).unwrap_or_default();
    if !send.is_empty() && !matches!(message.method, 3 | 4 | 7 | 9) {
        cx.field("send", |cx| cx.fault("a body needs the method POST, PUT, PATCH or OPTIONS"));
    }
    if message.codec_client_type > 1 {
        cx.field("codec_client_type", |cx| cx.fault("HTTP/3 is not implemented"));
    }
    let removed =
        cx.list("request_headers_to_remove", &message.request_headers_to_remove, |cx, name| header_name(cx, name));
    Some(Probe::Http(Box::new(HttpProbe {
        method,
        path,
        host: cx.share(&message.host),
        http2: message.codec_client_type == 1,
        send,
        headers: headers(cx, "request_headers_to_add", &message.request_headers_to_add),
        removed,
        expected: cx.list("expected_statuses", &message.expected_statuses, statuses),
        retriable: cx.list("retriable_statuses", &message.retriable_statuses, statuses),
        receive: cx.list("receive", &message.receive, payload),
        buffer: message.response_buffer_size.as_ref().map_or(BODY, |size| size.value),
        service_name: cx.optional("service_name_matcher", message.service_name_matcher.as_ref(), string),
    })))
}

fn statuses(cx: &mut Context<'_>, range: &Int64Range) -> Option<(u16, u16)> {
    let bound = |number: i64| u16::try_from(number).ok().filter(|number| (100..=600).contains(number));
    match (bound(range.start), bound(range.end)) {
        (Some(start), Some(end)) if start < end => Some((start, end)),
        _ => cx.refuse("must be a range of statuses: start at least 100, end (exclusive) at most 600"),
    }
}

fn payload(cx: &mut Context<'_>, message: &probe::Payload) -> Option<Vec<u8>> {
    match &message.payload {
        Some(probe::payload::Payload::Text(text)) => match hexadecimal(text) {
            Some(bytes) if !bytes.is_empty() => Some(bytes),
            _ => cx.field("text", |cx| cx.refuse("must be hexadecimal digits in pairs")),
        },
        _ => cx.refuse("text is required"),
    }
}

fn hexadecimal(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let bytes: Option<Vec<u8>> = pairs.iter().map(|[high, low]| Some(digit(high)? << 4 | digit(low)?)).collect();
    bytes.filter(|_| rest.is_empty())
}

/// Headers with fixed values.
fn headers(cx: &mut Context<'_>, field: &'static str, messages: &[HeaderValueOption]) -> HeaderMap {
    let pairs = cx.list(field, messages, |cx, message| {
        cx.required("header", message.header.as_ref(), |cx, header| {
            if header.value.contains('%') {
                return cx.field("value", |cx| cx.refuse("formats are not implemented in checks"));
            }
            let pair: Option<(HeaderName, HeaderValue)> =
                header_name(cx, &header.key).zip(header_value(cx, "value", &header.value));
            pair
        })
    });
    pairs.into_iter().collect()
}

/// What an endpoint says about its checks.
pub(super) fn endpoint(cx: &mut Context<'_>, message: &HealthCheckConfig) -> Option<Box<CheckAddress>> {
    let other = match &message.address {
        Some(message) => Some(cx.field("address", |cx| address(cx, message, false))?),
        None => None,
    };
    Some(Box::new(CheckAddress {
        address: other,
        port: port(cx, "port_value", message.port_value),
        hostname: cx.share(&message.hostname),
        disabled: message.disable_active_health_check,
    }))
}
