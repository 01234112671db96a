//! What is known about one finished exchange: the one value that metrics, access logs, spans and tap are made from.
//!
//! The data plane fills it while the exchange runs and hands it over exactly once, when the last byte went out or the
//! exchange was given up. Reporting reads it and can never fail or delay the exchange.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, Method, StatusCode};

use super::flags::Flags;

/// What kind of traffic the record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One HTTP request with its answer.
    Http,
    /// One raw TCP connection, reported when it ends.
    Tcp,
}

/// The protocol spoken by the client (`%PROTOCOL%`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    #[default]
    Http11,
    /// HTTP/2, with or without TLS.
    Http2,
    /// Opaque bytes.
    Tcp,
}

impl Protocol {
    /// Envoy's spelling; `None` for raw TCP, where Envoy prints `-`.
    pub fn as_str(self) -> Option<&'static str> {
        match self {
            Self::Http10 => Some("HTTP/1.0"),
            Self::Http11 => Some("HTTP/1.1"),
            Self::Http2 => Some("HTTP/2"),
            Self::Tcp => None,
        }
    }
}

/// Where the client's TLS ended, and who it proved to be.
#[derive(Debug, Clone, Default)]
pub struct PeerTls {
    /// `TLSv1.3`, `TLSv1.2`.
    pub version: &'static str,
    /// The cipher suite in OpenSSL's spelling as Envoy prints it, where known.
    pub cipher: String,
    /// The server name that the client asked for.
    pub sni: Option<String>,
    /// The protocol agreed by ALPN.
    pub alpn: Option<String>,
    /// URI names of the peer's certificate, in the certificate's order (`%DOWNSTREAM_PEER_URI_SAN%`).
    pub uri_sans: Vec<String>,
    /// DNS names of the peer's certificate.
    pub dns_sans: Vec<String>,
    /// Subject of the peer's certificate, RFC 2253.
    pub subject: String,
    /// SHA-256 of the peer's certificate, lower-case hex.
    pub fingerprint: String,
    /// The peer's SPIFFE id, when its certificate was verified and holds exactly one.
    pub identity: Option<String>,
}

/// What is known about the client's connection; shared by all its exchanges.
#[derive(Debug)]
pub struct Downstream {
    /// Unique in this process (`%CONNECTION_ID%`).
    pub connection_id: u64,
    /// Name of the listener that owns the connection (the virtual one where the original destination chose it).
    pub listener: Arc<str>,
    /// Name of the filter chain, empty where it has none.
    pub chain: Arc<str>,
    /// Whether the listener is for traffic into or out of the workload.
    pub direction: Direction,
    /// The address at the other end of the socket (`%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%`); `None` for Unix sockets.
    pub direct_remote: Option<SocketAddr>,
    /// The client's address after PROXY protocol.
    pub remote: Option<SocketAddr>,
    /// The address that the client wanted: the original destination, or the listener's.
    pub local: Option<SocketAddr>,
    /// TLS with the client, when it ended here.
    pub tls: Option<PeerTls>,
    /// The server name seen by the TLS inspector, also when TLS passes through (`%REQUESTED_SERVER_NAME%`).
    pub sni: Option<String>,
}

/// The listener's `traffic_direction`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Direction {
    /// Not said.
    #[default]
    Unspecified,
    /// Into the workload: Istio's `reporter="destination"`.
    Inbound,
    /// Out of the workload: Istio's `reporter="source"`.
    Outbound,
}

/// Who the other workload is, as Istio's peer metadata headers tell it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerMetadata {
    /// `x-envoy-peer-metadata-id`.
    pub id: Option<Arc<str>>,
    /// `x-envoy-peer-metadata`, still base64.
    pub blob: Option<Arc<str>>,
}

/// Where the exchange went.
#[derive(Debug, Clone, Default)]
pub struct Upstream {
    /// The cluster that the route chose, even when no endpoint was reached.
    pub cluster: Option<Arc<str>>,
    /// The last endpoint tried (`%UPSTREAM_HOST%`), as `ip:port` or a Unix path.
    pub host: Option<Arc<str>>,
    /// This end of the upstream connection (`%UPSTREAM_LOCAL_ADDRESS%`).
    pub local: Option<SocketAddr>,
    /// Attempts made, 0 where none was (`%UPSTREAM_REQUEST_ATTEMPT_COUNT%`).
    pub attempts: u32,
    /// Why the transport to the endpoint failed (`%UPSTREAM_TRANSPORT_FAILURE_REASON%`).
    pub transport_failure: Option<Arc<str>>,
    /// Whether the hop was mutual TLS.
    pub mtls: bool,
    /// The identity that the server proved.
    pub identity: Option<Arc<str>>,
    /// Its peer metadata, taken off the response.
    pub peer: PeerMetadata,
}

/// One finished exchange.
#[derive(Debug)]
pub struct Record {
    /// HTTP request or TCP connection.
    pub kind: Kind,
    /// Wall clock at the first byte (`%START_TIME%`).
    pub started_at: SystemTime,
    /// Monotonic clock at the first byte; durations below count from here.
    pub started: Instant,
    /// When the whole request had arrived (`%REQUEST_DURATION%`).
    pub request_complete: Option<Duration>,
    /// When the upstream's response head had arrived (`%RESPONSE_DURATION%`).
    pub response_begun: Option<Duration>,
    /// How long the upstream took to begin its answer, from the last attempt's start (`x-envoy-upstream-service-time`).
    pub upstream_service_time: Option<Duration>,
    /// From the first byte to the end (`%DURATION%`).
    pub duration: Duration,
    /// The client's side.
    pub downstream: Arc<Downstream>,
    /// Protocol of the client's side.
    pub protocol: Protocol,
    /// Request method; `None` for TCP.
    pub method: Option<Method>,
    /// `:path` as the client sent it (`%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%` of the default format).
    pub original_path: Option<Box<str>>,
    /// `:path` as it was forwarded, when a route rewrote it.
    pub path: Option<Box<str>>,
    /// `:authority` as it was forwarded.
    pub authority: Option<Box<str>>,
    /// `http` or `https`, as the client spoke it.
    pub scheme: &'static str,
    /// Request headers as they were forwarded (after all mutations), pseudo headers not included.
    pub request_headers: HeaderMap,
    /// Response headers as sent to the client; empty when nothing wants them (see `Wants`).
    pub response_headers: HeaderMap,
    /// Response trailers, when there were any and something wants them.
    pub response_trailers: HeaderMap,
    /// The status sent to the client; `None` when the client left before.
    pub status: Option<StatusCode>,
    /// `grpc-status` of headers or trailers, for gRPC requests.
    pub grpc_status: Option<u16>,
    /// Whether the request is gRPC by its content type.
    pub grpc: bool,
    /// Body bytes from the client, without framing.
    pub bytes_received: u64,
    /// Body bytes to the client, without framing.
    pub bytes_sent: u64,
    /// Envoy's response flags.
    pub flags: Flags,
    /// `%RESPONSE_CODE_DETAILS%`: `via_upstream`, `rbac_access_denied_matched_policy[NAME]`...
    pub details: Option<Arc<str>>,
    /// `%CONNECTION_TERMINATION_DETAILS%`.
    pub termination: Option<Arc<str>>,
    /// Name of the route that matched.
    pub route: Option<Arc<str>>,
    /// Name of the virtual host that matched.
    pub virtual_host: Option<Arc<str>>,
    /// The line of configuration that decided: a route's or policy's origin.
    pub origin: Option<Arc<str>>,
    /// What shadow (audit) rules would have said: the policy and whether it would have denied.
    pub shadow: Option<(Arc<str>, bool)>,
    /// The server's side.
    pub upstream: Upstream,
    /// The client's workload, from its peer metadata headers.
    pub peer: PeerMetadata,
}

/// What the reporting side needs beyond what every record carries, so that nothing else is copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wants {
    /// Some format names response headers.
    pub response_headers: bool,
    /// Some format names response trailers.
    pub response_trailers: bool,
}
