//! Matching one string.

use std::sync::Arc;

use super::Pattern;

/// A rule about one string (`envoy.type.matcher.v3.StringMatcher`).
#[derive(Debug, Clone, PartialEq)]
pub struct StringMatcher {
    /// What is looked for; in lower case where `ignore_case`.
    pub pattern: StringPattern,
    /// ASCII letters compare without case; regular expressions are not affected.
    pub ignore_case: bool,
}

/// The kinds of string rules.
#[derive(Debug, Clone, PartialEq)]
pub enum StringPattern {
    /// Equal.
    Exact(Arc<str>),
    /// Begins with.
    Prefix(Arc<str>),
    /// Ends with.
    Suffix(Arc<str>),
    /// Has inside.
    Contains(Arc<str>),
    /// The whole string matches.
    Regex(Pattern),
}

impl StringMatcher {
    /// A matcher for exactly `text`.
    #[must_use]
    pub fn exact(text: impl Into<Arc<str>>) -> Self {
        Self { pattern: StringPattern::Exact(text.into()), ignore_case: false }
    }

    /// Whether `value` follows the rule.
    #[must_use]
    pub fn matches(&self, value: &str) -> bool {
        self.matches_bytes(value.as_bytes())
    }

    /// The same for bytes that need not be UTF-8 (header values).
    #[must_use]
    pub fn matches_bytes(&self, value: &[u8]) -> bool {
        match (&self.pattern, self.ignore_case) {
            (StringPattern::Exact(text), false) => value == text.as_bytes(),
            (StringPattern::Exact(text), true) => value.eq_ignore_ascii_case(text.as_bytes()),
            (StringPattern::Prefix(text), fold) => value.get(..text.len()).is_some_and(|part| same(part, text, fold)),
            (StringPattern::Suffix(text), fold) => value
                .len()
                .checked_sub(text.len())
                .and_then(|start| value.get(start..))
                .is_some_and(|part| same(part, text, fold)),
            (StringPattern::Contains(text), fold) => {
                text.is_empty() || value.windows(text.len()).any(|part| same(part, text, fold))
            }
            (StringPattern::Regex(pattern), _) => pattern.matches(value),
        }
    }
}

impl std::fmt::Display for StringMatcher {
    /// As `explain` prints it: `exact "x"`, `prefix "x" (any case)`, ...
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.pattern {
            StringPattern::Exact(text) => write!(f, "exact {text:?}")?,
            StringPattern::Prefix(text) => write!(f, "prefix {text:?}")?,
            StringPattern::Suffix(text) => write!(f, "suffix {text:?}")?,
            StringPattern::Contains(text) => write!(f, "contains {text:?}")?,
            StringPattern::Regex(pattern) => write!(f, "regex {:?}", pattern.source())?,
        }
        if self.ignore_case { f.write_str(" (any case)") } else { Ok(()) }
    }
}

fn same(part: &[u8], text: &str, fold: bool) -> bool {
    if fold { part.eq_ignore_ascii_case(text.as_bytes()) } else { part == text.as_bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matcher(pattern: StringPattern, ignore_case: bool) -> StringMatcher {
        StringMatcher { pattern, ignore_case }
    }

    #[test]
    fn kinds_and_case() {
        let p = |t: &str| StringPattern::Prefix(t.into());
        assert!(matcher(p("/A"), true).matches("/ab"));
        assert!(!matcher(p("/A"), false).matches("/ab"));
        assert!(matcher(StringPattern::Suffix(".Png".into()), true).matches("x.pNG"));
        assert!(!matcher(StringPattern::Suffix("longer".into()), false).matches("ger"));
        assert!(matcher(StringPattern::Contains("oo".into()), false).matches("foobar"));
        assert!(!matcher(StringPattern::Contains("OO".into()), false).matches("foobar"));
    }

    proptest! {
        #[test]
        fn a_literal_matches_only_itself(text in ".{0,20}", other in ".{0,20}") {
            let exact = StringMatcher::exact(text.as_str());
            prop_assert!(exact.matches(&text));
            prop_assert_eq!(exact.matches(&other), text == other);
            prop_assert_eq!(matcher(StringPattern::Prefix(text.as_str().into()), false).matches(&other), other.starts_with(&text));
            prop_assert_eq!(matcher(StringPattern::Suffix(text.as_str().into()), false).matches(&other), other.ends_with(&text));
            prop_assert_eq!(matcher(StringPattern::Contains(text.as_str().into()), false).matches(&other), other.contains(&text));
        }
    }
}
