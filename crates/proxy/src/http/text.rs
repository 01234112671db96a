//! Paths and authorities on their way through: shared with what was read, or with each other, and not copied.

use std::ops::Deref;
use std::rc::Rc;

use http::uri::{Authority, InvalidUri, PathAndQuery};

/// A path with its query, or an authority. Cheap to clone.
#[derive(Debug, Clone)]
pub enum Text {
    /// A path as it was read.
    Path(PathAndQuery),
    /// An authority as HTTP/2 tells it.
    Authority(Authority),
    /// Anything else, and what was changed.
    Other(Rc<str>),
}

impl Text {
    /// As a path to send; the empty one of CONNECT is `/`.
    ///
    /// # Errors
    /// No request can have such a path.
    pub(super) fn to_path(&self) -> Result<PathAndQuery, InvalidUri> {
        match self {
            Self::Path(path) => Ok(path.clone()),
            other if other.is_empty() => Ok(PathAndQuery::from_static("/")),
            other => PathAndQuery::try_from(&**other),
        }
    }

    /// As an authority to send.
    ///
    /// # Errors
    /// No request can have such an authority.
    pub(super) fn to_authority(&self) -> Result<Authority, InvalidUri> {
        match self {
            Self::Authority(authority) => Ok(authority.clone()),
            other => Authority::try_from(&**other),
        }
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Path(path) => path.as_str(),
            Self::Authority(authority) => authority.as_str(),
            Self::Other(text) => text,
        }
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self::Other(text.into())
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self::Other(text.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_is_not_copied() {
        let read = PathAndQuery::from_static("/a?b=c");
        let text = Text::Path(read.clone());
        assert_eq!(text.as_ptr(), read.as_str().as_ptr());
        assert_eq!(text.to_path().unwrap(), read);
        assert_eq!(Text::from("").to_path().unwrap(), "/");
        assert_eq!(Text::from("/x y").to_path().ok(), None);
        assert_eq!(Text::from("a.test:1").to_authority().unwrap(), "a.test:1");
    }
}
