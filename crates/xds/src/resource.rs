//! What a server serves: resources encoded once, in sets that know how they differ from the one before.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{BufMut, Bytes, BytesMut};
use hashbrown::HashMap;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use proto::google::protobuf::Any;

/// One named resource, encoded once and shared by every stream that sends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    name: Arc<str>,
    version: Arc<str>,
    /// An `envoy.service.discovery.v3.Resource` whose last field is the `Any`.
    encoded: Bytes,
    /// The `Any` inside `encoded`.
    any: Bytes,
}

impl Resource {
    /// Encodes a resource. Equal versions of one name mean equal content: make them a hash of it.
    pub fn new(name: &str, version: &str, any: &Any) -> Self {
        let body = any.encoded_len();
        let mut buffer = BytesMut::with_capacity(body + name.len() + version.len() + 32);
        put_text(1, version, &mut buffer);
        put_text(3, name, &mut buffer);
        encode_key(2, WireType::LengthDelimited, &mut buffer);
        encode_varint(body as u64, &mut buffer);
        let start = buffer.len();
        any.encode_raw(&mut buffer);
        let encoded = buffer.freeze();
        let any = encoded.slice(start..);
        Self { name: name.into(), version: version.into(), encoded, any }
    }

    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Its version.
    pub fn version(&self) -> &Arc<str> {
        &self.version
    }

    /// Bytes on the wire in a delta response.
    pub fn size(&self) -> usize {
        self.encoded.len()
    }

    /// As a delta response carries it.
    pub(crate) fn delta(&self) -> Bytes {
        self.encoded.clone()
    }

    /// As a state-of-the-world response carries it.
    pub(crate) fn any(&self) -> Bytes {
        self.any.clone()
    }
}

fn put_text(tag: u32, text: &str, buffer: &mut BytesMut) {
    encode_key(tag, WireType::LengthDelimited, buffer);
    encode_varint(text.len() as u64, buffer);
    buffer.put_slice(text.as_bytes());
}

/// Tells sets apart, so that a session knows whether it has seen one. Never reused.
static NEXT_SET: AtomicU64 = AtomicU64::new(1);

/// All resources of one type that one client may see.
#[derive(Debug)]
pub struct ResourceSet {
    id: u64,
    previous: u64,
    changed: Vec<Arc<str>>,
    items: HashMap<Arc<str>, Arc<Resource>>,
}

impl ResourceSet {
    /// A set without history.
    pub fn new(resources: impl IntoIterator<Item = Arc<Resource>>) -> Self {
        let items = resources.into_iter().map(|resource| (resource.name.clone(), resource)).collect();
        Self { id: NEXT_SET.fetch_add(1, Ordering::Relaxed), previous: 0, changed: Vec::new(), items }
    }

    /// The set after `previous`: it remembers what changed, so that a session which knows `previous` looks at
    /// nothing else. Gives `previous` itself back when nothing changed.
    pub fn after(previous: &Arc<Self>, resources: impl IntoIterator<Item = Arc<Resource>>) -> Arc<Self> {
        let mut next = Self::new(resources);
        let differs = |(name, resource): &(&Arc<str>, &Arc<Resource>)| {
            previous.items.get(*name).is_none_or(|old| old.version != resource.version)
        };
        next.changed = next.items.iter().filter(differs).map(|(name, _)| name.clone()).collect();
        let gone = previous.items.keys().filter(|name| !next.items.contains_key(*name));
        next.changed.extend(gone.cloned());
        if next.changed.is_empty() {
            return previous.clone();
        }
        next.previous = previous.id;
        Arc::new(next)
    }

    /// A resource by name.
    pub fn get(&self, name: &str) -> Option<&Arc<Resource>> {
        self.items.get(name)
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.items.values()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// The names that differ from the set with this id; `None` when that is not known.
    pub(crate) fn changed_since(&self, id: u64) -> Option<&[Arc<str>]> {
        if id == self.id { Some(&[]) } else { (id == self.previous && id != 0).then_some(&self.changed) }
    }
}

/// Everything that one client may see, at one revision of the configuration.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// The revision it was made from; grows.
    pub revision: u64,
    /// By type URL; a missing type has no resources.
    pub sets: Vec<(&'static str, Arc<ResourceSet>)>,
}

impl Snapshot {
    /// The resources of a type.
    pub fn set(&self, type_url: &str) -> Option<&Arc<ResourceSet>> {
        self.sets.iter().find(|(of, _)| *of == type_url).map(|(_, set)| set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::envoy::service::discovery::v3 as discovery;

    #[test]
    fn a_resource_is_what_the_protocol_says() {
        let any = Any { type_url: "type.googleapis.com/x".to_owned(), value: vec![1, 2, 3] };
        let resource = Resource::new("name", "v7", &any);
        let decoded = discovery::Resource::decode(resource.delta()).unwrap();
        assert_eq!((decoded.name.as_str(), decoded.version.as_str()), ("name", "v7"));
        assert_eq!(decoded.resource, Some(any.clone()));
        assert_eq!(Any::decode(resource.any()).unwrap(), any);
    }

    #[test]
    fn a_set_knows_what_changed() {
        let make = |name: &str, version: &str| Arc::new(Resource::new(name, version, &Any::default()));
        let first = Arc::new(ResourceSet::new([make("a", "1"), make("b", "1"), make("c", "1")]));
        let second = ResourceSet::after(&first, [make("a", "1"), make("b", "2"), make("d", "1")]);
        let mut changed: Vec<&str> = second.changed_since(first.id()).unwrap().iter().map(|name| &**name).collect();
        changed.sort_unstable();
        assert_eq!(changed, ["b", "c", "d"]);
        let third = ResourceSet::after(&second, [make("a", "1"), make("b", "2"), make("d", "1")]);
        assert!(Arc::ptr_eq(&second, &third));
        assert!(second.changed_since(0).is_none());
    }
}
