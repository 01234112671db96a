//! URI templates: `/shop/{item}/**`, as Envoy's `uri_template` matcher and rewriter understand them.
//!
//! `*` stands for one non-empty segment, `**` (last, but for a literal suffix) for any rest, `{name}` is a named `*`
//! and `{name=pattern}` a named part with its own wildcards.

use std::sync::Arc;

use regex::Regex;

/// A compiled template; it must match the whole path, without query.
#[derive(Debug, Clone)]
pub struct PathTemplate {
    source: Arc<str>,
    whole: Regex,
}

/// What a matched path is rewritten to: `/new/{name}`.
#[derive(Debug, Clone, PartialEq)]
pub struct TemplateRewrite {
    source: Arc<str>,
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq)]
enum Piece {
    Literal(Box<str>),
    Variable(Box<str>),
}

/// Why a template was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid URI template {template:?}: {reason}")]
pub struct TemplateError {
    template: String,
    reason: String,
}

/// Characters a literal segment may have besides letters, digits and percent signs.
const LITERALS: &str = "-._~!$&'()+,;:@=%";
/// Envoy's limits on a pattern.
const MAX_VARIABLES: usize = 5;
const MAX_NAME: usize = 16;

impl PathTemplate {
    /// Compiles a template.
    pub fn new(source: &str) -> Result<Self, TemplateError> {
        let fail = |reason: String| TemplateError { template: source.to_owned(), reason };
        let Some(rest) = source.strip_prefix('/') else {
            return Err(fail("it must begin with a slash".into()));
        };
        let mut names: Vec<&str> = Vec::new();
        let mut text = String::from(r"\A");
        let mut after_glob = false;
        let segments = split_segments(rest);
        for segment in &segments {
            text.push('/');
            translate_segment(segment, &mut text, &mut names, &mut after_glob).map_err(fail)?;
        }
        text.push_str(r"\z");
        if names.len() > MAX_VARIABLES {
            return Err(fail(format!("more than {MAX_VARIABLES} variables")));
        }
        let whole = Regex::new(&text).map_err(|error| fail(error.to_string()))?;
        Ok(Self { source: source.into(), whole })
    }

    /// Whether the path (without query) matches.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        self.whole.is_match(path)
    }

    /// The template as written.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The path that `rewrite` makes of `path`; `None` if it does not match.
    #[must_use]
    pub fn rewrite(&self, path: &str, rewrite: &TemplateRewrite) -> Option<String> {
        let captures = self.whole.captures(path)?;
        let mut out = String::with_capacity(path.len());
        for piece in &rewrite.pieces {
            match piece {
                Piece::Literal(text) => out.push_str(text),
                Piece::Variable(name) => out.push_str(captures.name(name).map_or("", |m| m.as_str())),
            }
        }
        Some(out)
    }

    fn variables(&self) -> impl Iterator<Item = &str> {
        self.whole.capture_names().flatten()
    }
}

impl PartialEq for PathTemplate {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl TemplateRewrite {
    /// Compiles a rewrite for `template`; every variable it names must exist there.
    pub fn new(source: &str, template: &PathTemplate) -> Result<Self, TemplateError> {
        let fail = |reason: String| TemplateError { template: source.to_owned(), reason };
        if !source.starts_with('/') {
            return Err(fail("it must begin with a slash".into()));
        }
        let mut pieces = Vec::new();
        let mut rest = source;
        while let Some((literal, tail)) = rest.split_once('{') {
            let Some((name, tail)) = tail.split_once('}') else {
                return Err(fail("a brace is not closed".into()));
            };
            if !template.variables().any(|known| known == name) {
                return Err(fail(format!("the pattern {:?} has no variable {name:?}", template.source())));
            }
            pieces.push(Piece::Literal(literal.into()));
            pieces.push(Piece::Variable(name.into()));
            rest = tail;
        }
        if rest.contains('}') {
            return Err(fail("a brace is not opened".into()));
        }
        pieces.push(Piece::Literal(rest.into()));
        Ok(Self { source: source.into(), pieces })
    }
}

/// Splits at slashes outside of braces.
fn split_segments(text: &str) -> Vec<&str> {
    let mut depth = 0_u32;
    text.split(|c| {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == '/' && depth == 0
    })
    .collect()
}

fn translate_segment<'t>(
    segment: &'t str,
    out: &mut String,
    names: &mut Vec<&'t str>,
    after_glob: &mut bool,
) -> Result<(), String> {
    let Some(body) = segment.strip_prefix('{') else {
        return translate_part(segment, out, after_glob);
    };
    let Some(body) = body.strip_suffix('}').filter(|body| !body.contains(['{', '}'])) else {
        return Err(format!("the variable {segment:?} must fill its segment and not hold another"));
    };
    let (name, pattern) = body.split_once('=').unwrap_or((body, "*"));
    let good = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.len() <= MAX_NAME
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if !good {
        return Err(format!("{name:?} is no name for a variable"));
    }
    if names.contains(&name) {
        return Err(format!("the variable {name:?} stands twice"));
    }
    if pattern.is_empty() {
        return Err(format!("the variable {name:?} has an empty pattern"));
    }
    names.push(name);
    out.push_str(&format!("(?P<{name}>"));
    for (i, part) in pattern.trim_start_matches('/').split('/').enumerate() {
        if i > 0 {
            out.push('/');
        }
        translate_part(part, out, after_glob)?;
    }
    out.push(')');
    Ok(())
}

fn translate_part(part: &str, out: &mut String, after_glob: &mut bool) -> Result<(), String> {
    match part {
        "*" if *after_glob => Err("`*` must not follow `**`".into()),
        "**" if *after_glob => Err("`**` may stand only once".into()),
        "*" => {
            out.push_str("[^/]+");
            Ok(())
        }
        "**" => {
            *after_glob = true;
            out.push_str(".*");
            Ok(())
        }
        _ => literal(part, out),
    }
}

fn literal(part: &str, out: &mut String) -> Result<(), String> {
    match part.chars().find(|c| !(c.is_ascii_alphanumeric() || LITERALS.contains(*c))) {
        Some('*') => Err(format!("`*` must fill its segment, but stands in {part:?}")),
        Some(c) => Err(format!("the character {c:?} must be percent-encoded")),
        None => {
            out.push_str(&regex::escape(part));
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn operators() {
        let m = |t: &str, p: &str| PathTemplate::new(t).unwrap().matches(p);
        assert!(m("/foo/*/c", "/foo/b/c"));
        assert!(!m("/foo/*/c", "/foo//c") && !m("/foo/*", "/foo/a/b"));
        assert!(m("/a/**", "/a/b/c") && m("/a/**", "/a/"));
        assert!(m("/a/**/z", "/a/b/c/z") && !m("/a/**/z", "/a/b/c/y"));
        assert!(m("/{lang}/{rest=**}", "/en/a/b"));
        assert!(m("/v.1/x", "/v.1/x") && !m("/v.1/x", "/va1/x"));
    }

    #[test]
    fn rewrites() {
        let template = PathTemplate::new("/videos/{file}/{rest=**}").unwrap();
        let rewrite = TemplateRewrite::new("/{rest}/of/{file}", &template).unwrap();
        assert_eq!(template.rewrite("/videos/a/b/c", &rewrite).unwrap(), "/b/c/of/a");
        assert!(TemplateRewrite::new("/{none}", &template).is_err());
    }

    #[test]
    fn refuses() {
        for bad in
            ["x", "/a*b", "/**/*", "/{a}/{a}", "/{a", "/{a}b", "/{=x}", "/{1a}", "/ä", "/{a}/{b}/{c}/{d}/{e}/{f}"]
        {
            assert!(PathTemplate::new(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "[/{}=*a-z]{0,30}", path in ".{0,30}") {
            if let Ok(template) = PathTemplate::new(&text) {
                let _ = template.matches(&path);
            }
        }
    }
}
