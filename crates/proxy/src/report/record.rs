//! What is known about one finished exchange: the one value that metrics, access logs, spans and tap are made from.
//!
//! The data plane fills it while the exchange runs and hands it over exactly once, when the last byte went out or the
//! exchange was given up. Reporting reads it and can never fail or delay the exchange.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use engine::decide::Guard;
use engine::decide::Matched;
use engine::facts::Protocol;
use engine::limit::LimitReport;
use engine::metadata::Metadata;
use engine::rbac::RbacReport;
use engine::reply::Flags;
use engine::tracing::TraceReason;
use engine::{Cluster, ConnectionFacts, Endpoint, FilterChain, Listener};
use http::{HeaderMap, Method, StatusCode};

use super::messages::Messages;
use crate::http::text::Text;

/// What kind of traffic the record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One HTTP request with its answer.
    Http,
    /// One raw TCP connection, reported when it ends.
    Tcp,
}

/// What is known about the client's connection; shared by all its exchanges.
#[derive(Debug)]
pub struct Downstream {
    /// Addresses, TLS, the peer's certificate, the connection's number.
    pub facts: ConnectionFacts,
    /// The listener that owns the connection (the virtual one where the original destination chose it).
    pub listener: Arc<Listener>,
    /// The filter chain; `None` when none matched.
    pub chain: Option<Arc<FilterChain>>,
    /// The first URI name of the certificate that this proxy presented (`%DOWNSTREAM_LOCAL_URI_SAN%`).
    pub own_uri: Option<Arc<str>>,
}

impl PeerMetadata {
    /// Takes the headers off a request or answer. What equals `before` (the same connection's last) is not copied.
    pub fn take(headers: &mut HeaderMap, before: &Self) -> Self {
        let mut one = |name, before: &Option<Arc<str>>| {
            let value = headers.remove(name)?;
            let text = value.to_str().ok()?;
            Some(before.as_ref().filter(|held| ***held == *text).map_or_else(|| Arc::from(text), Arc::clone))
        };
        Self { id: one(super::party::PEER_ID, &before.id), blob: one(super::party::PEER_METADATA, &before.blob) }
    }
}

impl Downstream {
    /// The peer's SPIFFE id: its certificate's only URI name, when it is one.
    pub fn identity(&self) -> Option<&Arc<str>> {
        match self.facts.peer.as_ref()?.uri_sans.as_slice() {
            [one] if one.starts_with("spiffe://") => Some(one),
            _ => None,
        }
    }
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
    pub cluster: Option<Arc<Cluster>>,
    /// The cluster's name, also when there is no such cluster.
    pub cluster_name: Option<Arc<str>>,
    /// The last endpoint tried (`%UPSTREAM_HOST%` is its address).
    pub endpoint: Option<Arc<Endpoint>>,
    /// This end of the upstream connection (`%UPSTREAM_LOCAL_ADDRESS%`).
    pub local: Option<SocketAddr>,
    /// Attempts made, 0 where none was (`%UPSTREAM_REQUEST_ATTEMPT_COUNT%`).
    pub attempts: u32,
    /// Why the transport to the endpoint failed (`%UPSTREAM_TRANSPORT_FAILURE_REASON%`).
    pub transport_failure: Option<Arc<str>>,
    /// From the last attempt's start to the head of its answer (`x-envoy-upstream-service-time`).
    pub service_time: Option<Duration>,
    /// Whether the hop is HTTP/2.
    pub h2: bool,
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
    /// From the first byte to the end (`%DURATION%`).
    pub duration: Duration,
    /// The client's side.
    pub downstream: Arc<Downstream>,
    /// Protocol of the client's side; `None` for raw TCP.
    pub protocol: Option<Protocol>,
    /// A filter took the request for a health check: it is not counted among answers, and logs may leave it out.
    pub health_check: bool,
    /// Whether the request is traced, and why.
    pub trace: TraceReason,
    /// The answer tells the request id.
    pub tells_request_id: bool,
    /// Request method; `None` for TCP.
    pub method: Option<Method>,
    /// `:path` as the client sent it (`%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%` of the default format).
    pub original_path: Option<Text>,
    /// `:path` as it was forwarded, when a route rewrote it.
    pub path: Option<Box<str>>,
    /// `:authority` as it was forwarded.
    pub authority: Option<Text>,
    /// The client's address: the peer's, or what trusted `x-forwarded-for` entries say.
    pub remote: Option<IpAddr>,
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
    /// gRPC messages from the client; none counted where the request is not gRPC.
    pub request_messages: Messages,
    /// gRPC messages to the client.
    pub response_messages: Messages,
    /// Envoy's response flags.
    pub flags: Flags,
    /// `%RESPONSE_CODE_DETAILS%`: `via_upstream`, `rbac_access_denied_matched_policy[NAME]`...
    pub details: Option<Arc<str>>,
    /// `%CONNECTION_TERMINATION_DETAILS%`.
    pub termination: Option<Arc<str>>,
    /// The route that matched, with its virtual host and table.
    pub matched: Option<Matched>,
    /// The line of configuration that decided: a route's or policy's origin.
    pub origin: Option<Arc<str>>,
    /// What each authorization filter said, enforced and shadow, in order.
    pub rbac: Vec<RbacReport>,
    /// What token filters and authorizers said, in order.
    pub guards: Vec<Guard>,
    /// What filters that limit requests said, in order.
    pub limits: Vec<LimitReport>,
    /// What filters told those behind them (`%DYNAMIC_METADATA%`).
    pub metadata: Option<Box<Metadata>>,
    /// The body of an answer of the proxy's own while it is brought into its form (`%LOCAL_REPLY_BODY%`).
    pub local_body: Option<Box<str>>,
    /// False: the client went away before the answer was whole.
    pub complete: bool,
    /// The server's side.
    pub upstream: Upstream,
    /// The client's workload, from its peer metadata headers.
    pub peer: PeerMetadata,
}

impl Record {
    /// A record of something that has just begun.
    pub fn begin(kind: Kind, downstream: &Arc<Downstream>, started_at: SystemTime, started: Instant) -> Self {
        Self {
            kind,
            started_at,
            started,
            request_complete: None,
            response_begun: None,
            duration: Duration::ZERO,
            downstream: Arc::clone(downstream),
            protocol: None,
            health_check: false,
            trace: TraceReason::NotTraceable,
            tells_request_id: false,
            method: None,
            original_path: None,
            path: None,
            authority: None,
            remote: None,
            scheme: "http",
            request_headers: HeaderMap::new(),
            response_headers: HeaderMap::new(),
            response_trailers: HeaderMap::new(),
            status: None,
            grpc_status: None,
            grpc: false,
            bytes_received: 0,
            bytes_sent: 0,
            request_messages: Messages::default(),
            response_messages: Messages::default(),
            flags: Flags::NONE,
            details: None,
            termination: None,
            matched: None,
            origin: None,
            rbac: Vec::new(),
            guards: Vec::new(),
            limits: Vec::new(),
            metadata: None,
            local_body: None,
            complete: false,
            upstream: Upstream::default(),
            peer: PeerMetadata::default(),
        }
    }
}

/// What the reporting side needs beyond what every record carries, so that nothing else is copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wants {
    /// Some format names response headers.
    pub response_headers: bool,
    /// Some format names response trailers.
    pub response_trailers: bool,
}
