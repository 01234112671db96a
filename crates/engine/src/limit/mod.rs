//! Limits of requests and connections in this process (`envoy.filters.http.local_ratelimit` and its namesake for connections).

mod bucket;
mod descriptor;
mod limiter;

use std::sync::{Arc, OnceLock};

use http::StatusCode;

pub use bucket::{BucketPlan, TokenBucket};
pub use descriptor::{Action, Descriptor, Hits, RateLimit, Request};
pub use limiter::{DefaultBucket, DescriptorLimit, Limiter, LimiterPlan, Word};

use crate::dice::Fraction;
use crate::moment::Moment;
use crate::routes::HeaderAddition;

/// A limit of requests (`envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit`).
#[derive(Debug)]
pub struct LocalRateLimit {
    /// First part of metric names.
    pub stat_prefix: Arc<str>,
    /// What is answered. Default 429; for gRPC callers the status UNAVAILABLE.
    pub status: StatusCode,
    /// gRPC callers get RESOURCE_EXHAUSTED instead. Default false.
    pub resource_exhausted: bool,
    /// The share of requests that are counted. Default none.
    pub enabled: Fraction,
    /// The share of those above the limit that are refused. Default none.
    pub enforced: Fraction,
    /// Headers for those above the limit that are let pass.
    pub request_headers: Vec<HeaderAddition>,
    /// Headers of the answer to those that are refused.
    pub response_headers: Vec<HeaderAddition>,
    /// What buckets there are.
    pub plan: Arc<LimiterPlan>,
    /// They themselves; all workers share them.
    pub limiter: Limiter,
    /// Each connection has buckets of its own instead. Default false.
    pub per_connection: bool,
    /// Rules that make descriptors; none: those of the route and the virtual host.
    pub rules: Vec<RateLimit>,
    /// Which of the route's rules count. 0 to 10. Default 0.
    pub stage: u32,
    /// Which rules of the virtual host count.
    pub host_rules: HostRules,
    /// Tell clients of the bucket by `x-ratelimit-*` headers. Default false.
    pub told: bool,
    /// Tell those that are refused by 429 when to come again. Default false.
    pub retry_after: bool,
}

/// Which rules of a virtual host count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HostRules {
    /// All, where the route has none.
    #[default]
    Fallback,
    /// All.
    Include,
    /// None.
    Ignore,
}

/// The rules of a route.
#[derive(Debug)]
pub struct RouteRules {
    /// In order.
    pub rules: Vec<RateLimit>,
    /// Those of the virtual host count as well. Default false.
    pub with_host: bool,
}

/// The buckets of one connection. The first filter that wants such makes them, and they serve all others: so does Envoy.
#[derive(Debug, Clone, Default)]
pub struct ConnectionBuckets(OnceLock<Arc<Limiter>>);

impl ConnectionBuckets {
    /// The buckets; full ones by this plan if there are none yet.
    pub(crate) fn get(&self, plan: &Arc<LimiterPlan>) -> &Limiter {
        self.0.get_or_init(|| Arc::new(plan.open()))
    }
}

/// What a filter said of one request, to be counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitReport {
    /// The filter's own, or that of the route's settings.
    pub stat_prefix: Arc<str>,
    /// What it said.
    pub said: LimitSaid,
}

/// What a filter says of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitSaid {
    /// There was a token.
    Ok,
    /// There was none, and it was let pass.
    Limited,
    /// The same, as the descriptor only counts.
    Shadowed,
    /// There was none, and it was refused.
    Refused,
}

/// A limit of new connections (`envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit`).
#[derive(Debug)]
pub struct ConnectionRateLimit {
    /// First part of metric names.
    pub stat_prefix: Arc<str>,
    /// False: it does nothing. Default true.
    pub enabled: bool,
    /// All workers share it, and all filters with the same key.
    pub bucket: Arc<TokenBucket>,
}

impl ConnectionRateLimit {
    /// Whether one more connection may come.
    #[must_use]
    pub fn admits(&self, now: Moment) -> bool {
        !self.enabled || self.bucket.take(1, now)
    }
}
