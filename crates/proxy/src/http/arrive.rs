//! The head of a request made canonical: what every later phase and the upstream see is what is decided upon here.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use crate::report::record::Downstream;
use bytes::Bytes;
use engine::framing;
use engine::http_manager::{ForwardClientCertMode, HttpManager, Underscores};
use engine::path::Canonical;
use engine::reply::{Flags, LocalReply};
use engine::{ConnectionFacts, Dice};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Uri, Version, request};

/// A request's head, canonical.
#[derive(Debug)]
pub struct Head {
    /// Its method.
    pub method: Method,
    /// `:path` with its query.
    pub path: String,
    /// `:authority`.
    pub authority: String,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// All other headers.
    pub headers: HeaderMap,
    /// The client's address: the peer's, or what trusted `x-forwarded-for` entries say.
    pub remote: IpAddr,
    /// The request came from the mesh's own network.
    pub internal: bool,
    /// The upgrade that it asks for, lower case; `connect` for a CONNECT request.
    pub upgrade: Option<String>,
}

/// The name under which upgrades list the method CONNECT.
pub(super) const CONNECT: &str = "connect";

pub(super) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(super) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_ENVOY_INTERNAL: HeaderName = HeaderName::from_static("x-envoy-internal");
const X_ENVOY_EXTERNAL_ADDRESS: HeaderName = HeaderName::from_static("x-envoy-external-address");
const X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Headers by which a client could steer this proxy; believed from internal clients only.
static INTERNAL_ONLY: [HeaderName; 14] = [
    HeaderName::from_static("x-envoy-retriable-status-codes"),
    HeaderName::from_static("x-envoy-retriable-header-names"),
    HeaderName::from_static("x-envoy-retry-on"),
    HeaderName::from_static("x-envoy-retry-grpc-on"),
    HeaderName::from_static("x-envoy-max-retries"),
    HeaderName::from_static("x-envoy-upstream-alt-stat-name"),
    HeaderName::from_static("x-envoy-upstream-rq-timeout-ms"),
    HeaderName::from_static("x-envoy-upstream-rq-per-try-timeout-ms"),
    HeaderName::from_static("x-envoy-upstream-rq-timeout-alt-response"),
    HeaderName::from_static("x-envoy-expected-rq-timeout-ms"),
    HeaderName::from_static("x-envoy-force-trace"),
    HeaderName::from_static("x-envoy-ip-tags"),
    HeaderName::from_static("x-envoy-original-url"),
    HeaderName::from_static("x-envoy-hedge-on-per-try-timeout"),
];

/// What only proxies say of a request, and what an edge therefore believes nobody.
static NEVER_FROM_OUTSIDE: [HeaderName; 5] = [
    HeaderName::from_static("x-envoy-decorator-operation"),
    HeaderName::from_static("x-envoy-downstream-service-cluster"),
    HeaderName::from_static("x-envoy-downstream-service-node"),
    HeaderName::from_static("x-envoy-original-path"),
    HeaderName::from_static("x-envoy-original-host"),
];

/// Headers that a `Connection` header must not take away: policies and routes rely on them.
const NEVER_NOMINATED: [&str; 6] =
    ["host", "content-length", "authorization", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-client-cert"];

/// Makes a head canonical.
///
/// # Errors
/// The answer for a request that cannot be served.
pub fn canonical(
    manager: &HttpManager,
    downstream: &Downstream,
    parts: request::Parts,
    dice: &mut Dice,
) -> Result<Head, LocalReply> {
    let connection = &downstream.facts;
    let request::Parts { mut method, uri, version, mut headers, mut extensions, .. } = parts;
    check_version(manager, version)?;
    check_headers(manager, version, &mut headers)?;
    let authority = authority(manager, connection, &uri, version, &method, &mut headers)?;
    let mut upgrade = hop_by_hop(version, &mut headers);
    if method == Method::CONNECT {
        upgrade = Some(CONNECT.to_owned());
        if let Some(protocol) = extensions.remove::<hyper::ext::Protocol>() {
            // Extended CONNECT (RFC 8441) is what an upgrade is in HTTP/2: a request like any other, with a path.
            upgrade = Some(protocol.as_str().to_ascii_lowercase());
            method = Method::GET;
        }
    }
    let path = path(manager, &uri, &method)?;
    if version == Version::HTTP_2 {
        join_cookies(&mut headers);
    }
    let (remote, internal) = client_address(manager, connection, &mut headers);
    sanitize(manager, remote, internal, &mut headers);
    let scheme = scheme(manager, connection, &mut headers);
    request_id(manager, internal, &mut headers, dice);
    client_certificate(manager, downstream, &mut headers);
    if let Some(via) = &manager.via {
        headers.append(header::VIA, via.clone());
    }
    Ok(Head { method, path, authority, scheme, headers, remote, internal, upgrade })
}

pub(super) fn refuse(status: StatusCode, details: &'static str) -> LocalReply {
    LocalReply::error(status, "", details, Flags::NONE)
}

/// The answer to a request that breaks HTTP.
pub(super) fn malformed(status: StatusCode, details: &'static str) -> LocalReply {
    let reason = status.canonical_reason().unwrap_or_default();
    LocalReply::error(status, reason, details, Flags::DOWNSTREAM_PROTOCOL_ERROR)
}

fn check_version(manager: &HttpManager, version: Version) -> Result<(), LocalReply> {
    match version {
        Version::HTTP_10 if !manager.http1.accept_http_10 => {
            Err(malformed(StatusCode::UPGRADE_REQUIRED, "low_version"))
        }
        Version::HTTP_09 => Err(malformed(StatusCode::UPGRADE_REQUIRED, "low_version")),
        _ => Ok(()),
    }
}

fn check_headers(manager: &HttpManager, version: Version, headers: &mut HeaderMap) -> Result<(), LocalReply> {
    let values = |name: HeaderName| headers.get_all(name).into_iter().map(HeaderValue::as_bytes);
    let (codings, lengths) = (values(header::TRANSFER_ENCODING), values(header::CONTENT_LENGTH));
    let length = framing::request_length(version == Version::HTTP_11, codings, lengths)
        .map_err(|fault| malformed(fault.status(), fault.details()))?;
    if let framing::Length::Exact(length) = length
        && headers
            .get(header::CONTENT_LENGTH)
            .is_some_and(|value| value.len() > 1 && value.as_bytes().starts_with(b"0"))
    {
        // Some take a leading zero for octal.
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    if headers.len() > manager.max_headers_count as usize {
        let fault = framing::Fault::TooManyHeaders;
        return Err(malformed(fault.status(), fault.details()));
    }
    if manager.underscores == Underscores::Allow {
        return Ok(());
    }
    let named: Vec<HeaderName> = headers.keys().filter(|name| name.as_str().contains('_')).cloned().collect();
    if !named.is_empty() && manager.underscores == Underscores::Reject {
        return Err(malformed(StatusCode::BAD_REQUEST, "http1.unexpected_underscore"));
    }
    for name in named {
        headers.remove(name);
    }
    Ok(())
}

fn authority(
    manager: &HttpManager,
    connection: &ConnectionFacts,
    uri: &Uri,
    version: Version,
    method: &Method,
    headers: &mut HeaderMap,
) -> Result<String, LocalReply> {
    let missing = || refuse(StatusCode::BAD_REQUEST, "missing_host_header");
    let bad = || malformed(StatusCode::BAD_REQUEST, "http.invalid_authority");
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(bad());
    }
    let named = match (uri.authority(), host) {
        // A target in absolute form wins over the Host header (RFC 9112 section 3.2.2).
        (Some(authority), _) => authority.as_str().to_owned(),
        (None, Some(host)) => host.to_str().map_err(|_| bad())?.to_owned(),
        (None, None) if version == Version::HTTP_10 => {
            manager.http1.default_host_for_http_10.as_deref().ok_or_else(missing)?.to_owned()
        }
        (None, None) => return Err(missing()),
    };
    if named.is_empty() && *method != Method::CONNECT && version != Version::HTTP_11 {
        return Err(missing());
    }
    if named.bytes().any(|b| matches!(b, b' ' | b'\t' | b'/' | b'\\' | b'@' | b'?' | b'#' | b',')) {
        return Err(bad());
    }
    headers.remove(header::HOST);
    let port = connection.local.port();
    let stripped = engine::path::authority(&named, &manager.path, port);
    Ok(match stripped {
        Cow::Borrowed(same) if same.len() == named.len() => named,
        other => other.into_owned(),
    })
}

fn path(manager: &HttpManager, uri: &Uri, method: &Method) -> Result<String, LocalReply> {
    let path = uri.path_and_query().map_or("", http::uri::PathAndQuery::as_str);
    if *method == Method::CONNECT {
        return Ok(path.to_owned());
    }
    if path == "*" && *method == Method::OPTIONS {
        return Ok(path.to_owned());
    }
    if !path.starts_with('/') {
        return Err(malformed(StatusCode::BAD_REQUEST, "http1.invalid_url"));
    }
    match engine::path::canonical(path, &manager.path) {
        Canonical::Same => Ok(path.to_owned()),
        Canonical::Changed(path) => Ok(path),
        Canonical::Reject(details) => Err(refuse(StatusCode::BAD_REQUEST, details)),
        Canonical::Redirect(path) => {
            let mut reply = refuse(StatusCode::TEMPORARY_REDIRECT, "path_normalization_failed");
            let location = HeaderValue::try_from(path)
                .map_err(|_| refuse(StatusCode::BAD_REQUEST, "path_normalization_failed"))?;
            reply.headers.push((header::LOCATION, location));
            reply.is_error = false;
            Err(reply)
        }
    }
}

/// Takes away what concerns only the client's own hop; returns the upgrade that was asked for.
fn hop_by_hop(version: Version, headers: &mut HeaderMap) -> Option<String> {
    let mut upgrade = None;
    if headers.contains_key(header::CONNECTION) {
        let nominated: Vec<String> = headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(|word| word.trim().to_ascii_lowercase())
            .filter(|word| !word.is_empty())
            .collect();
        if version == Version::HTTP_11 && nominated.iter().any(|word| word == "upgrade") {
            upgrade = headers
                .get(header::UPGRADE)
                .and_then(|value| value.to_str().ok())
                .map(|value| value.trim().to_ascii_lowercase())
                // Going over to HTTP/2 in clear is an offer that may be passed over (RFC 7540 section 3.2).
                .filter(|name| name != "h2c");
        }
        for word in nominated.iter().filter(|word| !NEVER_NOMINATED.contains(&word.as_str())) {
            headers.remove(word.as_str());
        }
        headers.remove(header::CONNECTION);
    }
    static HOP: [HeaderName; 5] =
        [header::UPGRADE, header::TRANSFER_ENCODING, KEEP_ALIVE, PROXY_CONNECTION, header::EXPECT];
    // One look at the few names that there are costs less than a look-up for each that there might be.
    if headers.keys().any(|name| HOP.contains(name)) {
        for name in &HOP {
            headers.remove(name);
        }
    }
    if let Some(te) = headers.get(header::TE) {
        let trailers = te.as_bytes().split(|b| *b == b',').any(|word| word.trim_ascii() == b"trailers");
        if trailers {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        } else {
            headers.remove(header::TE);
        }
    }
    upgrade
}

/// HTTP/2 clients may split their cookies for the sake of compression; whoever matches or receives them gets one header
/// (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(header::COOKIE).iter();
    let (Some(first), Some(second)) = (crumbs.next(), crumbs.next()) else { return };
    let mut all = first.as_bytes().to_vec();
    for crumb in std::iter::once(second).chain(crumbs) {
        all.extend_from_slice(b"; ");
        all.extend_from_slice(crumb.as_bytes());
    }
    if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(all)) {
        headers.insert(header::COOKIE, value);
    }
}

/// Who the client is (Envoy's `ConnectionManagerUtility::mutateRequestHeaders`): its address, and whether it is internal.
fn client_address(manager: &HttpManager, connection: &ConnectionFacts, headers: &mut HeaderMap) -> (IpAddr, bool) {
    let peer = connection.remote.ip();
    if !manager.use_remote_address {
        let forwarded = forwarded_for(headers, manager.xff_trusted_hops);
        let (remote, single) = forwarded.map_or((peer, false), |(ip, single)| (ip, single));
        return (remote, single && manager.is_internal(remote));
    }
    let absent = !headers.contains_key(X_FORWARDED_FOR);
    let remote = match manager.xff_trusted_hops {
        0 => peer,
        hops => forwarded_for(headers, hops - 1).map_or(peer, |(ip, _)| ip),
    };
    if !manager.skip_xff_append {
        append_forwarded_for(headers, peer);
    }
    (remote, absent && manager.is_internal(remote))
}

/// The address `skip` places from the right of `x-forwarded-for`, and whether it is the only one.
fn forwarded_for(headers: &HeaderMap, skip: u32) -> Option<(IpAddr, bool)> {
    let value = joined(headers)?;
    let mut entries = value.rsplit(',');
    let entry = entries.nth(skip as usize)?.trim();
    let ip = entry.parse::<IpAddr>().ok().or_else(|| entry.parse::<SocketAddr>().ok().map(|a| a.ip()))?;
    Some((ip, skip == 0 && entries.next().is_none()))
}

fn joined(headers: &HeaderMap) -> Option<Cow<'_, str>> {
    let mut values = headers.get_all(X_FORWARDED_FOR).iter();
    let first = values.next()?.to_str().ok()?;
    let Some(second) = values.next() else { return Some(Cow::Borrowed(first)) };
    let mut all = format!("{first},{}", second.to_str().ok()?);
    for value in values {
        all.push(',');
        all.push_str(value.to_str().ok()?);
    }
    Some(Cow::Owned(all))
}

fn append_forwarded_for(headers: &mut HeaderMap, peer: IpAddr) {
    let text = match joined(headers) {
        Some(before) => format!("{before},{peer}"),
        None => peer.to_string(),
    };
    if let Ok(value) = HeaderValue::try_from(text) {
        headers.insert(X_FORWARDED_FOR, value);
    }
}

/// Takes away what this client is not believed, and says what is known of it instead.
fn sanitize(manager: &HttpManager, remote: IpAddr, internal: bool, headers: &mut HeaderMap) {
    if internal {
        headers.insert(X_ENVOY_INTERNAL, HeaderValue::from_static("true"));
        return;
    }
    if headers.keys().any(|name| name.as_str().starts_with("x-envoy-")) {
        headers.remove(X_ENVOY_INTERNAL);
        let edge: &[HeaderName] = if manager.use_remote_address { &NEVER_FROM_OUTSIDE } else { &[] };
        for name in INTERNAL_ONLY.iter().chain(edge) {
            headers.remove(name);
        }
    }
    if manager.use_remote_address
        && let Ok(address) = HeaderValue::try_from(remote.to_string())
    {
        headers.insert(X_ENVOY_EXTERNAL_ADDRESS, address);
    }
}

fn scheme(manager: &HttpManager, connection: &ConnectionFacts, headers: &mut HeaderMap) -> &'static str {
    let own = if connection.tls { "https" } else { "http" };
    let trusted = !manager.use_remote_address || manager.xff_trusted_hops > 0;
    let said = headers.get(X_FORWARDED_PROTO).filter(|_| trusted).map(HeaderValue::as_bytes);
    let scheme = match said {
        Some(value) if value.eq_ignore_ascii_case(b"https") => "https",
        Some(value) if value.eq_ignore_ascii_case(b"http") => "http",
        _ => {
            headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(own));
            own
        }
    };
    match manager.scheme_overwrite.as_deref() {
        Some("https") => "https",
        Some("http") => "http",
        _ => scheme,
    }
}

fn request_id(manager: &HttpManager, internal: bool, headers: &mut HeaderMap, dice: &mut Dice) {
    if !manager.generate_request_id {
        return;
    }
    let edge = manager.use_remote_address && !internal;
    let keep = headers.contains_key(X_REQUEST_ID) && (!edge || manager.preserve_external_request_id);
    if !keep {
        headers.insert(X_REQUEST_ID, uuid(dice));
    }
}

/// A random (version 4) UUID.
fn uuid(dice: &mut Dice) -> HeaderValue {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let bits = (u128::from(dice.roll()) << 64) | u128::from(dice.roll());
    let bits = (bits & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let mut text = [b'-'; 36];
    let places = text.iter_mut().enumerate().filter(|(at, _)| !matches!(at, 8 | 13 | 18 | 23));
    for (digit, (_, place)) in places.enumerate() {
        let nibble = (bits >> (124 - 4 * digit)) & 0xf;
        *place = HEX.get(nibble as usize).copied().unwrap_or(b'0');
    }
    HeaderValue::from_maybe_shared(Bytes::copy_from_slice(&text)).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// `x-forwarded-client-cert`, as the manager's rule says.
fn client_certificate(manager: &HttpManager, downstream: &Downstream, headers: &mut HeaderMap) {
    use ForwardClientCertMode as Mode;
    let rule = manager.client_cert;
    if rule.mode == Mode::AlwaysForwardOnly {
        return;
    }
    let mutual = downstream.facts.peer.as_ref().filter(|peer| peer.validated);
    let Some(peer) = mutual.filter(|_| rule.mode != Mode::Sanitize) else {
        headers.remove(X_FORWARDED_CLIENT_CERT);
        return;
    };
    if rule.mode == Mode::ForwardOnly {
        return;
    }
    let mut parts = Vec::with_capacity(5);
    parts.extend(downstream.own_uri.as_ref().map(|own| format!("By={own}")));
    parts.push(format!("Hash={}", peer.sha256));
    if rule.subject {
        parts.push(format!("Subject=\"{}\"", peer.subject));
    }
    if rule.uri {
        let uris = peer.uri_sans.iter().map(|uri| format!("URI={uri}"));
        parts.extend(uris);
    }
    if rule.dns {
        parts.extend(peer.dns_sans.iter().map(|dns| format!("DNS={dns}")));
    }
    let mut text = parts.join(";");
    if rule.mode == Mode::AppendForward
        && let Some(before) = headers.get(X_FORWARDED_CLIENT_CERT).and_then(|value| value.to_str().ok())
    {
        text = format!("{before},{text}");
    }
    match HeaderValue::try_from(text) {
        Ok(value) => headers.insert(X_FORWARDED_CLIENT_CERT, value),
        Err(_) => headers.remove(X_FORWARDED_CLIENT_CERT),
    };
}
