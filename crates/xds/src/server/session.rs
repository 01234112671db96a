//! The server's protocol state machine for one stream.
//!
//! Order (make before break): new and changed clusters, then endpoints, then listeners, then routes; removals in
//! the opposite order, after everything new was acknowledged. Listeners and routes wait until the clusters are
//! acknowledged and their endpoints sent; [`Session::holding`] tells that something waits, and
//! [`Session::release`] ends the waiting for a client that never acknowledges.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use proto::envoy::service::discovery::v3 as discovery;
use proto::google::rpc::Status;
use proto::type_url;

use super::subscription::{Outstanding, Sent, Step, Subscription};
use super::{LONGEST_NAME, MOST_NAMES, MOST_TYPES, RESPONSE_BYTES, Refused};
use crate::kind::{Flavor, WILDCARD, order};
use crate::resource::{Resource, Snapshot};
use crate::wire::{DeltaResponse, SotwResponse};

/// A message from the client.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// Of `DeltaAggregatedResources`.
    Delta(discovery::DeltaDiscoveryRequest),
    /// Of `StreamAggregatedResources`.
    Sotw(discovery::DiscoveryRequest),
}

/// A message to the client.
#[derive(Debug, Clone, PartialEq)]
pub struct Response {
    /// The type of its resources.
    pub type_url: Arc<str>,
    /// The revision it was made from, for people.
    pub version: String,
    /// To be repeated in the answer.
    pub nonce: String,
    /// New and changed resources; in state-of-the-world all clusters or all listeners.
    pub resources: Vec<Arc<Resource>>,
    /// Names that are no more (delta only).
    pub removed: Vec<Arc<str>>,
}

impl Response {
    /// The message as bytes, as the shell sends it.
    pub fn encode(&self, flavor: Flavor) -> Bytes {
        let message = match flavor {
            Flavor::Delta => DeltaResponse::from(self.clone()).encode_to_vec(),
            Flavor::StateOfTheWorld => SotwResponse::from(self.clone()).encode_to_vec(),
        };
        message.into()
    }
}

impl From<Response> for DeltaResponse {
    fn from(response: Response) -> Self {
        Self {
            system_version_info: response.version,
            resources: response.resources.iter().map(|resource| resource.delta()).collect(),
            type_url: response.type_url.to_string(),
            nonce: response.nonce,
            removed_resources: response.removed.iter().map(|name| name.to_string()).collect(),
        }
    }
}

impl From<Response> for SotwResponse {
    fn from(response: Response) -> Self {
        Self {
            version_info: response.version,
            resources: response.resources.iter().map(|resource| resource.any()).collect(),
            type_url: response.type_url.to_string(),
            nonce: response.nonce,
        }
    }
}

/// What a client's message meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It took a response.
    Acknowledged {
        /// The response's type.
        type_url: Arc<str>,
    },
    /// It refused resources; the last good ones stay in force there.
    Rejected(Vec<Refused>),
    /// It asked for a name that is not among what it may see.
    Unknown {
        /// The type.
        type_url: Arc<str>,
        /// The name.
        name: Arc<str>,
    },
}

/// A message that no honest client sends: the stream is to be closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// No type.
    #[error("the request has no type_url")]
    NoType,
    /// A message of the other protocol.
    #[error("the request belongs to the other xDS protocol")]
    WrongFlavor,
    /// Too many types.
    #[error("the stream asks for more than {MOST_TYPES} types")]
    TooManyTypes,
    /// Too many names.
    #[error("the stream asks for more than {MOST_NAMES} names of `{0}`")]
    TooManyNames(String),
    /// A name too long.
    #[error("a name of `{0}` is longer than {LONGEST_NAME} bytes")]
    NameTooLong(String),
}

/// The protocol of one ADS stream. It has no clock and no socket: requests and snapshots go in, responses come out.
#[derive(Debug)]
pub struct Session {
    flavor: Flavor,
    types: Vec<Subscription>,
    snapshot: Arc<Snapshot>,
    published: bool,
    nonces: u64,
    /// Clusters that were sent and whose endpoints the client has not asked for yet.
    awaited: BTreeSet<Arc<str>>,
    released: bool,
}

impl Session {
    /// A stream that has nothing to send yet.
    pub fn new(flavor: Flavor) -> Self {
        Self {
            flavor,
            types: Vec::new(),
            snapshot: Arc::default(),
            published: false,
            nonces: 0,
            awaited: BTreeSet::new(),
            released: false,
        }
    }

    /// Which protocol it speaks.
    pub fn flavor(&self) -> Flavor {
        self.flavor
    }

    /// The configuration changed.
    pub fn publish(&mut self, snapshot: Arc<Snapshot>) {
        self.snapshot = snapshot;
        self.published = true;
        for subscription in &mut self.types {
            subscription.compare(self.snapshot.set(&subscription.type_url));
        }
    }

    /// A message from the client.
    ///
    /// # Errors
    /// When the stream must be closed.
    pub fn receive(&mut self, request: Request) -> Result<Vec<Event>, Violation> {
        match (self.flavor, request) {
            (Flavor::Delta, Request::Delta(request)) => self.receive_delta(request),
            (Flavor::StateOfTheWorld, Request::Sotw(request)) => self.receive_sotw(request),
            _ => Err(Violation::WrongFlavor),
        }
    }

    /// The next message to send; `None` when there is nothing (or nothing yet).
    pub fn poll(&mut self) -> Option<Response> {
        if !self.published {
            return None;
        }
        let news = (0..self.types.len()).find_map(|index| self.poll_news(index));
        let response = news.or_else(|| (0..self.types.len()).rev().find_map(|index| self.poll_removals(index)));
        if response.is_none() && !self.holding() {
            self.released = false;
        }
        response
    }

    /// Whether something waits for the client's acknowledgement of what comes before it.
    pub fn holding(&self) -> bool {
        let waits = |one: &Subscription| !one.pending.is_empty() && !one.is_open();
        self.awaits() || (!self.released && self.types.iter().any(waits))
    }

    /// Ends the waiting, once: what was held is sent in order without acknowledgements.
    pub fn release(&mut self) {
        self.released = true;
        self.awaited.clear();
    }

    /// The revision that the client has completely, with what it refused in [`Self::refused`]; `None` while
    /// something is on its way.
    pub fn settled(&self) -> Option<u64> {
        let quiet = |one: &Subscription| one.pending.is_empty() && !one.is_open() && !one.owed;
        (self.published && !self.awaits() && !self.types.is_empty() && self.types.iter().all(quiet))
            .then_some(self.snapshot.revision)
    }

    /// Everything that the client refused and that was not replaced since.
    pub fn refused(&self) -> Vec<Refused> {
        let of = |one: &Subscription| {
            let type_url = one.type_url.clone();
            let refused = one.refused.iter();
            refused
                .map(move |(name, message)| Refused {
                    type_url: type_url.clone(),
                    name: name.clone(),
                    message: message.clone(),
                })
                .collect::<Vec<_>>()
        };
        self.types.iter().flat_map(of).collect()
    }

    /// The types that the client asked for.
    pub fn types(&self) -> impl Iterator<Item = &Arc<str>> {
        self.types.iter().map(|one| &one.type_url)
    }

    fn receive_delta(&mut self, request: discovery::DeltaDiscoveryRequest) -> Result<Vec<Event>, Violation> {
        let (index, first) = self.subscription(&request.type_url)?;
        let mut events = Vec::new();
        self.answer(index, &request.response_nonce, request.error_detail.as_ref(), &mut events);
        let set = self.snapshot.set(&request.type_url).cloned();
        let Some(subscription) = self.types.get_mut(index) else { return Ok(events) };
        if first {
            check(&request.type_url, request.initial_resource_versions.keys())?;
            for (name, version) in &request.initial_resource_versions {
                let ours = set.as_ref().and_then(|set| set.get(name)).filter(|ours| **ours.version() == **version);
                let sent = ours.map_or(Sent::Other, |ours| Sent::This(ours.clone()));
                subscription.sent.insert(name.as_str().into(), sent);
            }
        }
        let mut subscribe = request.resource_names_subscribe;
        subscribe.extend(request.resource_locators_subscribe.into_iter().map(|locator| locator.name));
        check(&request.type_url, &subscribe)?;
        if first && subscribe.is_empty() && subscription.is_full_state() {
            subscription.begin_wildcard();
        }
        for name in &subscribe {
            if name == WILDCARD {
                subscription.begin_wildcard();
            } else {
                let resumed = first && request.initial_resource_versions.contains_key(name);
                subscription.add(name, !resumed);
                if set.as_ref().is_some_and(|set| set.get(name).is_none()) {
                    events.push(Event::Unknown { type_url: subscription.type_url.clone(), name: name.as_str().into() });
                }
            }
        }
        if subscription.names.len() > MOST_NAMES {
            return Err(Violation::TooManyNames(request.type_url));
        }
        let mut unsubscribe = request.resource_names_unsubscribe;
        unsubscribe.extend(request.resource_locators_unsubscribe.into_iter().map(|locator| locator.name));
        for name in &unsubscribe {
            if name == WILDCARD {
                subscription.end_wildcard();
            } else {
                subscription.drop_name(name);
            }
        }
        subscription.seen = if first { 0 } else { subscription.seen };
        subscription.compare(set.as_ref());
        self.endpoints_asked_for(&request.type_url, &unsubscribe);
        Ok(events)
    }

    fn receive_sotw(&mut self, request: discovery::DiscoveryRequest) -> Result<Vec<Event>, Violation> {
        let (index, first) = self.subscription(&request.type_url)?;
        let mut events = Vec::new();
        let begins = first || request.response_nonce.is_empty();
        let stale = self.types.get(index).is_some_and(|one| one.last_nonce != request.response_nonce);
        if stale && !begins {
            return Ok(events);
        }
        self.answer(index, &request.response_nonce, request.error_detail.as_ref(), &mut events);
        let mut names = request.resource_names;
        names.extend(request.resource_locators.into_iter().map(|locator| locator.name));
        check(&request.type_url, &names)?;
        let set = self.snapshot.set(&request.type_url).cloned();
        let Some(subscription) = self.types.get_mut(index) else { return Ok(events) };
        let legacy = names.is_empty() && subscription.is_full_state() && !subscription.explicit;
        subscription.explicit |= !names.is_empty();
        if legacy || names.iter().any(|name| name == WILDCARD) {
            subscription.begin_wildcard();
        } else if subscription.wildcard {
            subscription.end_wildcard();
        }
        let names: BTreeSet<&str> = names.iter().map(String::as_str).filter(|name| *name != WILDCARD).collect();
        let gone = subscription.names.iter().filter(|name| !names.contains(&***name));
        let gone: Vec<String> = gone.map(|name| name.to_string()).collect();
        for name in &gone {
            subscription.drop_name(name);
        }
        for name in names {
            let known = subscription.names.contains(name);
            if !known || begins {
                subscription.add(name, true);
            }
            if !known && set.as_ref().is_some_and(|set| set.get(name).is_none()) {
                events.push(Event::Unknown { type_url: subscription.type_url.clone(), name: name.into() });
            }
        }
        subscription.owed |= begins;
        subscription.compare(set.as_ref());
        self.endpoints_asked_for(&request.type_url, &gone);
        Ok(events)
    }

    /// The subscription of a type, made if this is the first request for it.
    fn subscription(&mut self, type_url: &str) -> Result<(usize, bool), Violation> {
        if type_url.is_empty() {
            return Err(Violation::NoType);
        }
        if let Some(index) = self.types.iter().position(|one| &*one.type_url == type_url) {
            return Ok((index, false));
        }
        if self.types.len() >= MOST_TYPES {
            return Err(Violation::TooManyTypes);
        }
        if type_url.len() > LONGEST_NAME {
            return Err(Violation::NameTooLong("types".to_owned()));
        }
        let new = Subscription::new(type_url);
        let index = self.types.partition_point(|one| one.order <= new.order);
        self.types.insert(index, new);
        Ok((index, true))
    }

    /// Takes an ACK or a NACK; an answer to anything but the last response is stale and says nothing.
    fn answer(&mut self, index: usize, nonce: &str, detail: Option<&Status>, events: &mut Vec<Event>) {
        let Some(subscription) = self.types.get_mut(index) else { return };
        if subscription.outstanding.as_ref().is_none_or(|outstanding| outstanding.nonce != nonce) {
            return;
        }
        let type_url = subscription.type_url.clone();
        let Some(detail) = detail else {
            subscription.acknowledged();
            events.push(Event::Acknowledged { type_url });
            return;
        };
        let message: Arc<str> = detail.message.as_str().into();
        let refused = subscription.refuse(&detail.message).into_iter();
        let refused =
            refused.map(|name| Refused { type_url: type_url.clone(), name, message: message.clone() }).collect();
        events.push(Event::Rejected(refused));
    }

    /// Builds what is new of a type, if it may go out now.
    fn poll_news(&mut self, index: usize) -> Option<Response> {
        let held = self.is_held_back(index);
        let subscription = self.types.get_mut(index)?;
        if subscription.is_open() || held {
            return None;
        }
        let set = self.snapshot.set(&subscription.type_url);
        let (mut resources, mut absent, mut size) = (Vec::new(), Vec::new(), 0);
        let pending: Vec<(Arc<str>, bool)> =
            subscription.pending.iter().map(|(name, force)| (name.clone(), *force)).collect();
        for (name, force) in pending {
            match subscription.step(&name, force, set) {
                Step::Send(_) if size > RESPONSE_BYTES && !whole(self.flavor, subscription) => {}
                Step::Send(resource) => {
                    size += resource.size();
                    subscription.pending.remove(&name);
                    resources.push(resource);
                }
                Step::Remove => {}
                Step::Absent => {
                    subscription.pending.remove(&name);
                    subscription.sent.insert(name.clone(), Sent::Nothing);
                    absent.push(name);
                }
                Step::Nothing => {
                    subscription.pending.remove(&name);
                }
            }
        }
        // A state-of-the-world client is told of absence by a whole list only.
        let silent = self.flavor == Flavor::StateOfTheWorld && !subscription.is_full_state();
        if resources.is_empty() && (absent.is_empty() || silent) && !subscription.owed {
            return None;
        }
        let clusters_changed = self.sent_clusters(index, &resources);
        let response = self.respond(index, resources, absent);
        self.touch_endpoints(&clusters_changed);
        response
    }

    /// Builds the removals of a type, once everything new arrived and later types lost theirs.
    fn poll_removals(&mut self, index: usize) -> Option<Response> {
        if !self.released && self.types.iter().any(|one| one.is_open() || self.has_news(one)) {
            return None;
        }
        let subscription = self.types.get_mut(index)?;
        if subscription.is_open() || subscription.pending.is_empty() {
            return None;
        }
        let set = self.snapshot.set(&subscription.type_url);
        let pending: Vec<Arc<str>> = subscription.pending.keys().cloned().collect();
        let mut removed = Vec::new();
        for name in pending {
            if matches!(subscription.step(&name, false, set), Step::Remove) {
                subscription.pending.remove(&name);
                subscription.refused.remove(&name);
                // With a name of its own the client knows now that there is none; without, there is nothing to know.
                if subscription.names.contains(&name) {
                    subscription.sent.insert(name.clone(), Sent::Nothing);
                } else {
                    subscription.sent.remove(&name);
                }
                removed.push(name);
            }
        }
        if &*subscription.type_url == type_url::CLUSTER {
            self.awaited.retain(|name| !removed.contains(name));
        }
        let silent = self.flavor == Flavor::StateOfTheWorld && !subscription.is_full_state();
        if removed.is_empty() || silent {
            return None;
        }
        self.respond(index, Vec::new(), removed)
    }

    fn respond(
        &mut self,
        index: usize,
        mut resources: Vec<Arc<Resource>>,
        mut removed: Vec<Arc<str>>,
    ) -> Option<Response> {
        let flavor = self.flavor;
        let subscription = self.types.get_mut(index)?;
        let mut names: Vec<Arc<str>> = resources.iter().map(|resource| resource.name().clone()).collect();
        for resource in &resources {
            subscription.sent.insert(resource.name().clone(), Sent::This(resource.clone()));
        }
        names.extend(removed.iter().cloned());
        let whole = whole(flavor, subscription);
        if whole {
            let all = subscription.sent.values().filter_map(|sent| match sent {
                Sent::This(resource) => Some(resource.clone()),
                _ => None,
            });
            resources = all.collect();
            resources.sort_by(|a, b| a.name().cmp(b.name()));
        }
        if flavor == Flavor::StateOfTheWorld {
            removed.clear();
        }
        self.nonces += 1;
        let nonce = self.nonces.to_string();
        subscription.owed = false;
        subscription.last_nonce.clone_from(&nonce);
        subscription.outstanding = Some(Outstanding { nonce: nonce.clone(), names, whole });
        let (type_url, version) = (subscription.type_url.clone(), self.snapshot.revision.to_string());
        Some(Response { type_url, version, nonce, resources, removed })
    }

    /// Whether endpoints must wait for clusters, or listeners and routes for both.
    fn is_held_back(&self, index: usize) -> bool {
        let Some(subscription) = self.types.get(index) else { return false };
        let dependent = [type_url::ENDPOINTS, type_url::LISTENER, type_url::ROUTE];
        if self.released || !dependent.contains(&&*subscription.type_url) {
            return false;
        }
        let before = |one: &&Subscription| one.order < subscription.order;
        // A client that names its clusters one by one asks in its own order.
        let wildcard = self.types.iter().any(|one| &*one.type_url == type_url::CLUSTER && one.wildcard);
        let awaits = self.awaits() && subscription.order > order(type_url::ENDPOINTS);
        wildcard && (awaits || self.types.iter().filter(before).any(|one| one.is_open() || self.has_news(one)))
    }

    fn has_news(&self, subscription: &Subscription) -> bool {
        !subscription.pending.is_empty() && subscription.has_news(self.snapshot.set(&subscription.type_url))
    }

    /// For a response of clusters: the names that the client had before in another version. New ones whose
    /// endpoints we have are awaited to be asked for.
    fn sent_clusters(&mut self, index: usize, resources: &[Arc<Resource>]) -> Vec<Arc<str>> {
        let Some(subscription) = self.types.get(index) else { return Vec::new() };
        if &*subscription.type_url != type_url::CLUSTER {
            return Vec::new();
        }
        let had = |resource: &&Arc<Resource>| {
            matches!(subscription.sent.get(resource.name()), Some(Sent::This(_) | Sent::Other))
        };
        let (old, new): (Vec<_>, Vec<_>) = resources.iter().partition(had);
        if subscription.wildcard && !self.released {
            let endpoints = self.snapshot.set(type_url::ENDPOINTS);
            let asked = self.types.iter().find(|one| &*one.type_url == type_url::ENDPOINTS);
            let served = new.iter().map(|resource| resource.name());
            let served = served.filter(|name| endpoints.is_some_and(|set| set.get(name).is_some()));
            self.awaited.extend(served.filter(|name| !asked.is_some_and(|one| one.wants(name))).cloned());
        }
        old.iter().map(|resource| resource.name().clone()).collect()
    }

    /// A client builds a changed cluster anew and waits for its endpoints, though they did not change.
    fn touch_endpoints(&mut self, clusters: &[Arc<str>]) {
        let Some(endpoints) = self.types.iter_mut().find(|one| &*one.type_url == type_url::ENDPOINTS) else { return };
        for name in clusters {
            if endpoints.wants(name) {
                endpoints.touch(name, true);
            }
        }
    }

    /// The client changed which endpoints it wants. What it dropped may belong to a cluster that is on its way to
    /// it again: it will ask anew.
    fn endpoints_asked_for(&mut self, type_url: &str, dropped: &[String]) {
        let Some(endpoints) = self.types.iter().find(|one| &*one.type_url == type_url::ENDPOINTS) else { return };
        if type_url != type_url::ENDPOINTS {
            return;
        }
        self.awaited.retain(|name| !endpoints.wants(name));
        let clusters = self.types.iter().find(|one| &*one.type_url == type_url::CLUSTER && one.wildcard);
        let Some(clusters) = clusters else { return };
        let served = self.snapshot.set(type_url::ENDPOINTS);
        for name in dropped.iter().filter(|name| !endpoints.wants(name)) {
            let sent = clusters.sent.get_key_value(name.as_str()).filter(|(_, sent)| matches!(sent, Sent::This(_)));
            if let Some((name, _)) = sent.filter(|_| served.is_some_and(|set| set.get(name).is_some())) {
                self.awaited.insert(name.clone());
            }
        }
    }

    /// Whether endpoints that we serve are still to be asked for.
    fn awaits(&self) -> bool {
        let served = self.snapshot.set(type_url::ENDPOINTS);
        self.awaited.iter().any(|name| served.is_some_and(|set| set.get(name).is_some()))
    }
}

/// Whether a response of this type lists everything.
fn whole(flavor: Flavor, subscription: &Subscription) -> bool {
    flavor == Flavor::StateOfTheWorld && subscription.is_full_state()
}

fn check<'a>(type_url: &str, names: impl IntoIterator<Item = &'a String>) -> Result<(), Violation> {
    for (count, name) in names.into_iter().enumerate() {
        if count >= MOST_NAMES {
            return Err(Violation::TooManyNames(type_url.to_owned()));
        }
        if name.len() > LONGEST_NAME {
            return Err(Violation::NameTooLong(type_url.to_owned()));
        }
    }
    Ok(())
}
