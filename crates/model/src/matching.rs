//! How a text is compared.

use serde::Serialize;

/// One comparison with a text (Istio `StringMatch`, Envoy `type.matcher.v3.StringMatcher`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum StringMatch {
    /// The whole text.
    Exact(String),
    /// The beginning.
    Prefix(String),
    /// The end.
    Suffix(String),
    /// An RE2 expression that the whole text must match.
    Regex(String),
    /// Anything, even an empty text, as long as it is there.
    Present,
}

impl StringMatch {
    /// The convention of AuthorizationPolicy: `*` = present, `abc*` = prefix, `*abc` = suffix, else exact.
    pub fn from_policy_value(value: &str) -> Self {
        if value == "*" {
            Self::Present
        } else if let Some(suffix) = value.strip_prefix('*') {
            Self::Suffix(suffix.to_owned())
        } else if let Some(prefix) = value.strip_suffix('*') {
            Self::Prefix(prefix.to_owned())
        } else {
            Self::Exact(value.to_owned())
        }
    }
}
