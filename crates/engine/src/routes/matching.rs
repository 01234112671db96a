//! When a route applies.

use std::borrow::Cow;
use std::sync::Arc;

use crate::dice::{Dice, Fraction};
use crate::facts::Facts;
use crate::matcher::{HeaderMatcher, MetadataMatcher, PathTemplate, Pattern, StringMatcher};

/// When a route applies: every part must hold.
#[derive(Debug, Clone)]
pub struct RouteMatch {
    /// The path.
    pub path: PathRule,
    /// Letters of the path compare with case. Default true. Has no effect on expressions and templates.
    pub case_sensitive: bool,
    /// Headers.
    pub headers: Vec<HeaderMatcher>,
    /// Query parameters.
    pub query: Vec<QueryMatcher>,
    /// Cookies by name.
    pub cookies: Vec<(Arc<str>, StringMatcher, bool)>,
    /// Only gRPC requests.
    pub grpc: bool,
    /// Only this share of requests.
    pub fraction: Option<Fraction>,
    /// The client's certificate.
    pub tls: Option<TlsContextRule>,
    /// Dynamic metadata.
    pub metadata: Vec<MetadataMatcher>,
}

/// The path part of a rule.
#[derive(Debug, Clone, PartialEq)]
pub enum PathRule {
    /// Begins with, as text.
    Prefix(Arc<str>),
    /// Equal.
    Exact(Arc<str>),
    /// Begins with, and a slash or the end follows.
    SeparatedPrefix(Arc<str>),
    /// The whole path matches an expression.
    Regex(Pattern),
    /// The whole path matches a template.
    Template(Arc<PathTemplate>),
    /// A CONNECT request (any path).
    Connect,
}

/// A rule about one query parameter.
#[derive(Debug, Clone, PartialEq)]
pub struct QueryMatcher {
    /// Name, with case.
    pub name: Arc<str>,
    /// What it must be.
    pub pattern: QueryPattern,
}

/// The kinds of query rules.
#[derive(Debug, Clone, PartialEq)]
pub enum QueryPattern {
    /// There (true) or absent (false).
    Present(bool),
    /// The first value as a string.
    Value(StringMatcher),
}

/// A rule about the client's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TlsContextRule {
    /// Whether it was presented.
    pub presented: Option<bool>,
    /// Whether it was verified.
    pub validated: Option<bool>,
}

impl RouteMatch {
    /// A rule that matches every request.
    #[must_use]
    pub fn any() -> Self {
        Self {
            path: PathRule::Prefix(Arc::from("/")),
            case_sensitive: true,
            headers: Vec::new(),
            query: Vec::new(),
            cookies: Vec::new(),
            grpc: false,
            fraction: None,
            tls: None,
            metadata: Vec::new(),
        }
    }

    /// Whether the request follows the whole rule.
    #[must_use]
    pub fn matches(&self, facts: &Facts<'_>, dice: &mut Dice) -> bool {
        self.path.matches(facts, self.case_sensitive) && self.matches_rest(facts, dice)
    }

    /// The same but for the path, which the index has already compared.
    #[must_use]
    pub fn matches_rest(&self, facts: &Facts<'_>, dice: &mut Dice) -> bool {
        self.headers.iter().all(|rule| rule.matches(facts))
            && (self.query.is_empty() || self.query.iter().all(|rule| rule.matches(facts.query())))
            && (!self.grpc || facts.is_grpc())
            && self.cookies.iter().all(|(name, rule, invert)| cookie_matches(facts, name, rule, *invert))
            && self.tls.is_none_or(|rule| rule.matches(facts))
            && self.metadata.iter().all(|rule| rule.matches(facts.metadata))
            && self.fraction.is_none_or(|share| dice.hits(share))
    }
}

impl PathRule {
    /// Whether the request's path follows the rule.
    #[must_use]
    pub fn matches(&self, facts: &Facts<'_>, case_sensitive: bool) -> bool {
        if *self == Self::Connect {
            return facts.method == "CONNECT";
        }
        // A CONNECT request has no path that other rules could mean.
        if facts.path.is_empty() {
            return false;
        }
        let path = facts.path_only();
        match self {
            Self::Prefix(text) => begins(path, text, case_sensitive),
            Self::Exact(text) if case_sensitive => path == &**text,
            Self::Exact(text) => path.eq_ignore_ascii_case(text),
            Self::SeparatedPrefix(text) => {
                begins(path, text, case_sensitive) && matches!(path.as_bytes().get(text.len()), None | Some(b'/'))
            }
            Self::Regex(pattern) => pattern.matches(path.as_bytes()),
            Self::Template(template) => template.matches(path),
            Self::Connect => false,
        }
    }
}

impl std::fmt::Display for PathRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Prefix(text) => write!(f, "prefix {text:?}"),
            Self::Exact(text) => write!(f, "path {text:?}"),
            Self::SeparatedPrefix(text) => write!(f, "path prefix {text:?}"),
            Self::Regex(pattern) => write!(f, "regex {:?}", pattern.source()),
            Self::Template(template) => write!(f, "template {:?}", template.source()),
            Self::Connect => f.write_str("CONNECT"),
        }
    }
}

impl QueryMatcher {
    /// Whether a query string follows the rule; values are taken as sent, without decoding.
    #[must_use]
    pub fn matches(&self, query: Option<&str>) -> bool {
        let found = query.and_then(|query| parameter(query, &self.name));
        match &self.pattern {
            QueryPattern::Present(wanted) => found.is_some() == *wanted,
            QueryPattern::Value(matcher) => found.is_some_and(|value| matcher.matches(value)),
        }
    }
}

impl TlsContextRule {
    fn matches(self, facts: &Facts<'_>) -> bool {
        let peer = facts.connection.peer.as_deref();
        self.presented.is_none_or(|wanted| peer.is_some() == wanted)
            && self.validated.is_none_or(|wanted| peer.is_some_and(|peer| peer.validated) == wanted)
    }
}

/// The first value of a query parameter, as sent.
#[must_use]
pub(crate) fn parameter<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.into_iter().find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// The first value of a request's cookie, without quotes around it.
#[must_use]
pub(crate) fn cookie<'a>(facts: &Facts<'a>, name: &str) -> Option<&'a str> {
    let headers = facts.headers.get_all(http::header::COOKIE).iter();
    headers
        .filter_map(|value| std::str::from_utf8(value.as_bytes()).ok())
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value))
}

fn cookie_matches(facts: &Facts<'_>, name: &str, rule: &StringMatcher, invert: bool) -> bool {
    cookie(facts, name).map_or(invert, |value| rule.matches(value) != invert)
}

fn begins(path: &str, prefix: &str, case_sensitive: bool) -> bool {
    let part = path.as_bytes().get(..prefix.len());
    part.is_some_and(|part| {
        if case_sensitive { part == prefix.as_bytes() } else { part.eq_ignore_ascii_case(prefix.as_bytes()) }
    })
}

/// Lower case for an index, without a copy where nothing changes.
pub(crate) fn folded(text: &str) -> Cow<'_, str> {
    if text.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(text.to_ascii_lowercase())
    } else {
        Cow::Borrowed(text)
    }
}
