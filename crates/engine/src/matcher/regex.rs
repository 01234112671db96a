//! Regular expressions with Envoy's meaning: RE2's syntax, linear time, the whole value must match.

use std::fmt;

use regex::bytes::{Regex, RegexBuilder};

/// Compiled program and lazy DFA may each take this many bytes.
const SIZE_LIMIT: usize = 1 << 20;

/// A regular expression that must match a whole value.
#[derive(Clone)]
pub struct Pattern {
    source: Box<str>,
    whole: Regex,
}

/// Why an expression was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid regular expression {source_text:?}: {reason}")]
pub struct PatternError {
    source_text: String,
    reason: String,
}

impl Pattern {
    /// Compiles `source`, anchored at both ends.
    pub fn new(source: &str) -> Result<Self, PatternError> {
        // Compiled bare first: otherwise `a)|(b` would become valid by the wrapping.
        compile(source, source)?;
        let whole = compile(source, &format!(r"\A(?:{source})\z"))?;
        Ok(Self { source: source.into(), whole })
    }

    /// Whether the whole of `value` matches.
    #[must_use]
    pub fn matches(&self, value: &[u8]) -> bool {
        self.whole.is_match(value)
    }

    /// The expression as written.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/", self.source)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

fn compile(source: &str, text: &str) -> Result<Regex, PatternError> {
    let build = |unicode: bool| {
        RegexBuilder::new(text).unicode(unicode).size_limit(SIZE_LIMIT).dfa_size_limit(SIZE_LIMIT).build()
    };
    // RE2's \d, \w and (?i) are ASCII; classes such as \p{Greek} exist only with Unicode tables.
    build(false).or_else(|_| build(true)).map_err(|error| PatternError {
        source_text: source.to_owned(),
        reason: match error {
            regex::Error::CompiledTooBig(_) => format!("larger than {SIZE_LIMIT} bytes when compiled"),
            other => other.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned(),
        },
    })
}

/// Replaces every match of an expression (RE2's GlobalReplace).
#[derive(Clone)]
pub struct Substitution {
    pattern: Regex,
    source: Box<str>,
    pieces: Vec<Piece>,
    replacement: Box<str>,
}

#[derive(Debug, Clone)]
enum Piece {
    Literal(Vec<u8>),
    Group(usize),
}

impl Substitution {
    /// `replacement` may name groups as `\0` to `\9`; `\\` is a backslash.
    pub fn new(pattern: &str, replacement: &str) -> Result<Self, PatternError> {
        let compiled = compile(pattern, pattern)?;
        let fail = |reason: String| PatternError { source_text: pattern.to_owned(), reason };
        let mut pieces = Vec::new();
        let mut literal = Vec::new();
        let mut chars = replacement.chars();
        while let Some(c) = chars.next() {
            if c != '\\' {
                literal.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                continue;
            }
            match chars.next() {
                Some('\\') => literal.push(b'\\'),
                Some(digit) if digit.is_ascii_digit() => {
                    let group = digit as usize - '0' as usize;
                    if group >= compiled.captures_len() {
                        return Err(fail(format!("the substitution names group {group}, which does not exist")));
                    }
                    pieces.push(Piece::Literal(std::mem::take(&mut literal)));
                    pieces.push(Piece::Group(group));
                }
                _ => return Err(fail("a backslash in the substitution must precede a digit or a backslash".into())),
            }
        }
        pieces.push(Piece::Literal(literal));
        Ok(Self { pattern: compiled, source: pattern.into(), pieces, replacement: replacement.into() })
    }

    /// `text` with every match replaced; `None` if nothing matched or the result is not UTF-8.
    #[must_use]
    pub fn apply(&self, text: &str) -> Option<String> {
        if !self.pattern.is_match(text.as_bytes()) {
            return None;
        }
        let replaced = self.pattern.replace_all(text.as_bytes(), |captures: &regex::bytes::Captures<'_>| {
            let mut out = Vec::new();
            for piece in &self.pieces {
                match piece {
                    Piece::Literal(bytes) => out.extend_from_slice(bytes),
                    Piece::Group(n) => out.extend_from_slice(captures.get(*n).map_or(b"", |m| m.as_bytes())),
                }
            }
            out
        });
        String::from_utf8(replaced.into_owned()).ok()
    }
}

impl fmt::Debug for Substitution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s/{}/{}/", self.source, self.replacement)
    }
}

impl PartialEq for Substitution {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source && self.replacement == other.replacement
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn whole_value_only() {
        let pattern = Pattern::new("a|ab").unwrap();
        assert!(pattern.matches(b"ab") && pattern.matches(b"a"));
        assert!(!pattern.matches(b"abc") && !pattern.matches(b"xa"));
        assert!(!Pattern::new(r"\d").unwrap().matches("٣".as_bytes()));
        assert!(!Pattern::new("a").unwrap().matches(b"a\n"));
        assert!(Pattern::new(r"\p{Greek}+").unwrap().matches("αβ".as_bytes()));
    }

    #[test]
    fn bad_expressions_are_named() {
        for bad in ["a)|(b", "(", "a{99999}", "(?x)a#"] {
            let error = Pattern::new(bad).unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
    }

    #[test]
    fn substitutes_groups() {
        let rewrite = Substitution::new("^/service/([^/]+)(/.*)$", r"\2/instance/\1").unwrap();
        assert_eq!(rewrite.apply("/service/foo/v1/api").unwrap(), "/v1/api/instance/foo");
        assert_eq!(rewrite.apply("/other"), None);
        assert_eq!(
            Substitution::new("one", "two").unwrap().apply("/xxx/one/yyy/one/zzz").unwrap(),
            "/xxx/two/yyy/two/zzz"
        );
        assert!(Substitution::new("a", r"\1").is_err());
        assert!(Substitution::new("a", r"\x").is_err());
    }

    proptest! {
        #[test]
        fn never_panics(source in ".{0,40}", value in ".{0,40}") {
            if let Ok(pattern) = Pattern::new(&source) {
                let _ = pattern.matches(value.as_bytes());
            }
            if let Ok(rewrite) = Substitution::new(&source, &value) {
                let _ = rewrite.apply(&source);
            }
        }
    }
}
