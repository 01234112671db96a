//! Route tables: virtual hosts, routes, what they match and what they do.

mod action;
mod hosts;
mod index;
mod matching;

use std::sync::Arc;

use http::StatusCode;

pub use action::{
    AppendAction, ClusterChoice, DEFAULT_TIMEOUT, DirectResponse, ForwardAction, HashPolicy, HashSource,
    HeaderAddition, HeaderMutation, HostRewrite, MirrorPolicy, PathChange, Priority, Redirect, RedirectPath,
    RouteAction, Upgrade, WeightedCluster, WeightedClusters,
};
pub use hosts::HostIndex;
pub(crate) use hosts::without_port;
pub use index::RouteIndex;
pub use matching::{PathRule, QueryMatcher, QueryPattern, RouteMatch, TlsContextRule};
pub(crate) use matching::{cookie, parameter};

use crate::cors::CorsPolicy;
use crate::ext_authz::ExtAuthzOverride;
use crate::fault::FaultPolicy;
use crate::jwt::JwtOverride;
use crate::limit::{LocalRateLimit, RateLimit};
use crate::metadata::Metadata;
use crate::mutation::Mutations;
use crate::rbac::HttpRbac;

/// A route table (`envoy.config.route.v3.RouteConfiguration`).
#[derive(Debug)]
pub struct RouteTable {
    /// Its name; RDS goes by it.
    pub name: Arc<str>,
    /// All virtual hosts in order.
    pub virtual_hosts: Vec<Arc<VirtualHost>>,
    /// Which of them a host name means.
    pub hosts: HostIndex,
    /// Header changes for every route.
    pub headers: HeaderMutation,
    /// Apply header changes from the table down to the route (true) or from the route up (false, the default).
    pub most_specific_wins: bool,
    /// Ports in host names do not count when a virtual host is chosen. Default false.
    pub ignore_port: bool,
    /// Filter settings for every route.
    pub filters: FilterOverrides,
    /// Whether clusters named must exist (checked when the table is built into a plan; else 503/404 at run time).
    pub validate_clusters: bool,
    /// Where it came from and more.
    pub metadata: Metadata,
    /// Hash of the resource: equal means unchanged.
    pub version: u64,
}

impl RouteTable {
    /// The virtual host for an authority.
    #[must_use]
    pub fn host(&self, authority: &str) -> Option<&Arc<VirtualHost>> {
        self.hosts.find(authority, self.ignore_port).and_then(|at| self.virtual_hosts.get(at))
    }
}

/// A virtual host.
#[derive(Debug)]
pub struct VirtualHost {
    /// Its name, for metrics and logs.
    pub name: Arc<str>,
    /// Host names it answers to.
    pub domains: Vec<Arc<str>>,
    /// Routes in order; the first that matches is taken.
    pub routes: Vec<Arc<Route>>,
    /// Finds it without trying all.
    pub index: RouteIndex,
    /// Who must use TLS (others are redirected).
    pub require_tls: RequireTls,
    /// Header changes for all its routes.
    pub headers: HeaderMutation,
    /// Filter settings for all its routes.
    pub filters: FilterOverrides,
    /// What requests are counted by, where a filter limits them.
    pub limits: Box<[RateLimit]>,
    /// Send `x-envoy-attempt-count` upstream. Default false.
    pub attempt_count_in_request: bool,
    /// Send `x-envoy-attempt-count` back. Default false.
    pub attempt_count_in_response: bool,
    /// Where it came from and more.
    pub metadata: Metadata,
}

/// Who must use TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RequireTls {
    /// Nobody.
    #[default]
    None,
    /// Clients that are not internal.
    External,
    /// Everybody.
    All,
}

/// One route.
#[derive(Debug)]
pub struct Route {
    /// Its name, for logs; may be empty.
    pub name: Arc<str>,
    /// When it applies.
    pub rule: RouteMatch,
    /// What it does.
    pub action: RouteAction,
    /// Header changes.
    pub headers: HeaderMutation,
    /// Filter settings.
    pub filters: FilterOverrides,
    /// How much of a body is kept for retries and mirrors, bytes; `None`: the listener's limit.
    pub buffer_limit: Option<u64>,
    /// Where it came from and more.
    pub metadata: Metadata,
}

impl Route {
    /// The forwarding settings, if it forwards.
    #[must_use]
    pub fn forward(&self) -> Option<&ForwardAction> {
        match &self.action {
            RouteAction::Forward(action) => Some(action),
            _ => None,
        }
    }
}

/// Settings of filters at one level (table, virtual host, route, weighted cluster), by the filter's name.
#[derive(Debug, Clone, Default)]
pub struct FilterOverrides(pub Vec<(Arc<str>, FilterOverride)>);

/// The setting of one filter.
#[derive(Debug, Clone)]
pub enum FilterOverride {
    /// Off.
    Disabled,
    /// On, with the filter's own settings.
    Enabled,
    /// Other authorization rules; `None`: none, everything passes.
    Rbac(Option<Arc<HttpRbac>>),
    /// A cross-origin policy.
    Cors(Arc<CorsPolicy>),
    /// Another fault.
    Fault(Arc<FaultPolicy>),
    /// What tokens are needed.
    Jwt(JwtOverride),
    /// Whether and how an authorizer is asked.
    ExtAuthz(ExtAuthzOverride),
    /// Further changes of headers, beside those of the filter and of other levels.
    Mutations(Arc<Mutations>),
    /// Another limit of bodies that are waited for, bytes.
    Buffer(u64),
    /// Another limit of requests, with buckets of its own.
    LocalRateLimit(Arc<LocalRateLimit>),
}

impl FilterOverrides {
    /// The setting for a filter.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&FilterOverride> {
        self.0.iter().find(|(known, _)| &**known == name).map(|(_, setting)| setting)
    }
}

/// A status that is never out of range.
pub(crate) fn status(code: u32) -> Option<StatusCode> {
    u16::try_from(code).ok().and_then(|code| StatusCode::from_u16(code).ok())
}
