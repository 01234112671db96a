//! Asking by Envoy's authorization protocol (`envoy.service.auth.v3.Authorization`).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use prost::Message;

use proto::envoy::config::core::v3 as core;
use proto::envoy::service::auth::v3 as auth;
use proto::google::protobuf::{ListValue, Struct, Timestamp, Value, value::Kind};

use super::{Answer, Asking, BodyView, Call, Changes, ExtAuthz, GrpcService, Verdict, changeable};
use crate::facts::{ConnectionFacts, Facts};
use crate::metadata::{Datum, Metadata};
use crate::routes;

const PATH: &str = "/envoy.service.auth.v3.Authorization/Check";
/// A message's prefix: not compressed, and its length.
const PREFIX: usize = 5;

pub(super) fn call(
    asking: &Asking,
    service: &GrpcService,
    facts: &Facts<'_>,
    route: Option<&Metadata>,
    body: Option<&BodyView>,
) -> Call {
    let request = auth::CheckRequest { attributes: Some(attributes(asking, facts, route, body)) };
    let mut framed = BytesMut::with_capacity(PREFIX + request.encoded_len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(request.encoded_len()).unwrap_or(u32::MAX));
    framed.extend_from_slice(&request.encode_to_vec());
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    if let Some(timeout) = service.timeout
        && let Ok(value) = HeaderValue::try_from(format!("{}m", timeout.as_millis().min(99_999_999)))
    {
        headers.insert(HeaderName::from_static("grpc-timeout"), value);
    }
    for (name, value) in &service.metadata {
        headers.append(name.clone(), value.clone());
    }
    Call {
        cluster: service.cluster.clone(),
        authority: service.authority.to_string(),
        method: Method::POST,
        path: PATH.to_owned(),
        headers,
        body: framed.freeze(),
        timeout: service.timeout,
        grpc: true,
    }
}

fn attributes(
    asking: &Asking,
    facts: &Facts<'_>,
    route: Option<&Metadata>,
    body: Option<&BodyView>,
) -> auth::AttributeContext {
    let filter = &asking.filter;
    let connection = facts.connection;
    let context = asking.settings.iter().flat_map(|settings| &settings.context);
    let age = facts.started.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let time = Timestamp {
        seconds: i64::try_from(age.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(age.subsec_nanos()).unwrap_or(0),
    };
    let told = |spaces: &[Arc<str>], metadata: Option<&Metadata>| {
        let found = spaces.iter().filter_map(|name| Some((name.to_string(), tree(metadata?.space(name)?)?)));
        core::Metadata { filter_metadata: found.collect(), ..core::Metadata::default() }
    };
    auth::AttributeContext {
        source: Some(source(connection, filter.peer_certificate)),
        destination: Some(auth::attribute_context::Peer {
            address: Some(address(connection.local)),
            ..auth::attribute_context::Peer::default()
        }),
        request: Some(auth::attribute_context::Request { time: Some(time), http: Some(http(asking, facts, body)) }),
        context_extensions: context.map(|(name, value)| (name.to_string(), value.to_string())).collect(),
        metadata_context: Some(told(&filter.metadata_spaces, facts.metadata)),
        route_metadata_context: Some(told(&filter.route_metadata_spaces, route)),
        tls_session: (filter.tls_session && connection.tls).then(|| auth::attribute_context::TlsSession {
            sni: connection.server_name.as_deref().unwrap_or_default().to_owned(),
        }),
    }
}

fn source(connection: &ConnectionFacts, certificate: bool) -> auth::attribute_context::Peer {
    let peer = connection.peer.as_deref();
    let principal =
        peer.and_then(|peer| peer.uri_sans.first().or_else(|| peer.dns_sans.first()).or(Some(&peer.subject)));
    let pem = peer.filter(|_| certificate).and_then(|peer| peer.certificate.as_deref());
    auth::attribute_context::Peer {
        address: Some(address(connection.remote)),
        principal: principal.map(ToString::to_string).unwrap_or_default(),
        certificate: pem.unwrap_or_default().to_owned(),
        ..auth::attribute_context::Peer::default()
    }
}

fn address(socket: SocketAddr) -> core::Address {
    core::Address {
        address: Some(core::address::Address::SocketAddress(core::SocketAddress {
            address: socket.ip().to_string(),
            port_specifier: Some(core::socket_address::PortSpecifier::PortValue(u32::from(socket.port()))),
            ..core::SocketAddress::default()
        })),
    }
}

fn http(asking: &Asking, facts: &Facts<'_>, body: Option<&BodyView>) -> auth::attribute_context::HttpRequest {
    let filter = &asking.filter;
    let mut headers: HashMap<String, String> = HashMap::new();
    let mut tell = |name: &str, value: &str| {
        if !filter.shows(name) {
            return;
        }
        match headers.get_mut(name) {
            // As in Envoy: several values of one header are one, with commas.
            Some(known) => {
                known.push(',');
                known.push_str(value);
            }
            None => {
                headers.insert(name.to_owned(), value.to_owned());
            }
        }
    };
    for (name, value) in
        [(":authority", facts.authority), (":method", facts.method), (":path", facts.path), (":scheme", facts.scheme)]
    {
        tell(name, value);
    }
    for (name, value) in facts.headers {
        tell(name.as_str(), &String::from_utf8_lossy(value.as_bytes()));
    }
    if let Some(body) = body {
        headers.insert("x-envoy-auth-partial-body".to_owned(), body.cut.to_string());
    }
    let id = facts.headers.get("x-request-id").and_then(|value| value.to_str().ok());
    let length = facts.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    let bytes = body.map(|body| body.bytes.clone()).unwrap_or_default();
    let raw = asking.body().is_some_and(|body| body.as_bytes);
    auth::attribute_context::HttpRequest {
        id: id.unwrap_or_default().to_owned(),
        method: facts.method.to_owned(),
        headers,
        path: facts.path.to_owned(),
        host: facts.authority.to_owned(),
        scheme: facts.scheme.to_owned(),
        protocol: facts.protocol.name().to_owned(),
        size: length.and_then(|length| length.parse().ok()).unwrap_or(-1),
        body: if raw { String::new() } else { String::from_utf8_lossy(&bytes).into_owned() },
        raw_body: if raw { bytes.to_vec() } else { Vec::new() },
        ..auth::attribute_context::HttpRequest::default()
    }
}

fn tree(datum: &Datum) -> Option<Struct> {
    match datum {
        Datum::Object(members) => {
            let fields = members.iter().map(|(name, datum)| (name.to_string(), value(datum)));
            Some(Struct { fields: fields.collect() })
        }
        _ => None,
    }
}

fn value(datum: &Datum) -> Value {
    let kind = match datum {
        Datum::Null => Kind::NullValue(0),
        Datum::Number(number) => Kind::NumberValue(*number),
        Datum::Text(text) => Kind::StringValue(text.to_string()),
        Datum::Flag(flag) => Kind::BoolValue(*flag),
        Datum::List(items) => Kind::ListValue(ListValue { values: items.iter().map(value).collect() }),
        Datum::Object(_) => Kind::StructValue(tree(datum).unwrap_or_default()),
    };
    Value { kind: Some(kind) }
}

#[allow(deprecated, reason = "authorizers still send dynamic_metadata inside ok_response")]
pub(super) fn understand(filter: &ExtAuthz, answer: &Answer) -> Verdict {
    use auth::check_response::HttpResponse;
    let status = answer.headers.get("grpc-status").map(HeaderValue::as_bytes);
    if answer.status != StatusCode::OK || status.is_some_and(|status| status != b"0") {
        return Verdict::Error;
    }
    let Some(response) = message(&answer.body) else { return Verdict::Error };
    let allowed = response.status.as_ref().is_none_or(|status| status.code == 0);
    match (allowed, response.http_response) {
        (_, Some(HttpResponse::ErrorResponse(_))) => Verdict::Error,
        (true, Some(HttpResponse::OkResponse(ok))) => {
            let metadata = response.dynamic_metadata.as_ref().or(ok.dynamic_metadata.as_ref()).map(Datum::from_struct);
            Verdict::Allowed(Box::new(changes(&ok, metadata)))
        }
        (true, _) => Verdict::Allowed(Box::new(Changes {
            metadata: response.dynamic_metadata.as_ref().map(Datum::from_struct),
            ..Changes::default()
        })),
        (false, Some(HttpResponse::DeniedResponse(denied))) => {
            let code = denied.status.as_ref().and_then(|status| u32::try_from(status.code).ok());
            let code = code.filter(|code| *code != 0).and_then(routes::status).unwrap_or(StatusCode::FORBIDDEN);
            let headers = denied.headers.iter().filter_map(option).map(|(name, value, _)| (name, value)).collect();
            filter.denied(code, headers, Bytes::from(denied.body))
        }
        (false, _) => filter.denied(StatusCode::FORBIDDEN, Vec::new(), Bytes::new()),
    }
}

/// The one message of an answer.
fn message(body: &Bytes) -> Option<auth::CheckResponse> {
    let (prefix, rest) = body.split_at_checked(PREFIX)?;
    let (flag, length) = prefix.split_first()?;
    let length = u32::from_be_bytes(length.try_into().ok()?);
    if *flag != 0 || usize::try_from(length).ok()? != rest.len() {
        return None;
    }
    auth::CheckResponse::decode(rest).ok()
}

fn changes(ok: &auth::OkHttpResponse, metadata: Option<Datum>) -> Changes {
    let mut changes = Changes { metadata, ..Changes::default() };
    for (name, value, append) in ok.headers.iter().filter_map(option) {
        if append { changes.add.push((name, value)) } else { changes.set.push((name, value)) }
    }
    changes.remove = ok.headers_to_remove.iter().filter_map(|name| changeable(name)).collect();
    changes.response =
        ok.response_headers_to_add.iter().filter_map(option).map(|(name, value, _)| (name, value)).collect();
    changes.remove_parameters = ok.query_parameters_to_remove.iter().map(|name| Arc::from(name.as_str())).collect();
    changes.set_parameters =
        ok.query_parameters_to_set.iter().map(|one| (one.key.clone(), one.value.clone())).collect();
    changes
}

/// A header of an answer, and whether it goes beside what is there (by default it does not).
#[allow(deprecated, reason = "append is what authorizers send")]
fn option(message: &core::HeaderValueOption) -> Option<(HeaderName, HeaderValue, bool)> {
    let header = message.header.as_ref()?;
    let name = changeable(&header.key)?;
    let bytes = if header.value.is_empty() { header.raw_value.as_slice() } else { header.value.as_bytes() };
    let value = HeaderValue::from_bytes(bytes).ok()?;
    Some((name, value, message.append.is_some_and(|append| append.value)))
}
