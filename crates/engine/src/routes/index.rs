//! Finds the first matching route without trying them all.
//!
//! Routes are grouped by the shape of their path rule: exact paths in a hash table, prefixes in a hash table by length,
//! the rest (expressions, templates, CONNECT) in a list. Each group keeps positions in order, and the lookup walks the
//! groups that can match as one merged ordered list; so the answer is always that of trying every route in turn.

use std::sync::Arc;

use hashbrown::HashMap;

use super::matching::folded;
use super::{PathRule, Route};
use crate::dice::Dice;
use crate::facts::Facts;

/// Below this many routes trying them all is cheaper.
const SMALL: usize = 8;

/// An index over the routes of one virtual host.
#[derive(Debug, Default)]
pub struct RouteIndex {
    indexed: bool,
    exact: HashMap<Arc<str>, Vec<u32>>,
    prefix: HashMap<Arc<str>, Vec<u32>>,
    /// Prefix lengths in use, ascending.
    prefix_lengths: Vec<usize>,
    /// Everything else, in order.
    rest: Vec<u32>,
}

impl RouteIndex {
    /// Builds the index.
    #[must_use]
    pub fn new(routes: &[Arc<Route>]) -> Self {
        let mut index = Self::default();
        if routes.len() <= SMALL {
            return index;
        }
        index.indexed = true;
        for (at, route) in routes.iter().enumerate() {
            index.insert(u32::try_from(at).unwrap_or(u32::MAX), &route.rule.path);
        }
        index
    }

    fn insert(&mut self, at: u32, path: &PathRule) {
        match path {
            // Lower-cased keys serve rules with and without case alike; the rule itself compares again.
            PathRule::Exact(text) => self.exact.entry(Arc::from(&*folded(text))).or_default().push(at),
            PathRule::Prefix(text) | PathRule::SeparatedPrefix(text) => {
                if let Err(place) = self.prefix_lengths.binary_search(&text.len()) {
                    self.prefix_lengths.insert(place, text.len());
                }
                self.prefix.entry(Arc::from(&*folded(text))).or_default().push(at);
            }
            PathRule::Regex(_) | PathRule::Template(_) | PathRule::Connect => self.rest.push(at),
        }
    }

    /// The first route that matches.
    #[must_use]
    pub fn find<'r>(&self, routes: &'r [Arc<Route>], facts: &Facts<'_>, dice: &mut Dice) -> Option<&'r Arc<Route>> {
        if !self.indexed {
            return routes.iter().find(|route| route.rule.matches(facts, dice));
        }
        let path = folded(facts.path_only());
        let mut groups: Vec<&[u32]> = Vec::with_capacity(4);
        groups.extend(self.exact.get(&*path).map(Vec::as_slice));
        let fitting = self.prefix_lengths.iter().take_while(|length| **length <= path.len());
        let prefixes = fitting.filter_map(|length| path.get(..*length));
        groups.extend(prefixes.filter_map(|part| self.prefix.get(part)).map(Vec::as_slice));
        groups.push(&self.rest);
        merge(groups, |at| routes.get(at as usize).filter(|route| route.rule.matches(facts, dice)))
    }
}

/// Walks several ascending lists as one, until `test` finds something.
fn merge<T>(mut groups: Vec<&[u32]>, mut test: impl FnMut(u32) -> Option<T>) -> Option<T> {
    loop {
        let (at, lowest) = groups
            .iter()
            .enumerate()
            .filter_map(|(i, group)| group.first().map(|at| (i, *at)))
            .min_by_key(|(_, at)| *at)?;
        if let Some(found) = test(lowest) {
            return Some(found);
        }
        if let Some(group) = groups.get_mut(at) {
            *group = group.get(1..).unwrap_or_default();
        }
    }
}
