//! Canonical paths and hosts, before anything is matched: what routes and rules see is what goes upstream.

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
