//! All declarations, indexed by what they name.
//!
//! The indexes are ordered sets, so that the order in which objects arrive never matters: adding and removing
//! one object touches only the entries it names, and the result equals a compilation from scratch.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use model::destination::DestinationPolicy;
use model::mesh::TrafficSplit;
use model::{
    AuthorizationPolicy, Declaration, Diagnostic, Entry, MeshConfig, ObjectKey, PeerAuthentication,
    RequestAuthentication, RouteTable, Service, Workload,
};

use crate::host;

/// Names one workload: `NAME.NAMESPACE`, as `--workload` takes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadKey {
    /// Namespace.
    pub namespace: String,
    /// Instance name.
    pub name: String,
}

impl WorkloadKey {
    /// The key of a workload.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The key of a declared workload.
    pub fn of(workload: &Workload) -> Self {
        Self::new(workload.namespace.clone(), workload.name.clone())
    }
}

impl fmt::Display for WorkloadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.name, self.namespace)
    }
}

impl FromStr for WorkloadKey {
    type Err = String;

    /// Reads `NAME.NAMESPACE`; a name may hold dots, a namespace cannot.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.rsplit_once('.') {
            Some((name, namespace)) if !name.is_empty() && !namespace.is_empty() => Ok(Self::new(namespace, name)),
            _ => Err(format!("`{text}` is not NAME.NAMESPACE, for example web-1.shop")),
        }
    }
}

/// Rank among objects of one kind: the oldest first, then by name (Istio's order). The number tells several
/// declarations of one object apart.
pub(crate) type Rank = (String, ObjectKey, usize);

type ByRank<T> = BTreeMap<Rank, Arc<T>>;

/// What all objects declare. Equal inputs in any order give equal meshes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Mesh {
    pub(crate) entries: BTreeMap<ObjectKey, Arc<Entry>>,
    pub(crate) config: Arc<MeshConfig>,
    /// By hostname.
    pub(crate) services: BTreeMap<String, ByRank<Service>>,
    pub(crate) workloads: BTreeMap<WorkloadKey, ByRank<Workload>>,
    /// By resolved host.
    pub(crate) tables: BTreeMap<String, ByRank<RouteTable>>,
    /// Tables without hosts, by namespace and name.
    pub(crate) delegates: BTreeMap<(String, String), Arc<RouteTable>>,
    /// By resolved host.
    pub(crate) destinations: BTreeMap<String, ByRank<DestinationPolicy>>,
    /// By resolved root service.
    pub(crate) splits: BTreeMap<String, ByRank<TrafficSplit>>,
    /// By namespace.
    pub(crate) peer_authentications: BTreeMap<String, ByRank<PeerAuthentication>>,
    /// By namespace.
    pub(crate) request_authentications: BTreeMap<String, ByRank<RequestAuthentication>>,
    /// By namespace.
    pub(crate) authorizations: BTreeMap<String, ByRank<AuthorizationPolicy>>,
    /// Hosts that a wildcard may cover, by namespace of the selected workloads: services with a selector.
    pub(crate) selecting: BTreeMap<String, BTreeSet<String>>,
}

impl Mesh {
    /// Indexes all declarations and reports what does not fit together. An object given twice counts once, the
    /// last one given.
    pub fn compile(entries: &[Entry]) -> (Self, Vec<Diagnostic>) {
        let mut mesh = Self::default();
        let mut diagnostics = Vec::new();
        for entry in entries {
            if let Some(earlier) = mesh.entries.insert(entry.key.clone(), Arc::new(entry.clone())) {
                diagnostics.push(crate::findings::declared_twice(entry, &earlier));
            }
        }
        mesh.rebuild();
        diagnostics.extend(crate::findings::all(&mesh));
        (mesh, diagnostics)
    }

    /// Mesh-wide settings.
    pub fn config(&self) -> &MeshConfig {
        &self.config
    }

    /// All workloads in order of their keys.
    pub fn workload_keys(&self) -> impl Iterator<Item = &WorkloadKey> {
        self.workloads.keys()
    }

    /// A workload by its key.
    pub fn workload(&self, key: &WorkloadKey) -> Option<&Workload> {
        self.workloads.get(key)?.values().next().map(AsRef::as_ref)
    }

    /// All workloads of a namespace in order.
    pub(crate) fn workloads_of(&self, namespace: &str) -> impl Iterator<Item = &Workload> {
        self.workloads
            .range(WorkloadKey::new(namespace, "")..)
            .take_while(move |(key, _)| key.namespace == namespace)
            .filter_map(|(_, declared)| declared.values().next().map(AsRef::as_ref))
    }

    /// Everything that does not fit together.
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        crate::findings::all(self)
    }

    /// What does not fit together, as far as one object is named in it.
    pub fn diagnostics_of(&self, key: &ObjectKey) -> Vec<Diagnostic> {
        crate::findings::of(self, key)
    }

    /// The service a caller's namespace sees under a hostname: its own namespace's first, then the oldest.
    pub fn service(&self, hostname: &str, caller_namespace: &str) -> Option<&Service> {
        let declared = self.services.get(hostname)?;
        let mut visible = declared
            .values()
            .filter(|service| host::exported(&service.export_to, &service.namespace, caller_namespace))
            .map(AsRef::as_ref)
            .peekable();
        let first = visible.peek().copied();
        visible.find(|service| service.namespace == caller_namespace).or(first)
    }

    /// Every service a caller's namespace sees, in order of hostnames.
    pub fn visible_services<'a>(&'a self, caller_namespace: &'a str) -> impl Iterator<Item = &'a Service> {
        self.services.keys().filter_map(move |hostname| self.service(hostname, caller_namespace))
    }

    /// The full form of a host written in a namespace.
    pub fn resolve_host(&self, written: &str, namespace: &str) -> String {
        host::resolve(written, namespace, &self.config.cluster_domain)
    }

    /// Builds all indexes anew; needed when the mesh's settings change, because they decide how names resolve.
    pub(crate) fn rebuild(&mut self) {
        let entries = std::mem::take(&mut self.entries);
        *self = Self { config: config_of(&entries), ..Self::default() };
        for entry in entries.values() {
            self.index(entry);
        }
        self.entries = entries;
    }

    pub(crate) fn index(&mut self, entry: &Arc<Entry>) {
        for (number, declaration) in entry.declarations.iter().enumerate() {
            self.index_declaration(&entry.key, number, declaration);
        }
    }

    fn index_declaration(&mut self, key: &ObjectKey, number: usize, declaration: &Declaration) {
        let rank = |created: &str| (created.to_owned(), key.clone(), number);
        match declaration {
            Declaration::Service(service) => {
                if !service.selector.is_empty() {
                    let hosts = self.selecting.entry(service.namespace.clone()).or_default();
                    hosts.insert(service.hostname.clone());
                }
                let declared = self.services.entry(service.hostname.clone()).or_default();
                declared.insert(rank(""), Arc::new(service.clone()));
            }
            Declaration::Workload(workload) => {
                let declared = self.workloads.entry(WorkloadKey::of(workload)).or_default();
                declared.insert(rank(""), Arc::new(workload.clone()));
            }
            Declaration::Routes(table) => {
                let shared = Arc::new(table.clone());
                if table.hosts.is_empty() {
                    self.delegates.insert((key.namespace.clone(), key.name.clone()), shared.clone());
                }
                for host in self.table_hosts(table) {
                    self.tables.entry(host).or_default().insert(rank(&table.created), shared.clone());
                }
            }
            Declaration::Split(split) => {
                let host = self.resolve_host(&split.service, &split.namespace);
                self.splits.entry(host).or_default().insert(rank(""), Arc::new(split.clone()));
            }
            Declaration::Destination(policy) => {
                let host = self.resolve_host(&policy.host, &policy.namespace);
                let policies = self.destinations.entry(host).or_default();
                policies.insert(rank(&policy.created), Arc::new(policy.clone()));
            }
            Declaration::PeerAuthentication(policy) => {
                let policies = self.peer_authentications.entry(policy.namespace.clone()).or_default();
                policies.insert(rank(&policy.created), Arc::new(policy.clone()));
            }
            Declaration::RequestAuthentication(policy) => {
                let policies = self.request_authentications.entry(policy.namespace.clone()).or_default();
                policies.insert(rank(""), Arc::new(policy.clone()));
            }
            Declaration::Authorization(policy) => {
                let policies = self.authorizations.entry(policy.namespace.clone()).or_default();
                policies.insert(rank(""), Arc::new(policy.clone()));
            }
            Declaration::Mesh(_) | Declaration::Namespace { .. } => {}
        }
    }

    pub(crate) fn unindex(&mut self, entry: &Entry) {
        for (number, declaration) in entry.declarations.iter().enumerate() {
            self.unindex_declaration(&entry.key, number, declaration);
        }
    }

    fn unindex_declaration(&mut self, key: &ObjectKey, number: usize, declaration: &Declaration) {
        let rank = |created: &str| (created.to_owned(), key.clone(), number);
        match declaration {
            Declaration::Service(service) => {
                remove(&mut self.services, &service.hostname, &rank(""));
                let namespace = &service.namespace;
                let still = self.services.get(&service.hostname).is_some_and(|declared| {
                    declared.values().any(|other| &other.namespace == namespace && !other.selector.is_empty())
                });
                if !still && let Some(hosts) = self.selecting.get_mut(namespace) {
                    hosts.remove(&service.hostname);
                    if hosts.is_empty() {
                        self.selecting.remove(namespace);
                    }
                }
            }
            Declaration::Workload(workload) => {
                remove(&mut self.workloads, &WorkloadKey::of(workload), &rank(""));
            }
            Declaration::Routes(table) => {
                if table.hosts.is_empty() {
                    self.delegates.remove(&(key.namespace.clone(), key.name.clone()));
                }
                for host in self.table_hosts(table) {
                    remove(&mut self.tables, &host, &rank(&table.created));
                }
            }
            Declaration::Split(split) => {
                let host = self.resolve_host(&split.service, &split.namespace);
                remove(&mut self.splits, &host, &rank(""));
            }
            Declaration::Destination(policy) => {
                let host = self.resolve_host(&policy.host, &policy.namespace);
                remove(&mut self.destinations, &host, &rank(&policy.created));
            }
            Declaration::PeerAuthentication(policy) => {
                remove(&mut self.peer_authentications, &policy.namespace, &rank(&policy.created));
            }
            Declaration::RequestAuthentication(policy) => {
                remove(&mut self.request_authentications, &policy.namespace, &rank(""));
            }
            Declaration::Authorization(policy) => {
                remove(&mut self.authorizations, &policy.namespace, &rank(""));
            }
            Declaration::Mesh(_) | Declaration::Namespace { .. } => {}
        }
    }

    fn table_hosts(&self, table: &RouteTable) -> BTreeSet<String> {
        table.hosts.iter().map(|host| self.resolve_host(host, &table.namespace)).collect()
    }
}

fn remove<K: Ord, T>(index: &mut BTreeMap<K, ByRank<T>>, key: &K, rank: &Rank) {
    if let Some(declared) = index.get_mut(key) {
        declared.remove(rank);
        if declared.is_empty() {
            index.remove(key);
        }
    }
}

/// The mesh's settings: of the first object by name that holds some; Istio's defaults where there is none.
pub(crate) fn config_of(entries: &BTreeMap<ObjectKey, Arc<Entry>>) -> Arc<MeshConfig> {
    let declared = entries.values().flat_map(|entry| &entry.declarations).find_map(|declaration| match declaration {
        Declaration::Mesh(config) => Some(config.clone()),
        _ => None,
    });
    Arc::new(declared.unwrap_or_default())
}
