//! The client's protocol state machine.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use prost::Message;
use proto::envoy::config::core::v3::Node;
use proto::envoy::service::discovery::v3 as discovery;
use proto::google::protobuf::Any;
use proto::google::rpc::Status;

use super::interest::{Answer, Held, Interest};
use super::{Received, Rejection, Ticket, Update, text};
use crate::kind::{Flavor, WILDCARD, is_full_state, order};
use crate::wire;

/// `google.rpc.Code.INVALID_ARGUMENT`, the code of a NACK.
const INVALID_ARGUMENT: i32 = 3;

/// A message to the server.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// For `DeltaAggregatedResources`.
    Delta(discovery::DeltaDiscoveryRequest),
    /// For `StreamAggregatedResources`.
    Sotw(discovery::DiscoveryRequest),
}

/// Why a stream cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// A response of the other protocol.
    #[error("the server answered in the other xDS protocol")]
    WrongFlavor,
    /// A response for a type that was never asked for on this stream.
    #[error("the server sent `{0}`, which was not asked for")]
    Unasked(String),
}

/// The protocol of one ADS stream and of its successors after reconnecting. It has no clock and no socket:
/// messages and times go in, requests and updates come out.
#[derive(Debug)]
pub struct Session {
    flavor: Flavor,
    node: Node,
    node_sent: bool,
    types: BTreeMap<(u8, String), Interest>,
    /// Handed to the application and not answered.
    deliveries: HashMap<u64, Delivery>,
    next_ticket: u64,
    epoch: u64,
    hasher: RandomState,
}

/// What must be remembered of an update until it is answered.
#[derive(Debug)]
struct Delivery {
    epoch: u64,
    type_url: String,
    nonce: String,
    version: String,
    resources: Vec<(String, Held)>,
    removed: Vec<String>,
    faults: Vec<Rejection>,
}

/// A resource before it is decided whether it is news.
struct Incoming {
    name: String,
    version: String,
    any: Option<Any>,
    ttl: Option<Duration>,
}

impl Session {
    /// A session that asks for nothing yet.
    pub fn new(flavor: Flavor, node: Node) -> Self {
        Self {
            flavor,
            node,
            node_sent: false,
            types: BTreeMap::new(),
            deliveries: HashMap::new(),
            next_ticket: 0,
            epoch: 0,
            hasher: RandomState::new(),
        }
    }

    /// Which protocol it speaks.
    pub fn flavor(&self) -> Flavor {
        self.flavor
    }

    /// Wants everything of a type.
    pub fn subscribe_all(&mut self, type_url: &str) {
        self.interest(type_url).wildcard = true;
    }

    /// Wants these names too.
    pub fn subscribe(&mut self, type_url: &str, names: impl IntoIterator<Item = String>) {
        self.interest(type_url).names.extend(names);
    }

    /// Wants exactly these names (besides the wildcard, if asked for).
    pub fn set_names(&mut self, type_url: &str, names: impl IntoIterator<Item = String>) {
        let interest = self.interest(type_url);
        interest.names = names.into_iter().collect();
        interest.forget_unwanted();
    }

    /// Does not want these names any more.
    pub fn unsubscribe<'a>(&mut self, type_url: &str, names: impl IntoIterator<Item = &'a str>) {
        let interest = self.interest(type_url);
        for name in names {
            interest.names.remove(name);
        }
        interest.forget_unwanted();
    }

    /// The accepted version of each resource of a type that is held.
    pub fn held(&self, type_url: &str) -> BTreeMap<String, String> {
        self.types.get(&key(type_url)).map(Interest::versions).unwrap_or_default()
    }

    /// The next message to send, in make-before-break order; `None` when all is said.
    pub fn poll(&mut self) -> Option<Request> {
        let keys: Vec<_> = self.types.keys().cloned().collect();
        keys.iter().find_map(|key| match self.flavor {
            Flavor::Delta => self.poll_delta(key),
            Flavor::StateOfTheWorld => self.poll_sotw(key),
        })
    }

    /// A response in the delta protocol.
    ///
    /// # Errors
    /// When the stream cannot go on and must be closed.
    pub fn receive_delta(
        &mut self,
        response: discovery::DeltaDiscoveryResponse,
        now: Instant,
    ) -> Result<Update, SessionError> {
        if self.flavor != Flavor::Delta {
            return Err(SessionError::WrongFlavor);
        }
        let type_url = response.type_url.clone();
        self.must_be_asked(&type_url)?;
        let mut faults = Vec::new();
        let incoming = response.resources.into_iter().map(|resource| {
            let name = match resource.resource_name {
                Some(full) if resource.name.is_empty() => full.name,
                _ => resource.name,
            };
            Incoming { name, version: resource.version, any: resource.resource, ttl: ttl(resource.ttl.as_ref()) }
        });
        let incoming = unique(incoming.collect(), &type_url, &mut faults);
        let mut removed = response.removed_resources;
        removed.extend(response.removed_resource_names.into_iter().map(|full| full.name));
        Ok(self.deliver(&type_url, (response.nonce, response.system_version_info), incoming, removed, faults, now))
    }

    /// A response in the state-of-the-world protocol.
    ///
    /// # Errors
    /// When the stream cannot go on and must be closed.
    pub fn receive_sotw(
        &mut self,
        response: discovery::DiscoveryResponse,
        now: Instant,
    ) -> Result<Update, SessionError> {
        if self.flavor != Flavor::StateOfTheWorld {
            return Err(SessionError::WrongFlavor);
        }
        let type_url = response.type_url.clone();
        self.must_be_asked(&type_url)?;
        let (mut faults, mut incoming) = (Vec::new(), Vec::new());
        for (index, any) in response.resources.into_iter().enumerate() {
            match unwrap(any, &response.version_info) {
                Some(one) => incoming.push(one),
                None => faults.push(Rejection {
                    name: format!("resources[{index}]"),
                    message: "it is not a message with a name".to_owned(),
                }),
            }
        }
        let incoming = unique(incoming, &type_url, &mut faults);
        // What is missing from a whole state was removed, unless it is among what could not be read.
        let mut removed = Vec::new();
        if is_full_state(&type_url) && faults.is_empty() {
            let interest = self.interest(&type_url);
            let kept: std::collections::BTreeSet<&str> = incoming.iter().map(|one| one.name.as_str()).collect();
            removed.extend(interest.held.keys().filter(|name| !kept.contains(name.as_str())).cloned());
            let missing = interest.names.iter().filter(|name| !kept.contains(name.as_str()));
            removed.extend(missing.filter(|name| !interest.held.contains_key(*name)).cloned());
            removed.sort();
        }
        Ok(self.deliver(&type_url, (response.nonce, response.version_info), incoming, removed, faults, now))
    }

    /// The application's word on an update: what it could not use. No rejection is an ACK, any is a NACK that
    /// names them; what was not rejected counts as accepted either way.
    pub fn answer(&mut self, ticket: Ticket, rejections: Vec<Rejection>) {
        let Some(mut delivery) = self.deliveries.remove(&ticket.0) else { return };
        let current = delivery.epoch == self.epoch;
        let mut rejected = std::mem::take(&mut delivery.faults);
        rejected.extend(rejections);
        let interest = self.interest(&delivery.type_url);
        for name in &delivery.removed {
            interest.held.remove(name);
        }
        for (name, held) in delivery.resources {
            if interest.is_wanted(&name) && !rejected.iter().any(|rejection| rejection.name == name) {
                interest.held.insert(name, held);
            }
        }
        if rejected.is_empty() {
            interest.version.clone_from(&delivery.version);
        }
        if current {
            let nack = (!rejected.is_empty()).then(|| text::nack(&rejected));
            interest.answers.push(Answer { nonce: delivery.nonce, nack });
        }
    }

    /// The stream ended. What is held stays and is named when the next one begins.
    pub fn disconnected(&mut self) {
        self.node_sent = false;
        self.epoch += 1;
        self.types.values_mut().for_each(Interest::reset);
    }

    /// When [`Self::expire`] has something to do.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.types.values().flat_map(|interest| interest.held.values()).filter_map(|held| held.expires).min()
    }

    /// Removes what outlived its time to live. The updates need no answer.
    pub fn expire(&mut self, now: Instant) -> Vec<Update> {
        let mut updates = Vec::new();
        for ((_, type_url), interest) in &mut self.types {
            let over = |held: &Held| held.expires.is_some_and(|at| at <= now);
            let mut removed: Vec<String> =
                interest.held.iter().filter(|(_, held)| over(held)).map(|(name, _)| name.clone()).collect();
            if removed.is_empty() {
                continue;
            }
            interest.held.retain(|_, held| !over(held));
            removed.sort();
            let (type_url, version, resources) = (type_url.clone(), String::new(), Vec::new());
            updates.push(Update { ticket: Ticket(u64::MAX), type_url, version, resources, removed });
        }
        updates
    }

    fn interest(&mut self, type_url: &str) -> &mut Interest {
        self.types.entry(key(type_url)).or_default()
    }

    fn must_be_asked(&self, type_url: &str) -> Result<(), SessionError> {
        let asked = self.types.get(&key(type_url)).is_some_and(|interest| interest.opened);
        if asked { Ok(()) } else { Err(SessionError::Unasked(type_url.to_owned())) }
    }

    /// The node goes with the stream's first request only.
    fn take_node(&mut self) -> Option<Node> {
        (!std::mem::replace(&mut self.node_sent, true)).then(|| self.node.clone())
    }

    fn poll_delta(&mut self, key: &(u8, String)) -> Option<Request> {
        let interest = self.types.get_mut(key)?;
        let mut request = discovery::DeltaDiscoveryRequest { type_url: key.1.clone(), ..Default::default() };
        if !interest.opened {
            if !interest.wants() {
                return None;
            }
            interest.opened = true;
            interest.told = interest.request_names(is_full_state(&key.1));
            request.resource_names_subscribe = interest.told.iter().cloned().collect();
            request.initial_resource_versions = interest.versions().into_iter().collect();
            if interest.wildcard {
                interest.told.insert(WILDCARD.to_owned());
            }
        } else if !interest.answers.is_empty() {
            let answer = interest.answers.remove(0);
            request.response_nonce = answer.nonce;
            request.error_detail = answer.nack.map(detail);
        } else {
            let wanted = interest.request_names(false);
            if wanted == interest.told {
                return None;
            }
            request.resource_names_subscribe = wanted.difference(&interest.told).cloned().collect();
            request.resource_names_unsubscribe = interest.told.difference(&wanted).cloned().collect();
            interest.told = wanted;
        }
        request.node = self.take_node();
        Some(Request::Delta(request))
    }

    fn poll_sotw(&mut self, key: &(u8, String)) -> Option<Request> {
        let interest = self.types.get_mut(key)?;
        let names = interest.request_names(is_full_state(&key.1));
        let mut request = discovery::DiscoveryRequest { type_url: key.1.clone(), ..Default::default() };
        if !interest.opened {
            if !interest.wants() {
                return None;
            }
            interest.opened = true;
        } else if !interest.answers.is_empty() {
            let answer = interest.answers.remove(0);
            interest.nonce = answer.nonce;
            request.error_detail = answer.nack.map(detail);
        } else if names == interest.told {
            return None;
        }
        request.version_info.clone_from(&interest.version);
        request.response_nonce.clone_from(&interest.nonce);
        request.resource_names = names.iter().cloned().collect();
        interest.told = names;
        request.node = self.take_node();
        Some(Request::Sotw(request))
    }

    fn deliver(
        &mut self,
        type_url: &str,
        (nonce, version): (String, String),
        incoming: Vec<Incoming>,
        removed: Vec<String>,
        faults: Vec<Rejection>,
        now: Instant,
    ) -> Update {
        let hasher = self.hasher.clone();
        let interest = self.interest(type_url);
        let (mut resources, mut remembered) = (Vec::new(), Vec::new());
        for one in incoming {
            if !interest.is_wanted(&one.name) {
                continue;
            }
            let expires = one.ttl.and_then(|ttl| now.checked_add(ttl));
            let Some(any) = one.any else {
                // A heartbeat: only the time to live is new.
                if let Some(held) = interest.held.get_mut(&one.name) {
                    held.expires = expires;
                }
                continue;
            };
            let held = Held { version: one.version.clone(), digest: hasher.hash_one(&any.value), expires };
            let same = interest.held.get(&one.name).is_some_and(|old| old.digest == held.digest);
            remembered.push((one.name.clone(), held));
            if !same {
                resources.push(Received { name: one.name, version: one.version, any });
            }
        }
        let removed: Vec<String> = removed
            .into_iter()
            .filter(|name| interest.is_wanted(name) || interest.held.contains_key(name))
            .filter(|name| !remembered.iter().any(|(other, _)| other == name))
            .collect();
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let delivery = Delivery {
            epoch: self.epoch,
            type_url: type_url.to_owned(),
            nonce,
            version: version.clone(),
            resources: remembered,
            removed: removed.clone(),
            faults,
        };
        self.deliveries.insert(ticket, delivery);
        Update { ticket: Ticket(ticket), type_url: type_url.to_owned(), version, resources, removed }
    }
}

fn key(type_url: &str) -> (u8, String) {
    (order(type_url), type_url.to_owned())
}

fn detail(message: String) -> Status {
    Status { code: INVALID_ARGUMENT, message, details: Vec::new() }
}

fn ttl(duration: Option<&proto::google::protobuf::Duration>) -> Option<Duration> {
    let duration = duration?;
    Some(Duration::new(u64::try_from(duration.seconds).ok()?, u32::try_from(duration.nanos).ok()?))
}

/// A state-of-the-world resource, which may be wrapped for a time to live.
fn unwrap(any: Any, version: &str) -> Option<Incoming> {
    if any.type_url != wire::WRAPPER {
        let name = wire::name_of(&any)?;
        return Some(Incoming { name, version: version.to_owned(), any: Some(any), ttl: None });
    }
    let wrapped = discovery::Resource::decode(&*any.value).ok()?;
    let name = if wrapped.name.is_empty() { wire::name_of(wrapped.resource.as_ref()?)? } else { wrapped.name };
    Some(Incoming { name, version: version.to_owned(), any: wrapped.resource, ttl: ttl(wrapped.ttl.as_ref()) })
}

/// Takes out resources without a name, twice in one response, or of another type than the response.
fn unique(incoming: Vec<Incoming>, type_url: &str, faults: &mut Vec<Rejection>) -> Vec<Incoming> {
    let mut counts: HashMap<String, usize> = HashMap::new();
    for one in &incoming {
        *counts.entry_ref(one.name.as_str()).or_default() += 1;
    }
    let mut fault = |name: &str, message: String| {
        if !faults.iter().any(|fault| fault.name == name) {
            faults.push(Rejection { name: name.to_owned(), message });
        }
    };
    let sound = incoming.into_iter().filter(|one| {
        let other = one.any.as_ref().filter(|any| any.type_url != type_url);
        if one.name.is_empty() {
            fault("(no name)", "a resource without a name".to_owned());
        } else if counts.get(&one.name).is_some_and(|&count| count > 1) {
            fault(&one.name, "it is in one response twice".to_owned());
        } else if let Some(any) = other {
            fault(&one.name, format!("it has the type `{}` in a response of `{type_url}`", any.type_url));
        } else {
            return true;
        }
        false
    });
    sound.collect()
}
