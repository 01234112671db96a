//! Comparing the names in a certificate with what is expected (Envoy's `match_typed_subject_alt_names`).

use std::fmt;
use std::net::IpAddr;

use super::peer::PeerFacts;

/// Which kind of subject alternative name a matcher looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NameKind {
    /// Any kind (Envoy's old `match_subject_alt_names`).
    Any,
    /// A URI, such as a SPIFFE id.
    Uri,
    /// A DNS name. An exact matcher also accepts the certificate's wildcard (`*.example.com`) for one label.
    Dns,
    /// A mail address.
    Email,
    /// An IP address, compared in its canonical text form.
    Ip,
}

/// How a text is compared.
#[derive(Debug, Clone)]
pub enum TextMatch {
    /// The whole text.
    Exact(String),
    /// The beginning.
    Prefix(String),
    /// The end.
    Suffix(String),
    /// A part.
    Contains(String),
    /// An expression that the whole text must match; made by [`TextMatch::regex`].
    Regex(regex::Regex),
}

impl TextMatch {
    /// An expression that the whole text must match (linear time, RE2 syntax but for a few rare classes).
    ///
    /// # Errors
    /// The expression does not compile or is larger than 1 MiB compiled.
    pub fn regex(expression: &str) -> Result<Self, regex::Error> {
        regex::RegexBuilder::new(&format!("^(?:{expression})$")).size_limit(1 << 20).build().map(Self::Regex)
    }

    fn matches(&self, text: &str, ignore_case: bool) -> bool {
        if let Self::Regex(regex) = self {
            return regex.is_match(text);
        }
        if ignore_case {
            return self.folded().matches(&text.to_ascii_lowercase(), false);
        }
        match self {
            Self::Exact(expected) => text == expected,
            Self::Prefix(expected) => text.starts_with(expected.as_str()),
            Self::Suffix(expected) => text.ends_with(expected.as_str()),
            Self::Contains(expected) => text.contains(expected.as_str()),
            Self::Regex(regex) => regex.is_match(text),
        }
    }

    fn folded(&self) -> Self {
        match self {
            Self::Exact(text) => Self::Exact(text.to_ascii_lowercase()),
            Self::Prefix(text) => Self::Prefix(text.to_ascii_lowercase()),
            Self::Suffix(text) => Self::Suffix(text.to_ascii_lowercase()),
            Self::Contains(text) => Self::Contains(text.to_ascii_lowercase()),
            Self::Regex(regex) => Self::Regex(regex.clone()),
        }
    }
}

/// One acceptable name. Several are alternatives: one that matches is enough.
#[derive(Debug, Clone)]
pub struct SanMatcher {
    /// Which names are looked at.
    pub kind: NameKind,
    /// How they are compared.
    pub text: TextMatch,
    /// Whether ASCII letters compare without case (not for expressions).
    pub ignore_case: bool,
}

impl SanMatcher {
    /// Exactly this URI: the usual rule for a mesh peer.
    pub fn uri(uri: impl Into<String>) -> Self {
        Self { kind: NameKind::Uri, text: TextMatch::Exact(uri.into()), ignore_case: false }
    }

    /// Exactly this DNS name, or the certificate's wildcard for it.
    pub fn dns(name: impl Into<String>) -> Self {
        Self { kind: NameKind::Dns, text: TextMatch::Exact(name.into()), ignore_case: true }
    }

    /// Whether one of the peer's names is acceptable.
    pub fn matches(&self, peer: &PeerFacts) -> bool {
        let plain = |names: &[String]| names.iter().any(|name| self.text.matches(name, self.ignore_case));
        let ips = |ips: &[IpAddr]| ips.iter().any(|ip| self.text.matches(&ip.to_string(), self.ignore_case));
        match self.kind {
            NameKind::Uri => plain(&peer.uri_names),
            NameKind::Email => plain(&peer.email_names),
            NameKind::Ip => ips(&peer.ip_names),
            NameKind::Dns => peer.dns_names.iter().any(|name| self.matches_dns(name)),
            NameKind::Any => {
                plain(&peer.uri_names)
                    || plain(&peer.email_names)
                    || ips(&peer.ip_names)
                    || peer.dns_names.iter().any(|name| self.matches_dns(name))
            }
        }
    }

    fn matches_dns(&self, presented: &str) -> bool {
        match &self.text {
            TextMatch::Exact(expected) => dns_name_matches(presented, expected),
            other => other.matches(presented, self.ignore_case),
        }
    }
}

impl fmt::Display for SanMatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            NameKind::Any => "any name",
            NameKind::Uri => "URI",
            NameKind::Dns => "DNS",
            NameKind::Email => "email",
            NameKind::Ip => "IP",
        };
        match &self.text {
            TextMatch::Exact(text) => write!(f, "{kind}:{text}"),
            TextMatch::Prefix(text) => write!(f, "{kind}:{text}*"),
            TextMatch::Suffix(text) => write!(f, "{kind}:*{text}"),
            TextMatch::Contains(text) => write!(f, "{kind}:*{text}*"),
            TextMatch::Regex(regex) => write!(f, "{kind} matching {regex}"),
        }
    }
}

/// RFC 6125: without case; `*` stands for exactly one whole leftmost label and never for a bare public suffix label.
fn dns_name_matches(presented: &str, expected: &str) -> bool {
    if presented.eq_ignore_ascii_case(expected) {
        return true;
    }
    let Some(parent) = presented.strip_prefix("*.") else { return false };
    match expected.split_once('.') {
        Some((label, rest)) => {
            !label.is_empty() && !label.contains('*') && rest.contains('.') && rest.eq_ignore_ascii_case(parent)
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_cover_one_label() {
        assert!(dns_name_matches("*.example.com", "a.example.com"));
        assert!(dns_name_matches("A.example.com", "a.EXAMPLE.com"));
        for (presented, expected) in [
            ("*.example.com", "example.com"),
            ("*.example.com", "a.b.example.com"),
            ("*.com", "example.com"),
            ("a*.example.com", "ab.example.com"),
            ("*.example.com", ".example.com"),
        ] {
            assert!(!dns_name_matches(presented, expected), "{presented} {expected}");
        }
    }

    #[test]
    fn expressions_match_whole_names() {
        let regex = TextMatch::regex("spiffe://a/ns/.*").unwrap();
        assert!(regex.matches("spiffe://a/ns/x/sa/y", false));
        assert!(!regex.matches("evil spiffe://a/ns/x/sa/y", false));
        assert!(TextMatch::regex("a|b").unwrap().matches("b", false));
        assert!(!TextMatch::regex("a|b").unwrap().matches("ab", false));
    }
}
