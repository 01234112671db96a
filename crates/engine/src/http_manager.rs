//! The HTTP connection manager as running data.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use ipnet::IpNet;

use crate::access_log::AccessLog;
use crate::alpn::AlpnOverrides;
use crate::cors::CorsFilter;
use crate::discovered::DiscoveredFilter;
use crate::ext_authz::ExtAuthz;
use crate::fault::FaultPolicy;
use crate::health_filter::HealthCheckFilter;
use crate::jwt::JwtAuthn;
use crate::limit::LocalRateLimit;
use crate::local_reply::LocalReplies;
use crate::metadata::MetadataAddition;
use crate::mutation::HeaderMutationFilter;
use crate::path::PathOptions;
use crate::rbac::HttpRbac;
use crate::routes::{FilterOverride, RouteTable};
use crate::tracing::Tracing;

/// Everything about HTTP on one filter chain. Routes come from `routes`.
#[derive(Debug)]
pub struct HttpManager {
    /// First part of metric names.
    pub stat_prefix: Arc<str>,
    /// Which versions of HTTP are spoken.
    pub codec: Codec,
    /// The route table, or its name.
    pub routes: RouteSource,
    /// HTTP filters in order, without the router at the end.
    pub filters: Vec<HttpFilter>,
    /// What the router filter was told.
    pub router: RouterOptions,
    /// Path and host canonicalisation.
    pub path: PathOptions,
    /// The peer's address is the client's (true) or `x-forwarded-for` is believed (false, the default).
    pub use_remote_address: bool,
    /// Trusted proxies in front. Default 0.
    pub xff_trusted_hops: u32,
    /// Do not append to `x-forwarded-for`. Default false.
    pub skip_xff_append: bool,
    /// Ranges that count as internal; empty: the private ranges (RFC 1918, RFC 4193) and loopback.
    pub internal_addresses: Vec<IpNet>,
    /// Appended to `via` in both directions.
    pub via: Option<HeaderValue>,
    /// The `server` header. Default `envoy`.
    pub server_name: HeaderValue,
    /// When it is written.
    pub server_header: ServerHeader,
    /// What happens to `x-forwarded-client-cert`.
    pub client_cert: ForwardClientCert,
    /// Make `x-request-id` where absent. Default true.
    pub generate_request_id: bool,
    /// Keep a request id from outside. Default false.
    pub preserve_external_request_id: bool,
    /// Send the request id back. Default false: only where `x-envoy-force-trace` is believed.
    pub request_id_in_response: bool,
    /// Which requests are traced; `None`: none.
    pub tracing: Option<Tracing>,
    /// Whether request ids tell it (`pack_trace_reason`). Default true.
    pub marks_request_ids: bool,
    /// Idle limit of one exchange; `None`: none. Default 5 min.
    pub stream_idle_timeout: Option<Duration>,
    /// Limit for the whole request to arrive; `None`: none.
    pub request_timeout: Option<Duration>,
    /// Limit for the request's head to arrive; `None`: none. Default here 60 s (Envoy: none).
    pub request_headers_timeout: Option<Duration>,
    /// Between GOAWAY and the end of an HTTP/2 connection. Default 5 s.
    pub drain_timeout: Duration,
    /// How long a client that still sends is read from after its last answer, before its connection is closed
    /// (`delayed_close_timeout`): closed at once, it might never see that answer. Zero: not at all. Default 1 s.
    pub delayed_close: Duration,
    /// Limit of a request's head, bytes. Default 60 KiB.
    pub max_request_headers_bytes: u32,
    /// Idle limit of a connection; `None`: none. Default 1 h.
    pub idle_timeout: Option<Duration>,
    /// Limit of a connection's life; `None`: none.
    pub max_connection_duration: Option<Duration>,
    /// Limit of one exchange; `None`: none.
    pub max_stream_duration: Option<Duration>,
    /// Limit of headers in a request. Default 100.
    pub max_headers_count: u32,
    /// Requests on one connection; `None`: any number.
    pub max_requests_per_connection: Option<u32>,
    /// What to do with header names that have an underscore.
    pub underscores: Underscores,
    /// HTTP/1 options.
    pub http1: Http1Options,
    /// HTTP/2 options.
    pub http2: Http2Options,
    /// Upgrades that are allowed, by lower-case name (`websocket`, `connect`).
    pub upgrades: Vec<(Arc<str>, bool)>,
    /// Logs.
    pub access_log: Vec<Arc<AccessLog>>,
    /// The form of the proxy's own answers; `None`: as they are.
    pub local_replies: Option<LocalReplies>,
    /// `100 Continue` and other interim answers are the endpoint's to give and are passed on (`proxy_100_continue`). Default
    /// false: the proxy itself gives clients leave to send, and interim answers end here.
    pub relay_interim: bool,
    /// Overwrite of `:scheme`, if configured.
    pub scheme_overwrite: Option<Arc<str>>,
}

impl HttpManager {
    /// Whether an address counts as internal: only what `internal_address_config` names does. A private address proves
    /// nothing (Envoy believed them until 1.33).
    #[must_use]
    pub fn is_internal(&self, address: IpAddr) -> bool {
        self.internal_addresses.iter().any(|range| range.contains(&address.to_canonical()))
    }

    /// Whether a decision may have to ask outside: fetch keys, ask an authorizer, wait for a body, know how the process does.
    #[must_use]
    pub fn asks(&self) -> bool {
        self.filters.iter().any(|filter| match &filter.kind {
            HttpFilterKind::Jwt(_)
            | HttpFilterKind::ExtAuthz(_)
            | HttpFilterKind::Buffer(_)
            | HttpFilterKind::HealthCheck(_)
            // What a filter that is only named will be told is not known before it comes.
            | HttpFilterKind::Discovered(_) => true,
            HttpFilterKind::Rbac(_)
            | HttpFilterKind::Cors(_)
            | HttpFilterKind::Fault(_)
            | HttpFilterKind::HeaderMutation(_)
            | HttpFilterKind::Metadata(_)
            | HttpFilterKind::LocalRateLimit(_)
            | HttpFilterKind::Alpn(_)
            | HttpFilterKind::GrpcStats
            | HttpFilterKind::Missing
            | HttpFilterKind::Idle => false,
        })
    }

    /// Whether a filter may change answers, an upstream's or the proxy's own.
    #[must_use]
    pub fn changes_answers(&self) -> bool {
        self.filters.iter().any(|filter| {
            matches!(
                filter.kind,
                HttpFilterKind::Cors(_)
                    | HttpFilterKind::HeaderMutation(_)
                    | HttpFilterKind::HealthCheck(_)
                    | HttpFilterKind::Discovered(_)
            )
        })
    }

    /// Whether a filter may change trailers.
    #[must_use]
    pub fn changes_trailers(&self) -> bool {
        let may = |filter: &HttpFilter| {
            matches!(filter.kind, HttpFilterKind::HeaderMutation(_) | HttpFilterKind::Discovered(_))
        };
        self.filters.iter().any(may)
    }

    /// Whether a filter or a header hands the client's certificate on.
    #[must_use]
    pub fn tells_certificate(&self) -> bool {
        let tells = |kind: &HttpFilterKind| match kind {
            HttpFilterKind::ExtAuthz(filter) => filter.peer_certificate,
            HttpFilterKind::Discovered(filter) => filter.may_tell_certificate,
            _ => false,
        };
        self.client_cert.certificate || self.client_cert.chain || self.filters.iter().any(|filter| tells(&filter.kind))
    }

    /// Whether `name` is an upgrade that requests may ask for (a route may say otherwise).
    #[must_use]
    pub fn allows_upgrade(&self, name: &str) -> bool {
        self.upgrades.iter().any(|(known, enabled)| *enabled && known.eq_ignore_ascii_case(name))
    }
}

/// Versions of HTTP on a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// By ALPN, else by the first bytes.
    Auto,
    /// HTTP/1 only.
    Http1,
    /// HTTP/2 only.
    Http2,
}

/// Where routes come from.
#[derive(Debug, Clone)]
pub enum RouteSource {
    /// From the listener itself.
    Inline(Arc<RouteTable>),
    /// From the plan, by name; the plan of the moment has the newest.
    Named(Arc<str>),
}

/// One HTTP filter with its name (per-route overrides go by it).
#[derive(Debug, Clone)]
pub struct HttpFilter {
    /// The filter's name in the configuration.
    pub name: Arc<str>,
    /// Off unless a route says otherwise.
    pub disabled: bool,
    /// What it does.
    pub kind: HttpFilterKind,
}

impl HttpFilter {
    /// Whether it runs for a request whose route says this of it.
    pub(crate) fn is_on(&self, setting: Option<&FilterOverride>) -> bool {
        match setting {
            Some(FilterOverride::Disabled) => false,
            None => !self.disabled,
            Some(_) => true,
        }
    }
}

/// HTTP filters.
#[derive(Debug, Clone)]
pub enum HttpFilterKind {
    /// Authorization.
    Rbac(Arc<HttpRbac>),
    /// Tokens.
    Jwt(Arc<JwtAuthn>),
    /// Authorization by others.
    ExtAuthz(Arc<ExtAuthz>),
    /// Cross-origin requests; its policy is on the routes.
    Cors(CorsFilter),
    /// Fault injection.
    Fault(Arc<FaultPolicy>),
    /// Changes of headers.
    HeaderMutation(Arc<HeaderMutationFilter>),
    /// Metadata for those behind it.
    Metadata(Arc<[MetadataAddition]>),
    /// Whole bodies of requests, of at most so many bytes.
    Buffer(u64),
    /// Answers to health checks.
    HealthCheck(Arc<HealthCheckFilter>),
    /// What upstreams are offered by ALPN.
    Alpn(Arc<AlpnOverrides>),
    /// Limits of requests in this process.
    LocalRateLimit(Arc<LocalRateLimit>),
    /// Counts gRPC messages; the shell's telemetry does so anyway.
    GrpcStats,
    /// Only named here; the plan of the moment knows what it does ([`Plan::kind_of`](crate::Plan::kind_of)).
    Discovered(Arc<DiscoveredFilter>),
    /// What a filter that was only named is until its configuration comes: requests end here.
    Missing,
    /// Does nothing here.
    Idle,
}

/// What the router filter was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RouterOptions {
    /// No `x-envoy-*` headers in either direction. Default false.
    pub suppress_envoy_headers: bool,
}

/// When the `server` header is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerHeader {
    /// Always ours.
    Overwrite,
    /// Ours if the upstream sent none.
    AppendIfAbsent,
    /// The upstream's or none.
    PassThrough,
}

/// What happens to `x-forwarded-client-cert`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForwardClientCert {
    /// The rule.
    pub mode: ForwardClientCertMode,
    /// With `Subject=`.
    pub subject: bool,
    /// With `Issuer=`.
    pub issuer: bool,
    /// With `URI=`.
    pub uri: bool,
    /// With `DNS=`.
    pub dns: bool,
    /// With `Cert=`.
    pub certificate: bool,
    /// With `Chain=`.
    pub chain: bool,
}

/// Rules for `x-forwarded-client-cert`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardClientCertMode {
    /// Remove it.
    Sanitize,
    /// Leave it on mTLS connections, else remove it.
    ForwardOnly,
    /// On mTLS connections append this hop, else remove it.
    AppendForward,
    /// On mTLS connections set it anew, else remove it.
    SanitizeSet,
    /// Leave it.
    AlwaysForwardOnly,
}

/// What to do with header names that have an underscore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Underscores {
    /// Nothing.
    Allow,
    /// Answer 400.
    Reject,
    /// Drop the header.
    Drop,
}

/// HTTP/1 on either side.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Http1Options {
    /// Take HTTP/1.0 requests. Default false.
    pub accept_http_10: bool,
    /// The host of an HTTP/1.0 request without one.
    pub default_host_for_http_10: Option<Arc<str>>,
    /// Write names `Like-This`. Default false.
    pub proper_case: bool,
    /// Take requests with any method, not only those of [`crate::framing::is_known_method`]. Default false.
    pub any_method: bool,
    /// Trailers pass, in both directions; else they are read and forgotten (`enable_trailers`). Default false.
    pub trailers: bool,
    /// Requests whose target is in absolute form are answered 404 (`allow_absolute_url: false`). Default false.
    pub origin_form_only: bool,
}

/// HTTP/2 on either side.
#[derive(Debug, Clone, PartialEq)]
pub struct Http2Options {
    /// HPACK table, bytes. Default 4096.
    pub hpack_table_size: u32,
    /// Streams at once. Default here 1024 (Envoy 1.40: 1024).
    pub max_concurrent_streams: u32,
    /// Window of a stream, bytes. Default 16 MiB.
    pub stream_window: u32,
    /// Window of a connection, bytes. Default 24 MiB.
    pub connection_window: u32,
    /// Take extended CONNECT. Default false.
    pub allow_connect: bool,
    /// Whether the peer is asked if it is still there; `None`: it is not.
    pub keepalive: Option<Keepalive>,
}

/// How an HTTP/2 peer is asked, by PING, whether it is still there (`envoy.config.core.v3.KeepaliveSettings`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Keepalive {
    /// From an answer to the next question; `None`: only where `idle` asks.
    pub interval: Option<Duration>,
    /// By how much intervals are longer by chance, per cent at most. Default 15.
    pub jitter: f64,
    /// How long to wait for an answer; then the connection is lost.
    pub timeout: Duration,
    /// A server that sent nothing for longer than this is asked before a further stream begins; `None`: it is not.
    pub idle: Option<Duration>,
}

impl Default for Http2Options {
    fn default() -> Self {
        Self {
            hpack_table_size: 4096,
            max_concurrent_streams: 1024,
            stream_window: 16 << 20,
            connection_window: 24 << 20,
            allow_connect: false,
            keepalive: None,
        }
    }
}
