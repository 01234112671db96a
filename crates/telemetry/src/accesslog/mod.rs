//! Access logs in Envoy's format language: parsed once, written per exchange without a template engine.
//!
//! A [`Format`] is text or JSON; its operators (`%REQ(:METHOD)%`, `%DURATION%`, ...) ask an [`Exchange`] for
//! values. Lines go to a [`Sink`], which a thread of its own empties into a file.

pub mod clock;
mod format;
mod json;
mod operator;
pub mod sink;

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use http::HeaderName;

pub use format::{Format, FormatError};
pub use operator::{MetadataKind, Moment};
pub use sink::{Sink, Sinks};

use crate::flags::Flags;

/// Envoy's default format (its documentation, "Default format string"), without the line's end.
pub const ENVOY_DEFAULT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
    %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \
    \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n";

/// Istio's default format (istio.io, "Default access log format").
pub const ISTIO_DEFAULT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
    %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \
    \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
    %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \
    \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% \
    %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";

/// A value of an exchange.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// Not known: `-` in text, `null` in JSON.
    Missing,
    /// Bytes as they came; JSON writes what is not UTF-8 escaped.
    Bytes(Cow<'a, [u8]>),
    /// A whole number.
    Number(u64),
    /// A JSON value (metadata).
    Json(serde_json::Value),
}

impl<'a> Value<'a> {
    /// A text, or [`Value::Missing`] when there is none or it is empty.
    pub fn text(text: Option<&'a str>) -> Self {
        match text {
            Some(text) if !text.is_empty() => Self::Bytes(Cow::Borrowed(text.as_bytes())),
            _ => Self::Missing,
        }
    }

    /// A text made for this line.
    pub fn made(text: Option<String>) -> Self {
        match text {
            Some(text) if !text.is_empty() => Self::Bytes(Cow::Owned(text.into_bytes())),
            _ => Self::Missing,
        }
    }

    /// A number, or [`Value::Missing`].
    pub fn number(number: Option<u64>) -> Self {
        number.map_or(Self::Missing, Self::Number)
    }
}

/// Something that an operator names and an exchange knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each is Envoy's operator of the same name, in its documentation")]
pub enum Field {
    Method,
    /// The path as it was forwarded, with its query.
    Path,
    /// The path as the client sent it, where a route rewrote it (`x-envoy-original-path`).
    OriginalPath,
    Authority,
    Scheme,
    Protocol,
    UpstreamProtocol,
    ResponseCode,
    ResponseCodeDetails,
    ConnectionTerminationDetails,
    GrpcStatus,
    BytesReceived,
    BytesSent,
    UpstreamHost,
    UpstreamHostName,
    UpstreamCluster,
    UpstreamLocalAddress,
    UpstreamRemoteAddress,
    UpstreamTransportFailureReason,
    UpstreamRequestAttemptCount,
    UpstreamConnectionId,
    UpstreamPeerUriSan,
    UpstreamPeerSubject,
    UpstreamTlsVersion,
    UpstreamTlsCipher,
    UpstreamWireBytesReceived,
    UpstreamWireBytesSent,
    UpstreamHeaderBytesReceived,
    UpstreamHeaderBytesSent,
    DownstreamLocalAddress,
    DownstreamRemoteAddress,
    DownstreamDirectRemoteAddress,
    DownstreamPeerUriSan,
    DownstreamPeerDnsSan,
    DownstreamPeerSubject,
    DownstreamPeerIssuer,
    DownstreamPeerSerial,
    DownstreamPeerFingerprint256,
    DownstreamPeerCertVStart,
    DownstreamPeerCertVEnd,
    DownstreamLocalUriSan,
    DownstreamLocalSubject,
    DownstreamTlsVersion,
    DownstreamTlsCipher,
    DownstreamTlsSessionId,
    DownstreamTransportFailureReason,
    DownstreamWireBytesReceived,
    DownstreamWireBytesSent,
    DownstreamHeaderBytesReceived,
    DownstreamHeaderBytesSent,
    ConnectionId,
    RequestedServerName,
    RouteName,
    VirtualHostName,
    VirtualClusterName,
    FilterChainName,
    StreamId,
    TraceId,
    LocalReplyBody,
    /// What `x-tulle-id` says of this exchange.
    TulleId,
    /// Why the mesh answered or failed, in words.
    TulleReason,
    /// The policy that decided.
    Policy,
}

/// What a finished exchange answers to a format's operators.
pub trait Exchange {
    /// Wall clock when it began.
    fn started(&self) -> SystemTime;

    /// How long after its beginning something happened; `None` when it did not.
    fn moment(&self, moment: Moment) -> Option<Duration>;

    /// Response flags.
    fn flags(&self) -> Flags;

    /// One known thing.
    fn field(&self, field: Field) -> Value<'_>;

    /// The first value of a request header.
    fn request_header(&self, name: &HeaderName) -> Option<&[u8]>;

    /// The first value of a response header.
    fn response_header(&self, name: &HeaderName) -> Option<&[u8]>;

    /// The first value of a response trailer.
    fn response_trailer(&self, name: &HeaderName) -> Option<&[u8]>;

    /// Metadata of a filter, route, cluster or endpoint: namespace and the keys into it.
    fn metadata(&self, kind: MetadataKind, namespace: &str, keys: &[String]) -> Value<'_> {
        let _ = (kind, namespace, keys);
        Value::Missing
    }
}

#[cfg(test)]
mod tests;
