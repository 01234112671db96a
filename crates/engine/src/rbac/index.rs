//! Finds the first matching policy without trying them all.
//!
//! Most policies can match only for certain client names, clients of certain namespaces, or certain paths or beginnings of
//! paths. Those are kept under these keys; the rest in a list. A lookup walks the lists that can match as one ordered list, so the answer is always that of
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
    by_namespace: HashMap<Arc<str>, Vec<u32>>,
    by_path: HashMap<Arc<str>, Vec<u32>>,
    by_prefix: HashMap<Arc<str>, Vec<u32>>,
    /// Lengths of prefixes in use, ascending.
    prefix_lengths: Vec<usize>,
    rest: Vec<u32>,
}

/// Something that a client or a request must have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    /// This name, exactly.
    Name(Arc<str>),
    /// A SPIFFE identity of this namespace.
    Namespace(Arc<str>),
    /// This path, exactly.
    Path(Arc<str>),
    /// A path that begins so.
    Prefix(Arc<str>),
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
            let keys = union(&policy.principals, names).or_else(|| union(&policy.permissions, paths));
            match keys {
                Some(keys) => keys.into_iter().for_each(|key| index.list(key).push(at)),
                None => index.rest.push(at),
            }
        }
        Some(index)
    }

    fn list(&mut self, key: Key) -> &mut Vec<u32> {
        match key {
            Key::Name(name) => self.by_name.entry(name).or_default(),
            Key::Namespace(name) => self.by_namespace.entry(name).or_default(),
            Key::Path(path) => self.by_path.entry(path).or_default(),
            Key::Prefix(prefix) => {
                if let Err(place) = self.prefix_lengths.binary_search(&prefix.len()) {
                    self.prefix_lengths.insert(place, prefix.len());
                }
                self.by_prefix.entry(prefix).or_default()
            }
        }
    }

    /// The first policy that matches.
    pub(super) fn find<'p>(&self, policies: &'p [Policy], subject: &Subject<'_>) -> Option<&'p Policy> {
        let mut lists: Vec<&[u32]> = Vec::new();
        self.of_client(subject, &mut lists);
        if let Some(path) = subject.path {
            lists.extend(self.by_path.get(path).map(Vec::as_slice));
            let fitting = self.prefix_lengths.iter().take_while(|length| **length <= path.len());
            let prefixes = fitting.filter_map(|length| path.get(..*length));
            lists.extend(prefixes.filter_map(|prefix| self.by_prefix.get(prefix)).map(Vec::as_slice));
        }
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

    fn of_client<'i>(&'i self, subject: &Subject<'_>, lists: &mut Vec<&'i [u32]>) {
        let peer = subject.connection.peer.as_deref().filter(|_| subject.connection.tls);
        let names = peer.into_iter().flat_map(|peer| peer.uri_sans.iter().chain(&peer.dns_sans).chain([&peer.subject]));
        // A TLS client without a certificate has the empty name.
        let nameless = (subject.connection.tls && peer.is_none()).then_some("");
        for name in names.map(|name| &**name).chain(nameless) {
            lists.extend(self.by_name.get(name).map(Vec::as_slice));
            let namespace = (!self.by_namespace.is_empty()).then(|| namespace_of(name)).flatten();
            lists.extend(namespace.and_then(|namespace| self.by_namespace.get(namespace)).map(Vec::as_slice));
        }
    }
}

type Keys = Option<Vec<Key>>;

/// The names of which a client must have one; `None`: any client may do.
fn names(rule: &Principal) -> Keys {
    match rule {
        Principal::Authenticated(Some(matcher)) => match &matcher.pattern {
            StringPattern::Regex(pattern) => {
                required_namespace(pattern.source()).map(|name| vec![Key::Namespace(name)])
            }
            _ => exact(matcher).map(|name| vec![Key::Name(name)]),
        },
        Principal::And(all) => all.iter().filter_map(names).min_by_key(Vec::len),
        Principal::Or(any) => union(any, names),
        _ => None,
    }
}

/// The paths of which a request must have one; `None`: any path may do.
fn paths(rule: &Permission) -> Keys {
    match rule {
        Permission::Path(matcher) => match &matcher.pattern {
            StringPattern::Prefix(prefix) if !matcher.ignore_case => Some(vec![Key::Prefix(prefix.clone())]),
            _ => exact(matcher).map(|path| vec![Key::Path(path)]),
        },
        Permission::And(all) => all.iter().filter_map(paths).min_by_key(Vec::len),
        Permission::Or(any) => union(any, paths),
        _ => None,
    }
}

/// The keys of all alternatives together, if every one of them has such.
fn union<T>(any: &[T], keys: fn(&T) -> Keys) -> Keys {
    let mut all: Vec<Key> = any.iter().map(keys).collect::<Option<Vec<_>>>()?.into_iter().flatten().collect();
    all.sort_unstable();
    all.dedup();
    Some(all)
}

fn exact(matcher: &StringMatcher) -> Option<Arc<str>> {
    match &matcher.pattern {
        StringPattern::Exact(text) if !matcher.ignore_case => Some(text.clone()),
        _ => None,
    }
}

/// How control planes write "of this namespace".
const ANY_DOMAIN: &str = "spiffe://[^/]+/ns/";

/// The namespace of every name that an expression matches, where it plainly says so.
fn required_namespace(expression: &str) -> Option<Arc<str>> {
    let rest = expression.strip_prefix(ANY_DOMAIN)?;
    // Alternatives could be of another kind.
    let (literal, _) = rest.split_once("/sa/").filter(|_| !expression.contains('|'))?;
    let mut plain = String::new();
    let mut letters = literal.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => plain.push(letters.next().filter(|escaped| "-._".contains(*escaped))?),
            _ if letter.is_ascii_alphanumeric() || letter == '-' || letter == '_' => plain.push(letter),
            _ => return None,
        }
    }
    Some(plain.into())
}

/// The namespace of a SPIFFE identity.
fn namespace_of(name: &str) -> Option<&str> {
    let (_, rest) = name.strip_prefix("spiffe://")?.split_once("/ns/")?;
    rest.split_once('/').map(|(namespace, _)| namespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_read_only_where_it_is_sure() {
        let namespace = |expression: &str| required_namespace(expression).map(|name| name.to_string());
        assert_eq!(namespace("spiffe://[^/]+/ns/shop/sa/.+").as_deref(), Some("shop"));
        assert_eq!(namespace(r"spiffe://[^/]+/ns/shop\-1/sa/web").as_deref(), Some("shop-1"));
        for unsure in [
            "spiffe://[^/]+/ns/shop.*/sa/.+",
            "spiffe://[^/]+/ns/shop/sa/.+|.*",
            "spiffe://[^/]+/ns/(shop)/sa/.+",
            "spiffe://[^/]+/ns/shop?/sa/.+",
            "spiffe://[^/]+/ns/shop",
            "spiffe://td/ns/shop/sa/.+",
            r"spiffe://[^/]+/ns/sho\p/sa/.+",
        ] {
            assert_eq!(namespace(unsure), None, "{unsure}");
        }
        assert_eq!(namespace_of("spiffe://td/ns/shop/sa/web"), Some("shop"));
        assert_eq!(namespace_of("spiffe://td/web"), None);
    }
}
