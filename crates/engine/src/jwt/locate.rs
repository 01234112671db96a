//! Where tokens stand in a request.

use std::borrow::Cow;
use std::sync::Arc;

use http::HeaderName;

use crate::facts::Facts;
use crate::routes::cookie;

/// Where a provider's tokens stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// In a header after a text; an empty text: the whole value.
    Header(HeaderName, Arc<str>),
    /// In a query parameter.
    Parameter(Arc<str>),
    /// In a cookie.
    Cookie(Arc<str>),
}

/// A token and where it stood.
#[derive(Debug, Clone)]
pub(super) struct Found<'a> {
    pub(super) text: Cow<'a, str>,
    pub(super) at: &'a Location,
}

impl Location {
    /// Envoy's order: headers by name, then parameters, then cookies.
    pub(crate) fn rank(&self) -> (u8, &str, &str) {
        match self {
            Self::Header(name, prefix) => (0, name.as_str(), prefix),
            Self::Parameter(name) => (1, name, ""),
            Self::Cookie(name) => (2, name, ""),
        }
    }

    /// All tokens that stand here.
    pub(super) fn find<'a>(&'a self, facts: &Facts<'a>, found: &mut Vec<Found<'a>>) {
        match self {
            Self::Header(name, prefix) => {
                for value in facts.headers.get_all(name) {
                    // A value that is no text is a token that cannot be read, not a missing one.
                    let text = String::from_utf8_lossy(value.as_bytes());
                    if let Some(text) = after(text, prefix) {
                        found.push(Found { text, at: self });
                    }
                }
            }
            Self::Parameter(name) => {
                let query = facts.query().unwrap_or_default();
                let first = query.split('&').find_map(|pair| {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (*percent_decoded(key) == **name).then_some(value)
                });
                if let Some(value) = first {
                    found.push(Found { text: percent_decoded(value), at: self });
                }
            }
            Self::Cookie(name) => {
                if let Some(value) = cookie(facts, name) {
                    found.push(Found { text: Cow::Borrowed(value), at: self });
                }
            }
        }
    }
}

/// What follows `prefix` anywhere in a header's value, from the first character that a token can have.
fn after<'a>(text: Cow<'a, str>, prefix: &str) -> Option<Cow<'a, str>> {
    if prefix.is_empty() {
        return Some(text);
    }
    let start = text.find(prefix)? + prefix.len();
    let rest = text.get(start..)?;
    let skipped = rest.find(|c: char| c.is_ascii_alphanumeric() || "-_.".contains(c));
    let Some(skipped) = skipped else { return Some(text) };
    let begin = start + skipped;
    Some(match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.get(begin..)?),
        Cow::Owned(text) => Cow::Owned(text.get(begin..)?.to_owned()),
    })
}

fn percent_decoded(text: &str) -> Cow<'_, str> {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy()
}

/// The path without some query parameters; all others stay as they were sent.
pub(super) fn without(path: &str, names: &[Arc<str>]) -> String {
    let Some((path, query)) = path.split_once('?') else { return path.to_owned() };
    let kept: Vec<&str> = query
        .split('&')
        .filter(|pair| {
            let key = percent_decoded(pair.split_once('=').map_or(*pair, |(key, _)| key));
            !names.iter().any(|name| **name == *key)
        })
        .collect();
    if kept.is_empty() { path.to_owned() } else { format!("{path}?{}", kept.join("&")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_where_the_token_begins() {
        let found = |text: &'static str, prefix: &str| after(Cow::Borrowed(text), prefix).map(Cow::into_owned);
        assert_eq!(found("Bearer a.b.c", "Bearer ").as_deref(), Some("a.b.c"));
        assert_eq!(found("Bearer   a.b.c", "Bearer ").as_deref(), Some("a.b.c"));
        assert_eq!(found("bearer a.b.c", "Bearer "), None);
        assert_eq!(found("Basic abc", "Bearer "), None);
        assert_eq!(found("a.b.c", "").as_deref(), Some("a.b.c"));
        assert_eq!(found("Bearer ", "Bearer ").as_deref(), Some("Bearer "));
    }

    #[test]
    fn parameters_are_taken_out_of_a_path() {
        let names = [Arc::from("access_token")];
        assert_eq!(without("/a?x=1&access_token=t&y=%20", &names), "/a?x=1&y=%20");
        assert_eq!(without("/a?access%5Ftoken=t", &names), "/a");
        assert_eq!(without("/a", &names), "/a");
    }
}
