//! What a rule matches, in Envoy's words.

use model::matching::StringMatch;
use model::route::HttpMatch;
use proto::envoy::config::route::v3::{
    HeaderMatcher, QueryParameterMatcher, RouteMatch, header_matcher::HeaderMatchSpecifier,
    query_parameter_matcher::QueryParameterMatchSpecifier, route_match::PathSpecifier,
};
use proto::envoy::r#type::matcher::v3::{RegexMatcher, StringMatcher, string_matcher::MatchPattern};

use super::wire;

/// The match of a rule; `None` matches all.
pub(crate) fn route_match(wanted: Option<&HttpMatch>) -> RouteMatch {
    let Some(wanted) = wanted else { return everything() };
    let mut headers: Vec<HeaderMatcher> = Vec::new();
    let special = [(":method", &wanted.method), (":authority", &wanted.authority), (":scheme", &wanted.scheme)];
    headers.extend(special.into_iter().filter_map(|(name, matched)| Some(header(name, matched.as_ref()?))));
    headers.extend(wanted.headers.iter().map(|(name, matched)| header(name, matched)));
    headers.extend(wanted.without_headers.iter().map(|(name, matched)| HeaderMatcher {
        invert_match: true,
        // A header that is not there has not the unwanted value.
        treat_missing_header_as_empty: *matched != StringMatch::Present,
        ..header(name, matched)
    }));
    let ignores_case = wanted.ignore_uri_case
        && matches!(wanted.uri, Some(StringMatch::Exact(_) | StringMatch::Prefix(_) | StringMatch::Suffix(_)));
    RouteMatch {
        path_specifier: Some(path(wanted.uri.as_ref())),
        case_sensitive: if ignores_case { wire::boolean(false) } else { None },
        headers,
        query_parameters: wanted.query.iter().map(|(name, matched)| query(name, matched)).collect(),
        ..RouteMatch::default()
    }
}

/// A match of every request.
pub(crate) fn everything() -> RouteMatch {
    RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".to_owned())), ..RouteMatch::default() }
}

/// Whether no later rule can be reached behind this match.
pub(crate) fn is_everything(wanted: &RouteMatch) -> bool {
    wanted.headers.is_empty()
        && wanted.query_parameters.is_empty()
        && matches!(&wanted.path_specifier, Some(PathSpecifier::Prefix(prefix)) if prefix == "/")
}

fn path(uri: Option<&StringMatch>) -> PathSpecifier {
    match uri {
        None | Some(StringMatch::Present) => PathSpecifier::Prefix("/".to_owned()),
        Some(StringMatch::Exact(exact)) => PathSpecifier::Path(exact.clone()),
        Some(StringMatch::Prefix(prefix)) => PathSpecifier::Prefix(prefix.clone()),
        Some(StringMatch::Suffix(suffix)) => PathSpecifier::SafeRegex(regex(&format!(".*{}", regex::escape(suffix)))),
        Some(StringMatch::Regex(expression)) => PathSpecifier::SafeRegex(regex(expression)),
    }
}

/// A header by name and value.
pub(crate) fn header(name: &str, wanted: &StringMatch) -> HeaderMatcher {
    let specifier = match wanted {
        StringMatch::Present => HeaderMatchSpecifier::PresentMatch(true),
        other => HeaderMatchSpecifier::StringMatch(string(other)),
    };
    HeaderMatcher { name: name.to_owned(), header_match_specifier: Some(specifier), ..HeaderMatcher::default() }
}

fn query(name: &str, wanted: &StringMatch) -> QueryParameterMatcher {
    let specifier = match wanted {
        StringMatch::Present => QueryParameterMatchSpecifier::PresentMatch(true),
        other => QueryParameterMatchSpecifier::StringMatch(string(other)),
    };
    QueryParameterMatcher { name: name.to_owned(), query_parameter_match_specifier: Some(specifier) }
}

/// A text. `Present` becomes "at least one character", which is what it means where absence cannot be told.
pub(crate) fn string(wanted: &StringMatch) -> StringMatcher {
    let pattern = match wanted {
        StringMatch::Exact(text) => MatchPattern::Exact(text.clone()),
        // Envoy refuses an empty prefix or suffix: all texts have it.
        StringMatch::Prefix(text) | StringMatch::Suffix(text) if text.is_empty() => {
            MatchPattern::SafeRegex(regex(".*"))
        }
        StringMatch::Prefix(text) => MatchPattern::Prefix(text.clone()),
        StringMatch::Suffix(text) => MatchPattern::Suffix(text.clone()),
        StringMatch::Regex(expression) => MatchPattern::SafeRegex(regex(expression)),
        StringMatch::Present => MatchPattern::SafeRegex(regex(".+")),
    };
    StringMatcher { match_pattern: Some(pattern), ..StringMatcher::default() }
}

/// An RE2 expression that the whole text must match.
pub(crate) fn regex(expression: &str) -> RegexMatcher {
    RegexMatcher { regex: expression.to_owned(), ..RegexMatcher::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plain_slash_matches_everything() {
        assert!(is_everything(&route_match(None)));
        assert!(is_everything(&route_match(Some(&HttpMatch::default()))));
        let path = HttpMatch { uri: Some(StringMatch::Prefix("/a".to_owned())), ..HttpMatch::default() };
        assert!(!is_everything(&route_match(Some(&path))));
        let method = HttpMatch { method: Some(StringMatch::Exact("GET".to_owned())), ..HttpMatch::default() };
        assert!(!is_everything(&route_match(Some(&method))));
    }

    #[test]
    fn an_absent_header_has_not_the_unwanted_value() {
        let without = |matched: StringMatch| HttpMatch {
            without_headers: vec![("x".to_owned(), matched)],
            ..HttpMatch::default()
        };
        let exact = route_match(Some(&without(StringMatch::Exact("1".to_owned()))));
        assert!(exact.headers[0].invert_match && exact.headers[0].treat_missing_header_as_empty);
        let present = route_match(Some(&without(StringMatch::Present)));
        assert!(present.headers[0].invert_match && !present.headers[0].treat_missing_header_as_empty);
    }
}
