//! Canonical paths and hosts, before anything is matched: what routes and rules see is what goes upstream.

use std::borrow::Cow;
use std::fmt::Write as _;

/// What the HTTP manager was told about paths and hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathOptions {
    /// RFC 3986 normalisation: dot segments, percent-encoding of unreserved characters. Default here true.
    pub normalize: bool,
    /// `//` becomes `/`. Default false.
    pub merge_slashes: bool,
    /// What to do with `%2F` and `%5C`.
    pub escaped_slashes: EscapedSlashes,
    /// Remove the port from the authority where it is the listener's own. Default false.
    pub strip_matching_port: bool,
    /// Remove any port. Default false.
    pub strip_any_port: bool,
    /// Remove a dot at the end of the host. Default false.
    pub strip_trailing_dot: bool,
}

/// What to do with `%2F` and `%5C` in a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EscapedSlashes {
    /// Nothing.
    #[default]
    Keep,
    /// Answer 400.
    Reject,
    /// Decode, and if that changed anything redirect (307) to the result.
    Redirect,
    /// Decode and go on.
    Forward,
}

/// A path made canonical.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Canonical {
    /// It was so already.
    Same,
    /// This is it, with its query.
    Changed(String),
    /// The client must ask again at this path (307).
    Redirect(String),
    /// It cannot be: answer 400; the reason is the response code details.
    Reject(&'static str),
}

/// Makes a path (with its query) canonical. Targets that do not begin with a slash (`*`, CONNECT) stay as they are.
#[must_use]
pub fn canonical(path: &str, options: &PathOptions) -> Canonical {
    if is_plain(path) {
        return Canonical::Same;
    }
    if path.contains('#') {
        return Canonical::Reject("path_with_fragment");
    }
    if !path.starts_with('/') {
        return Canonical::Same;
    }
    let (bare, query) = path.split_once('?').map_or((path, None), |(bare, query)| (bare, Some(query)));
    let mut current = Cow::Borrowed(bare);
    let unescaped = unescape_slashes(bare, options.escaped_slashes);
    let must_redirect = match (unescaped, options.escaped_slashes) {
        (None, _) | (_, EscapedSlashes::Keep) => false,
        (Some(_), EscapedSlashes::Reject) => return Canonical::Reject("path_normalization_failed"),
        (Some(changed), action) => {
            current = Cow::Owned(changed);
            action == EscapedSlashes::Redirect
        }
    };
    if options.normalize && !is_normal(&current) {
        match normalize(&current) {
            Some(changed) => current = Cow::Owned(changed),
            None => return Canonical::Reject("path_normalization_failed"),
        }
    }
    if options.merge_slashes && current.contains("//") {
        current = Cow::Owned(merge_slashes(&current));
    }
    if current == bare {
        return Canonical::Same;
    }
    let mut result = current.into_owned();
    if let Some(query) = query {
        result.push('?');
        result.push_str(query);
    }
    if must_redirect { Canonical::Redirect(result) } else { Canonical::Changed(result) }
}

/// The authority as routes see it: without a final dot, without its port, as the options say. `own_port`: where the
/// client meant to go.
#[must_use]
pub fn authority<'h>(authority: &'h str, options: &PathOptions, own_port: u16) -> Cow<'h, str> {
    let mut result = Cow::Borrowed(authority);
    if !(options.strip_trailing_dot || options.strip_any_port || options.strip_matching_port) {
        return result;
    }
    let bare = crate::routes::without_port(authority);
    let port = authority.get(bare.len()..).and_then(|rest| rest.strip_prefix(':'));
    if let Some(bare) = bare.strip_suffix('.').filter(|_| options.strip_trailing_dot) {
        result = match port {
            Some(port) => Cow::Owned(format!("{bare}:{port}")),
            None => Cow::Borrowed(bare),
        };
    }
    let matching = port.is_some_and(|port| port.parse() == Ok(own_port));
    if port.is_some() && (options.strip_any_port || (options.strip_matching_port && matching)) {
        let stripped = crate::routes::without_port(&result).len();
        result = match result {
            Cow::Borrowed(text) => Cow::Borrowed(text.get(..stripped).unwrap_or(text)),
            Cow::Owned(mut text) => {
                text.truncate(stripped);
                Cow::Owned(text)
            }
        };
    }
    result
}

/// `%2F` and `%5C` decoded; `None` if there are none.
fn unescape_slashes(path: &str, action: EscapedSlashes) -> Option<String> {
    if action == EscapedSlashes::Keep || !path.contains('%') {
        return None;
    }
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    let mut changed = false;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        let decoded = match after.get(..2) {
            Some("2F" | "2f") => Some('/'),
            Some("5C" | "5c") => Some('\\'),
            _ => None,
        };
        match decoded {
            Some(c) => {
                changed = true;
                out.push(c);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                out.push('%');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    changed.then_some(out)
}

/// Whether there is nothing in a path that any option would look at twice: the fast way out for nearly every request.
fn is_plain(path: &str) -> bool {
    let (mut before, mut in_query) = (b' ', false);
    let plain = path.bytes().all(|byte| {
        let plain = match byte {
            b'#' => false,
            _ if in_query => true,
            b'/' | b'.' => before != b'/',
            b'?' => {
                in_query = true;
                true
            }
            _ => byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~'),
        };
        before = byte;
        plain
    });
    plain && path.starts_with('/')
}

/// Whether normalisation would change nothing.
fn is_normal(path: &str) -> bool {
    let bytes = path.as_bytes();
    let plain = bytes.iter().all(|b| keeps(*b) && *b != b'%');
    plain && !path.contains("/.")
}

/// Bytes that stay as they are in a canonical path.
const fn keeps(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'-' | b'.'
                | b'_'
                | b'~'
                | b'!'
                | b'$'
                | b'&'
                | b'\''
                | b'('
                | b')'
                | b'*'
                | b'+'
                | b','
                | b';'
                | b'='
                | b':'
                | b'@'
                | b'/'
                | b'%'
                | b'['
                | b']'
                | b'|'
        )
}

/// Decodes unreserved characters, encodes what must be encoded, turns `\` into `/`, then removes dot segments. `None` for
/// a zero byte, encoded or not.
fn normalize(path: &str) -> Option<String> {
    let mut flat = String::with_capacity(path.len());
    let mut lone = Vec::new();
    let mut bytes = path.bytes().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            0 => return None,
            b'\\' => flat.push('/'),
            b'%' => match path.as_bytes().get(at + 1..at + 3).and_then(escaped) {
                Some(0) => return None,
                Some(code) if code.is_ascii_alphanumeric() || matches!(code, b'-' | b'.' | b'_' | b'~') => {
                    flat.push(char::from(code));
                    bytes.next();
                    bytes.next();
                }
                code => {
                    if code.is_none() {
                        lone.push(flat.len());
                    }
                    flat.push('%');
                }
            },
            byte if keeps(byte) => flat.push(char::from(byte)),
            byte => {
                let _ = write!(flat, "%{byte:02X}");
            }
        }
    }
    // A `%` that began no escape must not begin one with what was decoded behind it, or whoever reads the path next
    // would decode it again.
    if lone.iter().any(|at| begins_escape(&flat, *at)) {
        let mut lone = lone.into_iter().peekable();
        let mut out = String::with_capacity(flat.len() + 16);
        for (at, byte) in flat.bytes().enumerate() {
            out.push(char::from(byte));
            if lone.next_if_eq(&at).is_some() && begins_escape(&flat, at) {
                out.push_str("25");
            }
        }
        flat = out;
    }
    Some(without_dots(&flat))
}

/// Whether the `%` at this place has two hexadecimal digits behind it.
fn begins_escape(path: &str, at: usize) -> bool {
    path.as_bytes().get(at + 1..at + 3).and_then(escaped).is_some()
}

/// The byte that two hexadecimal digits stand for.
fn escaped(digits: &[u8]) -> Option<u8> {
    let mut digits = digits.iter().map(|digit| char::from(*digit).to_digit(16));
    let (high, low) = (digits.next()??, digits.next()??);
    u8::try_from(high * 16 + low).ok()
}

/// Removes `.` and `..` segments; a path never climbs above its root.
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut open_end = false;
    for segment in path.split('/').skip(1) {
        open_end = false;
        match segment {
            "." => open_end = true,
            ".." => {
                kept.pop();
                open_end = true;
            }
            other => kept.push(other),
        }
    }
    let mut out = String::with_capacity(path.len());
    for segment in &kept {
        out.push('/');
        out.push_str(segment);
    }
    if open_end || out.is_empty() {
        out.push('/');
    }
    out
}

fn merge_slashes(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for c in path.chars() {
        if c != '/' || !out.ends_with('/') {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLAIN: PathOptions = PathOptions {
        normalize: true,
        merge_slashes: false,
        escaped_slashes: EscapedSlashes::Keep,
        strip_matching_port: false,
        strip_any_port: false,
        strip_trailing_dot: false,
    };

    fn changed(path: &str) -> String {
        match canonical(path, &PLAIN) {
            Canonical::Same => path.to_owned(),
            Canonical::Changed(new) => new,
            other => panic!("{path}: {other:?}"),
        }
    }

    #[test]
    fn no_new_escape_comes_of_an_old_one() {
        // As Envoy writes them.
        for (path, wanted) in [("/a%%33%33", "/a%2533"), ("/%%32%46x", "/%252Fx"), ("/%2%46", "/%252F")] {
            assert_eq!(changed(path), wanted);
            assert_eq!(changed(wanted), wanted);
        }
        for path in ["/%zz", "/100%", "/%+1", "/a%%zz"] {
            assert_eq!(changed(path), path);
        }
    }

    #[test]
    fn plain_paths_are_those_that_no_option_would_change() {
        for path in ["/", "/a", "/a.b/c-d_e~f/", "/a?b=/../%2f//", "/a/?"] {
            assert!(is_plain(path), "{path}");
        }
        for path in ["", "*", "a/b", "//", "/.", "/a/../b", "/a//b", "/a%2fb", "/a#b", "/a?b#c", r"/a\b", "/é", "/a b"]
        {
            assert!(!is_plain(path), "{path}");
        }
    }

    #[test]
    fn dots_and_escapes() {
        assert_eq!(changed("/a/./b/../c"), "/a/c");
        assert_eq!(changed("/a/%2e%2E/c?x=/../y"), "/c?x=/../y");
        assert_eq!(changed("/../../etc"), "/etc");
        assert_eq!(changed("/a/b/.."), "/a/");
        assert_eq!(changed("/a/."), "/a/");
        assert_eq!(changed(r"/a\b\..\c"), "/a/c");
        assert_eq!(changed("/%61dmin"), "/admin");
        assert_eq!(changed("/a%2Fb"), "/a%2Fb");
        assert_eq!(changed("/a//b"), "/a//b");
        assert_eq!(changed("/a//../b"), "/a/b");
        assert_eq!(changed("/.hidden/..x"), "/.hidden/..x");
        assert_eq!(changed("/100%"), "/100%");
        assert_eq!(changed("/a%+0%-1"), "/a%+0%-1");
        assert_eq!(canonical("/a%00b", &PLAIN), Canonical::Reject("path_normalization_failed"));
        assert_eq!(canonical("/a#b", &PLAIN), Canonical::Reject("path_with_fragment"));
        assert_eq!(canonical("*", &PLAIN), Canonical::Same);
    }

    #[test]
    fn slashes() {
        let with = |action| PathOptions { escaped_slashes: action, merge_slashes: true, ..PLAIN };
        assert_eq!(canonical("/a%2F%5cb?c", &with(EscapedSlashes::Forward)), Canonical::Changed("/a/b?c".into()));
        assert_eq!(canonical("/a%2fb", &with(EscapedSlashes::Redirect)), Canonical::Redirect("/a/b".into()));
        assert_eq!(canonical("/a%2fb", &with(EscapedSlashes::Reject)), Canonical::Reject("path_normalization_failed"));
        assert_eq!(canonical("/a//b", &with(EscapedSlashes::Redirect)), Canonical::Changed("/a/b".into()));
    }

    #[test]
    fn hosts() {
        let dot = PathOptions { strip_trailing_dot: true, ..PLAIN };
        assert_eq!(authority("a.b.:80", &dot, 80), "a.b:80");
        let own = PathOptions { strip_matching_port: true, ..PLAIN };
        assert_eq!(authority("a:80", &own, 80), "a");
        assert_eq!(authority("a:81", &own, 80), "a:81");
        let any = PathOptions { strip_any_port: true, ..dot };
        assert_eq!(authority("[::1]:9", &any, 80), "[::1]");
        assert_eq!(authority("a.:9", &any, 80), "a");
    }

    proptest! {
        #[test]
        fn canonical_is_a_fixed_point(path in "/[a-c./%2eE\\\\ é]{0,20}") {
            if let Canonical::Changed(once) = canonical(&path, &PLAIN) {
                prop_assert!(matches!(canonical(&once, &PLAIN), Canonical::Same), "{} -> {}", path, once);
            }
        }

        #[test]
        fn never_panics(path in ".{0,30}", port in 0..u16::MAX) {
            let all = PathOptions {
                merge_slashes: true, escaped_slashes: EscapedSlashes::Forward,
                strip_any_port: true, strip_trailing_dot: true, ..PLAIN
            };
            let _ = canonical(&path, &all);
            let _ = authority(&path, &all, port);
        }
    }
}
