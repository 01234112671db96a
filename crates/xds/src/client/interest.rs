//! What the client wants of one type, what it told the server, and what it holds.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use hashbrown::HashMap;

/// One resource that the client accepted.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Held {
    pub(super) version: String,
    /// Hash of the content: state-of-the-world has no versions of single resources.
    pub(super) digest: u64,
    /// When it ends, if the server gave it a time to live.
    pub(super) expires: Option<Instant>,
}

/// An answer that waits to be sent.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) nonce: String,
    /// `None` = ACK.
    pub(super) nack: Option<String>,
}

/// The state of one type. Everything below `opened` belongs to the present stream.
#[derive(Debug, Default)]
pub(super) struct Interest {
    pub(super) wildcard: bool,
    pub(super) names: BTreeSet<String>,
    pub(super) held: HashMap<String, Held>,
    /// Version of the last accepted response (state-of-the-world).
    pub(super) version: String,
    /// Whether a request for this type was sent on this stream.
    pub(super) opened: bool,
    pub(super) told: BTreeSet<String>,
    /// Nonce of the last response answered.
    pub(super) nonce: String,
    pub(super) answers: Vec<Answer>,
}

impl Interest {
    /// Whether there is anything to ask for.
    pub(super) fn wants(&self) -> bool {
        self.wildcard || !self.names.is_empty()
    }

    /// Whether a resource of this name is wanted (it may have been unsubscribed while in flight).
    pub(super) fn is_wanted(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    /// The names as the protocol has them: `*` beside explicit names, and an empty list for a pure wildcard of
    /// the types where that means everything.
    pub(super) fn request_names(&self, empty_is_wildcard: bool) -> BTreeSet<String> {
        let mut names = self.names.clone();
        if self.wildcard && !(names.is_empty() && empty_is_wildcard) {
            names.insert(crate::kind::WILDCARD.to_owned());
        }
        names
    }

    /// Forgets what is not wanted any more. Returns the names.
    pub(super) fn forget_unwanted(&mut self) {
        if !self.wildcard {
            let names = &self.names;
            self.held.retain(|name, _| names.contains(name));
        }
    }

    /// Versions to resume with.
    pub(super) fn versions(&self) -> BTreeMap<String, String> {
        let wanted = self.held.iter().filter(|(name, _)| self.is_wanted(name));
        wanted.map(|(name, held)| (name.clone(), held.version.clone())).collect()
    }

    /// The stream ended: what was told is forgotten, what is held stays.
    pub(super) fn reset(&mut self) {
        self.opened = false;
        self.told.clear();
        self.nonce.clear();
        self.answers.clear();
    }
}
