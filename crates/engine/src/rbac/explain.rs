//! Why rules decided as they did.

use std::fmt;
use std::sync::Arc;

use super::{Action, Permission, Principal, Rules, Subject, Verdict};
use crate::matcher::HeaderMatcher;

/// Why one set of policies decided as it did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// The set's action.
    pub action: Action,
    /// The decision, the same that [`Rules::judge`] gives.
    pub verdict: Verdict,
    /// Every policy, also those after the one that matched.
    pub policies: Vec<PolicyTrace>,
}

/// How one policy fared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyTrace {
    /// Its name.
    pub name: Arc<str>,
    /// Whether it matched.
    pub matched: bool,
    /// Its permissions: one must hold.
    pub permissions: Vec<RuleTrace>,
    /// Its principals: one must hold.
    pub principals: Vec<RuleTrace>,
}

/// How one permission or principal fared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleTrace {
    /// The rule, such as `path prefix "/a" and header :method exact "GET"`.
    pub rule: String,
    /// Whether it held.
    pub held: bool,
    /// If not: the first predicate inside that failed, and what was found instead, such as
    /// `path exact "/a", but it is "/b"`.
    pub failed: Option<String>,
}

impl Rules {
    /// Decides as [`Rules::judge`] does and says why.
    #[must_use]
    pub fn explain(&self, subject: &Subject<'_>) -> Trace {
        let policies = self.policies.iter().map(|policy| PolicyTrace {
            name: policy.name.clone(),
            matched: policy.matches(subject),
            permissions: policy.permissions.iter().map(|rule| trace(rule, rule.failure(subject))).collect(),
            principals: policy.principals.iter().map(|rule| trace(rule, rule.failure(subject))).collect(),
        });
        Trace { action: self.action, policies: policies.collect(), verdict: self.judge(subject) }
    }
}

fn trace(rule: &impl fmt::Display, failed: Option<String>) -> RuleTrace {
    RuleTrace { rule: rule.to_string(), held: failed.is_none(), failed }
}

impl Permission {
    /// Why it does not hold; `None` if it does.
    fn failure(&self, subject: &Subject<'_>) -> Option<String> {
        if self.holds(subject) {
            return None;
        }
        Some(match self {
            Self::And(all) => return all.iter().find_map(|rule| rule.failure(subject)),
            Self::Or(any) => alternatives(any.iter().filter_map(|rule| rule.failure(subject))),
            Self::Not(rule) => format!("must not be: {rule}"),
            Self::Any => String::new(),
            Self::Header(matcher) => format!("{self}, but {}", found_header(matcher, subject)),
            Self::Path(_) | Self::Template(_) => format!("{self}, but {}", found_path(subject)),
            Self::DestinationIp(_) => format!("{self}, but it is {}", subject.connection.local.ip()),
            Self::DestinationPort(_) | Self::DestinationPortRange(..) => {
                format!("{self}, but it is {}", subject.connection.local.port())
            }
            Self::ServerName(_) => match subject.connection.server_name.as_deref() {
                Some(name) => format!("{self}, but it is {name:?}"),
                None => format!("{self}, but there is none"),
            },
            Self::Metadata(_) | Self::RouteMetadata(_) => self.to_string(),
        })
    }
}

impl Principal {
    /// Why it does not hold; `None` if it does.
    fn failure(&self, subject: &Subject<'_>) -> Option<String> {
        if self.holds(subject) {
            return None;
        }
        Some(match self {
            Self::And(all) => return all.iter().find_map(|rule| rule.failure(subject)),
            Self::Or(any) => alternatives(any.iter().filter_map(|rule| rule.failure(subject))),
            Self::Not(rule) => format!("must not be: {rule}"),
            Self::Any => String::new(),
            Self::Authenticated(_) => format!("{self}, but {}", found_peer(subject)),
            Self::SourceIp(_) => format!("{self}, but it is {}", subject.connection.remote.ip()),
            Self::DirectRemoteIp(_) => format!("{self}, but it is {}", subject.connection.direct_remote.ip()),
            Self::RemoteIp(_) => format!("{self}, but it is {}", subject.remote()),
            Self::Header(matcher) => format!("{self}, but {}", found_header(matcher, subject)),
            Self::Path(_) => format!("{self}, but {}", found_path(subject)),
            Self::Metadata(_) | Self::RouteMetadata(_) => self.to_string(),
        })
    }
}

fn alternatives(reasons: impl Iterator<Item = String>) -> String {
    reasons.collect::<Vec<_>>().join("; ")
}

fn found_header(matcher: &HeaderMatcher, subject: &Subject<'_>) -> String {
    match subject.request.map(|facts| matcher.key.value(facts)) {
        None => "this is no HTTP request".to_owned(),
        Some(None) => "it is absent".to_owned(),
        Some(Some(value)) => format!("it is {:?}", String::from_utf8_lossy(&value)),
    }
}

fn found_path(subject: &Subject<'_>) -> String {
    match subject.request {
        None => "this is no HTTP request".to_owned(),
        Some(facts) => format!("it is {:?}", facts.path_only()),
    }
}

fn found_peer(subject: &Subject<'_>) -> String {
    if !subject.connection.tls {
        return "the connection is not TLS".to_owned();
    }
    let Some(peer) = subject.connection.peer.as_deref() else {
        return "the client presented no certificate".to_owned();
    };
    let names: Vec<&str> = peer.uri_sans.iter().chain(&peer.dns_sans).map(|name| &**name).collect();
    if names.is_empty() {
        format!("the client is {:?}", &*peer.subject)
    } else {
        format!("the client is {}", names.join(", "))
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::And(all) => join(f, all, " and "),
            Self::Or(any) => join(f, any, " or "),
            Self::Not(rule) => write!(f, "not ({rule})"),
            Self::Any => f.write_str("anything"),
            Self::Header(matcher) => write!(f, "{matcher}"),
            Self::Path(matcher) => write!(f, "path {matcher}"),
            Self::Template(template) => write!(f, "path template {:?}", template.source()),
            Self::DestinationIp(range) => write!(f, "destination address in {range}"),
            Self::DestinationPort(port) => write!(f, "destination port {port}"),
            Self::DestinationPortRange(start, end) => write!(f, "destination port in [{start}, {end})"),
            Self::ServerName(matcher) => write!(f, "server name {matcher}"),
            Self::Metadata(matcher) => write!(f, "{matcher}"),
            Self::RouteMetadata(matcher) => write!(f, "route {matcher}"),
        }
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::And(all) => join(f, all, " and "),
            Self::Or(any) => join(f, any, " or "),
            Self::Not(rule) => write!(f, "not ({rule})"),
            Self::Any => f.write_str("anyone"),
            Self::Authenticated(None) => f.write_str("any authenticated client"),
            Self::Authenticated(Some(matcher)) => write!(f, "client {matcher}"),
            Self::SourceIp(range) => write!(f, "source address in {range}"),
            Self::DirectRemoteIp(range) => write!(f, "peer address in {range}"),
            Self::RemoteIp(range) => write!(f, "client address in {range}"),
            Self::Header(matcher) => write!(f, "{matcher}"),
            Self::Path(matcher) => write!(f, "path {matcher}"),
            Self::Metadata(matcher) => write!(f, "{matcher}"),
            Self::RouteMetadata(matcher) => write!(f, "route {matcher}"),
        }
    }
}

fn join(f: &mut fmt::Formatter<'_>, items: &[impl fmt::Display], word: &str) -> fmt::Result {
    let brackets = items.len() > 1;
    if brackets {
        f.write_str("(")?;
    }
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            f.write_str(word)?;
        }
        write!(f, "{item}")?;
    }
    if brackets { f.write_str(")") } else { Ok(()) }
}
