//! What each connected proxy may see: encoded once per content, published to all its streams.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Weak};

use compile::{EncodeOptions, WorkloadKey};
use parking_lot::Mutex;
use proto::type_url::{CLUSTER, ENDPOINTS, LISTENER, ROUTE};
use tokio::sync::watch;
use xds::{Resource, ResourceSet, Snapshot};

use crate::world::{Model, World};

/// Which shape of configuration a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shape {
    /// A sidecar's: Envoy or our proxy.
    Sidecar,
    /// A gRPC library's: listeners by `HOST:PORT`.
    Proxyless,
}

type Key = (WorkloadKey, Shape);

/// One set of published configurations.
#[derive(Debug, Default)]
pub struct Feeds {
    published: Mutex<BTreeMap<Key, watch::Sender<Arc<Snapshot>>>>,
    shared: Mutex<Shared>,
}

/// Resources that some feed holds, by type, name and version: equal content is encoded and kept once.
#[derive(Debug, Default)]
struct Shared {
    known: HashMap<(&'static str, String, String), Weak<Resource>>,
    /// When the map is that long, dead entries are swept.
    sweep_at: usize,
}

impl Feeds {
    /// The configuration of a workload, now and later. It is computed when the first stream wants it.
    pub fn subscribe(&self, world: &World, workload: &WorkloadKey, shape: Shape) -> watch::Receiver<Arc<Snapshot>> {
        let mut published = self.published.lock();
        let key = (workload.clone(), shape);
        if let Some(sender) = published.get(&key) {
            return sender.subscribe();
        }
        let model = world.read();
        let snapshot = self.encode(&model, &key, model.revision, None);
        drop(model);
        let (sender, receiver) = watch::channel(snapshot);
        published.insert(key, sender);
        receiver
    }

    /// Publishes a revision to the streams of these workloads. Gives back those whose configuration really changed.
    pub fn publish(&self, world: &World, workloads: &BTreeSet<WorkloadKey>, revision: u64) -> BTreeSet<WorkloadKey> {
        let mut changed = BTreeSet::new();
        let mut published = self.published.lock();
        published.retain(|_, sender| sender.receiver_count() > 0);
        for (key, sender) in published.iter().filter(|((workload, _), _)| workloads.contains(workload)) {
            let before = sender.borrow().clone();
            let model = world.read();
            let next = self.encode(&model, key, revision, Some(&before));
            drop(model);
            if !same(&before, &next) {
                sender.send_replace(next);
                changed.insert(key.0.clone());
            }
        }
        changed
    }

    /// How many configurations are published.
    pub fn len(&self) -> usize {
        self.published.lock().len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn encode(&self, model: &Model, key: &Key, revision: u64, before: Option<&Snapshot>) -> Arc<Snapshot> {
        let encoded = match key.1 {
            Shape::Sidecar => compile::encode(model.mesh(), &key.0, &EncodeOptions::default()),
            Shape::Proxyless => compile::proxyless(model.mesh(), &key.0),
        };
        let lists = [
            (CLUSTER, encoded.clusters),
            (ENDPOINTS, encoded.endpoints),
            (LISTENER, encoded.listeners),
            (ROUTE, encoded.routes),
        ];
        let sets = lists.map(|(type_url, list)| {
            let old = before.and_then(|before| before.set(type_url));
            let resources = list.iter().map(|resource| {
                let held = old.and_then(|old| old.get(&resource.name));
                match held.filter(|held| **held.version() == *resource.version) {
                    Some(held) => held.clone(),
                    None => self.share(type_url, resource),
                }
            });
            let set = match old {
                Some(old) => ResourceSet::after(old, resources),
                None => Arc::new(ResourceSet::new(resources)),
            };
            (type_url, set)
        });
        Arc::new(Snapshot { revision, sets: sets.into() })
    }

    fn share(&self, type_url: &'static str, resource: &compile::Resource) -> Arc<Resource> {
        let mut shared = self.shared.lock();
        let key = (type_url, resource.name.clone(), resource.version.clone());
        if let Some(known) = shared.known.get(&key).and_then(Weak::upgrade) {
            return known;
        }
        let made = Arc::new(Resource::new(&resource.name, &resource.version, &resource.body));
        shared.known.insert(key, Arc::downgrade(&made));
        if shared.known.len() > shared.sweep_at {
            shared.known.retain(|_, weak| weak.strong_count() > 0);
            shared.sweep_at = (shared.known.len() * 2).max(1024);
        }
        made
    }
}

/// Whether two snapshots hold the same resources: an unchanged set is the same set.
fn same(a: &Snapshot, b: &Snapshot) -> bool {
    a.sets.iter().zip(&b.sets).all(|((_, a), (_, b))| Arc::ptr_eq(a, b))
}
