//! What a record answers to the operators of Envoy's format language (`%RESPONSE_CODE%`, ...).

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt::{Display, Write as _};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use engine::format::{AddressPart, GrpcStatusStyle, MetadataSource, Operator, Precision, TimePoint, Values};
use engine::matcher::HeaderKey;
use engine::metadata::{Datum, Metadata, MetadataKey};
use engine::rbac;
use http::{HeaderMap, HeaderName};
use telemetry::accesslog::{TimeFormat, clock};

use super::record::{Kind, Record};

const ORIGINAL_PATH: &str = "x-envoy-original-path";
/// Most time formats that are kept read, per worker.
const MOST_FORMATS: usize = 16;
const TULLE_ID: HeaderName = HeaderName::from_static("x-tulle-id");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const SERVICE_TIME: &str = "x-envoy-upstream-service-time";

impl Values for Record {
    fn write(&self, operator: &Operator, out: &mut String) -> bool {
        match operator {
            Operator::Req { name, otherwise } => {
                self.request_value(name, out) || otherwise.as_ref().is_some_and(|name| self.request_value(name, out))
            }
            Operator::Resp { name, otherwise } => {
                self.response_value(name, out) || otherwise.as_ref().is_some_and(|name| self.response_value(name, out))
            }
            Operator::Trailer { name, otherwise } => {
                let trailers = &self.response_trailers;
                header(trailers, name, out) || otherwise.as_ref().is_some_and(|name| header(trailers, name, out))
            }
            Operator::StartTime { format, .. } => {
                time(format.as_ref(), self.started_at, out);
                true
            }
            Operator::EmitTime { format } => {
                time(format.as_ref(), self.started_at + self.duration, out);
                true
            }
            Operator::Metadata { source, space, path } => self.metadata_value(*source, space, path, out),
            Operator::Path { query, original } => self.path_value(*query, *original, out),
            Operator::QueryParam(name) => text(self.query_parameter(name), out),
            Operator::QueryParams => text(self.full_path().and_then(|path| Some(path.split_once('?')?.1)), out),
            Operator::Environment(name) => text(std::env::var(&**name).ok().as_deref(), out),
            Operator::Hostname => text(hostname(), out),
            Operator::AccessLogType => {
                out.push_str(if self.kind == Kind::Tcp { "TcpConnectionEnd" } else { "DownstreamEnd" });
                true
            }
            Operator::LocalReplyBody => {
                out.push_str(self.local_body.as_deref().unwrap_or_default());
                true
            }
            Operator::CustomFlags => true,
            other => {
                self.number(other).is_some_and(|number| decimal(number, out))
                    || self.plain(other, out)
                    || self.downstream_value(other, out)
                    || self.upstream_value(other, out)
            }
        }
    }
}

impl Record {
    /// Whether JSON writes the operator's value as a number.
    pub(super) fn is_number(operator: &Operator) -> bool {
        use Operator as O;
        matches!(
            operator,
            O::ResponseCode
                | O::Duration
                | O::RequestDuration
                | O::RequestTxDuration
                | O::ResponseDuration
                | O::ResponseTxDuration
                | O::CommonDuration { .. }
                | O::UpstreamConnectionPoolReadyDuration
                | O::BytesReceived
                | O::BytesSent
                | O::UpstreamRequestAttemptCount
                | O::ConnectionId
                | O::GrpcStatus(GrpcStatusStyle::Number)
                | O::UpstreamLocalAddress(AddressPart::Port)
                | O::UpstreamRemoteAddress(AddressPart::Port)
                | O::DownstreamLocalAddress(AddressPart::Port)
                | O::DownstreamDirectLocalAddress(AddressPart::Port)
                | O::DownstreamRemoteAddress(AddressPart::Port)
                | O::DownstreamDirectRemoteAddress(AddressPart::Port)
        )
    }

    /// The policy that refused it, out of Envoy's code details (`rbac_access_denied_matched_policy[NAME]`).
    pub fn denied_by(&self) -> Option<&str> {
        [&self.details, &self.termination]
            .into_iter()
            .flatten()
            .find_map(|details| details.strip_prefix("rbac_access_denied_matched_policy[")?.strip_suffix(']'))
    }

    /// The shadow policy that would have refused it.
    pub fn would_be_denied_by(&self) -> Option<&Arc<str>> {
        self.rbac.iter().find_map(|report| {
            let shadow = report.shadow.as_ref().filter(|verdict| !verdict.allowed)?;
            shadow.policy.as_ref().or_else(|| {
                static NONE: OnceLock<Arc<str>> = OnceLock::new();
                Some(NONE.get_or_init(|| Arc::from("none")))
            })
        })
    }

    /// The id under which the exchange can be asked for later.
    pub fn id(&self) -> Option<&str> {
        let id = self.request_headers.get(TULLE_ID).or_else(|| self.request_headers.get(REQUEST_ID))?;
        id.to_str().ok()
    }

    /// The cluster that the route chose, also when there is none of that name.
    pub fn cluster_name(&self) -> Option<&str> {
        let known = self.upstream.cluster.as_ref().map(|cluster| &*cluster.config.name);
        known.or(self.upstream.cluster_name.as_deref())
    }

    fn full_path(&self) -> Option<&str> {
        self.path.as_deref().or(self.original_path.as_deref())
    }

    fn request_value(&self, key: &HeaderKey, out: &mut String) -> bool {
        match key {
            HeaderKey::Method => text(self.method.as_ref().map(http::Method::as_str), out),
            HeaderKey::Path => text(self.full_path(), out),
            HeaderKey::Authority => text(self.authority.as_deref(), out),
            HeaderKey::Scheme => self.kind == Kind::Http && text(Some(self.scheme), out),
            HeaderKey::Name(name) => {
                header(&self.request_headers, name, out)
                    || (name == ORIGINAL_PATH && self.path.is_some() && text(self.original_path.as_deref(), out))
            }
        }
    }

    fn response_value(&self, name: &HeaderName, out: &mut String) -> bool {
        if header(&self.response_headers, name, out) {
            return true;
        }
        // Kept as a number, so that the default formats need no copy of the headers.
        name == SERVICE_TIME && self.upstream.service_time.is_some_and(|time| decimal(millis(time), out))
    }

    fn path_value(&self, query: bool, original: bool, out: &mut String) -> bool {
        let sent = self.original_path.as_deref().filter(|_| original);
        let path = sent.or_else(|| self.full_path());
        text(path.and_then(|path| if query { Some(path) } else { path.split('?').next() }), out)
    }

    fn query_parameter(&self, name: &str) -> Option<&str> {
        let (_, query) = self.full_path()?.split_once('?')?;
        query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
    }

    fn number(&self, operator: &Operator) -> Option<u64> {
        let facts = &self.downstream.facts;
        let port = |part: AddressPart, port: Option<u16>| (part == AddressPart::Port).then_some(port)?.map(u64::from);
        match operator {
            Operator::ResponseCode => Some(self.status.map_or(0, |status| u64::from(status.as_u16()))),
            Operator::Duration => Some(millis(self.duration)),
            Operator::RequestDuration => self.request_complete.map(millis),
            Operator::RequestTxDuration => self.upstream.local.and(self.request_complete).map(millis),
            Operator::ResponseDuration => self.response_begun.map(millis),
            Operator::ResponseTxDuration => {
                self.response_begun.map(|begun| millis(self.duration.saturating_sub(begun)))
            }
            Operator::CommonDuration { from, to, precision } => self.between(*from, *to, *precision),
            Operator::BytesReceived => Some(self.bytes_received),
            Operator::BytesSent => Some(self.bytes_sent),
            Operator::UpstreamRequestAttemptCount => Some(u64::from(self.upstream.attempts)),
            Operator::ConnectionId => Some(facts.id),
            Operator::GrpcStatus(GrpcStatusStyle::Number) => self.grpc_status.map(u64::from),
            Operator::UpstreamLocalAddress(part) => port(*part, self.upstream.local.map(|address| address.port())),
            Operator::UpstreamRemoteAddress(part) => port(*part, self.upstream_remote().map(|address| address.port())),
            Operator::DownstreamLocalAddress(part) | Operator::DownstreamDirectLocalAddress(part) => {
                port(*part, Some(facts.local.port()))
            }
            Operator::DownstreamRemoteAddress(part) => port(*part, Some(self.client().port())),
            Operator::DownstreamDirectRemoteAddress(part) => port(*part, Some(facts.direct_remote.port())),
            _ => None,
        }
    }

    fn between(&self, from: TimePoint, to: TimePoint, precision: Precision) -> Option<u64> {
        let span = self.moment(to)?.checked_sub(self.moment(from)?)?;
        let units = match precision {
            Precision::Milliseconds => span.as_millis(),
            Precision::Microseconds => span.as_micros(),
            Precision::Nanoseconds => span.as_nanos(),
        };
        u64::try_from(units).ok()
    }

    fn moment(&self, point: TimePoint) -> Option<Duration> {
        match point {
            TimePoint::DownstreamRxBegin => Some(Duration::ZERO),
            TimePoint::DownstreamRxEnd => self.request_complete,
            TimePoint::UpstreamTxBegin => self.response_begun?.checked_sub(self.upstream.service_time?),
            TimePoint::UpstreamTxEnd => self.upstream.local.and(self.request_complete),
            TimePoint::UpstreamRxBegin | TimePoint::DownstreamTxBegin => self.response_begun,
            TimePoint::UpstreamRxEnd => self.response_begun.and(Some(self.duration)),
            TimePoint::DownstreamTxEnd => Some(self.duration),
            TimePoint::UpstreamConnectBegin
            | TimePoint::UpstreamConnectEnd
            | TimePoint::UpstreamHandshakeEnd
            | TimePoint::UpstreamRxBodyBegin => None,
        }
    }

    fn plain(&self, operator: &Operator, out: &mut String) -> bool {
        let matched = self.matched.as_ref();
        match operator {
            Operator::Protocol => text(self.protocol.map(|protocol| protocol.name()), out),
            // Empty, as Envoy writes it, where a filter's configuration is missing.
            Operator::ResponseCodeDetails => self.details.as_deref().map(|details| out.push_str(details)).is_some(),
            Operator::ConnectionTerminationDetails => text(self.termination.as_deref(), out),
            Operator::ResponseFlags => text(Some(&self.flags.letters()), out),
            Operator::ResponseFlagsLong => text(Some(&self.flags.names()), out),
            Operator::GrpcStatus(style) => self.grpc_status.is_some_and(|status| grpc_status(status, *style, out)),
            Operator::RouteName => text(matched.map(|matched| &*matched.route.name), out),
            Operator::VirtualHostName => text(matched.map(|matched| &*matched.host.name), out),
            Operator::FilterChainName => {
                // A chain without a name goes by its position here; Envoy has none for it.
                let given = |name: &&str| !name.bytes().all(|byte| byte.is_ascii_digit());
                text(self.downstream.chain.as_ref().map(|chain| &*chain.name).filter(given), out)
            }
            Operator::UniqueId => show(unique_id(), out),
            Operator::StreamId => header(&self.request_headers, &HeaderName::from_static("x-request-id"), out),
            Operator::TraceId => text(trace_id(&self.request_headers), out),
            _ => false,
        }
    }

    fn downstream_value(&self, operator: &Operator, out: &mut String) -> bool {
        let facts = &self.downstream.facts;
        let peer = facts.peer.as_deref();
        match operator {
            Operator::DownstreamLocalAddress(part) | Operator::DownstreamDirectLocalAddress(part) => {
                address(facts.local, *part, out)
            }
            Operator::DownstreamRemoteAddress(part) => address(self.client(), *part, out),
            Operator::DownstreamDirectRemoteAddress(part) => address(facts.direct_remote, *part, out),
            Operator::RequestedServerName => text(facts.server_name.as_deref(), out),
            Operator::DownstreamTlsVersion => text(facts.tls_version, out),
            Operator::DownstreamTlsCipher => text(facts.tls_cipher, out),
            Operator::DownstreamPeerSubject => text(peer.map(|peer| &*peer.subject), out),
            Operator::DownstreamPeerIssuer => text(peer.map(|peer| &*peer.issuer), out),
            Operator::DownstreamPeerSerial => text(peer.map(|peer| &*peer.serial), out),
            Operator::DownstreamPeerFingerprint256 => text(peer.map(|peer| &*peer.sha256), out),
            Operator::DownstreamPeerUriSan => list(peer.map(|peer| peer.uri_sans.as_slice()), out),
            Operator::DownstreamPeerDnsSan => list(peer.map(|peer| peer.dns_sans.as_slice()), out),
            Operator::DownstreamPeerCertPresented => show(peer.is_some(), out),
            _ => false,
        }
    }

    fn upstream_value(&self, operator: &Operator, out: &mut String) -> bool {
        let upstream = &self.upstream;
        match operator {
            Operator::UpstreamHost => upstream.endpoint.as_ref().is_some_and(|endpoint| match endpoint.address {
                engine::Address::Socket(socket) => address(socket, AddressPart::Full, out),
                ref other => show(other, out),
            }),
            Operator::UpstreamHostName { .. } => upstream
                .endpoint
                .as_ref()
                .is_some_and(|endpoint| text(Some(&*endpoint.hostname), out) || show(&endpoint.address, out)),
            Operator::UpstreamCluster => {
                let other = upstream.cluster.as_ref().and_then(|cluster| cluster.config.alt_stat_name.as_deref());
                text(other.or_else(|| self.cluster_name()), out)
            }
            Operator::UpstreamClusterRaw => text(self.cluster_name(), out),
            Operator::UpstreamLocalAddress(part) => upstream.local.is_some_and(|local| address(local, *part, out)),
            Operator::UpstreamRemoteAddress(part) => {
                self.upstream_remote().is_some_and(|remote| address(remote, *part, out))
            }
            Operator::UpstreamTransportFailureReason => upstream.transport_failure.as_deref().is_some_and(|reason| {
                // A reason is one word of the line.
                out.extend(reason.chars().map(|c| if c.is_whitespace() { '_' } else { c }));
                !reason.is_empty()
            }),
            Operator::UpstreamProtocol => {
                let spoken = self.kind == Kind::Http && upstream.local.is_some();
                spoken && text(Some(if upstream.h2 { "HTTP/2" } else { "HTTP/1.1" }), out)
            }
            Operator::UpstreamPeerUriSan => text(upstream.identity.as_deref(), out),
            _ => false,
        }
    }

    fn metadata_value(&self, source: MetadataSource, space: &str, path: &[Arc<str>], out: &mut String) -> bool {
        if source == MetadataSource::Dynamic
            && space == "tulle"
            && let [key] = path
            && self.own(key, out)
        {
            return true;
        }
        match self.datum(source, space, path).as_deref() {
            Some(Datum::Text(found)) => text(Some(&**found), out),
            Some(datum) => show(datum.to_json(), out),
            None => false,
        }
    }

    /// A value of metadata.
    pub(super) fn datum(&self, source: MetadataSource, space: &str, path: &[Arc<str>]) -> Option<Cow<'_, Datum>> {
        let keys = path.iter().map(|key| &**key);
        let found = self.metadata_of(source).and_then(|metadata| metadata.find(space, keys)).map(Cow::Borrowed);
        match path {
            [key] if source == MetadataSource::Dynamic => rbac::noted(&self.rbac, space, key).map(Cow::Owned).or(found),
            _ => found,
        }
    }

    /// A text that filters noted.
    pub fn noted_text(&self, key: &MetadataKey) -> Option<Cow<'_, str>> {
        match self.datum(MetadataSource::Dynamic, &key.space, &key.path)? {
            Cow::Borrowed(datum) => datum.text().map(Cow::Borrowed),
            Cow::Owned(datum) => datum.text().map(|text| Cow::Owned(text.to_owned())),
        }
    }

    fn metadata_of(&self, source: MetadataSource) -> Option<&Metadata> {
        let matched = self.matched.as_ref();
        match source {
            MetadataSource::Dynamic => self.metadata.as_deref(),
            MetadataSource::Route => matched.map(|matched| &matched.route.metadata),
            MetadataSource::VirtualHost => matched.map(|matched| &matched.host.metadata),
            MetadataSource::Cluster => self.upstream.cluster.as_ref().map(|cluster| &cluster.config.metadata),
            MetadataSource::UpstreamHost => self.upstream.endpoint.as_ref().map(|endpoint| &*endpoint.metadata),
            MetadataSource::Listener => Some(&self.downstream.listener.metadata),
        }
    }

    /// What this proxy notes of each request: `tulle:id`, `tulle:reason`, `tulle:policy`.
    fn own(&self, key: &str, out: &mut String) -> bool {
        match key {
            "id" => text(self.id(), out),
            "reason" => text(self.origin.as_deref().or(self.details.as_deref()), out),
            "policy" => text(self.denied_by(), out),
            _ => false,
        }
    }

    /// The client's address; one that `x-forwarded-for` told has no port.
    fn client(&self) -> std::net::SocketAddr {
        let direct = self.downstream.facts.remote;
        match self.remote {
            Some(ip) if ip != direct.ip() => std::net::SocketAddr::new(ip, 0),
            _ => direct,
        }
    }

    /// The far end of the upstream connection, once there was one.
    fn upstream_remote(&self) -> Option<std::net::SocketAddr> {
        self.upstream.local?;
        self.upstream.endpoint.as_ref()?.address.socket()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn text(value: Option<&str>, out: &mut String) -> bool {
    match value {
        Some(value) if !value.is_empty() => {
            out.push_str(value);
            true
        }
        _ => false,
    }
}

fn show(value: impl Display, out: &mut String) -> bool {
    // Writing to a String cannot fail.
    write!(out, "{value}").is_ok()
}

fn header(headers: &HeaderMap, name: &HeaderName, out: &mut String) -> bool {
    let Some(value) = headers.get(name) else { return false };
    match std::str::from_utf8(value.as_bytes()) {
        Ok(value) => text(Some(value), out),
        // As Envoy's JSON does: each byte is a code point.
        Err(_) => {
            out.extend(value.as_bytes().iter().map(|byte| char::from(*byte)));
            true
        }
    }
}

fn list(values: Option<&[Arc<str>]>, out: &mut String) -> bool {
    let Some(values) = values.filter(|values| !values.is_empty()) else { return false };
    for (index, value) in values.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        out.push_str(value);
    }
    true
}

/// A whole number; by hand, because lines are full of them.
fn decimal(number: u64, out: &mut String) -> bool {
    let mut digits = [b'0'; 20];
    let mut first = digits.len();
    let mut left = number;
    for (at, digit) in digits.iter_mut().enumerate().rev() {
        *digit = b'0' + (left % 10) as u8;
        left /= 10;
        first = at;
        if left == 0 {
            break;
        }
    }
    out.push_str(digits.get(first..).and_then(|digits| std::str::from_utf8(digits).ok()).unwrap_or_default());
    true
}

fn address(address: std::net::SocketAddr, part: AddressPart, out: &mut String) -> bool {
    if let (std::net::SocketAddr::V4(v4), AddressPart::Full | AddressPart::WithoutPort) = (address, part) {
        for (place, octet) in v4.ip().octets().into_iter().enumerate() {
            if place > 0 {
                out.push('.');
            }
            decimal(u64::from(octet), out);
        }
        if part == AddressPart::Full {
            out.push(':');
            decimal(u64::from(v4.port()), out);
        }
        return true;
    }
    match part {
        AddressPart::Full => show(address, out),
        AddressPart::WithoutPort => show(address.ip(), out),
        AddressPart::Port => show(address.port(), out),
    }
}

/// A random UUID, version 4.
fn unique_id() -> String {
    let bits = (rand::random::<u128>() & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let part = |shift: u32, mask: u128| (bits >> shift) & mask;
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        part(96, 0xffff_ffff),
        part(80, 0xffff),
        part(64, 0xffff),
        part(48, 0xffff),
        part(0, 0xffff_ffff_ffff)
    )
}

/// The trace id of a W3C `traceparent`, or of B3.
fn trace_id(headers: &HeaderMap) -> Option<&str> {
    let value = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    value("traceparent").and_then(|parent| parent.split('-').nth(1)).or_else(|| value("x-b3-traceid"))
}

fn hostname() -> Option<&'static str> {
    static NAME: OnceLock<Option<String>> = OnceLock::new();
    let read = || Some(std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?.trim().to_owned());
    NAME.get_or_init(read).as_deref()
}

fn time(format: Option<&Arc<str>>, at: SystemTime, out: &mut String) {
    let Some(format) = format else {
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        return out.push_str(clock::DefaultText::of(since.as_secs(), since.subsec_nanos()).as_str());
    };
    thread_local! {
        /// Formats that were read already; there are as many as the configuration has.
        static READ: RefCell<Vec<(Arc<str>, TimeFormat)>> = const { RefCell::new(Vec::new()) };
    }
    READ.with_borrow_mut(|read| {
        let found = read.iter().position(|(held, _)| held == format);
        let index = found.unwrap_or_else(|| {
            if read.len() >= MOST_FORMATS {
                read.clear();
            }
            // A format that cannot be read was refused when the configuration was; the default is better than nothing.
            read.push((Arc::clone(format), TimeFormat::parse(format).unwrap_or(TimeFormat::Default)));
            read.len() - 1
        });
        if let Some((_, format)) = read.get(index) {
            let mut bytes = Vec::with_capacity(40);
            format.write(at, &mut bytes);
            out.push_str(&String::from_utf8_lossy(&bytes));
        }
    });
}

/// Names of the gRPC statuses, by number.
const GRPC: [(&str, &str); 17] = [
    ("OK", "OK"),
    ("Canceled", "CANCELLED"),
    ("Unknown", "UNKNOWN"),
    ("InvalidArgument", "INVALID_ARGUMENT"),
    ("DeadlineExceeded", "DEADLINE_EXCEEDED"),
    ("NotFound", "NOT_FOUND"),
    ("AlreadyExists", "ALREADY_EXISTS"),
    ("PermissionDenied", "PERMISSION_DENIED"),
    ("ResourceExhausted", "RESOURCE_EXHAUSTED"),
    ("FailedPrecondition", "FAILED_PRECONDITION"),
    ("Aborted", "ABORTED"),
    ("OutOfRange", "OUT_OF_RANGE"),
    ("Unimplemented", "UNIMPLEMENTED"),
    ("Internal", "INTERNAL"),
    ("Unavailable", "UNAVAILABLE"),
    ("DataLoss", "DATA_LOSS"),
    ("Unauthenticated", "UNAUTHENTICATED"),
];

fn grpc_status(status: u16, style: GrpcStatusStyle, out: &mut String) -> bool {
    match (style, GRPC.get(usize::from(status))) {
        (GrpcStatusStyle::Camel, Some((camel, _))) => text(Some(camel), out),
        (GrpcStatusStyle::Snake, Some((_, snake))) => text(Some(snake), out),
        (GrpcStatusStyle::Number, _) | (_, None) => show(status, out),
    }
}
