//! Finds the first matching policy without trying them all.
//!
//! Most policies can match only for certain exact client names or certain exact paths. Those are kept under these keys;
//! the rest in a list. A lookup walks the lists that can match as one ordered list, so the answer is always that of
//! trying every policy in turn.

use std::sync::Arc;

use hashbrown::HashMap;

use super::{Permission, Policy, Principal, Subject};
use crate::matcher::{StringMatcher, StringPattern};

/// Below this many policies trying them all is cheaper.
const SMALL: usize = 8;

/// Policies by what they need.
#[derive(Debug, Clone, Default)]
pub(super) struct PolicyIndex {
    by_name: HashMap<Arc<str>, Vec<u32>>,
    by_path: HashMap<Arc<str>, Vec<u32>>,
    rest: Vec<u32>,
}

impl PolicyIndex {
    /// `None` where it would not pay.
    pub(super) fn new(policies: &[Policy]) -> Option<Self> {
        if policies.len() <= SMALL {
            return None;
        }
        let mut index = Self::default();
        for (at, policy) in policies.iter().enumerate() {
            let at = u32::try_from(at).ok()?;
            if let Some(names) = union(&policy.principals, names) {
                names.into_iter().for_each(|name| index.by_name.entry(name).or_default().push(at));
            } else if let Some(paths) = union(&policy.permissions, paths) {
                paths.into_iter().for_each(|path| index.by_path.entry(path).or_default().push(at));
            } else {
                index.rest.push(at);
            }
        }
        Some(index)
    }

    /// The first policy that matches.
    pub(super) fn find<'p>(&self, policies: &'p [Policy], subject: &Subject<'_>) -> Option<&'p Policy> {
        let peer = subject.connection.peer.as_deref().filter(|_| subject.connection.tls);
        let names = peer.into_iter().flat_map(|peer| peer.uri_sans.iter().chain(&peer.dns_sans).chain([&peer.subject]));
        // A TLS client without a certificate has the empty name.
        let nameless = (subject.connection.tls && peer.is_none()).then_some("");
        let keys = names.map(|name| &**name).chain(nameless);
        let named = keys.filter_map(|name| self.by_name.get(name)).map(Vec::as_slice);
        let path = subject.request.map(|facts| facts.path_only());
        let mut lists: Vec<&[u32]> =
            named.chain(path.and_then(|path| self.by_path.get(path)).map(Vec::as_slice)).collect();
        if lists.is_empty() {
            let rest = self.rest.iter().filter_map(|at| policies.get(*at as usize));
            return rest.into_iter().find(|policy| policy.matches(subject));
        }
        lists.push(&self.rest);
        loop {
            let heads = lists.iter().enumerate().filter_map(|(place, list)| list.first().map(|at| (place, *at)));
            let (place, at) = heads.min_by_key(|(_, at)| *at)?;
            if let Some(policy) = policies.get(at as usize).filter(|policy| policy.matches(subject)) {
                return Some(policy);
            }
            if let Some(list) = lists.get_mut(place) {
                *list = list.get(1..).unwrap_or_default();
            }
        }
    }
}

type Keys = Option<Vec<Arc<str>>>;

/// The names of which a client must have one; `None`: any client may do.
fn names(rule: &Principal) -> Keys {
    match rule {
        Principal::Authenticated(Some(matcher)) => exact(matcher),
        Principal::And(all) => all.iter().filter_map(names).min_by_key(Vec::len),
        Principal::Or(any) => union(any, names),
        _ => None,
    }
}

/// The paths of which a request must have one; `None`: any path may do.
fn paths(rule: &Permission) -> Keys {
    match rule {
        Permission::Path(matcher) => exact(matcher),
        Permission::And(all) => all.iter().filter_map(paths).min_by_key(Vec::len),
        Permission::Or(any) => union(any, paths),
        _ => None,
    }
}

/// The keys of all alternatives together, if every one of them has such.
fn union<T>(any: &[T], keys: fn(&T) -> Keys) -> Keys {
    let mut all: Vec<Arc<str>> = any.iter().map(keys).collect::<Option<Vec<_>>>()?.into_iter().flatten().collect();
    all.sort_unstable();
    all.dedup();
    Some(all)
}

fn exact(matcher: &StringMatcher) -> Keys {
    match &matcher.pattern {
        StringPattern::Exact(text) if !matcher.ignore_case => Some(vec![text.clone()]),
        _ => None,
    }
}
