//! Permissions and principals: compiled predicates over a request or a connection.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::facts::{ConnectionFacts, Facts};
use crate::matcher::{HeaderMatcher, MetadataMatcher, PathTemplate, StringMatcher};
use crate::metadata::Metadata;

/// What is judged: a request, or a connection before any request.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The connection.
    pub connection: &'a ConnectionFacts,
    /// The request, if there is one.
    pub request: Option<&'a Facts<'a>>,
    /// Metadata of the route that was chosen.
    pub route: Option<&'a Metadata>,
    /// The request's path without its query: many rules ask for it.
    pub path: Option<&'a str>,
}

impl<'a> Subject<'a> {
    /// A connection before any request; rules about requests do not hold.
    #[must_use]
    pub const fn connection(connection: &'a ConnectionFacts) -> Self {
        Self { connection, request: None, route: None, path: None }
    }

    /// A request.
    #[must_use]
    pub fn request(facts: &'a Facts<'a>) -> Self {
        Self { connection: facts.connection, request: Some(facts), route: None, path: Some(facts.path_only()) }
    }

    fn metadata(&self) -> Option<&'a Metadata> {
        self.request.and_then(|facts| facts.metadata)
    }

    pub(super) fn remote(&self) -> IpAddr {
        self.request.map_or_else(|| self.connection.remote.ip(), |facts| facts.remote)
    }
}

/// What is asked for.
#[derive(Debug, Clone)]
pub enum Permission {
    /// All hold.
    And(Vec<Self>),
    /// One holds.
    Or(Vec<Self>),
    /// It does not hold.
    Not(Box<Self>),
    /// Always.
    Any,
    /// A request header.
    Header(HeaderMatcher),
    /// The path without query.
    Path(StringMatcher),
    /// A URI template over the path without query.
    Template(Arc<PathTemplate>),
    /// Destination address.
    DestinationIp(IpNet),
    /// Destination port.
    DestinationPort(u16),
    /// Destination port in [start, end).
    DestinationPortRange(u32, u32),
    /// TLS server name.
    ServerName(StringMatcher),
    /// Dynamic metadata.
    Metadata(MetadataMatcher),
    /// Metadata of the route.
    RouteMetadata(MetadataMatcher),
}

/// Who asks.
#[derive(Debug, Clone)]
pub enum Principal {
    /// All hold.
    And(Vec<Self>),
    /// One holds.
    Or(Vec<Self>),
    /// It does not hold.
    Not(Box<Self>),
    /// Always.
    Any,
    /// A client with a verified certificate; with a matcher: of such a name.
    Authenticated(Option<StringMatcher>),
    /// The connection's source after a PROXY header.
    SourceIp(IpNet),
    /// The TCP peer.
    DirectRemoteIp(IpNet),
    /// The client as `x-forwarded-for` says, where it is believed.
    RemoteIp(IpNet),
    /// A request header.
    Header(HeaderMatcher),
    /// The path without query.
    Path(StringMatcher),
    /// Dynamic metadata.
    Metadata(MetadataMatcher),
    /// Metadata of the route.
    RouteMetadata(MetadataMatcher),
}

impl Permission {
    /// Whether it holds.
    #[must_use]
    pub fn holds(&self, subject: &Subject<'_>) -> bool {
        match self {
            Self::And(all) => all.iter().all(|rule| rule.holds(subject)),
            Self::Or(any) => any.iter().any(|rule| rule.holds(subject)),
            Self::Not(rule) => !rule.holds(subject),
            Self::Any => true,
            Self::Header(matcher) => header(matcher, subject),
            Self::Path(matcher) => path(matcher, subject),
            Self::Template(template) => subject.path.is_some_and(|path| template.matches(path)),
            Self::DestinationIp(range) => contains(range, subject.connection.local.ip()),
            Self::DestinationPort(port) => subject.connection.local.port() == *port,
            Self::DestinationPortRange(start, end) => {
                (*start..*end).contains(&u32::from(subject.connection.local.port()))
            }
            Self::ServerName(matcher) => matcher.matches(subject.connection.server_name.as_deref().unwrap_or_default()),
            Self::Metadata(matcher) => matcher.matches(subject.metadata()),
            Self::RouteMetadata(matcher) => matcher.matches(subject.route),
        }
    }
}

impl Principal {
    /// Whether it holds.
    #[must_use]
    pub fn holds(&self, subject: &Subject<'_>) -> bool {
        match self {
            Self::And(all) => all.iter().all(|rule| rule.holds(subject)),
            Self::Or(any) => any.iter().any(|rule| rule.holds(subject)),
            Self::Not(rule) => !rule.holds(subject),
            Self::Any => true,
            Self::Authenticated(name) => authenticated(name.as_ref(), subject.connection),
            Self::SourceIp(range) => contains(range, subject.connection.remote.ip()),
            Self::DirectRemoteIp(range) => contains(range, subject.connection.direct_remote.ip()),
            Self::RemoteIp(range) => contains(range, subject.remote()),
            Self::Header(matcher) => header(matcher, subject),
            Self::Path(matcher) => path(matcher, subject),
            Self::Metadata(matcher) => matcher.matches(subject.metadata()),
            Self::RouteMetadata(matcher) => matcher.matches(subject.route),
        }
    }
}

/// A connection has no headers: they are all missing.
fn header(matcher: &HeaderMatcher, subject: &Subject<'_>) -> bool {
    match subject.request {
        Some(facts) => matcher.matches_one(facts),
        None => matcher.matches_in(&http::HeaderMap::new()),
    }
}

fn path(matcher: &StringMatcher, subject: &Subject<'_>) -> bool {
    subject.path.is_some_and(|path| matcher.matches(path))
}

/// As Envoy: without a matcher any TLS connection that the listener accepted; else one of the URI names, one of the DNS
/// names, or the subject.
fn authenticated(name: Option<&StringMatcher>, connection: &ConnectionFacts) -> bool {
    if !connection.tls {
        return false;
    }
    let Some(matcher) = name else { return true };
    let Some(peer) = connection.peer.as_deref() else { return matcher.matches("") };
    peer.uri_sans.iter().chain(&peer.dns_sans).any(|san| matcher.matches(san)) || matcher.matches(&peer.subject)
}

fn contains(range: &IpNet, address: IpAddr) -> bool {
    range.contains(&address.to_canonical())
}
