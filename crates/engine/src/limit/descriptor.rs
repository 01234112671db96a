//! Descriptors: what rules make of a request, so that a bucket can be found for it.

use std::borrow::Cow;
use std::sync::Arc;

use http::HeaderValue;
use ipnet::IpNet;

use crate::decide::Matched;
use crate::facts::Facts;
use crate::format::{RequestValues, Template};
use crate::matcher::{HeaderKey, HeaderMatcher};
use crate::metadata::{Datum, Metadata};
use crate::routes::{QueryMatcher, QueryPattern};

/// Most hits that a request can count for.
const MOST_HITS: f64 = 1e9;

/// What a request is counted by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Descriptor<'a> {
    /// Keys and values in order.
    pub entries: Vec<(&'a str, Cow<'a, str>)>,
    /// Tokens it takes; `None`: one.
    pub hits: Option<u64>,
    /// It gives `hits` tokens back instead.
    pub gives_back: bool,
    /// Whether the answer tells of the bucket; `None`: as the filter says.
    pub told: Option<bool>,
}

/// A rule that makes a descriptor (`envoy.config.route.v3.RateLimit`).
#[derive(Debug, Clone)]
pub struct RateLimit {
    /// Only filters of this stage go by it. 0 to 10.
    pub stage: u32,
    /// It makes nothing: there is a key that would switch it off, and Envoy's filter takes it as off.
    pub off: bool,
    /// What it makes, in order.
    pub actions: Vec<Action>,
    /// Tokens that a request takes; `None`: one.
    pub hits: Option<Hits>,
    /// It gives them back instead.
    pub gives_back: bool,
    /// Whether the answer tells of the bucket; `None`: as the filter says.
    pub told: Option<bool>,
}

/// How many tokens a request takes.
#[derive(Debug, Clone)]
pub enum Hits {
    /// So many.
    Fixed(u64),
    /// As many as this says; where it says no number there is no descriptor.
    Said(Template),
}

/// One entry of a descriptor. Where an action has nothing to say there is no descriptor, or only this entry is left out.
#[derive(Debug, Clone)]
pub enum Action {
    /// Always this (`generic_key`, `source_cluster`).
    Fixed(Arc<str>, Arc<str>),
    /// `destination_cluster`: the cluster that the request goes to.
    DestinationCluster,
    /// The first value of a request header.
    Header {
        /// The entry's key.
        key: Arc<str>,
        /// The header.
        header: HeaderKey,
        /// Without it the entry is left out.
        optional: bool,
    },
    /// The first value of a query parameter, decoded.
    Query {
        /// The entry's key.
        key: Arc<str>,
        /// The parameter.
        parameter: Arc<str>,
        /// Without it the entry is left out.
        optional: bool,
    },
    /// `remote_address`: the client's address.
    RemoteAddress,
    /// `masked_remote_address`: its range, by the length of its prefix.
    MaskedRemoteAddress {
        /// 0 to 32. Default 32.
        v4: u8,
        /// 0 to 128. Default 128.
        v6: u8,
    },
    /// A text where the client's address is in one of these ranges.
    RemoteAddressMatch {
        /// The entry's key.
        key: Arc<str>,
        /// The text.
        value: Template,
        /// Stands for a text that comes out empty.
        default: Option<Arc<str>>,
        /// The ranges.
        ranges: Vec<IpNet>,
        /// Only where it is in none of them.
        invert: bool,
    },
    /// A text where these headers match.
    HeaderMatch {
        /// The entry's key.
        key: Arc<str>,
        /// The text.
        value: Arc<str>,
        /// The rules, which must all match.
        headers: Vec<HeaderMatcher>,
        /// False: only where they do not.
        expected: bool,
    },
    /// A text where these query parameters match.
    QueryMatch {
        /// The entry's key.
        key: Arc<str>,
        /// The text.
        value: Arc<str>,
        /// The rules, which must all match.
        parameters: Vec<QueryMatcher>,
        /// False: only where they do not.
        expected: bool,
    },
    /// A text out of metadata.
    Metadata {
        /// The entry's key.
        key: Arc<str>,
        /// The route's, not that of filters.
        of_route: bool,
        /// The namespace.
        space: Arc<str>,
        /// Keys from the top.
        path: Vec<Arc<str>>,
        /// Stands for a text that is not there.
        default: Option<Arc<str>>,
        /// Without either the entry is left out.
        optional: bool,
    },
}

/// A request, as rules see it.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The request.
    pub facts: &'a Facts<'a>,
    /// Its route.
    pub matched: Option<&'a Matched>,
}

/// What one action says.
enum Said<'a> {
    Entry(&'a str, Cow<'a, str>),
    Nothing,
    NoDescriptor,
}

impl RateLimit {
    /// The descriptor of a request. `counted`: rules of the filter itself also say how many tokens are taken.
    #[must_use]
    pub fn descriptor<'a>(&'a self, request: Request<'a>, counted: bool) -> Option<Descriptor<'a>> {
        let mut entries = Vec::with_capacity(self.actions.len());
        for action in &self.actions {
            match action.say(request) {
                Said::Entry(key, value) => entries.push((key, value)),
                Said::Nothing => {}
                Said::NoDescriptor => return None,
            }
        }
        let hits = match self.hits.as_ref().filter(|_| counted) {
            Some(Hits::Fixed(number)) => Some(*number),
            Some(Hits::Said(template)) => Some(number(&render(template, request))?),
            None => None,
        };
        Some(Descriptor { entries, hits, gives_back: self.gives_back && counted, told: self.told })
    }
}

impl Action {
    fn say<'a>(&'a self, request: Request<'a>) -> Said<'a> {
        let Request { facts, matched } = request;
        match self {
            Self::Fixed(key, value) => Said::Entry(key, Cow::Borrowed(value)),
            Self::DestinationCluster => {
                let name = matched.and_then(|matched| matched.cluster_name(facts));
                name.map_or(Said::NoDescriptor, |name| Said::Entry("destination_cluster", name))
            }
            Self::Header { key, header, optional } => Said::of(key, first_value(header, facts), *optional),
            Self::Query { key, parameter, optional } => Said::of(key, parameter_of(facts, parameter), *optional),
            Self::RemoteAddress => Said::Entry("remote_address", Cow::Owned(facts.remote.to_string())),
            Self::MaskedRemoteAddress { v4, v6 } => {
                let length = if facts.remote.is_ipv4() { *v4 } else { *v6 };
                let range = IpNet::new(facts.remote, length).ok().map(|range| range.trunc().to_string());
                Said::of("masked_remote_address", range.map(Cow::Owned), false)
            }
            Self::RemoteAddressMatch { key, value, default, ranges, invert } => {
                let inside = ranges.iter().any(|range| range.contains(&facts.remote.to_canonical()));
                let value = (inside != *invert).then(|| render(value, request));
                let value = value.map(|text| text_or(Some(Cow::Owned(text)), default.as_ref()));
                Said::of(key, value.flatten(), false)
            }
            Self::HeaderMatch { key, value, headers, expected } => {
                let matches = headers.iter().all(|rule| rule.matches(facts)) == *expected;
                Said::of(key, matches.then_some(Cow::Borrowed(&**value)), false)
            }
            Self::QueryMatch { key, value, parameters, expected } => {
                let matches = parameters.iter().all(|rule| query_matches(rule, facts)) == *expected;
                Said::of(key, matches.then_some(Cow::Borrowed(&**value)), false)
            }
            Self::Metadata { key, of_route, space, path, default, optional } => {
                let metadata: Option<&Metadata> =
                    if *of_route { matched.map(|matched| &matched.route.metadata) } else { facts.metadata };
                let found = metadata.and_then(|metadata| metadata.find(space, path.iter().map(|key| &**key)));
                let text = found.and_then(Datum::text).map(Cow::Borrowed);
                Said::of(key, text_or(text, default.as_ref()), *optional)
            }
        }
    }
}

impl<'a> Said<'a> {
    fn of(key: &'a str, value: Option<Cow<'a, str>>, optional: bool) -> Self {
        match value {
            Some(value) => Self::Entry(key, value),
            None if optional => Self::Nothing,
            None => Self::NoDescriptor,
        }
    }
}

fn text_or<'a>(text: Option<Cow<'a, str>>, default: Option<&'a Arc<str>>) -> Option<Cow<'a, str>> {
    text.filter(|text| !text.is_empty()).or_else(|| default.map(|text| Cow::Borrowed(&**text)))
}

/// Of several headers with the name only the first counts.
fn first_value<'a>(key: &HeaderKey, facts: &Facts<'a>) -> Option<Cow<'a, str>> {
    match key {
        HeaderKey::Name(name) => {
            facts.headers.get(name).map(|value| String::from_utf8_lossy(HeaderValue::as_bytes(value)))
        }
        other => match other.value(facts)? {
            Cow::Borrowed(bytes) => Some(String::from_utf8_lossy(bytes)),
            Cow::Owned(bytes) => Some(Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())),
        },
    }
}

/// The first value of a query parameter, decoded; a plus sign stays one.
fn parameter_of<'a>(facts: &Facts<'a>, name: &str) -> Option<Cow<'a, str>> {
    let decoded = |text: &'a str| percent_encoding::percent_decode_str(text).decode_utf8_lossy();
    let pairs = facts.query()?.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.into_iter().find(|(key, _)| decoded(key) == name).map(|(_, value)| decoded(value))
}

fn query_matches(rule: &QueryMatcher, facts: &Facts<'_>) -> bool {
    let found = parameter_of(facts, &rule.name);
    match &rule.pattern {
        QueryPattern::Present(wanted) => found.is_some() == *wanted,
        QueryPattern::Value(matcher) => found.is_some_and(|value| matcher.matches(&value)),
    }
}

fn render(template: &Template, request: Request<'_>) -> String {
    let mut text = String::new();
    let values = RequestValues::of(request.facts, request.matched);
    template.render(&values, "", &mut text);
    text
}

/// A number of hits, cut to a whole one.
fn number(text: &str) -> Option<u64> {
    let number: f64 = text.trim().parse().ok()?;
    (0.0..=MOST_HITS).contains(&number).then_some(number as u64)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::SystemTime;

    use http::{HeaderMap, HeaderName};

    use super::*;
    use crate::facts::{ConnectionFacts, Protocol};

    fn connection() -> ConnectionFacts {
        let remote = SocketAddr::from(([192, 0, 2, 1], 4711));
        ConnectionFacts::between(remote, remote, 1)
    }

    /// The descriptor that a rule makes of a request, as `key=value` words.
    fn made(rule: &RateLimit, path: &str, headers: &[(&'static str, &'static str)]) -> Option<(String, Option<u64>)> {
        let pairs = headers.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)));
        let (headers, connection) = (pairs.collect::<HeaderMap>(), connection());
        let facts = Facts {
            connection: &connection,
            method: "GET",
            path,
            authority: "shop",
            scheme: "http",
            headers: &headers,
            protocol: Protocol::Http11,
            remote: connection.remote.ip(),
            started: SystemTime::UNIX_EPOCH,
            metadata: None,
        };
        let descriptor = rule.descriptor(Request { facts: &facts, matched: None }, true)?;
        let words: Vec<_> = descriptor.entries.iter().map(|(key, value)| format!("{key}={value}")).collect();
        Some((words.join(" "), descriptor.hits))
    }

    fn rule(actions: Vec<Action>, hits: Option<Hits>) -> RateLimit {
        RateLimit { stage: 0, off: false, actions, hits, gives_back: false, told: None }
    }

    fn header(optional: bool) -> Action {
        Action::Header { key: "h".into(), header: HeaderKey::parse("x-a").unwrap(), optional }
    }

    fn query(optional: bool) -> Action {
        Action::Query { key: "q".into(), parameter: "a b".into(), optional }
    }

    #[test]
    fn entries_in_order() {
        let fixed = Action::Fixed("k".into(), "v".into());
        let both = rule(vec![fixed, header(false), Action::MaskedRemoteAddress { v4: 24, v6: 64 }], None);
        let made = |headers: &[_]| made(&both, "/", headers).map(|(text, _)| text);
        assert_eq!(made(&[("x-a", "1"), ("x-a", "2")]).unwrap(), "k=v h=1 masked_remote_address=192.0.2.0/24");
        assert_eq!(made(&[]), None, "one is missing");
    }

    #[test]
    fn queries_are_decoded() {
        let made = |rule: &RateLimit, path: &str| made(rule, path, &[]).map(|(text, _)| text);
        let strict = rule(vec![query(false)], None);
        assert_eq!(made(&strict, "/x?a%20b=c%2Bd+e&a%20b=2").unwrap(), "q=c+d+e");
        assert_eq!(made(&strict, "/x?a%20b").unwrap(), "q=");
        assert_eq!((made(&strict, "/x?c=1"), made(&strict, "/x")), (None, None));
        assert_eq!(made(&rule(vec![query(true), header(true)], None), "/x").unwrap(), "", "all are left out");
    }

    #[test]
    fn hits_are_whole_numbers() {
        let said = Hits::Said(Template::parse("%REQ(x-n)%").unwrap());
        let counted = rule(vec![Action::DestinationCluster], Some(said.clone()));
        assert_eq!(made(&counted, "/", &[("x-n", "1")]), None, "there is no route");
        let counted = rule(vec![Action::RemoteAddress], Some(said));
        let hits = |text: &'static str| made(&counted, "/", &[("x-n", text)]).map(|(_, hits)| hits.unwrap());
        assert_eq!(
            [hits("3"), hits(" 2.9 "), hits("0"), hits("1e9")],
            [Some(3), Some(2), Some(0), Some(1_000_000_000)]
        );
        assert_eq!([hits("-1"), hits("many"), hits("NaN"), hits("1000000001")], [None; 4]);
        assert_eq!(made(&counted, "/", &[]), None);
    }
}
