//! The parser of format strings.

use std::sync::Arc;

use http::HeaderName;

use super::{AddressPart, GrpcStatusStyle, MetadataSource, Operator, Piece, Precision, TimePoint};
use crate::matcher::HeaderKey;

/// Why a format string was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// A percent sign without its partner.
    #[error("the operator that begins with {0:?} has no closing percent sign (write %% for a percent sign)")]
    Open(String),
    /// Not an operator that exists.
    #[error("unknown operator %{0}%")]
    Unknown(String),
    /// An operator used wrongly.
    #[error("operator %{operator}%: {reason}")]
    Argument {
        /// As written.
        operator: String,
        /// What is wrong.
        reason: String,
    },
}

pub(super) fn template(source: &str) -> Result<Vec<Piece>, FormatError> {
    let mut pieces = Vec::new();
    let mut text = String::new();
    let mut rest = source;
    while let Some((before, after)) = rest.split_once('%') {
        text.push_str(before);
        if let Some(after) = after.strip_prefix('%') {
            text.push('%');
            rest = after;
            continue;
        }
        let Some((inside, after)) = close(after) else {
            return Err(FormatError::Open(after.chars().take(20).collect()));
        };
        if !text.is_empty() {
            pieces.push(Piece::Text(std::mem::take(&mut text).into()));
        }
        pieces.push(piece(inside)?);
        rest = after;
    }
    text.push_str(rest);
    if !text.is_empty() {
        pieces.push(Piece::Text(text.into()));
    }
    Ok(pieces)
}

/// Splits at the closing percent sign; one inside parentheses (a time format) does not close.
fn close(text: &str) -> Option<(&str, &str)> {
    let mut depth = 0_u32;
    let at = text.char_indices().find(|(_, c)| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        *c == '%' && depth == 0
    });
    // An unbalanced parenthesis: take the first percent sign, so that the error names the operator.
    let (at, _) = at.or_else(|| text.char_indices().find(|(_, c)| *c == '%'))?;
    Some((text.get(..at)?, text.get(at + 1..)?))
}

fn piece(inside: &str) -> Result<Piece, FormatError> {
    let bad = |reason: &str| FormatError::Argument { operator: inside.to_owned(), reason: reason.to_owned() };
    let name_end = inside.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(inside.len());
    let (name, tail) = inside.split_at_checked(name_end).unwrap_or((inside, ""));
    let (argument, tail) = match tail.strip_prefix('(') {
        None => (None, tail),
        Some(open) => {
            let (argument, tail) = open.rsplit_once(')').ok_or_else(|| bad("a parenthesis is not closed"))?;
            (Some(argument), tail)
        }
    };
    let limit = match tail {
        "" => None,
        _ => {
            let digits = tail.strip_prefix(':').ok_or_else(|| bad("only a length such as `:10` may follow"))?;
            Some(digits.parse().map_err(|_| bad("the length is not a whole number"))?)
        }
    };
    operator(name, argument, inside).map(|operator| Piece::Operator(operator, limit))
}

fn operator(name: &str, argument: Option<&str>, inside: &str) -> Result<Operator, FormatError> {
    let bad = |reason: &str| FormatError::Argument { operator: inside.to_owned(), reason: reason.to_owned() };
    if let Some(simple) = simple(name) {
        return if argument.is_none() { Ok(simple) } else { Err(bad("it takes no argument")) };
    }
    let needed = || argument.filter(|text| !text.is_empty()).ok_or_else(|| bad("it needs an argument"));
    let header = |text: &str| HeaderName::from_bytes(text.trim().as_bytes()).map_err(|_| bad("no such header can be"));
    let key = |text: &str| HeaderKey::parse(text.trim()).ok_or_else(|| bad("no such header can be"));
    let two = |text: &str| -> (String, Option<String>) {
        let (first, second) = text.split_once('?').map_or((text, None), |(first, second)| (first, Some(second)));
        (first.to_owned(), second.map(str::to_owned))
    };
    let format = || argument.filter(|text| !text.is_empty()).map(Arc::from);
    Ok(match name {
        "REQ" | "REQUEST_HEADER" => {
            let (name, otherwise) = two(needed()?);
            Operator::Req { name: key(&name)?, otherwise: otherwise.as_deref().map(key).transpose()? }
        }
        "RESP" | "RESPONSE_HEADER" => {
            let (name, otherwise) = two(needed()?);
            Operator::Resp { name: header(&name)?, otherwise: otherwise.as_deref().map(header).transpose()? }
        }
        "TRAILER" | "RESPONSE_TRAILER" => {
            let (name, otherwise) = two(needed()?);
            Operator::Trailer { name: header(&name)?, otherwise: otherwise.as_deref().map(header).transpose()? }
        }
        "START_TIME" => Operator::StartTime { format: format(), local: false },
        "START_TIME_LOCAL" => Operator::StartTime { format: format(), local: true },
        "EMIT_TIME" => Operator::EmitTime { format: format() },
        "COMMON_DURATION" => common_duration(needed()?).ok_or_else(|| bad("write start:end:precision"))?,
        "ENVIRONMENT" => Operator::Environment(needed()?.into()),
        "DYNAMIC_METADATA" => metadata(MetadataSource::Dynamic, needed()?),
        "CLUSTER_METADATA" => metadata(MetadataSource::Cluster, needed()?),
        "UPSTREAM_METADATA" => metadata(MetadataSource::UpstreamHost, needed()?),
        "METADATA" => typed_metadata(needed()?).ok_or_else(|| bad("write TYPE:namespace:key"))?,
        "FILTER_STATE" => {
            let (key, style) = needed()?.split_once(':').map_or((needed()?, ""), |(key, style)| (key, style));
            Operator::FilterState { key: key.into(), plain: style == "PLAIN" }
        }
        "GRPC_STATUS" => Operator::GrpcStatus(match argument.unwrap_or("CAMEL_STRING") {
            "CAMEL_STRING" | "" => GrpcStatusStyle::Camel,
            "SNAKE_STRING" => GrpcStatusStyle::Snake,
            "NUMBER" => GrpcStatusStyle::Number,
            _ => return Err(bad("write CAMEL_STRING, SNAKE_STRING or NUMBER")),
        }),
        "PATH" => path(argument.unwrap_or_default()).ok_or_else(|| bad("write WQ or NQ, then ORIG or PATH"))?,
        "QUERY_PARAM" => Operator::QueryParam(needed()?.into()),
        _ => return Err(FormatError::Unknown(inside.to_owned())),
    })
}

/// Operators without an argument.
#[rustfmt::skip]
fn simple(name: &str) -> Option<Operator> {
    use AddressPart::{Full, Port, WithoutPort};
    Some(match name {
        "DURATION" => Operator::Duration,
        "REQUEST_DURATION" => Operator::RequestDuration,
        "REQUEST_TX_DURATION" => Operator::RequestTxDuration,
        "RESPONSE_DURATION" => Operator::ResponseDuration,
        "RESPONSE_TX_DURATION" => Operator::ResponseTxDuration,
        "DOWNSTREAM_HANDSHAKE_DURATION" => Operator::DownstreamHandshakeDuration,
        "ROUNDTRIP_DURATION" => Operator::RoundtripDuration,
        "UPSTREAM_CONNECTION_POOL_READY_DURATION" => Operator::UpstreamConnectionPoolReadyDuration,
        "PROTOCOL" => Operator::Protocol,
        "UPSTREAM_PROTOCOL" => Operator::UpstreamProtocol,
        "RESPONSE_CODE" => Operator::ResponseCode,
        "RESPONSE_CODE_DETAILS" => Operator::ResponseCodeDetails,
        "CONNECTION_TERMINATION_DETAILS" => Operator::ConnectionTerminationDetails,
        "RESPONSE_FLAGS" => Operator::ResponseFlags,
        "RESPONSE_FLAGS_LONG" => Operator::ResponseFlagsLong,
        "BYTES_RECEIVED" => Operator::BytesReceived,
        "BYTES_SENT" => Operator::BytesSent,
        "REQUEST_HEADERS_BYTES" => Operator::RequestHeadersBytes,
        "RESPONSE_HEADERS_BYTES" => Operator::ResponseHeadersBytes,
        "RESPONSE_TRAILERS_BYTES" => Operator::ResponseTrailersBytes,
        "UPSTREAM_WIRE_BYTES_SENT" => Operator::UpstreamWireBytesSent,
        "UPSTREAM_WIRE_BYTES_RECEIVED" => Operator::UpstreamWireBytesReceived,
        "UPSTREAM_HEADER_BYTES_SENT" => Operator::UpstreamHeaderBytesSent,
        "UPSTREAM_HEADER_BYTES_RECEIVED" => Operator::UpstreamHeaderBytesReceived,
        "DOWNSTREAM_WIRE_BYTES_SENT" => Operator::DownstreamWireBytesSent,
        "DOWNSTREAM_WIRE_BYTES_RECEIVED" => Operator::DownstreamWireBytesReceived,
        "DOWNSTREAM_HEADER_BYTES_SENT" => Operator::DownstreamHeaderBytesSent,
        "DOWNSTREAM_HEADER_BYTES_RECEIVED" => Operator::DownstreamHeaderBytesReceived,
        "ROUTE_NAME" => Operator::RouteName,
        "VIRTUAL_HOST_NAME" => Operator::VirtualHostName,
        "VIRTUAL_CLUSTER_NAME" => Operator::VirtualClusterName,
        "UPSTREAM_HOST" => Operator::UpstreamHost,
        "UPSTREAM_HOST_NAME" => Operator::UpstreamHostName { without_port: false },
        "UPSTREAM_HOST_NAME_WITHOUT_PORT" => Operator::UpstreamHostName { without_port: true },
        "UPSTREAM_CLUSTER" => Operator::UpstreamCluster,
        "UPSTREAM_CLUSTER_RAW" => Operator::UpstreamClusterRaw,
        "UPSTREAM_LOCAL_ADDRESS" => Operator::UpstreamLocalAddress(Full),
        "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => Operator::UpstreamLocalAddress(WithoutPort),
        "UPSTREAM_LOCAL_PORT" => Operator::UpstreamLocalAddress(Port),
        "UPSTREAM_REMOTE_ADDRESS" => Operator::UpstreamRemoteAddress(Full),
        "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => Operator::UpstreamRemoteAddress(WithoutPort),
        "UPSTREAM_REMOTE_PORT" => Operator::UpstreamRemoteAddress(Port),
        "UPSTREAM_TRANSPORT_FAILURE_REASON" => Operator::UpstreamTransportFailureReason,
        "DOWNSTREAM_TRANSPORT_FAILURE_REASON" => Operator::DownstreamTransportFailureReason,
        "UPSTREAM_REQUEST_ATTEMPT_COUNT" => Operator::UpstreamRequestAttemptCount,
        "UPSTREAM_CONNECTION_ID" => Operator::UpstreamConnectionId,
        "UPSTREAM_TLS_VERSION" => Operator::UpstreamTlsVersion,
        "UPSTREAM_TLS_CIPHER" => Operator::UpstreamTlsCipher,
        "UPSTREAM_PEER_SUBJECT" => Operator::UpstreamPeerSubject,
        "UPSTREAM_PEER_URI_SAN" => Operator::UpstreamPeerUriSan,
        "UPSTREAM_PEER_DNS_SAN" => Operator::UpstreamPeerDnsSan,
        "DOWNSTREAM_LOCAL_ADDRESS" => Operator::DownstreamLocalAddress(Full),
        "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => Operator::DownstreamLocalAddress(WithoutPort),
        "DOWNSTREAM_LOCAL_PORT" => Operator::DownstreamLocalAddress(Port),
        "DOWNSTREAM_DIRECT_LOCAL_ADDRESS" => Operator::DownstreamDirectLocalAddress(Full),
        "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT" => Operator::DownstreamDirectLocalAddress(WithoutPort),
        "DOWNSTREAM_DIRECT_LOCAL_PORT" => Operator::DownstreamDirectLocalAddress(Port),
        "DOWNSTREAM_REMOTE_ADDRESS" => Operator::DownstreamRemoteAddress(Full),
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => Operator::DownstreamRemoteAddress(WithoutPort),
        "DOWNSTREAM_REMOTE_PORT" => Operator::DownstreamRemoteAddress(Port),
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => Operator::DownstreamDirectRemoteAddress(Full),
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT" => Operator::DownstreamDirectRemoteAddress(WithoutPort),
        "DOWNSTREAM_DIRECT_REMOTE_PORT" => Operator::DownstreamDirectRemoteAddress(Port),
        "REQUESTED_SERVER_NAME" => Operator::RequestedServerName,
        "DOWNSTREAM_TLS_VERSION" => Operator::DownstreamTlsVersion,
        "DOWNSTREAM_TLS_CIPHER" => Operator::DownstreamTlsCipher,
        "DOWNSTREAM_TLS_SESSION_ID" => Operator::DownstreamTlsSessionId,
        "DOWNSTREAM_PEER_SUBJECT" => Operator::DownstreamPeerSubject,
        "DOWNSTREAM_PEER_ISSUER" => Operator::DownstreamPeerIssuer,
        "DOWNSTREAM_PEER_SERIAL" => Operator::DownstreamPeerSerial,
        "DOWNSTREAM_PEER_FINGERPRINT_256" => Operator::DownstreamPeerFingerprint256,
        "DOWNSTREAM_PEER_URI_SAN" => Operator::DownstreamPeerUriSan,
        "DOWNSTREAM_PEER_DNS_SAN" => Operator::DownstreamPeerDnsSan,
        "DOWNSTREAM_PEER_CERT_PRESENTED" => Operator::DownstreamPeerCertPresented,
        "DOWNSTREAM_LOCAL_URI_SAN" => Operator::DownstreamLocalUriSan,
        "DOWNSTREAM_LOCAL_DNS_SAN" => Operator::DownstreamLocalDnsSan,
        "DOWNSTREAM_LOCAL_SUBJECT" => Operator::DownstreamLocalSubject,
        "CONNECTION_ID" => Operator::ConnectionId,
        "STREAM_ID" => Operator::StreamId,
        "TRACE_ID" => Operator::TraceId,
        "SPAN_ID" => Operator::SpanId,
        "UNIQUE_ID" => Operator::UniqueId,
        "HOSTNAME" => Operator::Hostname,
        "LOCAL_REPLY_BODY" => Operator::LocalReplyBody,
        "FILTER_CHAIN_NAME" => Operator::FilterChainName,
        "ACCESS_LOG_TYPE" => Operator::AccessLogType,
        "QUERY_PARAMS" => Operator::QueryParams,
        "CUSTOM_FLAGS" => Operator::CustomFlags,
        "GRPC_STATUS_NUMBER" => Operator::GrpcStatus(GrpcStatusStyle::Number),
        _ => return None,
    })
}

fn metadata(source: MetadataSource, argument: &str) -> Operator {
    let mut parts = argument.split(':');
    let space = parts.next().unwrap_or_default().into();
    Operator::Metadata { source, space, path: parts.map(Arc::from).collect() }
}

fn typed_metadata(argument: &str) -> Option<Operator> {
    let (kind, rest) = argument.split_once(':')?;
    let source = match kind {
        "DYNAMIC" => MetadataSource::Dynamic,
        "ROUTE" => MetadataSource::Route,
        "CLUSTER" => MetadataSource::Cluster,
        "UPSTREAM_HOST" => MetadataSource::UpstreamHost,
        "LISTENER" => MetadataSource::Listener,
        "VIRTUAL_HOST" => MetadataSource::VirtualHost,
        _ => return None,
    };
    Some(metadata(source, rest))
}

fn path(argument: &str) -> Option<Operator> {
    let (query, which) = argument.split_once(':').unwrap_or((argument, ""));
    let query = match query {
        "WQ" | "" => true,
        "NQ" => false,
        _ => return None,
    };
    match which {
        "" | "ORIG_OR_PATH" | "ORIG" => Some(Operator::Path { query, original: true }),
        "PATH" => Some(Operator::Path { query, original: false }),
        _ => None,
    }
}

fn common_duration(argument: &str) -> Option<Operator> {
    let mut parts = argument.split(':');
    let mut point = || {
        Some(match parts.next()? {
            "DS_RX_BEG" => TimePoint::DownstreamRxBegin,
            "DS_RX_END" => TimePoint::DownstreamRxEnd,
            "US_CX_BEG" => TimePoint::UpstreamConnectBegin,
            "US_CX_END" => TimePoint::UpstreamConnectEnd,
            "US_HS_END" => TimePoint::UpstreamHandshakeEnd,
            "US_TX_BEG" => TimePoint::UpstreamTxBegin,
            "US_TX_END" => TimePoint::UpstreamTxEnd,
            "US_RX_BEG" => TimePoint::UpstreamRxBegin,
            "US_RX_BODY_BEG" => TimePoint::UpstreamRxBodyBegin,
            "US_RX_END" => TimePoint::UpstreamRxEnd,
            "DS_TX_BEG" => TimePoint::DownstreamTxBegin,
            "DS_TX_END" => TimePoint::DownstreamTxEnd,
            _ => return None,
        })
    };
    let (from, to) = (point()?, point()?);
    let precision = match parts.next().unwrap_or("ms") {
        "ms" => Precision::Milliseconds,
        "us" => Precision::Microseconds,
        "ns" => Precision::Nanoseconds,
        _ => return None,
    };
    Some(Operator::CommonDuration { from, to, precision })
}

#[cfg(test)]
mod tests {
    use super::super::Template;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parses_envoys_default_log_line() {
        let line = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% 100%% %REQ(A):5%\n";
        let pieces = template(line).unwrap();
        assert_eq!(pieces.len(), 13);
        let path = Operator::Req {
            name: HeaderKey::parse("x-envoy-original-path").unwrap(),
            otherwise: Some(HeaderKey::Path),
        };
        assert!(pieces.contains(&Piece::Operator(path, None)));
        assert!(pieces.contains(&Piece::Text(" 100% ".into())));
        assert!(matches!(pieces.get(11), Some(Piece::Operator(Operator::Req { .. }, Some(5)))));
    }

    #[test]
    fn a_time_format_may_have_percent_signs() {
        let pieces = template("%START_TIME(%Y/%m/%dT%H:%M:%S%z %s)%x").unwrap();
        assert_eq!(
            pieces.first(),
            Some(&Piece::Operator(
                Operator::StartTime { format: Some("%Y/%m/%dT%H:%M:%S%z %s".into()), local: false },
                None
            ))
        );
    }

    #[test]
    fn refuses_what_does_not_exist() {
        for bad in
            ["%FOO%", "%REQ%", "%REQ()%", "%DURATION(1)%", "%REQ(A):x%", "%open", "100%", "%REQ(A%", "%METADATA(X:a)%"]
        {
            assert!(template(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "[%A-Z_():?a-z0-9 ä]{0,40}") {
            let _ = Template::parse(&text);
        }
    }
}
