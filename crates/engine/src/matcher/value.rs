//! Matching values of metadata.

use std::sync::Arc;

use super::StringMatcher;
use crate::metadata::{Datum, Metadata};

/// A rule about one metadata value (`envoy.type.matcher.v3.ValueMatcher`).
#[derive(Debug, Clone, PartialEq)]
pub enum ValueMatcher {
    /// Null.
    Null,
    /// A number in [start, end).
    Range {
        /// First.
        start: f64,
        /// One after the last.
        end: f64,
    },
    /// This number.
    Number(f64),
    /// A string.
    Text(StringMatcher),
    /// This truth value.
    Flag(bool),
    /// Anything at all (true) or nothing (false).
    Present(bool),
    /// A list with at least one such item.
    AnyOf(Box<Self>),
    /// One of these rules.
    Or(Vec<Self>),
}

impl ValueMatcher {
    /// Whether `datum` follows the rule.
    #[must_use]
    pub fn matches(&self, datum: Option<&Datum>) -> bool {
        match (self, datum) {
            (Self::Present(wanted), found) => found.is_some() == *wanted,
            (Self::Or(rules), found) => rules.iter().any(|rule| rule.matches(found)),
            (Self::Null, Some(Datum::Null)) => true,
            (Self::Range { start, end }, Some(Datum::Number(n))) => n >= start && n < end,
            (Self::Number(wanted), Some(Datum::Number(n))) => n == wanted,
            (Self::Text(matcher), Some(Datum::Text(text))) => matcher.matches(text),
            (Self::Flag(wanted), Some(Datum::Flag(flag))) => flag == wanted,
            (Self::AnyOf(rule), Some(Datum::List(items))) => items.iter().any(|item| rule.matches(Some(item))),
            _ => false,
        }
    }
}

/// A rule about the value at a path (`envoy.type.matcher.v3.MetadataMatcher`).
#[derive(Debug, Clone, PartialEq)]
pub struct MetadataMatcher {
    /// The namespace.
    pub space: Arc<str>,
    /// Keys from the top.
    pub path: Vec<Arc<str>>,
    /// What must be there.
    pub value: ValueMatcher,
    /// The result is turned round.
    pub invert: bool,
}

impl MetadataMatcher {
    /// Whether `metadata` follows the rule.
    #[must_use]
    pub fn matches(&self, metadata: Option<&Metadata>) -> bool {
        let datum = metadata.and_then(|m| m.find(&self.space, self.path.iter().map(|key| &**key)));
        self.value.matches(datum) != self.invert
    }
}

impl std::fmt::Display for MetadataMatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "metadata {}", self.space)?;
        for key in &self.path {
            write!(f, "[{key}]")?;
        }
        f.write_str(if self.invert { " not " } else { " " })?;
        match &self.value {
            ValueMatcher::Text(matcher) => write!(f, "{matcher}"),
            other => write!(f, "{other:?}"),
        }
    }
}
