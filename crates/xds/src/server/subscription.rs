//! What one client wants of one type, what it was sent, and what is still to be looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hashbrown::HashMap;

use crate::kind::{is_full_state, order};
use crate::resource::{Resource, ResourceSet};

/// What the client has under a name.
#[derive(Debug, Clone)]
pub(super) enum Sent {
    /// This resource.
    This(Arc<Resource>),
    /// Something from an earlier stream that we do not serve (any more).
    Other,
    /// It was told that there is none.
    Nothing,
}

/// What is to be done about a name.
#[derive(Debug)]
pub(super) enum Step {
    /// Send it.
    Send(Arc<Resource>),
    /// The client has it and must drop it.
    Remove,
    /// The client asked for what does not exist.
    Absent,
    /// It is as it should be.
    Nothing,
}

/// A response that was not answered yet.
#[derive(Debug)]
pub(super) struct Outstanding {
    pub(super) nonce: String,
    pub(super) names: Vec<Arc<str>>,
    /// Whether it replaced the whole state.
    pub(super) whole: bool,
}

/// The state of one type on one stream.
#[derive(Debug)]
pub(super) struct Subscription {
    pub(super) type_url: Arc<str>,
    pub(super) order: u8,
    pub(super) wildcard: bool,
    /// Whether names were ever given: then an empty list is no wildcard any more.
    pub(super) explicit: bool,
    pub(super) names: BTreeSet<Arc<str>>,
    pub(super) sent: HashMap<Arc<str>, Sent>,
    /// Names to look at; `true` = to be sent even if the client has that version.
    pub(super) pending: BTreeMap<Arc<str>, bool>,
    /// The set that `pending` was computed against.
    pub(super) seen: u64,
    /// A response is owed even if it is empty.
    pub(super) owed: bool,
    pub(super) outstanding: Option<Outstanding>,
    /// Nonce of the last response, answered or not.
    pub(super) last_nonce: String,
    pub(super) refused: BTreeMap<Arc<str>, Arc<str>>,
}

impl Subscription {
    pub(super) fn new(type_url: &str) -> Self {
        Self {
            type_url: type_url.into(),
            order: order(type_url),
            wildcard: false,
            explicit: false,
            names: BTreeSet::new(),
            sent: HashMap::new(),
            pending: BTreeMap::new(),
            seen: 0,
            owed: true,
            outstanding: None,
            last_nonce: String::new(),
            refused: BTreeMap::new(),
        }
    }

    pub(super) fn is_full_state(&self) -> bool {
        is_full_state(&self.type_url)
    }

    /// Whether the client asked for this name.
    pub(super) fn wants(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    /// Marks a name to be looked at.
    pub(super) fn touch(&mut self, name: &Arc<str>, force: bool) {
        *self.pending.entry(name.clone()).or_default() |= force;
    }

    /// Wants everything from now on.
    pub(super) fn begin_wildcard(&mut self) {
        if !self.wildcard {
            self.wildcard = true;
            self.seen = 0;
        }
    }

    /// Does not want everything any more; what was not named is forgotten on both sides.
    pub(super) fn end_wildcard(&mut self) {
        self.wildcard = false;
        let names = &self.names;
        self.sent.retain(|name, _| names.contains(name));
        self.pending.retain(|name, _| names.contains(name));
        self.refused.retain(|name, _| names.contains(name));
    }

    /// Wants a name.
    pub(super) fn add(&mut self, name: &str, force: bool) {
        let name: Arc<str> = name.into();
        self.touch(&name, force);
        self.names.insert(name);
    }

    /// Does not want a name. With a wildcard the client must be told again what the wildcard gives under it.
    pub(super) fn drop_name(&mut self, name: &str) {
        if let Some(name) = self.names.take(name) {
            if self.wildcard {
                self.touch(&name, true);
            } else {
                self.sent.remove(&name);
                self.pending.remove(&name);
                self.refused.remove(&name);
            }
        }
    }

    /// Looks at what a new set changed for this client.
    pub(super) fn compare(&mut self, set: Option<&Arc<ResourceSet>>) {
        let id = set.map_or(0, |set| set.id());
        if id == self.seen && id != 0 {
            return;
        }
        match set.and_then(|set| set.changed_since(self.seen)) {
            Some(changed) => {
                for name in changed.iter().filter(|name| self.wildcard || self.names.contains(*name)) {
                    *self.pending.entry(name.clone()).or_default() |= false;
                }
            }
            None => self.compare_all(set),
        }
        self.seen = id;
    }

    fn compare_all(&mut self, set: Option<&Arc<ResourceSet>>) {
        let mut names: Vec<Arc<str>> = self.sent.keys().chain(&self.names).cloned().collect();
        if self.wildcard {
            names.extend(set.into_iter().flat_map(|set| set.iter()).map(|resource| resource.name().clone()));
        }
        for name in names {
            if !matches!(self.step(&name, false, set), Step::Nothing) {
                self.touch(&name, false);
            }
        }
    }

    /// What is to be done about a name.
    pub(super) fn step(&self, name: &str, force: bool, set: Option<&Arc<ResourceSet>>) -> Step {
        let sent = self.sent.get(name);
        match set.and_then(|set| set.get(name)).filter(|_| self.wants(name)) {
            Some(resource) => match sent {
                Some(Sent::This(old)) if !force && old.version() == resource.version() => Step::Nothing,
                _ => Step::Send(resource.clone()),
            },
            None => match sent {
                Some(Sent::This(_) | Sent::Other) => Step::Remove,
                Some(Sent::Nothing) if !force => Step::Nothing,
                _ if self.names.contains(name) || force => Step::Absent,
                _ => Step::Nothing,
            },
        }
    }

    /// Whether something is to be sent (not only removed).
    pub(super) fn has_news(&self, set: Option<&Arc<ResourceSet>>) -> bool {
        self.pending.iter().any(|(name, &force)| matches!(self.step(name, force, set), Step::Send(_)))
    }

    /// Whether a response on its way may still change what the client does.
    pub(super) fn is_open(&self) -> bool {
        self.outstanding.is_some()
    }

    /// The client accepted the outstanding response.
    pub(super) fn acknowledged(&mut self) {
        let Some(outstanding) = self.outstanding.take() else { return };
        if outstanding.whole {
            self.refused.clear();
        }
        for name in &outstanding.names {
            self.refused.remove(name);
        }
    }

    /// The client refused something of the outstanding response. Returns the names it means: those it mentions,
    /// or all of the response.
    pub(super) fn refuse(&mut self, message: &str) -> Vec<Arc<str>> {
        let Some(outstanding) = self.outstanding.take() else { return Vec::new() };
        let mentioned: Vec<_> = outstanding.names.iter().filter(|name| message.contains(&***name)).cloned().collect();
        let meant = if mentioned.is_empty() { outstanding.names } else { mentioned };
        let message: Arc<str> = message.into();
        for name in &meant {
            self.refused.insert(name.clone(), message.clone());
        }
        meant
    }
}
