//! Envoy's command operators (`%REQ(X?Y):Z%`): one parser for added headers, access logs and local replies.
//!
//! The engine parses and defines what exists; who renders supplies the values through [`Values`].

use std::fmt::Write as _;
use std::sync::Arc;

use http::HeaderName;

use crate::matcher::HeaderKey;

mod parse;

pub use parse::FormatError;

/// A parsed format string.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    pieces: Vec<Piece>,
    source: Arc<str>,
}

/// One part of a format string.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// Text as it stands.
    Text(Arc<str>),
    /// An operator, its value cut to so many bytes if said.
    Operator(Operator, Option<usize>),
}

/// A JSON format: the tree of the configuration with its strings parsed.
#[derive(Debug, Clone, PartialEq)]
pub struct JsonTemplate {
    /// The root object.
    pub root: JsonNode,
    /// Leave out members whose value is absent. Default false: they are null (or `-` inside longer text).
    pub omit_empty: bool,
}

/// One value of a JSON format.
#[derive(Debug, Clone, PartialEq)]
pub enum JsonNode {
    /// A string with operators. One operator alone gives its own type (numbers stay numbers).
    Text(Template),
    /// As configured.
    Number(f64),
    /// As configured.
    Flag(bool),
    /// As configured.
    Null,
    /// In order.
    List(Vec<Self>),
    /// Sorted by key, as Envoy writes them.
    Object(Vec<(Arc<str>, Self)>),
}

/// Which end of a connection, and which part of its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressPart {
    /// Address and port.
    Full,
    /// Address alone.
    WithoutPort,
    /// Port alone.
    Port,
}

/// A place that metadata comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetadataSource {
    /// Set by filters for this request.
    Dynamic,
    /// The route's.
    Route,
    /// The upstream cluster's.
    Cluster,
    /// The upstream endpoint's.
    UpstreamHost,
    /// The listener's.
    Listener,
    /// The virtual host's.
    VirtualHost,
}

/// A point in the life of a request (`%COMMON_DURATION(start:end:precision)%`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimePoint {
    /// DS_RX_BEG
    DownstreamRxBegin,
    /// DS_RX_END
    DownstreamRxEnd,
    /// US_CX_BEG
    UpstreamConnectBegin,
    /// US_CX_END
    UpstreamConnectEnd,
    /// US_HS_END
    UpstreamHandshakeEnd,
    /// US_TX_BEG
    UpstreamTxBegin,
    /// US_TX_END
    UpstreamTxEnd,
    /// US_RX_BEG
    UpstreamRxBegin,
    /// US_RX_BODY_BEG
    UpstreamRxBodyBegin,
    /// US_RX_END
    UpstreamRxEnd,
    /// DS_TX_BEG
    DownstreamTxBegin,
    /// DS_TX_END
    DownstreamTxEnd,
}

/// Units of a duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// ms
    Milliseconds,
    /// us
    Microseconds,
    /// ns
    Nanoseconds,
}

/// How `%GRPC_STATUS%` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrpcStatusStyle {
    /// `PermissionDenied`
    Camel,
    /// `PERMISSION_DENIED`
    Snake,
    /// `7`
    Number,
}

/// The operators that exist. Each variant has the name of Envoy's operator.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "The names are Envoy's own; its documentation is theirs")]
pub enum Operator {
    Req { name: HeaderKey, otherwise: Option<HeaderKey> },
    Resp { name: HeaderName, otherwise: Option<HeaderName> },
    Trailer { name: HeaderName, otherwise: Option<HeaderName> },
    StartTime { format: Option<Arc<str>>, local: bool },
    EmitTime { format: Option<Arc<str>> },
    Duration,
    RequestDuration,
    RequestTxDuration,
    ResponseDuration,
    ResponseTxDuration,
    DownstreamHandshakeDuration,
    RoundtripDuration,
    UpstreamConnectionPoolReadyDuration,
    CommonDuration { from: TimePoint, to: TimePoint, precision: Precision },
    Protocol,
    UpstreamProtocol,
    ResponseCode,
    ResponseCodeDetails,
    ConnectionTerminationDetails,
    ResponseFlags,
    ResponseFlagsLong,
    BytesReceived,
    BytesSent,
    RequestHeadersBytes,
    ResponseHeadersBytes,
    ResponseTrailersBytes,
    UpstreamWireBytesSent,
    UpstreamWireBytesReceived,
    UpstreamHeaderBytesSent,
    UpstreamHeaderBytesReceived,
    DownstreamWireBytesSent,
    DownstreamWireBytesReceived,
    DownstreamHeaderBytesSent,
    DownstreamHeaderBytesReceived,
    RouteName,
    VirtualHostName,
    VirtualClusterName,
    UpstreamHost,
    UpstreamHostName { without_port: bool },
    UpstreamCluster,
    UpstreamClusterRaw,
    UpstreamLocalAddress(AddressPart),
    UpstreamRemoteAddress(AddressPart),
    UpstreamTransportFailureReason,
    DownstreamTransportFailureReason,
    UpstreamRequestAttemptCount,
    UpstreamConnectionId,
    UpstreamTlsVersion,
    UpstreamTlsCipher,
    UpstreamPeerSubject,
    UpstreamPeerUriSan,
    UpstreamPeerDnsSan,
    DownstreamLocalAddress(AddressPart),
    DownstreamDirectLocalAddress(AddressPart),
    DownstreamRemoteAddress(AddressPart),
    DownstreamDirectRemoteAddress(AddressPart),
    RequestedServerName,
    DownstreamTlsVersion,
    DownstreamTlsCipher,
    DownstreamTlsSessionId,
    DownstreamPeerSubject,
    DownstreamPeerIssuer,
    DownstreamPeerSerial,
    DownstreamPeerFingerprint256,
    DownstreamPeerUriSan,
    DownstreamPeerDnsSan,
    DownstreamPeerCertPresented,
    DownstreamLocalUriSan,
    DownstreamLocalDnsSan,
    DownstreamLocalSubject,
    ConnectionId,
    StreamId,
    TraceId,
    SpanId,
    UniqueId,
    Hostname,
    Environment(Arc<str>),
    Metadata { source: MetadataSource, space: Arc<str>, path: Vec<Arc<str>> },
    FilterState { key: Arc<str>, plain: bool },
    GrpcStatus(GrpcStatusStyle),
    LocalReplyBody,
    FilterChainName,
    AccessLogType,
    Path { query: bool, original: bool },
    QueryParam(Arc<str>),
    QueryParams,
    CustomFlags,
}

/// Supplies values for operators.
pub trait Values {
    /// Appends the value of `operator` to `out`; false (and nothing appended) if it is absent.
    fn write(&self, operator: &Operator, out: &mut String) -> bool;
}

impl Template {
    /// Parses a format string. `%%` is a percent sign.
    pub fn parse(source: &str) -> Result<Self, FormatError> {
        parse::template(source).map(|pieces| Self { pieces, source: source.into() })
    }

    /// A template of plain text, whatever characters it has.
    #[must_use]
    pub fn literal(text: &str) -> Self {
        Self { pieces: vec![Piece::Text(text.into())], source: text.into() }
    }

    /// The format string as written.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Its parts.
    #[must_use]
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The text, if it has no operator.
    #[must_use]
    pub fn as_literal(&self) -> Option<&str> {
        match self.pieces.as_slice() {
            [] => Some(""),
            [Piece::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// The operator, if it is one alone.
    #[must_use]
    pub fn as_operator(&self) -> Option<(&Operator, Option<usize>)> {
        match self.pieces.as_slice() {
            [Piece::Operator(operator, limit)] => Some((operator, *limit)),
            _ => None,
        }
    }

    /// Appends the text to `out`; an absent value becomes `absent` (`-` in logs, nothing in headers).
    pub fn render(&self, values: &impl Values, absent: &str, out: &mut String) {
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Operator(operator, limit) => {
                    let start = out.len();
                    if !values.write(operator, out) {
                        out.push_str(absent);
                    }
                    if let Some(limit) = limit {
                        cut(out, start, *limit);
                    }
                }
            }
        }
    }
}

/// Shortens what was written since `start` to `limit` bytes, never inside a character.
fn cut(out: &mut String, start: usize, limit: usize) {
    let mut end = start.saturating_add(limit);
    if end >= out.len() {
        return;
    }
    while !out.is_char_boundary(end) {
        end -= 1;
    }
    out.truncate(end);
}

impl std::fmt::Display for Template {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.source)
    }
}

/// Writes a number; writing to a string cannot fail.
pub(crate) fn push_number(out: &mut String, number: impl std::fmt::Display) {
    let _ = write!(out, "{number}");
}

/// The values that a request alone knows; others (of the upstream, of time) are absent.
#[derive(Debug, Clone, Copy)]
pub struct RequestValues<'a> {
    /// The request.
    pub facts: &'a crate::Facts<'a>,
    /// Its route.
    pub matched: Option<&'a crate::decide::Matched>,
    /// The cluster it goes to.
    pub cluster: Option<&'a crate::Cluster>,
    /// The endpoint it goes to.
    pub endpoint: Option<&'a crate::Endpoint>,
}

impl<'a> RequestValues<'a> {
    /// Of a request that has not gone anywhere yet.
    #[must_use]
    pub const fn of(facts: &'a crate::Facts<'a>, matched: Option<&'a crate::decide::Matched>) -> Self {
        Self { facts, matched, cluster: None, endpoint: None }
    }
}

impl Values for RequestValues<'_> {
    fn write(&self, operator: &Operator, out: &mut String) -> bool {
        let start = out.len();
        self.append(operator, out);
        out.len() > start
    }
}

impl RequestValues<'_> {
    fn append(&self, operator: &Operator, out: &mut String) {
        let connection = self.facts.connection;
        let peer = connection.peer.as_deref();
        match operator {
            Operator::Req { name, otherwise } => {
                let keys = std::iter::once(name).chain(otherwise);
                let found = keys.filter_map(|key| key.value(self.facts)).find(|value| !value.is_empty());
                if let Some(value) = found {
                    out.push_str(&String::from_utf8_lossy(&value));
                }
            }
            Operator::Protocol => out.push_str(self.facts.protocol.name()),
            Operator::Path { query: true, .. } => out.push_str(self.facts.path),
            Operator::Path { query: false, .. } => out.push_str(self.facts.path_only()),
            Operator::QueryParams => out.push_str(self.facts.query().unwrap_or_default()),
            Operator::QueryParam(name) => {
                let value = self.facts.query().and_then(|query| crate::routes::parameter(query, name));
                out.push_str(value.unwrap_or_default());
            }
            Operator::DownstreamRemoteAddress(AddressPart::WithoutPort) => push_number(out, self.facts.remote),
            Operator::DownstreamRemoteAddress(part) => address(out, connection.remote, *part),
            Operator::DownstreamDirectRemoteAddress(part) => address(out, connection.direct_remote, *part),
            Operator::DownstreamLocalAddress(part) => address(out, connection.local, *part),
            Operator::RequestedServerName => out.push_str(connection.server_name.as_deref().unwrap_or_default()),
            Operator::DownstreamTlsVersion => out.push_str(connection.tls_version.unwrap_or_default()),
            Operator::DownstreamTlsCipher => out.push_str(connection.tls_cipher.unwrap_or_default()),
            Operator::DownstreamPeerSubject => out.push_str(peer.map_or("", |peer| &peer.subject)),
            Operator::DownstreamPeerIssuer => out.push_str(peer.map_or("", |peer| &peer.issuer)),
            Operator::DownstreamPeerSerial => out.push_str(peer.map_or("", |peer| &peer.serial)),
            Operator::DownstreamPeerFingerprint256 => out.push_str(peer.map_or("", |peer| &peer.sha256)),
            Operator::DownstreamPeerUriSan => peer.into_iter().for_each(|peer| list(out, &peer.uri_sans)),
            Operator::DownstreamPeerDnsSan => peer.into_iter().for_each(|peer| list(out, &peer.dns_sans)),
            Operator::ConnectionId => push_number(out, connection.id),
            Operator::RouteName => out.push_str(self.matched.map_or("", |matched| &matched.route.name)),
            Operator::VirtualHostName => out.push_str(self.matched.map_or("", |matched| &matched.host.name)),
            Operator::UpstreamCluster | Operator::UpstreamClusterRaw => {
                out.push_str(self.cluster.map_or("", |cluster| cluster.name()));
            }
            Operator::UpstreamHost | Operator::UpstreamRemoteAddress(AddressPart::Full) => {
                self.endpoint.into_iter().for_each(|endpoint| push_number(out, &endpoint.address));
            }
            Operator::UpstreamHostName { .. } => out.push_str(self.endpoint.map_or("", |endpoint| &endpoint.hostname)),
            Operator::Metadata { source, space, path } => self.metadata(*source, space, path, out),
            _ => {}
        }
    }

    fn metadata(&self, source: MetadataSource, space: &str, path: &[Arc<str>], out: &mut String) {
        let metadata = match source {
            MetadataSource::Dynamic => self.facts.metadata,
            MetadataSource::Route => self.matched.map(|matched| &matched.route.metadata),
            MetadataSource::VirtualHost => self.matched.map(|matched| &matched.host.metadata),
            MetadataSource::Cluster => self.cluster.map(|cluster| &cluster.config.metadata),
            MetadataSource::UpstreamHost => self.endpoint.map(|endpoint| &*endpoint.metadata),
            MetadataSource::Listener => None,
        };
        let found = metadata.and_then(|metadata| metadata.find(space, path.iter().map(|key| &**key)));
        match found {
            None => {}
            Some(crate::metadata::Datum::Text(text)) => out.push_str(text),
            Some(other) => push_number(out, other.to_json()),
        }
    }
}

fn address(out: &mut String, address: std::net::SocketAddr, part: AddressPart) {
    match part {
        AddressPart::Full => push_number(out, address),
        AddressPart::WithoutPort => push_number(out, address.ip()),
        AddressPart::Port => push_number(out, address.port()),
    }
}

fn list(out: &mut String, names: &[Arc<str>]) {
    for (at, name) in names.iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        out.push_str(name);
    }
}
