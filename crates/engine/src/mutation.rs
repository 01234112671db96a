//! Header and query changes by a filter, at its place among the others (Envoy's `header_mutation`). Routes have their own, which
//! come last for requests and first for responses: [`crate::shape`].

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::decide::{Changed, Matched};
use crate::facts::Facts;
use crate::format::{RequestValues, Template, Values};
use crate::matcher::StringMatcher;
use crate::routes::{AppendAction, FilterOverride, HeaderAddition};
use crate::shape;

/// What a query may hold as it is (RFC 3986 section 2.3); anything else of a value that is put in is escaped.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// One filter (`HeaderMutation`).
#[derive(Debug, Default)]
pub struct HeaderMutationFilter {
    /// What applies to every request.
    pub own: Mutations,
    /// Of what several levels of a route say, the most specific comes last. Default false: first.
    pub most_specific_wins: bool,
}

/// Changes of one level (`Mutations`), each in order.
#[derive(Debug, Default)]
pub struct Mutations {
    /// Of requests' headers.
    pub request: Vec<Mutation>,
    /// Of their queries, afterwards.
    pub query: Vec<QueryMutation>,
    /// Of responses' headers, an upstream's and the proxy's own.
    pub response: Vec<Mutation>,
    /// Of requests' trailers, where there are any.
    pub request_trailers: Vec<Mutation>,
    /// Of responses' trailers, where there are any.
    pub response_trailers: Vec<Mutation>,
}

/// One change of headers, or of trailers.
#[derive(Debug, Clone)]
pub enum Mutation {
    /// Takes a header away.
    Remove(HeaderName),
    /// Takes all headers away whose names match.
    RemoveMatching(StringMatcher),
    /// Adds or replaces one.
    Put(HeaderAddition),
}

/// What becomes of a request's trailers, should any come: with the values that were known when its head was there.
#[derive(Debug, Default)]
pub struct TrailerChanges(Vec<TrailerChange>);

#[derive(Debug)]
enum TrailerChange {
    Put(HeaderAddition, HeaderValue),
    Other(Mutation),
}

impl TrailerChanges {
    /// Whether they stay as they come.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Makes the changes.
    pub fn apply(&self, trailers: &mut HeaderMap) {
        for change in &self.0 {
            match change {
                TrailerChange::Put(addition, value) => shape::put(addition, value.clone(), trailers),
                TrailerChange::Other(mutation) => mutation.remove(trailers),
            }
        }
    }
}

/// One change of a query.
#[derive(Debug)]
pub enum QueryMutation {
    /// Takes a parameter away.
    Remove(Arc<str>),
    /// Adds or replaces one.
    Put {
        /// Its name.
        name: Arc<str>,
        /// Its value, before it is escaped.
        value: Template,
        /// What happens to one of the same name.
        action: AppendAction,
    },
}

impl HeaderMutationFilter {
    /// Changes a request. Each change sees what those before it made.
    pub(crate) fn request(&self, name: &str, matched: Option<&Matched>, facts: &Facts<'_>, changed: &mut Changed) {
        for level in self.levels(name, matched) {
            for mutation in &level.request {
                let value = |addition: &HeaderAddition| {
                    let facts = &changed.facts(facts);
                    shape::value_of(addition, &RequestValues::of(facts, matched))
                };
                match mutation {
                    Mutation::Put(addition) => {
                        if let Some(value) = value(addition) {
                            shape::put(addition, value, &mut changed.headers);
                        }
                    }
                    other => other.remove(&mut changed.headers),
                }
            }
            for mutation in &level.query {
                let path = {
                    let facts = &changed.facts(facts);
                    mutation.apply(facts.path, &RequestValues::of(facts, matched))
                };
                changed.path = path.or_else(|| changed.path.take());
            }
        }
    }

    /// Changes a part of a response: its headers ([`Mutations::response`]) or its trailers
    /// ([`Mutations::response_trailers`]).
    pub(crate) fn response(
        &self,
        part: fn(&Mutations) -> &[Mutation],
        name: &str,
        matched: Option<&Matched>,
        values: &impl Values,
        headers: &mut HeaderMap,
    ) {
        for mutation in self.levels(name, matched).flat_map(part) {
            match mutation {
                Mutation::Put(addition) => shape::add(addition, values, headers),
                other => other.remove(headers),
            }
        }
    }

    /// Notes what is to become of a request's trailers.
    pub(crate) fn request_trailers(
        &self,
        name: &str,
        matched: Option<&Matched>,
        values: &impl Values,
        changes: &mut TrailerChanges,
    ) {
        let mutations = self.levels(name, matched).flat_map(|level| &level.request_trailers);
        changes.0.extend(mutations.filter_map(|mutation| match mutation {
            Mutation::Put(addition) => Some(TrailerChange::Put(addition.clone(), shape::value_of(addition, values)?)),
            other => Some(TrailerChange::Other(other.clone())),
        }));
    }

    /// Its own changes, then those of the route's levels in order.
    fn levels<'a>(&'a self, name: &str, matched: Option<&'a Matched>) -> impl Iterator<Item = &'a Mutations> {
        let mut levels = [None; 4];
        if let Some(matched) = matched {
            levels = matched.filter_overrides(name);
        }
        if self.most_specific_wins {
            levels.reverse();
        }
        let of_route = levels.into_iter().flatten().filter_map(|setting| match setting {
            FilterOverride::Mutations(mutations) => Some(&**mutations),
            _ => None,
        });
        std::iter::once(&self.own).chain(of_route)
    }
}

impl Mutation {
    fn remove(&self, headers: &mut HeaderMap) {
        match self {
            Self::Remove(name) => {
                headers.remove(name);
            }
            Self::RemoveMatching(matcher) => {
                let found: Vec<HeaderName> =
                    headers.keys().filter(|name| matcher.matches(name.as_str())).cloned().collect();
                for name in &found {
                    headers.remove(name);
                }
            }
            Self::Put(_) => {}
        }
    }
}

impl QueryMutation {
    /// The path with the query changed; `None`: as it was. As Envoy writes queries after a change: sorted by name, each parameter
    /// with its equals sign. What stays of it stays escaped as it came (Envoy writes it out in the clear, which may be no path).
    fn apply(&self, path: &str, values: &impl Values) -> Option<String> {
        let (name, put) = match self {
            Self::Remove(name) => (name, None),
            Self::Put { name, value, action } => {
                let mut text = String::new();
                value.render(values, "", &mut text);
                (name, Some((utf8_percent_encode(&text, RESERVED).to_string(), *action)))
            }
        };
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let mut parameters: Vec<(&str, &str)> = query
            .split('&')
            .filter(|part| !part.is_empty())
            .map(|part| part.split_once('=').unwrap_or((part, "")))
            .collect();
        let is = |(key, _): &(&str, &str)| percent_decode_str(key).eq(name.bytes());
        let present = parameters.iter().any(is);
        if let Some((value, action)) = &put {
            let keep = match action {
                AppendAction::Append => true,
                AppendAction::AddIfAbsent if present => return None,
                AppendAction::OverwriteIfExists if !present => return None,
                AppendAction::AddIfAbsent | AppendAction::Overwrite | AppendAction::OverwriteIfExists => false,
            };
            parameters.retain(|one| keep || !is(one));
            parameters.push((name, value));
        } else if present {
            parameters.retain(|one| !is(one));
        } else {
            return None;
        }
        parameters.sort_by(|(one, _), (other, _)| percent_decode_str(one).cmp(percent_decode_str(other)));
        let mut changed = path.to_owned();
        for (at, (key, value)) in parameters.iter().enumerate() {
            changed.push(if at == 0 { '?' } else { '&' });
            changed.extend([key, "=", value]);
        }
        Some(changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Operator;

    struct Nothing;

    impl Values for Nothing {
        fn write(&self, _: &Operator, _: &mut String) -> bool {
            false
        }
    }

    fn put(value: &str, action: AppendAction) -> QueryMutation {
        QueryMutation::Put { name: "b".into(), value: Template::parse(value).unwrap(), action }
    }

    #[test]
    fn a_query_is_changed_as_envoy_changes_it_and_nothing_is_unescaped() {
        use AppendAction::{AddIfAbsent, Append, Overwrite, OverwriteIfExists};
        let cases = [
            (put("x y&", Append), "/p", Some("/p?b=x%20y%26")),
            (put("2", Append), "/p?b=1&a=%20&flag", Some("/p?a=%20&b=1&b=2&flag=")),
            (put("2", AddIfAbsent), "/p?b=1", None),
            (put("2", AddIfAbsent), "/p?a=1", Some("/p?a=1&b=2")),
            (put("2", Overwrite), "/p?b=1&b=7&%62=9", Some("/p?b=2")),
            (put("2", OverwriteIfExists), "/p?a=1", None),
            (put("2", OverwriteIfExists), "/p?b", Some("/p?b=2")),
            (QueryMutation::Remove("b".into()), "/p?b=1", Some("/p")),
            (QueryMutation::Remove("b".into()), "/p?%62=1&c=2&&", Some("/p?c=2")),
            (QueryMutation::Remove("b".into()), "/p?c=1", None),
        ];
        for (mutation, path, expected) in cases {
            assert_eq!(mutation.apply(path, &Nothing).as_deref(), expected, "{mutation:?} {path}");
        }
    }
}
