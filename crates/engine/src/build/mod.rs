//! From xDS messages to running data. Every fault is collected with the path of its field; nothing stops at the first.

mod access_log;
mod cluster;
mod discovered;
mod endpoint;
mod ext_authz;
mod filters;
mod health;
mod http;
mod jwt;
mod limit;
mod listener;
mod local_reply;
mod mutation;
mod overload;
mod rbac;
mod request_filters;
mod route;
mod route_action;
mod runtime;
mod tls;
mod tracing;
mod value;

use std::borrow::Cow;
use std::sync::{Arc, Weak};
use std::time::Duration;

use hashbrown::{HashMap, HashSet};
use prost::Message;

use proto::google::protobuf::{Any, BoolValue, Duration as ProtoDuration, UInt32Value};

use crate::jwt::{RemoteKeys, RemoteSource};
use crate::limit::{BucketPlan, TokenBucket};
use crate::runtime::Runtime;
use crate::store::Fault;

pub(crate) use cluster::cluster;
pub(crate) use discovered::filter_config;
pub(crate) use endpoint::endpoints;
pub(crate) use listener::listener;
pub(crate) use overload::overload;
pub(crate) use route::route_table;
pub(crate) use runtime::runtime;
pub(crate) use tls::secret;

/// What resources share: strings, key sets, and the runtime's values.
#[derive(Debug, Default)]
pub(crate) struct Strings {
    known: HashSet<Arc<str>>,
    after_pruning: usize,
    /// Key sets that are fetched, by their source: a new plan goes on with what is known.
    remote_keys: HashMap<RemoteSource, Weak<RemoteKeys>>,
    /// Buckets that filters share, by their key and how they are made.
    buckets: Vec<(Arc<str>, BucketPlan, Weak<TokenBucket>)>,
    /// The cluster that the bootstrap's node is of. Default empty.
    pub(crate) own_cluster: Arc<str>,
    /// Values that count instead of defaults.
    pub(crate) runtime: Arc<Runtime>,
}

impl Strings {
    /// One copy of `text`.
    pub(crate) fn share(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.known.get(text) {
            return known.clone();
        }
        let new: Arc<str> = text.into();
        self.known.insert(new.clone());
        new
    }

    /// One key set for each source.
    pub(crate) fn remote_keys(&mut self, source: RemoteSource) -> Arc<RemoteKeys> {
        if let Some(known) = self.remote_keys.get(&source).and_then(Weak::upgrade) {
            return known;
        }
        let new = Arc::new(RemoteKeys::new(source.clone()));
        self.remote_keys.insert(source, Arc::downgrade(&new));
        new
    }

    /// One bucket for each key, as long as a filter holds it; one that is made in another way is another.
    fn bucket(&mut self, key: &str, plan: BucketPlan) -> Arc<TokenBucket> {
        self.buckets.retain(|(_, _, bucket)| bucket.strong_count() > 0);
        let mut known = self.buckets.iter().filter(|(name, made, _)| **name == *key && *made == plan);
        if let Some(bucket) = known.find_map(|(_, _, bucket)| bucket.upgrade()) {
            return bucket;
        }
        let new = plan.open();
        self.buckets.push((key.into(), plan, Arc::downgrade(&new)));
        new
    }

    /// The key sets that are in use.
    pub(crate) fn remote_keys_in_use(&mut self) -> Arc<[Arc<RemoteKeys>]> {
        self.remote_keys.retain(|_, keys| keys.strong_count() > 0);
        self.remote_keys.values().filter_map(Weak::upgrade).collect()
    }

    /// Forgets what nobody else holds, now and then.
    pub(crate) fn prune(&mut self) {
        if self.known.len() > 64 + 2 * self.after_pruning {
            self.known.retain(|text| Arc::strong_count(text) > 1);
            self.known.shrink_to_fit();
            self.after_pruning = self.known.len();
        }
    }
}

/// Where we are in a resource, and what was wrong so far.
#[derive(Debug)]
pub(crate) struct Context<'s> {
    path: Vec<Step>,
    faults: Vec<Fault>,
    strings: &'s mut Strings,
    /// Address and destination port rules of the listener being built are not known to routes; this is.
    pub(crate) hash: u64,
}

#[derive(Debug)]
enum Step {
    Field(&'static str),
    Item(&'static str, usize),
    Key(&'static str, String),
}

impl<'s> Context<'s> {
    pub(crate) fn new(strings: &'s mut Strings, hash: u64) -> Self {
        Self { path: Vec::new(), faults: Vec::new(), strings, hash }
    }

    /// The result, or all faults.
    pub(crate) fn finish<T>(self, value: Option<T>) -> Result<T, Vec<Fault>> {
        match value {
            Some(value) if self.faults.is_empty() => Ok(value),
            _ => Err(self.faults),
        }
    }

    pub(crate) fn fault(&mut self, message: impl Into<String>) {
        let path = self.path_text();
        self.faults.push(Fault { path, message: message.into() });
    }

    /// Notes a fault and gives nothing.
    pub(crate) fn refuse<T>(&mut self, message: impl Into<String>) -> Option<T> {
        self.fault(message);
        None
    }

    pub(crate) fn field<T>(&mut self, name: &'static str, inside: impl FnOnce(&mut Self) -> T) -> T {
        self.within(Step::Field(name), inside)
    }

    pub(crate) fn item<T>(&mut self, name: &'static str, at: usize, inside: impl FnOnce(&mut Self) -> T) -> T {
        self.within(Step::Item(name, at), inside)
    }

    pub(crate) fn key<T>(&mut self, name: &'static str, key: &str, inside: impl FnOnce(&mut Self) -> T) -> T {
        self.within(Step::Key(name, key.to_owned()), inside)
    }

    /// Builds every item of a list; what cannot be built is left out (and its fault noted).
    pub(crate) fn list<M, T>(
        &mut self,
        name: &'static str,
        items: &[M],
        mut build: impl FnMut(&mut Self, &M) -> Option<T>,
    ) -> Vec<T> {
        let built = items.iter().enumerate().filter_map(|(at, item)| self.item(name, at, |cx| build(cx, item)));
        let mut list: Vec<T> = built.collect();
        list.shrink_to_fit();
        list
    }

    /// The same for builders that want to know the position.
    pub(crate) fn list_indexed<M, T>(
        &mut self,
        name: &'static str,
        items: &[M],
        mut build: impl FnMut(&mut Self, usize, &M) -> Option<T>,
    ) -> Vec<T> {
        let built = items.iter().enumerate().filter_map(|(at, item)| self.item(name, at, |cx| build(cx, at, item)));
        built.collect()
    }

    /// Builds a message that may be absent; one that is wrong counts as absent, and its fault is noted.
    pub(crate) fn optional<M, T>(
        &mut self,
        name: &'static str,
        message: Option<&M>,
        build: impl FnOnce(&mut Self, &M) -> Option<T>,
    ) -> Option<T> {
        message.and_then(|message| self.field(name, |cx| build(cx, message)))
    }

    /// Builds a message that must be there.
    pub(crate) fn required<M, T>(
        &mut self,
        name: &'static str,
        message: Option<&M>,
        build: impl FnOnce(&mut Self, &M) -> Option<T>,
    ) -> Option<T> {
        self.field(name, |cx| match message {
            Some(message) => build(cx, message),
            None => cx.refuse("is required"),
        })
    }

    pub(crate) fn share(&mut self, text: &str) -> Arc<str> {
        self.strings.share(text)
    }

    pub(crate) fn remote_keys(&mut self, source: RemoteSource) -> Arc<RemoteKeys> {
        self.strings.remote_keys(source)
    }

    pub(crate) fn shared_bucket(&mut self, key: &str, plan: BucketPlan) -> Arc<TokenBucket> {
        self.strings.bucket(key, plan)
    }

    /// The cluster that the bootstrap's node is of.
    pub(crate) fn own_cluster(&self) -> Arc<str> {
        self.strings.own_cluster.clone()
    }

    /// Values that count instead of defaults.
    pub(crate) fn runtime(&self) -> Arc<Runtime> {
        self.strings.runtime.clone()
    }

    /// A text that may be absent, which protobuf writes as empty.
    pub(crate) fn text(&mut self, text: &str) -> Option<Arc<str>> {
        (!text.is_empty()).then(|| self.share(text))
    }

    /// A text that must not be empty.
    pub(crate) fn needed(&mut self, name: &'static str, text: &str) -> Option<Arc<str>> {
        if text.is_empty() {
            return self.field(name, |cx| cx.refuse("must not be empty"));
        }
        Some(self.share(text))
    }

    pub(crate) fn duration(&mut self, name: &'static str, value: Option<&ProtoDuration>) -> Option<Duration> {
        self.optional(name, value, |cx, value| {
            let nanos = u32::try_from(value.nanos).ok().filter(|nanos| *nanos < 1_000_000_000);
            match (u64::try_from(value.seconds), nanos) {
                (Ok(seconds), Some(nanos)) => Some(Duration::new(seconds, nanos)),
                _ => cx.refuse("must be a duration of zero or more"),
            }
        })
    }

    /// A limit in time: absent gives the default, zero means none.
    pub(crate) fn limit(
        &mut self,
        name: &'static str,
        value: Option<&ProtoDuration>,
        default: Option<Duration>,
    ) -> Option<Duration> {
        if value.is_none() {
            return default;
        }
        self.duration(name, value).filter(|limit| !limit.is_zero())
    }

    /// The message inside an `Any`, whose type the caller has looked at.
    pub(crate) fn unpack<M: Message + Default>(&mut self, any: &Any) -> Option<M> {
        match M::decode(any.value.as_slice()) {
            Ok(message) => Some(message),
            Err(error) => self.refuse(format!("is not a well-formed {}: {error}", type_name(any))),
        }
    }

    fn within<T>(&mut self, step: Step, inside: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(step);
        let result = inside(self);
        self.path.pop();
        result
    }

    fn path_text(&self) -> String {
        let steps = self.path.iter().map(|step| match step {
            Step::Field(name) => (*name).to_owned(),
            Step::Item(name, at) => format!("{name}[{at}]"),
            Step::Key(name, key) => format!("{name}[{key:?}]"),
        });
        steps.collect::<Vec<_>>().join(".")
    }
}

/// The full name of the message in an `Any`.
pub(crate) fn type_name(any: &Any) -> &str {
    proto::type_url::message_name(&any.type_url)
}

/// The message that a `TypedStruct` stands for, or the message as it is.
pub(crate) fn opened<'a>(cx: &mut Context<'_>, any: &'a Any) -> Option<Cow<'a, Any>> {
    match proto::typed_struct::open(&any.type_url, &any.value) {
        None => Some(Cow::Borrowed(any)),
        Some(Ok(any)) => Some(Cow::Owned(any)),
        Some(Err(why)) => cx.refuse(why),
    }
}

pub(crate) fn flag(value: Option<&BoolValue>, default: bool) -> bool {
    value.map_or(default, |value| value.value)
}

pub(crate) fn number(value: Option<&UInt32Value>, default: u32) -> u32 {
    value.map_or(default, |value| value.value)
}

/// A hash of a resource's bytes, to tell changed from unchanged.
pub(crate) fn fingerprint(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}
