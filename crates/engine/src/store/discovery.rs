//! Filters that listeners only name: which are wanted, which came, and who waits for them.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use proto::type_url::EXTENSION;

use super::checks::check_name;
use super::{Fault, Store, sorted};
use crate::build::{self, Context};
use crate::discovered::DiscoveredFilter;
use crate::listener::Listener;
use crate::plan::Plan;

impl Store {
    /// Configurations of filters that listeners name: subscribe to these with ECDS. Sorted.
    #[must_use]
    pub fn wanted_filters(&self) -> Vec<Arc<str>> {
        sorted(self.named_filters().map(|filter| filter.name.clone()))
    }

    /// How long what is warming may be waited for, where its own configuration says so (`initial_fetch_timeout`):
    /// `Some(None)` is as long as it takes.
    #[must_use]
    pub fn patience(&self, type_url: &str, name: &str) -> Option<Option<Duration>> {
        let mut waiting = self.waited_for().filter(|filter| *type_url == *EXTENSION && *filter.name == *name);
        let first = waiting.next()?.patience;
        // Without a limit counts as longer than any.
        Some(waiting.fold(first, |least, filter| match (least, filter.patience) {
            (Some(least), Some(other)) => Some(least.min(other)),
            (least, other) => least.or(other),
        }))
    }

    pub(super) fn add_filter(&mut self, next: &mut Plan, name: &Arc<str>, body: &Bytes) -> Result<(), Vec<Fault>> {
        let version = build::fingerprint(body);
        let known = next.filters.get(name).filter(|config| config.version == version).cloned();
        if known.is_some_and(|config| self.named_filters().all(|one| one.name != *name || one.takes(&config.type_name)))
        {
            return Ok(());
        }
        let mut cx = Context::new(&mut self.strings, version);
        let built = build::filter_config(&mut cx, body);
        if let Some(config) = &built {
            check_name(&mut cx, name, &config.name);
            let named = self.listeners.values().flat_map(|listener| named_filters(listener));
            for strict in named.filter(|one| one.name == *name && !one.takes(&config.type_name)) {
                let fault = format!("{} is not among type_urls ({})", config.type_name, strict.types.join(", "));
                cx.field("typed_config", |cx| cx.fault(fault));
            }
        }
        next.filters.insert(name.clone(), Arc::new(cx.finish(built)?));
        Ok(())
    }

    /// Notes who names what came, for as long as it lives.
    pub(super) fn note_named(&mut self, listener: &Listener) {
        self.naming.extend(named_filters(listener).map(Arc::downgrade));
    }

    /// Forgets what no listener names any more, not even an old one whose connections come to their end.
    pub(super) fn forget_filters(&mut self, next: &mut Plan) {
        self.naming.retain(|filter| filter.strong_count() > 0);
        if !next.filters.is_empty() {
            let living: Vec<_> = self.naming.iter().filter_map(Weak::upgrade).collect();
            next.filters.retain(|name, _| living.iter().any(|filter| filter.name == *name));
        }
    }

    /// Whether nothing that a listener names is still to be heard of.
    pub(super) fn has_filters(&self, listener: &Listener) -> bool {
        named_filters(listener).all(|filter| !filter.warms || self.heard.contains(&filter.name))
    }

    /// Names of filters that listeners wait for. Sorted.
    pub(super) fn missing_filters(&self) -> Vec<Arc<str>> {
        sorted(self.waited_for().map(|filter| filter.name.clone()))
    }

    fn waited_for(&self) -> impl Iterator<Item = &Arc<DiscoveredFilter>> {
        self.named_filters().filter(|filter| filter.warms && !self.heard.contains(&filter.name))
    }

    fn named_filters(&self) -> impl Iterator<Item = &Arc<DiscoveredFilter>> {
        self.listeners.values().flat_map(|listener| named_filters(listener))
    }
}

fn named_filters(listener: &Listener) -> impl Iterator<Item = &Arc<DiscoveredFilter>> {
    listener.chains.iter().filter_map(|chain| chain.http()).flat_map(|manager| manager.discovered())
}
