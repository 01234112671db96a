//! Matching request headers, with the pseudo-headers among them.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::StringMatcher;
use crate::facts::Facts;

/// What a header's name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderKey {
    /// `:method`
    Method,
    /// `:path`, with its query
    Path,
    /// `:authority`, and `host`, which is the same
    Authority,
    /// `:scheme`
    Scheme,
    /// Any other.
    Name(HeaderName),
}

impl HeaderKey {
    /// From a name as written, in any case; `None` if no header can have it.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let key = match name.to_ascii_lowercase().as_str() {
            ":method" => Self::Method,
            ":path" => Self::Path,
            ":authority" | "host" => Self::Authority,
            ":scheme" => Self::Scheme,
            other => Self::Name(HeaderName::from_bytes(other.as_bytes()).ok()?),
        };
        Some(key)
    }

    /// The name in lower case.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Method => ":method",
            Self::Path => ":path",
            Self::Authority => ":authority",
            Self::Scheme => ":scheme",
            Self::Name(name) => name.as_str(),
        }
    }

    /// The value in a request; several values are joined with a comma, as Envoy does.
    #[must_use]
    pub fn value<'a>(&self, facts: &Facts<'a>) -> Option<Cow<'a, [u8]>> {
        match self {
            Self::Method => Some(Cow::Borrowed(facts.method.as_bytes())),
            Self::Path => Some(Cow::Borrowed(facts.path.as_bytes())),
            Self::Authority if facts.authority.is_empty() => None,
            Self::Authority => Some(Cow::Borrowed(facts.authority.as_bytes())),
            Self::Scheme => Some(Cow::Borrowed(facts.scheme.as_bytes())),
            Self::Name(name) => header_values(facts.headers, name),
        }
    }
}

/// All values of `name`, joined with a comma if there are several.
#[must_use]
pub fn header_values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Cow<'a, [u8]>> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    let Some(second) = values.next() else {
        return Some(Cow::Borrowed(first.as_bytes()));
    };
    let mut joined = first.as_bytes().to_vec();
    for value in std::iter::once(second).chain(values) {
        joined.push(b',');
        joined.extend_from_slice(HeaderValue::as_bytes(value));
    }
    Some(Cow::Owned(joined))
}

/// A source of header values other than a request: responses, for retries and logs.
pub trait HeaderValues {
    /// The joined value of a header.
    fn joined(&self, key: &HeaderKey) -> Option<Cow<'_, [u8]>>;
}

impl HeaderValues for HeaderMap {
    fn joined(&self, key: &HeaderKey) -> Option<Cow<'_, [u8]>> {
        match key {
            HeaderKey::Name(name) => header_values(self, name),
            HeaderKey::Authority => header_values(self, &http::header::HOST),
            _ => None,
        }
    }
}

/// A rule about one header (`envoy.config.route.v3.HeaderMatcher`).
#[derive(Debug, Clone, PartialEq)]
pub struct HeaderMatcher {
    /// Which header.
    pub key: HeaderKey,
    /// What its value must be.
    pub pattern: HeaderPattern,
    /// The result is turned round; a missing header still does not match.
    pub invert: bool,
    /// A missing header counts as an empty one.
    pub missing_is_empty: bool,
}

/// The kinds of header rules.
#[derive(Debug, Clone, PartialEq)]
pub enum HeaderPattern {
    /// There (true) or absent (false).
    Present(bool),
    /// The value as a string.
    Value(StringMatcher),
    /// The value as a whole number in [start, end).
    Range {
        /// First.
        start: i64,
        /// One after the last.
        end: i64,
    },
}

impl HeaderMatcher {
    /// Whether the request follows the rule.
    #[must_use]
    pub fn matches(&self, facts: &Facts<'_>) -> bool {
        self.judge(self.key.value(facts).as_deref())
    }

    /// Whether one of a header's values follows the rule, each looked at alone: what authorization goes by. Joined, a value that
    /// a rule forbids could hide behind another (CVE-2026-26308).
    #[must_use]
    pub fn matches_one(&self, facts: &Facts<'_>) -> bool {
        let HeaderKey::Name(name) = &self.key else { return self.matches(facts) };
        let mut values = facts.headers.get_all(name).iter().peekable();
        if values.peek().is_none() {
            return self.judge(None);
        }
        values.any(|value| self.finds(value.as_bytes())) != self.invert
    }

    /// Whether these headers follow the rule.
    #[must_use]
    pub fn matches_in(&self, headers: &impl HeaderValues) -> bool {
        self.judge(headers.joined(&self.key).as_deref())
    }

    fn judge(&self, value: Option<&[u8]>) -> bool {
        let Some(value) = value.or_else(|| self.missing_is_empty.then_some(b"")) else {
            return matches!(self.pattern, HeaderPattern::Present(wanted) if wanted == self.invert);
        };
        self.finds(value) != self.invert
    }

    fn finds(&self, value: &[u8]) -> bool {
        match &self.pattern {
            HeaderPattern::Present(wanted) => *wanted,
            HeaderPattern::Value(matcher) => matcher.matches_bytes(value),
            HeaderPattern::Range { start, end } => {
                whole_number(value).is_some_and(|number| (*start..*end).contains(&number))
            }
        }
    }
}

fn whole_number(value: &[u8]) -> Option<i64> {
    std::str::from_utf8(value).ok()?.trim().parse().ok()
}

impl std::fmt::Display for HeaderMatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let not = if self.invert { "not " } else { "" };
        let name = self.key.as_str();
        match &self.pattern {
            HeaderPattern::Present(true) => write!(f, "header {name} {not}present"),
            HeaderPattern::Present(false) => write!(f, "header {name} {not}absent"),
            HeaderPattern::Value(matcher) => write!(f, "header {name} {not}{matcher}"),
            HeaderPattern::Range { start, end } => write!(f, "header {name} {not}in [{start}, {end})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matcher::StringPattern;

    fn rule(pattern: HeaderPattern, invert: bool, missing_is_empty: bool) -> HeaderMatcher {
        HeaderMatcher { key: HeaderKey::parse("X-A").unwrap(), pattern, invert, missing_is_empty }
    }

    fn headers(values: &[&'static str]) -> HeaderMap {
        values.iter().map(|v| (HeaderName::from_static("x-a"), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn missing_headers_as_envoy_treats_them() {
        let none = headers(&[]);
        let exact = || HeaderPattern::Value(StringMatcher::exact("v"));
        assert!(!rule(exact(), false, false).matches_in(&none));
        assert!(!rule(exact(), true, false).matches_in(&none));
        assert!(rule(exact(), true, true).matches_in(&none));
        assert!(rule(HeaderPattern::Range { start: 0, end: 10 }, true, true).matches_in(&none));
        assert!(rule(HeaderPattern::Present(false), false, false).matches_in(&none));
        assert!(rule(HeaderPattern::Present(true), true, false).matches_in(&none));
        assert!(!rule(HeaderPattern::Present(true), false, false).matches_in(&none));
        assert!(rule(HeaderPattern::Present(true), false, false).matches_in(&headers(&[""])));
    }

    #[test]
    fn several_values_are_one_list() {
        let two = headers(&["a", "b"]);
        assert!(rule(HeaderPattern::Value(StringMatcher::exact("a,b")), false, false).matches_in(&two));
        assert!(!rule(HeaderPattern::Value(StringMatcher::exact("a")), false, false).matches_in(&two));
        let suffix = StringMatcher { pattern: StringPattern::Suffix("b".into()), ignore_case: false };
        assert!(rule(HeaderPattern::Value(suffix), false, false).matches_in(&two));
    }

    #[test]
    fn ranges_are_half_open() {
        let in_range = |v: &'static str| {
            rule(HeaderPattern::Range { start: -10, end: 0 }, false, false).matches_in(&headers(&[v]))
        };
        assert!(in_range("-1") && in_range("-10"));
        assert!(!in_range("0") && !in_range("-10.5") && !in_range("x") && !in_range(""));
    }
}
