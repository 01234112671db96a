//! What a route does with a request.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, StatusCode};

use super::FilterOverrides;
use crate::dice::Fraction;
use crate::format::Template;
use crate::limit::RouteRules;
use crate::local_reply::BodyFormat;
use crate::matcher::{HeaderKey, PathTemplate, Substitution, TemplateRewrite};
use crate::retry::RetryPolicy;

/// The limit of a whole exchange where a route sets none (Envoy's own default).
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);

/// What a route does.
#[derive(Debug)]
pub enum RouteAction {
    /// Sends the request to a cluster.
    Forward(Box<ForwardAction>),
    /// Answers with a redirect.
    Redirect(Box<Redirect>),
    /// Answers itself.
    Direct(Box<DirectResponse>),
    /// Answers nothing: the request is only authorized (used without a router); 404 here.
    NonForwarding,
}

/// Sending to a cluster.
#[derive(Debug)]
pub struct ForwardAction {
    /// Which cluster.
    pub clusters: ClusterChoice,
    /// The answer when the cluster does not exist. Default 503.
    pub not_found: StatusCode,
    /// Change of the path.
    pub path: Option<PathChange>,
    /// Change of the authority.
    pub host: Option<HostRewrite>,
    /// Keep the old authority in `x-forwarded-host`.
    pub append_forwarded_host: bool,
    /// Limit of the whole exchange with all its retries; `None`: none. Default [`DEFAULT_TIMEOUT`].
    pub timeout: Option<Duration>,
    /// Idle limit of the exchange; outer `None`: the manager's; inner `None`: none.
    pub idle_timeout: Option<Option<Duration>>,
    /// Limit of the stream's life; outer `None`: the manager's; inner `None`: none.
    pub max_stream_duration: Option<Option<Duration>>,
    /// Believe `grpc-timeout` up to this; inner zero: any.
    pub grpc_timeout_max: Option<Duration>,
    /// Taken off the `grpc-timeout`.
    pub grpc_timeout_offset: Option<Duration>,
    /// When to try again; `None`: never.
    pub retry: Option<Arc<RetryPolicy>>,
    /// Copies.
    pub mirrors: Vec<MirrorPolicy>,
    /// Which circuit limits count.
    pub priority: Priority,
    /// What ring hash and Maglev go by, in order.
    pub hash: Vec<HashPolicy>,
    /// Upgrades, for whom the manager's list does not count.
    pub upgrades: Vec<Upgrade>,
    /// What requests are counted by, where a filter limits them.
    pub limits: Option<Box<RouteRules>>,
}

/// An upgrade that a route names (`envoy.config.route.v3.RouteAction.UpgradeConfig`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upgrade {
    /// Its name in lower case; `connect` for the method of that name.
    pub name: Arc<str>,
    /// Whether requests may ask for it. Default true.
    pub enabled: bool,
    /// CONNECT ends here: what the client sends afterwards goes to the endpoint as bytes.
    pub terminate: bool,
}

impl ForwardAction {
    /// What the route says of an upgrade.
    #[must_use]
    pub fn upgrade(&self, name: &str) -> Option<&Upgrade> {
        self.upgrades.iter().find(|upgrade| *upgrade.name == *name)
    }
}

/// Priorities have circuit limits of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Priority {
    /// The usual one.
    #[default]
    Default,
    /// The other one.
    High,
}

/// Which cluster a request goes to.
#[derive(Debug)]
pub enum ClusterChoice {
    /// This one.
    One(Arc<str>),
    /// The one that this request header names.
    Header(HeaderKey),
    /// One of several.
    Weighted(WeightedClusters),
}

/// Several clusters by weight.
#[derive(Debug)]
pub struct WeightedClusters {
    /// The clusters, all with a weight above zero or at least one such.
    pub clusters: Vec<WeightedCluster>,
    /// Sum of the weights, at least 1.
    pub total: u64,
    /// A request header whose number decides instead of chance.
    pub random_header: Option<HeaderName>,
    /// The hash policy decides instead of chance (same key, same cluster).
    pub use_hash: bool,
}

/// One of several clusters.
#[derive(Debug)]
pub struct WeightedCluster {
    /// Its name, or the header that has it.
    pub cluster: Result<Arc<str>, HeaderKey>,
    /// Its share of [`WeightedClusters::total`].
    pub weight: u32,
    /// Header changes.
    pub headers: HeaderMutation,
    /// Filter settings.
    pub filters: FilterOverrides,
    /// New authority.
    pub host: Option<Arc<str>>,
}

impl WeightedClusters {
    /// The cluster at a random point (any number; it is taken modulo the total).
    #[must_use]
    pub fn at(&self, point: u64) -> Option<usize> {
        let mut rest = point.checked_rem(self.total)?;
        self.clusters.iter().position(|cluster| match rest.checked_sub(u64::from(cluster.weight)) {
            None => true,
            Some(less) => {
                rest = less;
                false
            }
        })
    }
}

/// A change of the path.
#[derive(Debug, Clone, PartialEq)]
pub enum PathChange {
    /// What the route's path or prefix matched becomes this.
    Prefix(Arc<str>),
    /// Every match of an expression in the path (without query) is replaced.
    Regex(Substitution),
    /// The template's variables are put into another template.
    Template(Arc<PathTemplate>, TemplateRewrite),
    /// A formatter makes the whole new path; a query in it replaces the old one.
    Format(Template),
}

/// A change of the authority.
#[derive(Debug, Clone, PartialEq)]
pub enum HostRewrite {
    /// This.
    Literal(Arc<str>),
    /// The host name of the endpoint chosen (DNS clusters).
    Auto,
    /// The value of a request header.
    Header(HeaderKey),
    /// What an expression makes of the path (without query).
    PathRegex(Substitution),
}

/// A redirect.
#[derive(Debug, Clone, PartialEq)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
    /// New scheme.
    pub scheme: Option<Arc<str>>,
    /// New host name.
    pub host: Option<Arc<str>>,
    /// New port.
    pub port: Option<u16>,
    /// New path.
    pub path: Option<RedirectPath>,
    /// Drop the query.
    pub strip_query: bool,
}

/// The path of a redirect.
#[derive(Debug, Clone, PartialEq)]
pub enum RedirectPath {
    /// All of it; a query in it replaces the old one.
    Whole(Arc<str>),
    /// A change as for forwarding.
    Change(PathChange),
}

/// An answer of the proxy's own.
#[derive(Debug, Clone)]
pub struct DirectResponse {
    /// Its status.
    pub status: StatusCode,
    /// Its body.
    pub body: bytes::Bytes,
    /// The form of its body; `None`: as it is.
    pub format: Option<Arc<BodyFormat>>,
}

/// A copy of requests to another cluster; the answer is thrown away.
#[derive(Debug, Clone)]
pub struct MirrorPolicy {
    /// Its name, or the header that has it.
    pub cluster: Result<Arc<str>, HeaderKey>,
    /// The share that is copied.
    pub fraction: Fraction,
    /// Leave the authority without `-shadow`. Default false.
    pub keep_host: bool,
}

/// One rule for the hash of a request.
#[derive(Debug, Clone)]
pub struct HashPolicy {
    /// What is hashed.
    pub source: HashSource,
    /// If this gave a hash, the rest is skipped.
    pub terminal: bool,
}

/// What a hash is made of.
#[derive(Debug, Clone)]
pub enum HashSource {
    /// A header's values, optionally after a substitution.
    Header(HeaderKey, Option<Substitution>),
    /// A cookie; with a lifetime it is made where absent.
    Cookie {
        /// Name.
        name: Arc<str>,
        /// Lifetime; `None`: never made; zero: a session cookie.
        ttl: Option<Duration>,
        /// Path attribute.
        path: Arc<str>,
        /// Further attributes, such as `SameSite=Strict`.
        attributes: Vec<(Arc<str>, Arc<str>)>,
    },
    /// The client's address without port.
    SourceIp,
    /// A query parameter.
    Query(Arc<str>),
    /// What a filter left under a key.
    FilterState,
}

/// Header changes at one level.
#[derive(Debug, Clone, Default)]
pub struct HeaderMutation {
    /// Removed from requests first.
    pub request_remove: Vec<HeaderName>,
    /// Then added.
    pub request_add: Vec<HeaderAddition>,
    /// Removed from responses first.
    pub response_remove: Vec<HeaderName>,
    /// Then added.
    pub response_add: Vec<HeaderAddition>,
}

impl HeaderMutation {
    /// Whether it does nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.request_remove.is_empty()
            && self.request_add.is_empty()
            && self.response_remove.is_empty()
            && self.response_add.is_empty()
    }
}

/// One header to add.
#[derive(Debug, Clone)]
pub struct HeaderAddition {
    /// Its name.
    pub name: HeaderName,
    /// Its value.
    pub value: Template,
    /// What happens if it is there.
    pub action: AppendAction,
    /// Add it even if the value is empty. Default false.
    pub keep_empty: bool,
}

/// What happens to a header that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppendAction {
    /// One more value.
    Append,
    /// It stays as it is.
    AddIfAbsent,
    /// It is replaced.
    Overwrite,
    /// It is replaced, and not added where absent.
    OverwriteIfExists,
}
