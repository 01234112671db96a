//! The head of a request made canonical: what every later phase and the upstream see is what is decided upon here.

use std::borrow::Cow;
use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use engine::framing;
use engine::http_manager::{ForwardClientCertMode, HttpManager, Underscores};
use engine::path::Canonical;
use engine::reply::{Flags, LocalReply};
use engine::tracing::{TraceReason, TraceWishes};
use engine::{ConnectionFacts, Dice};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::Authority;
use http::{Method, StatusCode, Uri, Version, request};

use super::interim::keeps_expect;
use super::seen::Seen;
use super::text::Text;
use crate::report::record::Downstream;

/// A request's head, canonical.
#[derive(Debug)]
pub struct Head {
    /// Its method.
    pub method: Method,
    /// `:path` with its query.
    pub path: Text,
    /// `:authority`.
    pub authority: Text,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// All other headers.
    pub headers: HeaderMap,
    /// Which of the headers that matter here came.
    pub(super) seen: Seen,
    /// The client's address: the peer's, or what trusted `x-forwarded-for` entries say.
    pub remote: IpAddr,
    /// The request came from the mesh's own network.
    pub internal: bool,
    /// The upgrade that it asks for, lower case; `connect` for a CONNECT request.
    pub upgrade: Option<String>,
    /// Whether it is traced, and why.
    pub trace: TraceReason,
    /// A service of the mesh asks that it be traced.
    pub forced_trace: bool,
}

/// The name under which upgrades list the method CONNECT.
pub(super) const CONNECT: &str = "connect";

pub(super) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(super) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_ENVOY_INTERNAL: HeaderName = HeaderName::from_static("x-envoy-internal");
const X_ENVOY_EXTERNAL_ADDRESS: HeaderName = HeaderName::from_static("x-envoy-external-address");
const X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
const X_ENVOY_FORCE_TRACE: HeaderName = HeaderName::from_static("x-envoy-force-trace");
const X_CLIENT_TRACE_ID: HeaderName = HeaderName::from_static("x-client-trace-id");
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
    X_ENVOY_FORCE_TRACE,
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

/// Who sends heads over one connection, and by which rules they are read.
#[derive(Debug, Clone, Copy)]
pub struct Client<'a> {
    /// The HTTP manager of its chain.
    pub manager: &'a HttpManager,
    /// The connection.
    pub downstream: &'a Downstream,
    /// What this hop says of its certificate in `x-forwarded-client-cert`; see [`certificate`].
    pub certificate: Option<&'a HeaderValue>,
    /// The host that it asked for last: most clients ask for the same one again, which is then shared.
    pub host: &'a RefCell<Text>,
}

impl Client<'_> {
    fn named(&self, host: &str) -> Text {
        let mut last = self.host.borrow_mut();
        if **last != *host {
            *last = host.into();
        }
        last.clone()
    }
}

/// Makes a head canonical.
///
/// # Errors
/// The answer for a request that cannot be served.
pub fn canonical(client: Client<'_>, parts: request::Parts, dice: &mut Dice) -> Result<Head, LocalReply> {
    let (manager, connection) = (client.manager, &client.downstream.facts);
    let request::Parts { mut method, uri, version, mut headers, mut extensions, .. } = parts;
    let seen = Seen::of(&headers);
    check_version(manager, version)?;
    check_headers(manager, version, seen, &mut headers)?;
    let unread = is_unread_target(manager, version, &uri);
    if !unread {
        check_scheme(version, &uri)?;
    }
    let target = uri.authority().filter(|_| !unread);
    let authority = authority(client, target, version, &method, &mut headers)?;
    let mut upgrade = hop_by_hop(manager, version, seen, &mut headers);
    if method == Method::CONNECT {
        upgrade = Some(CONNECT.to_owned());
        if let Some(protocol) = extensions.remove::<h2::ext::Protocol>() {
            // Extended CONNECT (RFC 8441) is what an upgrade is in HTTP/2: a request like any other, with a path.
            upgrade = Some(protocol.as_str().to_ascii_lowercase());
            method = Method::GET;
        }
    }
    if unread {
        return Err(refuse(StatusCode::NOT_FOUND, "absolute_path_rejected"));
    }
    let path = path(manager, &uri, &method)?;
    if version == Version::HTTP_2 && seen.any(Seen::COOKIE) {
        join_cookies(&mut headers);
    }
    let (remote, internal) = client_address(manager, connection, seen, &mut headers);
    sanitize(manager, remote, internal, seen, &mut headers);
    let scheme = scheme(manager, connection, seen, &mut headers);
    request_id(manager, internal, seen, &mut headers, dice);
    let forced_trace = seen.any(Seen::ENVOY) && headers.contains_key(X_ENVOY_FORCE_TRACE);
    let trace = trace(manager, forced_trace, &mut headers, dice);
    client_certificate(client, seen, &mut headers);
    if let Some(via) = &manager.via {
        headers.append(header::VIA, via.clone());
    }
    Ok(Head { method, path, authority, scheme, headers, seen, remote, internal, upgrade, trace, forced_trace })
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

/// A target in absolute form is of a kind that is served here.
fn check_scheme(version: Version, uri: &Uri) -> Result<(), LocalReply> {
    let known = |scheme: &str| scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
    match uri.scheme_str() {
        Some(scheme) if version <= Version::HTTP_11 && !known(scheme) => {
            Err(malformed(StatusCode::BAD_REQUEST, "http1.invalid_scheme"))
        }
        _ => Ok(()),
    }
}

fn check_headers(
    manager: &HttpManager,
    version: Version,
    seen: Seen,
    headers: &mut HeaderMap,
) -> Result<(), LocalReply> {
    if seen.any(Seen::TRANSFER_ENCODING.with(Seen::CONTENT_LENGTH)) {
        check_length(version, headers)?;
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

fn check_length(version: Version, headers: &mut HeaderMap) -> Result<(), LocalReply> {
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
    Ok(())
}

/// Whether a target is in absolute form where that form is not understood: it says nothing then, not even a host.
fn is_unread_target(manager: &HttpManager, version: Version, uri: &Uri) -> bool {
    manager.http1.origin_form_only && version <= Version::HTTP_11 && uri.scheme().is_some()
}

fn authority(
    client: Client<'_>,
    target: Option<&Authority>,
    version: Version,
    method: &Method,
    headers: &mut HeaderMap,
) -> Result<Text, LocalReply> {
    let manager = client.manager;
    let missing = || refuse(StatusCode::BAD_REQUEST, "missing_host_header");
    let bad = || malformed(StatusCode::BAD_REQUEST, "http.invalid_authority");
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(bad());
    }
    let named = match (target, host) {
        // A target in absolute form wins over the Host header (RFC 9112 section 3.2.2).
        (Some(authority), _) => Text::Authority(authority.clone()),
        (None, Some(host)) => client.named(host.to_str().map_err(|_| bad())?),
        (None, None) if version == Version::HTTP_10 => {
            manager.http1.default_host_for_http_10.as_deref().ok_or_else(missing)?.into()
        }
        (None, None) => return Err(missing()),
    };
    if named.is_empty() && *method != Method::CONNECT && version != Version::HTTP_11 {
        return Err(missing());
    }
    if named.bytes().any(|b| matches!(b, b' ' | b'\t' | b'/' | b'\\' | b'@' | b'?' | b'#' | b',')) {
        return Err(bad());
    }
    if host.is_some() {
        headers.remove(header::HOST);
    }
    let stripped = match engine::path::authority(&named, &manager.path, client.downstream.facts.local.port()) {
        Cow::Borrowed(same) if same.len() == named.len() => None,
        other => Some(other.into_owned()),
    };
    Ok(stripped.map_or(named, Text::from))
}

fn path(manager: &HttpManager, uri: &Uri, method: &Method) -> Result<Text, LocalReply> {
    let path = uri.path_and_query().map_or("", http::uri::PathAndQuery::as_str);
    let same = || uri.path_and_query().map_or_else(|| Text::from(""), |path| Text::Path(path.clone()));
    if *method == Method::CONNECT {
        return Ok(same());
    }
    if path == "*" && *method == Method::OPTIONS {
        return Ok(same());
    }
    if !path.starts_with('/') {
        return Err(malformed(StatusCode::BAD_REQUEST, "http1.invalid_url"));
    }
    match engine::path::canonical(path, &manager.path) {
        Canonical::Same => Ok(same()),
        Canonical::Changed(path) => Ok(path.into()),
        Canonical::Reject(details) => Err(refuse(StatusCode::BAD_REQUEST, details)),
        Canonical::Redirect(path) => {
            let mut reply = refuse(StatusCode::TEMPORARY_REDIRECT, "path_normalization_failed");
            let location = HeaderValue::try_from(path)
                .map_err(|_| refuse(StatusCode::BAD_REQUEST, "path_normalization_failed"))?;
            reply.headers.push((header::LOCATION, location));
            Err(reply)
        }
    }
}

/// Takes away what concerns only the client's own hop; returns the upgrade that was asked for.
fn hop_by_hop(manager: &HttpManager, version: Version, seen: Seen, headers: &mut HeaderMap) -> Option<String> {
    let mut upgrade = None;
    if seen.any(Seen::CONNECTION) {
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
    if seen.any(Seen::HOP.with(Seen::TRANSFER_ENCODING).with(Seen::EXPECT)) {
        let kept = keeps_expect(manager.relay_interim, version);
        for name in HOP.iter().filter(|name| !kept || **name != header::EXPECT) {
            headers.remove(name);
        }
    }
    if seen.any(Seen::TE)
        && let Some(te) = headers.get(header::TE)
    {
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
fn client_address(
    manager: &HttpManager,
    connection: &ConnectionFacts,
    seen: Seen,
    headers: &mut HeaderMap,
) -> (IpAddr, bool) {
    let peer = connection.remote.ip();
    if !manager.use_remote_address {
        let told = seen.any(Seen::FORWARDED_FOR);
        let forwarded = told.then(|| forwarded_for(headers, manager.xff_trusted_hops)).flatten();
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
fn sanitize(manager: &HttpManager, remote: IpAddr, internal: bool, seen: Seen, headers: &mut HeaderMap) {
    if internal {
        headers.insert(X_ENVOY_INTERNAL, HeaderValue::from_static("true"));
        return;
    }
    if seen.any(Seen::ENVOY) {
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

fn scheme(manager: &HttpManager, connection: &ConnectionFacts, seen: Seen, headers: &mut HeaderMap) -> &'static str {
    let own = if connection.tls { "https" } else { "http" };
    let trusted = !manager.use_remote_address || manager.xff_trusted_hops > 0;
    let told = trusted && seen.any(Seen::FORWARDED_PROTO);
    let said = told.then(|| headers.get(X_FORWARDED_PROTO)).flatten().map(HeaderValue::as_bytes);
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

fn request_id(manager: &HttpManager, internal: bool, seen: Seen, headers: &mut HeaderMap, dice: &mut Dice) {
    if !manager.generate_request_id {
        return;
    }
    let edge = manager.use_remote_address && !internal;
    let told = seen.any(Seen::REQUEST_ID) && headers.contains_key(X_REQUEST_ID);
    if !told || (edge && !manager.preserve_external_request_id) {
        headers.insert(X_REQUEST_ID, uuid(dice));
    } else if edge {
        // Whether it is traced is not for strangers to say.
        mark(manager, TraceReason::NotTraceable, headers);
    }
}

/// Decides whether a request is traced.
fn trace(manager: &HttpManager, forced: bool, headers: &mut HeaderMap, dice: &mut Dice) -> TraceReason {
    let Some(tracing) = &manager.tracing else { return TraceReason::NotTraceable };
    let wishes = TraceWishes { client: headers.contains_key(X_CLIENT_TRACE_ID), forced };
    let id = headers.get(X_REQUEST_ID).map_or(&b""[..], HeaderValue::as_bytes);
    let (reason, told) = tracing.judge(id, wishes, dice);
    if told {
        mark(manager, reason, headers);
    }
    reason
}

/// Writes into the request id whether the request is traced.
fn mark(manager: &HttpManager, reason: TraceReason, headers: &mut HeaderMap) {
    if manager.marks_request_ids
        && let Some(id) = headers.get_mut(X_REQUEST_ID)
        && let Some(marked) = reason.mark(id.as_bytes())
        && let Ok(marked) = HeaderValue::from_bytes(&marked)
    {
        *id = marked;
    }
}

/// A random (version 4) UUID.
fn uuid(dice: &mut Dice) -> HeaderValue {
    /// How many are written into one piece of memory.
    const AT_ONCE: usize = 64;
    thread_local! {
        static ROOM: RefCell<BytesMut> = RefCell::default();
    }
    let bits = (u128::from(dice.roll()) << 64) | u128::from(dice.roll());
    let bits = (bits & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let text = uuid_text(bits);
    let written = ROOM.with_borrow_mut(|room| {
        if room.capacity() < text.len() {
            *room = BytesMut::with_capacity(AT_ONCE * text.len());
        }
        room.extend_from_slice(&text);
        room.split().freeze()
    });
    HeaderValue::from_maybe_shared(written).unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn uuid_text(bits: u128) -> [u8; 36] {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    /// Where the two digits of each byte stand; a hyphen is between the groups.
    const PLACES: [usize; 16] = [0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34];
    let digit = |nibble: u8| HEX.get(usize::from(nibble)).copied().unwrap_or(b'0');
    let mut text = [b'-'; 36];
    for (byte, place) in bits.to_be_bytes().into_iter().zip(PLACES) {
        if let Some([high, low]) = text.get_mut(place..place + 2) {
            (*high, *low) = (digit(byte >> 4), digit(byte & 0xf));
        }
    }
    text
}

/// `x-forwarded-client-cert`, as the manager's rule says.
fn client_certificate(client: Client<'_>, seen: Seen, headers: &mut HeaderMap) {
    use ForwardClientCertMode as Mode;
    let told = seen.any(Seen::CLIENT_CERTIFICATE);
    let mutual = client.downstream.facts.peer.as_ref().is_some_and(|peer| peer.validated);
    let value = match client.manager.client_cert.mode {
        Mode::AlwaysForwardOnly => return,
        Mode::ForwardOnly if mutual => return,
        Mode::AppendForward | Mode::SanitizeSet if mutual => client.certificate.cloned(),
        _ => None,
    };
    let before = (told && client.manager.client_cert.mode == Mode::AppendForward)
        .then(|| headers.get(X_FORWARDED_CLIENT_CERT))
        .flatten()
        .and_then(|value| value.to_str().ok());
    let value = match (value, before) {
        (Some(own), Some(before)) => joined_values(before, &own),
        (value, _) => value,
    };
    match value {
        Some(value) => {
            headers.insert(X_FORWARDED_CLIENT_CERT, value);
        }
        None if told => {
            headers.remove(X_FORWARDED_CLIENT_CERT);
        }
        None => {}
    }
}

fn joined_values(before: &str, own: &HeaderValue) -> Option<HeaderValue> {
    HeaderValue::from_bytes(&[before.as_bytes(), b",", own.as_bytes()].concat()).ok()
}

/// What this hop says of its client's certificate, the same for each request of a connection.
pub(super) fn certificate(manager: &HttpManager, downstream: &Downstream) -> Option<HeaderValue> {
    use ForwardClientCertMode as Mode;
    let rule = manager.client_cert;
    let peer = downstream.facts.peer.as_ref().filter(|peer| peer.validated)?;
    if !matches!(rule.mode, Mode::AppendForward | Mode::SanitizeSet) {
        return None;
    }
    let mut parts = Vec::with_capacity(8);
    parts.extend(downstream.own_uri.as_ref().map(|own| format!("By={own}")));
    parts.push(format!("Hash={}", peer.sha256));
    let quoted = |name: &str, text: Option<&Arc<str>>| text.map(|text| format!("{name}=\"{text}\""));
    parts.extend(quoted("Cert", peer.certificate.as_ref().filter(|_| rule.certificate)));
    parts.extend(quoted("Chain", peer.chain.as_ref().filter(|_| rule.chain)));
    if rule.subject {
        parts.push(format!("Subject=\"{}\"", peer.subject));
    }
    if rule.uri {
        parts.extend(peer.uri_sans.iter().map(|uri| format!("URI={uri}")));
    }
    if rule.dns {
        parts.extend(peer.dns_sans.iter().map(|dns| format!("DNS={dns}")));
    }
    if rule.issuer {
        parts.push(format!("Issuer=\"{}\"", peer.issuer));
    }
    HeaderValue::try_from(parts.join(";")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_has_its_hyphens_and_all_its_digits() {
        let text = uuid_text(0x0123_4567_89ab_4def_8123_4567_89ab_cdef);
        assert_eq!(std::str::from_utf8(&text), Ok("01234567-89ab-4def-8123-456789abcdef"));
        let mut dice = Dice::new(7);
        let all: std::collections::HashSet<_> = (0..200).map(|_| uuid(&mut dice).as_bytes().to_vec()).collect();
        assert_eq!(all.len(), 200);
        assert!(all.iter().all(|text| text.len() == 36 && text[14] == b'4' && b"89ab".contains(&text[19])));
    }
}
