//! Routes: what a VirtualService, a TrafficSplit or an HTTPRoute says about requests to a host.

use std::time::Duration;

use ipnet::IpNet;
use serde::Serialize;

use crate::matching::StringMatch;
use crate::name::Labels;
use crate::origin::Origin;

/// The rules for some hosts (one VirtualService).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RouteTable {
    /// Namespace of the declaring object; short hosts are resolved in it.
    pub namespace: String,
    /// Hosts as written, each a name, a short name or `*.suffix`. Empty for a delegate.
    pub hosts: Vec<String>,
    /// Gateways as written; `mesh` for sidecars. Empty means `mesh`.
    pub gateways: Vec<String>,
    /// Namespaces that may see it; empty means all. `.` was replaced by the own namespace.
    pub export_to: Vec<String>,
    /// HTTP rules in order.
    pub http: Vec<HttpRule>,
    /// Opaque rules in order.
    pub tcp: Vec<L4Rule>,
    /// SNI rules in order.
    pub tls: Vec<L4Rule>,
    /// `metadata.creationTimestamp` as given (RFC 3339), for precedence; empty where unknown.
    pub created: String,
    /// Where it was declared.
    pub origin: Origin,
}

/// One HTTP rule: any of the matches, then one action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HttpRule {
    /// Name, for metrics and logs; may be empty.
    pub name: String,
    /// Any of them; empty matches all.
    pub matches: Vec<HttpMatch>,
    /// What happens.
    pub action: HttpAction,
    /// Whole-request timeout; `None` = none, zero = disabled.
    pub timeout: Option<Duration>,
    /// Retries; `None` = the mesh's default (Istio: 2 attempts on connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes).
    pub retries: Option<RetryPolicy>,
    /// Injected faults.
    pub fault: Option<Fault>,
    /// Mirrors.
    pub mirrors: Vec<Mirror>,
    /// Rewrite.
    pub rewrite: Option<Rewrite>,
    /// CORS.
    pub cors: Option<CorsPolicy>,
    /// Header changes of the rule.
    pub headers: HeaderOps,
    /// The rule's own place.
    pub origin: Origin,
}

/// What an HTTP rule does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum HttpAction {
    /// Forward, split by weight.
    Route(Vec<WeightedDestination>),
    /// Answer 3xx.
    Redirect(Redirect),
    /// Answer at once.
    DirectResponse {
        /// Status, 200..=599.
        status: u16,
        /// Body.
        body: Option<Vec<u8>>,
    },
    /// Rules of another RouteTable (by object name) under this rule's match.
    Delegate {
        /// Name.
        name: String,
        /// Namespace; the declaring object's by default.
        namespace: String,
    },
}

/// All conditions must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct HttpMatch {
    /// Name, for logs.
    pub name: String,
    /// Path (without query).
    pub uri: Option<StringMatch>,
    /// `uri` compares without case (exact and prefix only).
    pub ignore_uri_case: bool,
    /// Scheme.
    pub scheme: Option<StringMatch>,
    /// Method.
    pub method: Option<StringMatch>,
    /// Authority.
    pub authority: Option<StringMatch>,
    /// Headers (lower-case names).
    pub headers: Vec<(String, StringMatch)>,
    /// None of these may match.
    pub without_headers: Vec<(String, StringMatch)>,
    /// Query parameters.
    pub query: Vec<(String, StringMatch)>,
    /// Port the request was sent to.
    pub port: Option<u16>,
    /// Labels of the calling workload.
    pub source_labels: Labels,
    /// Namespace of the calling workload.
    pub source_namespace: Option<String>,
    /// Gateways, replacing the table's.
    pub gateways: Vec<String>,
}

/// A destination as written.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Destination {
    /// Host as written; a short name is resolved in the table's namespace.
    pub host: String,
    /// Subset of its DestinationPolicy.
    pub subset: Option<String>,
    /// Port number; needed when the service has several.
    pub port: Option<u16>,
}

/// A destination, its share and its header changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WeightedDestination {
    /// Where to.
    pub destination: Destination,
    /// Share among the siblings. A single destination without weight has 100.
    pub weight: u32,
    /// Header changes for this share only.
    pub headers: HeaderOps,
}

/// Header changes of requests and responses.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct HeaderOps {
    /// Towards the destination.
    pub request: HeaderChanges,
    /// Towards the caller.
    pub response: HeaderChanges,
}

/// Set (replace), add (append), remove.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct HeaderChanges {
    /// Replace.
    pub set: Vec<(String, String)>,
    /// Append.
    pub add: Vec<(String, String)>,
    /// Remove.
    pub remove: Vec<String>,
}

/// Retries (Istio `HTTPRetry`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RetryPolicy {
    /// Retries after the first try; 0 = none.
    pub attempts: u32,
    /// Time for each try; the rule's timeout where missing.
    pub per_try_timeout: Option<Duration>,
    /// Envoy's retry_on words (numbers are retriable status codes); empty = Istio's default.
    pub retry_on: Vec<String>,
    /// Whether other localities may be tried.
    pub retry_remote_localities: Option<bool>,
    /// Base back-off; 25 ms by default.
    pub backoff: Option<Duration>,
    /// Do not try the same host again (default true).
    pub ignore_previous_hosts: Option<bool>,
}

/// Faults (Istio `HTTPFaultInjection`); percentages in millionths.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Fault {
    /// Wait before forwarding.
    pub delay: Option<FaultDelay>,
    /// Answer instead of forwarding.
    pub abort: Option<FaultAbort>,
}

/// A delay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FaultDelay {
    /// How long.
    pub fixed: Duration,
    /// Share of requests in millionths (1_000_000 = all).
    pub millionths: u32,
}

/// An abort.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FaultAbort {
    /// With what.
    pub with: AbortWith,
    /// Share of requests in millionths.
    pub millionths: u32,
}

/// What an abort answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum AbortWith {
    /// An HTTP status.
    Http(u16),
    /// A gRPC status number.
    Grpc(u32),
}

/// A mirror; percentage in millionths.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mirror {
    /// Where to.
    pub destination: Destination,
    /// Share of requests in millionths.
    pub millionths: u32,
}

/// A redirect (Istio `HTTPRedirect`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Redirect {
    /// Whole path, or (`%PREFIX()%`) prefix.
    pub uri: Option<String>,
    /// Authority.
    pub authority: Option<String>,
    /// Port.
    pub port: Option<RedirectPort>,
    /// Scheme.
    pub scheme: Option<String>,
    /// 301 (default), 302, 303, 307, 308.
    pub code: u16,
}

/// The port of a redirect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum RedirectPort {
    /// A number.
    Number(u16),
    /// The protocol's default (80 or 443): leave it out.
    FromProtocolDefault,
    /// The port of the request.
    FromRequestPort,
}

/// A rewrite (Istio `HTTPRewrite`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Rewrite {
    /// Replaces the matched prefix, or the whole path for exact and regex matches.
    pub uri: Option<String>,
    /// Replaces the authority.
    pub authority: Option<String>,
    /// RE2 match and substitution of the path.
    pub uri_regex: Option<(String, String)>,
}

/// CORS (Istio `CorsPolicy`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct CorsPolicy {
    /// Origins.
    pub allow_origins: Vec<StringMatch>,
    /// Methods.
    pub allow_methods: Vec<String>,
    /// Request headers.
    pub allow_headers: Vec<String>,
    /// Response headers scripts may read.
    pub expose_headers: Vec<String>,
    /// Preflight cache time.
    pub max_age: Option<Duration>,
    /// Cookies.
    pub allow_credentials: Option<bool>,
    /// Whether preflights with unmatched origins are forwarded (`FORWARD`, default) or answered (`IGNORE`).
    pub forward_unmatched_preflights: Option<bool>,
}

/// A rule for connections (Istio `TCPRoute`, `TLSRoute`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct L4Rule {
    /// Any of them; empty matches all.
    pub matches: Vec<L4Match>,
    /// Split by weight.
    pub destinations: Vec<WeightedDestination>,
    /// The rule's own place.
    pub origin: Origin,
}

/// All conditions must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct L4Match {
    /// SNI names (TLS only), with `*.` wildcards.
    pub sni_hosts: Vec<String>,
    /// Destination ranges.
    pub destination_subnets: Vec<IpNet>,
    /// Port the connection was made to.
    pub port: Option<u16>,
    /// Labels of the calling workload.
    pub source_labels: Labels,
    /// Namespace of the calling workload.
    pub source_namespace: Option<String>,
    /// Gateways, replacing the table's.
    pub gateways: Vec<String>,
}
