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
    List(Vec<JsonNode>),
    /// Sorted by key, as Envoy writes them.
    Object(Vec<(Arc<str>, JsonNode)>),
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
#[allow(missing_docs)] // The names are Envoy's own; its documentation is theirs.
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
