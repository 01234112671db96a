//! Holds the resources that came so far and turns them into plans.
//!
//! Each resource is taken whole or not at all, and the last good one of its name stays. A plan shares all parts that did
//! not change with the plan before it. A listener that waits for its routes, a cluster that waits for its endpoints, and
//! either that waits for its secrets, is not in the plan until they came, or until the caller says that it waited long
//! enough. The same is true of filters that a listener only names. The first listeners wait for all clusters besides, as in Envoy: no request comes in before it can go out.

mod checks;
mod discovery;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use hashbrown::{HashMap, HashSet};
use prost::Message;

use proto::envoy::config::bootstrap::v3::Bootstrap;
use proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use proto::type_url::{CLUSTER, ENDPOINTS, EXTENSION, LISTENER, ROUTE, SECRET};

use self::checks::{check_clusters, check_name, check_names};
use crate::balance::{Balancer, Home};
use crate::build::{self, Context, Strings};
use crate::cluster::{Cluster, ClusterConfig, ClusterState, Discovery, DnsOptions};
use crate::discovered::DiscoveredFilter;
use crate::endpoint::{Endpoint, EndpointGroup, EndpointSet, EndpointState, Locality};
use crate::http_manager::RouteSource;
use crate::listener::{Address, Listener};
use crate::overload::Overload;
use crate::plan::Plan;
use crate::tls::{CertificateSource, SecretRef, SecretSource, TlsCommon};

/// One change: a resource came, or went.
#[derive(Debug, Clone)]
pub struct Update {
    /// `proto::type_url::{LISTENER, CLUSTER, ROUTE, ENDPOINTS, SECRET, EXTENSION}`.
    pub type_url: Arc<str>,
    /// The resource's name.
    pub name: Arc<str>,
    /// The message, or `None`: it is gone.
    pub body: Option<Bytes>,
}

/// What is wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{message}", if .path.is_empty() { String::new() } else { format!("{}: ", .path) })]
pub struct Fault {
    /// Where, from the resource's root: `filter_chains[0].filters[1].typed_config.route_config.virtual_hosts[2]`.
    pub path: String,
    /// What, and what to do.
    pub message: String,
}

/// Why a resource was refused; the last good one of its name stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {name:?}: {}", .faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct UpdateError {
    /// `Listener`, `Cluster`, ...
    pub kind: &'static str,
    /// The resource's name.
    pub name: Arc<str>,
    /// All that is wrong with it, not only the first.
    pub faults: Vec<Fault>,
}

/// A field that is accepted and does nothing: to be counted and logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IgnoredField {
    /// `Listener`, `Cluster`, ...
    pub kind: &'static str,
    /// The resource's name.
    pub name: Arc<str>,
    /// Which field, and why it does nothing.
    pub field: String,
}

/// Resources that came so far; makes plans of them.
#[derive(Debug, Default)]
pub struct Store {
    plan: Arc<Plan>,
    strings: Strings,
    listeners: HashMap<Arc<str>, Arc<Listener>>,
    clusters: HashMap<Arc<str>, ClusterEntry>,
    endpoints: HashMap<Arc<str>, Arc<EndpointSet>>,
    /// Names of static listeners and clusters, which no update may touch.
    fixed: HashSet<(&'static str, Arc<str>)>,
    /// Secrets that somebody else has (streams of their own, files): the caller says when they came.
    delivered: HashSet<SecretRef>,
    /// What may go into the plan incomplete.
    released: HashSet<(&'static str, Arc<str>)>,
    /// Filters that listeners name and of which the server said something, good or bad, or was waited for long enough.
    heard: HashSet<Arc<str>>,
    /// All who name filters and still live.
    naming: Vec<Weak<DiscoveredFilter>>,
    ignored: Vec<IgnoredField>,
    /// Where this proxy is, if its equals are known as a cluster.
    home: Option<Arc<Home>>,
    overload: Option<Overload>,
}

/// The runtime key of the limit of client connections, where no resource monitor counts them.
const MAX_CLIENTS: &str = "overload.global_downstream_max_connections";

/// A cluster as it came, and what is needed to make it run.
#[derive(Debug)]
struct ClusterEntry {
    config: Arc<ClusterConfig>,
    /// Endpoints that stood in the resource; with names still unresolved for DNS clusters.
    inline: Arc<EndpointSet>,
    /// What names resolved to so far.
    resolved: HashMap<(Arc<str>, u16), Vec<SocketAddr>>,
    /// Running state, as long as a cluster of the name exists.
    state: Arc<ClusterState>,
}

type Outcome = Result<(), UpdateError>;

/// The order in which kinds are applied, whatever order they came in: what is named before what names it.
const ORDER: [&str; 6] = [SECRET, CLUSTER, ENDPOINTS, ROUTE, EXTENSION, LISTENER];

impl Store {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The plan of the moment.
    #[must_use]
    pub fn plan(&self) -> Arc<Plan> {
        self.plan.clone()
    }

    /// Applies changes, each all or nothing, and makes a new plan. One result per update, in order.
    pub fn apply(&mut self, updates: &[Update]) -> Vec<Outcome> {
        let mut next = (*self.plan).clone();
        let before = self.named_by_others();
        let mut outcomes: Vec<Outcome> = updates.iter().map(|_| Ok(())).collect();
        for kind in ORDER {
            for (update, outcome) in updates.iter().zip(&mut outcomes) {
                if *update.type_url == *kind {
                    *outcome = self.apply_one(&mut next, kind, update);
                }
            }
            if kind == SECRET && updates.iter().any(|update| *update.type_url == *SECRET) {
                self.place_clusters(&mut next);
            }
        }
        for (update, outcome) in updates.iter().zip(&mut outcomes) {
            if !ORDER.contains(&&*update.type_url) {
                *outcome =
                    Err(refusal("resource", &update.name, format!("the type {} is not served here", update.type_url)));
            }
        }
        self.forget_unnamed(&mut next, &before);
        self.publish(next);
        outcomes
    }

    /// Loads a bootstrap's static secrets, clusters and listeners. All faults are given; what is good is in the plan.
    pub fn bootstrap(&mut self, bootstrap: &Bootstrap) -> Result<(), Vec<UpdateError>> {
        self.home = self.home.take().or_else(|| home(bootstrap).map(Arc::new));
        self.strings.own_cluster = bootstrap.node.as_ref().map(|node| Arc::from(&*node.cluster)).unwrap_or_default();
        // Values come first: they count in all that is built after.
        let own = [self.take_runtime(bootstrap), self.take_overload(bootstrap)].into_iter().filter_map(Result::err);
        let own: Vec<UpdateError> = own.collect();
        let Some(resources) = &bootstrap.static_resources else {
            return if own.is_empty() { Ok(()) } else { Err(own) };
        };
        let update = |type_url: &str, name: &str, body: Vec<u8>| Update {
            type_url: type_url.into(),
            name: name.into(),
            body: Some(body.into()),
        };
        let mut updates = Vec::new();
        updates.extend(resources.secrets.iter().map(|m| update(SECRET, &m.name, m.encode_to_vec())));
        updates.extend(resources.clusters.iter().map(|m| update(CLUSTER, &m.name, m.encode_to_vec())));
        for (at, listener) in resources.listeners.iter().enumerate() {
            let mut listener = listener.clone();
            if listener.name.is_empty() {
                // Envoy makes a random name; a stable one is better in logs.
                listener.name = format!("static-{at}");
            }
            updates.push(update(LISTENER, &listener.name, listener.encode_to_vec()));
        }
        let twice = duplicates(&updates);
        let outcomes = self.apply(&updates);
        self.fixed.extend(updates.iter().map(|update| (kind_of(&update.type_url), update.name.clone())));
        let faults: Vec<UpdateError> = outcomes.into_iter().filter_map(Result::err).chain(twice).chain(own).collect();
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }

    fn take_runtime(&mut self, bootstrap: &Bootstrap) -> Outcome {
        let Some(message) = &bootstrap.layered_runtime else { return Ok(()) };
        let mut cx = Context::new(&mut self.strings, 0);
        let built = build::runtime(&mut cx, message);
        let name: Arc<str> = "layered_runtime".into();
        let refused = |faults| UpdateError { kind: "Bootstrap", name: name.clone(), faults };
        let (runtime, idle) = cx.finish(built).map_err(refused)?;
        self.strings.runtime = Arc::new(runtime);
        self.ignored.extend(idle.into_iter().map(|key| IgnoredField {
            kind: "Bootstrap",
            name: name.clone(),
            field: format!("layers: {key}: a runtime key of Envoy's own"),
        }));
        Ok(())
    }

    fn take_overload(&mut self, bootstrap: &Bootstrap) -> Outcome {
        let Some(message) = &bootstrap.overload_manager else { return Ok(()) };
        let mut cx = Context::new(&mut self.strings, 0);
        let built = build::overload(&mut cx, message);
        let refused = |faults| UpdateError { kind: "Bootstrap", name: "overload_manager".into(), faults };
        self.overload = Some(cx.finish(built).map_err(refused)?);
        Ok(())
    }

    /// What the bootstrap says about overload; `None`: nothing.
    #[must_use]
    pub fn overload(&self) -> Option<&Overload> {
        self.overload.as_ref()
    }

    /// The limit of client connections where no resource monitor counts them (the runtime key
    /// `overload.global_downstream_max_connections`); `None`: the shell's own limit.
    #[must_use]
    pub fn max_clients(&self) -> Option<u64> {
        Some(self.strings.runtime.whole(MAX_CLIENTS, u64::MAX)).filter(|most| *most < u64::MAX)
    }

    /// Fields accepted without effect since this was last asked.
    pub fn take_ignored(&mut self) -> Vec<IgnoredField> {
        std::mem::take(&mut self.ignored)
    }

    /// Route tables that listeners name: subscribe to these with RDS. Sorted.
    #[must_use]
    pub fn wanted_routes(&self) -> Vec<Arc<str>> {
        sorted(self.listeners.values().flat_map(|listener| route_names(listener)))
    }

    /// Endpoint sets that clusters name: subscribe to these with EDS. Sorted.
    #[must_use]
    pub fn wanted_endpoints(&self) -> Vec<Arc<str>> {
        sorted(self.clusters.values().filter_map(|entry| match &entry.config.discovery {
            Discovery::Eds(name) => Some(name.clone()),
            _ => None,
        }))
    }

    /// Secrets from ADS that TLS contexts name. Sorted.
    #[must_use]
    pub fn wanted_secrets(&self) -> Vec<Arc<str>> {
        let ads = self.secrets().into_iter().filter(|secret| secret.source == SecretSource::Ads);
        sorted(ads.map(|secret| secret.name))
    }

    /// All secrets that TLS contexts name, wherever they come from, also those of what is not in the plan yet.
    #[must_use]
    pub fn secrets(&self) -> HashSet<SecretRef> {
        let downstream = self.listeners.values().flat_map(|listener| listener_secrets(listener));
        downstream.chain(self.clusters.values().flat_map(|entry| cluster_secrets(&entry.config))).cloned().collect()
    }

    /// A secret that comes from elsewhere (a stream of its own, a file) is there now.
    pub fn delivered(&mut self, secret: &SecretRef) {
        if self.delivered.insert(secret.clone()) {
            self.place_all();
        }
    }

    /// What is not in the plan yet because a part of it has not come: type URL and name. Sorted.
    #[must_use]
    pub fn warming(&self) -> Vec<(Arc<str>, Arc<str>)> {
        let clusters = self.clusters.values().filter(|entry| !self.is_ready(entry, &self.plan));
        let clusters = clusters.map(|entry| (Arc::from(CLUSTER), entry.config.name.clone()));
        let listeners = self.listeners.values().filter(|listener| !self.has_parts(listener, &self.plan));
        let listeners = listeners.map(|listener| (Arc::from(LISTENER), listener.name.clone()));
        let filters = self.missing_filters().into_iter().map(|name| (Arc::from(EXTENSION), name));
        let all: BTreeSet<_> = clusters.chain(listeners).chain(filters).collect();
        all.into_iter().collect()
    }

    /// The caller has waited long enough (`initial_fetch_timeout`): everything warming goes into the plan with what
    /// there is (no routes: 404, no endpoints: 503, no secrets: connections are refused).
    pub fn stop_waiting(&mut self) {
        let warming = self.warming();
        self.release(&warming);
    }

    /// As [`Store::stop_waiting`], for these resources of [`Store::warming`] alone.
    pub fn release(&mut self, warming: &[(Arc<str>, Arc<str>)]) {
        if warming.is_empty() {
            return;
        }
        let (filters, others): (Vec<_>, Vec<_>) = warming.iter().partition(|(type_url, _)| **type_url == *EXTENSION);
        self.heard.extend(filters.into_iter().map(|(_, name)| name.clone()));
        self.released.extend(others.into_iter().map(|(type_url, name)| (kind_of(type_url), name.clone())));
        self.place_all();
    }

    fn place_all(&mut self) {
        let mut next = (*self.plan).clone();
        self.place_clusters(&mut next);
        self.publish(next);
    }

    fn place_clusters(&self, next: &mut Plan) {
        self.clusters.keys().for_each(|name| self.place_cluster(next, name));
    }

    /// Names that clusters with DNS discovery want resolved: cluster, host, port. Sorted.
    #[must_use]
    pub fn names_to_resolve(&self) -> Vec<(Arc<str>, Arc<str>, u16)> {
        let names = self
            .clusters
            .values()
            .filter(|entry| entry.is_dns())
            .flat_map(|entry| entry.names().map(|(host, port)| (entry.config.name.clone(), host, port)));
        let all: BTreeSet<_> = names.collect();
        all.into_iter().collect()
    }

    /// How the names of a cluster are resolved, whether it is in force or not.
    #[must_use]
    pub fn dns_options(&self, cluster: &str) -> Option<&DnsOptions> {
        self.clusters.get(cluster).map(|entry| &entry.config.dns)
    }

    /// A name was resolved. An empty answer (it failed) leaves what is known from before.
    pub fn resolved(&mut self, cluster: &str, host: &str, port: u16, addresses: &[SocketAddr]) {
        let Some(entry) = self.clusters.get_mut(cluster) else { return };
        let known = entry.resolved.entry((host.into(), port)).or_default();
        if !addresses.is_empty() {
            if known == addresses {
                return;
            }
            *known = addresses.to_vec();
        }
        let name = entry.config.name.clone();
        let mut next = (*self.plan).clone();
        self.place_cluster(&mut next, &name);
        self.publish(next);
    }

    fn apply_one(&mut self, next: &mut Plan, type_url: &str, update: &Update) -> Outcome {
        let kind = kind_of(type_url);
        if self.fixed.contains(&(kind, update.name.clone())) {
            return Err(refusal(kind, &update.name, "is a static resource of the bootstrap".into()));
        }
        let Some(body) = &update.body else {
            self.remove(next, type_url, &update.name);
            return Ok(());
        };
        if type_url == EXTENSION {
            // Also what is refused ends the wait, as in Envoy: the listener goes on with what there is.
            self.heard.insert(update.name.clone());
        }
        let findings = proto::surface::check_any(type_url, body);
        if !findings.is_acceptable() {
            let refused = findings.refused.into_iter();
            let faults = refused.map(|field| Fault { path: field.path, message: field.reason });
            return Err(UpdateError { kind, name: update.name.clone(), faults: faults.collect() });
        }
        let ignored = findings.ignored.iter();
        self.ignored.extend(ignored.map(|field| IgnoredField {
            kind,
            name: update.name.clone(),
            field: field.to_string(),
        }));
        let built = match type_url {
            SECRET => self.add_secret(next, body),
            CLUSTER => self.add_cluster(next, &update.name, body),
            ENDPOINTS => self.add_endpoints(next, &update.name, body),
            ROUTE => self.add_routes(next, &update.name, body),
            EXTENSION => self.add_filter(next, &update.name, body),
            _ => self.add_listener(&update.name, body),
        };
        built.map_err(|faults| UpdateError { kind, name: update.name.clone(), faults })
    }

    fn add_secret(&mut self, next: &mut Plan, body: &Bytes) -> Result<(), Vec<Fault>> {
        let mut cx = Context::new(&mut self.strings, 0);
        let built = build::secret(&mut cx, body);
        let (name, secret) = cx.finish(built)?;
        next.secrets.insert(name, Arc::new(secret));
        Ok(())
    }

    fn add_cluster(&mut self, next: &mut Plan, name: &Arc<str>, body: &Bytes) -> Result<(), Vec<Fault>> {
        let version = build::fingerprint(body);
        if self.clusters.get(name).is_some_and(|entry| entry.config.version == version) {
            return Ok(());
        }
        let old = self.clusters.get(name);
        let known = old.map(|entry| states(&entry.inline)).unwrap_or_default();
        let mut cx = Context::new(&mut self.strings, version);
        let built = build::cluster(&mut cx, body).and_then(|(config, inline)| {
            let inline = match &inline {
                Some(message) => cx.field("load_assignment", |cx| build::endpoints(cx, message, &known))?,
                None => EndpointSet { overprovisioning: 140, ..EndpointSet::default() },
            };
            check_names(&mut cx, &config, &inline);
            check_name(&mut cx, name, &config.name);
            Some((config, inline))
        });
        let (config, inline) = cx.finish(built)?;
        let (resolved, state) = match self.clusters.remove(name) {
            Some(entry) => (entry.resolved, entry.state),
            None => Default::default(),
        };
        let entry = ClusterEntry { config: Arc::new(config), inline: Arc::new(inline), resolved, state };
        self.released.remove(&(kind_of(CLUSTER), name.clone()));
        self.clusters.insert(name.clone(), entry);
        self.place_cluster(next, name);
        Ok(())
    }

    fn add_endpoints(&mut self, next: &mut Plan, name: &Arc<str>, body: &Bytes) -> Result<(), Vec<Fault>> {
        let version = build::fingerprint(body);
        let old = self.endpoints.get(name);
        if old.is_some_and(|set| set.version == version) {
            return Ok(());
        }
        let known = old.map(|set| states(set)).unwrap_or_default();
        let mut cx = Context::new(&mut self.strings, version);
        let message = ClusterLoadAssignment::decode(body.as_ref());
        let built = match message {
            Ok(message) => {
                check_name(&mut cx, name, &message.cluster_name);
                build::endpoints(&mut cx, &message, &known)
            }
            Err(error) => cx.refuse(format!("is not a well-formed endpoint resource: {error}")),
        };
        let built = built.filter(|set| {
            let named = set.iter().find_map(|endpoint| match &endpoint.address {
                Address::Name { host, .. } => Some(host.clone()),
                _ => None,
            });
            if let Some(host) = &named {
                cx.field("endpoints", |cx| cx.fault(format!("{host:?} is not an IP address; EDS has no names")));
            }
            named.is_none()
        });
        let set = cx.finish(built)?;
        self.endpoints.insert(name.clone(), Arc::new(set));
        for cluster in self.clusters_of(name) {
            self.place_cluster(next, &cluster);
        }
        Ok(())
    }

    fn add_routes(&mut self, next: &mut Plan, name: &Arc<str>, body: &Bytes) -> Result<(), Vec<Fault>> {
        let version = build::fingerprint(body);
        if next.routes.get(name).is_some_and(|table| table.version == version) {
            return Ok(());
        }
        let mut cx = Context::new(&mut self.strings, version);
        let built = build::route_table(&mut cx, body);
        if let Some(table) = &built {
            check_name(&mut cx, name, &table.name);
            check_clusters(&mut cx, table, &self.clusters);
        }
        let table = cx.finish(built)?;
        next.routes.insert(name.clone(), Arc::new(table));
        Ok(())
    }

    fn add_listener(&mut self, name: &Arc<str>, body: &Bytes) -> Result<(), Vec<Fault>> {
        let version = build::fingerprint(body);
        if self.listeners.get(name).is_some_and(|listener| listener.version == version) {
            return Ok(());
        }
        let mut cx = Context::new(&mut self.strings, version);
        let built = build::listener(&mut cx, body);
        if let Some(listener) = &built {
            check_name(&mut cx, name, &listener.name);
            let tables = listener.chains.iter().filter_map(|chain| match &chain.http()?.routes {
                RouteSource::Inline(table) => Some(table.clone()),
                RouteSource::Named(_) => None,
            });
            for table in tables.collect::<Vec<_>>() {
                cx.field("route_config", |cx| check_clusters(cx, &table, &self.clusters));
            }
        }
        let mut listener = cx.finish(built)?;
        if let Some(old) = self.listeners.get(name) {
            listener.chains.keep(&old.chains);
        }
        let listener = Arc::new(listener);
        self.note_named(&listener);
        self.listeners.insert(name.clone(), listener);
        self.released.remove(&(kind_of(LISTENER), name.clone()));
        Ok(())
    }

    fn remove(&mut self, next: &mut Plan, type_url: &str, name: &Arc<str>) {
        self.released.remove(&(kind_of(type_url), name.clone()));
        match type_url {
            SECRET => {
                next.secrets.remove(name);
            }
            CLUSTER => {
                self.clusters.remove(name);
                next.clusters.remove(name);
            }
            ENDPOINTS => {
                self.endpoints.remove(name);
                for cluster in self.clusters_of(name) {
                    self.place_cluster(next, &cluster);
                }
            }
            ROUTE => {
                next.routes.remove(name);
            }
            EXTENSION => {
                next.filters.remove(name);
            }
            _ => {
                self.listeners.remove(name);
                next.listeners.remove(name);
            }
        }
    }

    /// Puts a cluster that is ready into the plan; one that is not keeps its last running form there.
    fn place_cluster(&self, next: &mut Plan, name: &Arc<str>) {
        let Some(entry) = self.clusters.get(name) else { return };
        if !self.is_ready(entry, next) {
            return;
        }
        let old = next.clusters.get(name);
        let endpoints = match &entry.config.discovery {
            Discovery::Eds(service) => self.endpoints.get(service).cloned().unwrap_or_else(|| {
                // The set was taken away: the last known endpoints go on serving, as in Envoy.
                old.map(|old| old.endpoints.clone()).unwrap_or_default()
            }),
            Discovery::StrictDns | Discovery::LogicalDns => Arc::new(entry.expand(old.map(|old| &*old.endpoints))),
            Discovery::Static | Discovery::OriginalDst { .. } => entry.inline.clone(),
        };
        let same = old.filter(|old| Arc::ptr_eq(&old.config, &entry.config) && Arc::ptr_eq(&old.endpoints, &endpoints));
        if same.is_some() {
            return;
        }
        expect_checks(&entry.config, &endpoints);
        if let Some(home) = self.home.as_ref().filter(|home| home.cluster == *name) {
            home.proxies_are(&endpoints);
        }
        let balancer = Arc::new(Balancer::new(&entry.config, &endpoints, self.home.as_ref()));
        let cluster = Cluster { config: entry.config.clone(), endpoints, state: entry.state.clone(), balancer };
        next.clusters.insert(name.clone(), Arc::new(cluster));
    }

    fn is_ready(&self, entry: &ClusterEntry, plan: &Plan) -> bool {
        let has = match &entry.config.discovery {
            Discovery::Eds(service) => self.endpoints.contains_key(service),
            Discovery::StrictDns | Discovery::LogicalDns => {
                entry.names().all(|name| entry.resolved.contains_key(&name))
            }
            Discovery::Static | Discovery::OriginalDst { .. } => true,
        };
        has && self.has_secrets(cluster_secrets(&entry.config), plan)
            || self.released.contains(&(kind_of(CLUSTER), entry.config.name.clone()))
    }

    fn has_secrets<'a>(&self, mut secrets: impl Iterator<Item = &'a SecretRef>, plan: &Plan) -> bool {
        secrets.all(|secret| match secret.source {
            SecretSource::Static | SecretSource::Ads => plan.secrets.contains_key(&secret.name),
            SecretSource::Grpc { .. } | SecretSource::Path(_) => self.delivered.contains(secret),
        })
    }

    fn is_complete(&self, listener: &Listener, plan: &Plan) -> bool {
        self.has_filters(listener) && self.has_parts(listener, plan)
    }

    /// All but the filters that it names.
    fn has_parts(&self, listener: &Listener, plan: &Plan) -> bool {
        self.released.contains(&(kind_of(LISTENER), listener.name.clone()))
            || (route_names(listener).iter().all(|name| plan.routes.contains_key(name))
                && self.has_secrets(listener_secrets(listener), plan)
                && (!plan.listeners.is_empty() || self.clusters.values().all(|entry| self.is_ready(entry, plan))))
    }

    fn clusters_of(&self, service: &Arc<str>) -> Vec<Arc<str>> {
        let named = self.clusters.values().filter(|entry| entry.config.discovery == Discovery::Eds(service.clone()));
        named.map(|entry| entry.config.name.clone()).collect()
    }

    fn named_by_others(&self) -> HashSet<(&'static str, Arc<str>)> {
        let routes = self.wanted_routes().into_iter().map(|name| (kind_of(ROUTE), name));
        let filters = self.wanted_filters().into_iter().map(|name| (kind_of(EXTENSION), name));
        let endpoints = self.wanted_endpoints().into_iter().map(|name| (kind_of(ENDPOINTS), name));
        routes.chain(filters).chain(endpoints).collect()
    }

    /// Route tables, filters and endpoint sets that were named by something before, and are no longer, are of no use.
    fn forget_unnamed(&mut self, next: &mut Plan, before: &HashSet<(&'static str, Arc<str>)>) {
        let now = self.named_by_others();
        for (kind, name) in before.difference(&now) {
            if *kind == kind_of(ROUTE) {
                next.routes.remove(name);
            } else if *kind == kind_of(EXTENSION) {
                self.heard.remove(name);
            } else {
                self.endpoints.remove(name);
            }
        }
    }

    fn publish(&mut self, mut next: Plan) {
        let fresh = |name: &Arc<str>, listener: &Arc<Listener>| {
            let current = next.listeners.get(name).is_some_and(|old| Arc::ptr_eq(old, listener));
            !current && self.is_complete(listener, &next)
        };
        let complete: Vec<_> = self.listeners.iter().filter(|(name, listener)| fresh(name, listener)).collect();
        let complete: Vec<_> = complete.into_iter().map(|(name, listener)| (name.clone(), listener.clone())).collect();
        next.listeners.extend(complete);
        self.forget_filters(&mut next);
        next.index_addresses();
        next.remote_keys = self.strings.remote_keys_in_use();
        next.generation = self.plan.generation + 1;
        self.plan = Arc::new(next);
        self.strings.prune();
    }
}

impl ClusterEntry {
    fn is_dns(&self) -> bool {
        matches!(self.config.discovery, Discovery::StrictDns | Discovery::LogicalDns)
    }

    fn names(&self) -> impl Iterator<Item = (Arc<str>, u16)> {
        self.inline.iter().filter_map(|endpoint| match &endpoint.address {
            Address::Name { host, port } => Some((host.clone(), *port)),
            _ => None,
        })
    }

    /// The endpoints with every name replaced by its addresses. `old`: where running state is taken from.
    fn expand(&self, old: Option<&EndpointSet>) -> EndpointSet {
        let known = old.map(states).unwrap_or_default();
        let first_only = self.config.discovery == Discovery::LogicalDns;
        let groups = self.inline.groups.iter().map(|group| EndpointGroup {
            locality: group.locality.clone(),
            weight: group.weight,
            priority: group.priority,
            endpoints: group.endpoints.iter().flat_map(|endpoint| self.resolve(endpoint, first_only, &known)).collect(),
        });
        EndpointSet {
            groups: groups.collect(),
            overprovisioning: self.inline.overprovisioning,
            weighted_priority_health: self.inline.weighted_priority_health,
            drops: self.inline.drops.clone(),
            version: self.inline.version,
        }
    }

    fn resolve(
        &self,
        endpoint: &Arc<Endpoint>,
        first_only: bool,
        known: &HashMap<Address, Arc<EndpointState>>,
    ) -> Vec<Arc<Endpoint>> {
        let Address::Name { host, port } = &endpoint.address else {
            return vec![endpoint.clone()];
        };
        let addresses = self.resolved.get(&(host.clone(), *port)).map(Vec::as_slice).unwrap_or_default();
        let taken = addresses.iter().take(if first_only { 1 } else { usize::MAX });
        let made = taken.map(|address| {
            let address = Address::Socket(*address);
            Arc::new(Endpoint {
                state: known.get(&address).cloned().unwrap_or_default(),
                address,
                hostname: if endpoint.hostname.is_empty() { host.clone() } else { endpoint.hostname.clone() },
                weight: endpoint.weight,
                health: endpoint.health,
                metadata: endpoint.metadata.clone(),
                locality: endpoint.locality.clone(),
                priority: endpoint.priority,
                check: endpoint.check.clone(),
            })
        });
        made.collect()
    }
}

fn home(bootstrap: &Bootstrap) -> Option<Home> {
    let cluster = &bootstrap.cluster_manager.as_ref()?.local_cluster_name;
    let place = bootstrap.node.as_ref()?.locality.as_ref()?;
    let locality = Locality {
        region: Arc::from(&*place.region),
        zone: Arc::from(&*place.zone),
        sub_zone: Arc::from(&*place.sub_zone),
    };
    (!cluster.is_empty()).then(|| Home::new(locality, Arc::from(&**cluster)))
}

/// Where a cluster is checked its endpoints count as failed until they were.
fn expect_checks(config: &ClusterConfig, endpoints: &EndpointSet) {
    for endpoint in endpoints.iter() {
        let spared = endpoint.check.as_ref().is_some_and(|check| check.disabled);
        if config.health_check.is_some() && !spared {
            endpoint.state.health.begin();
        } else {
            endpoint.state.health.end();
        }
    }
}

fn states(set: &EndpointSet) -> HashMap<Address, Arc<EndpointState>> {
    set.iter().map(|endpoint| (endpoint.address.clone(), endpoint.state.clone())).collect()
}

fn route_names(listener: &Listener) -> Vec<Arc<str>> {
    let managers = listener.chains.iter().filter_map(|chain| chain.http());
    managers
        .filter_map(|manager| match &manager.routes {
            RouteSource::Named(name) => Some(name.clone()),
            RouteSource::Inline(_) => None,
        })
        .collect()
}

fn listener_secrets(listener: &Listener) -> impl Iterator<Item = &SecretRef> {
    listener.chains.iter().filter_map(|chain| chain.tls.as_deref()).flat_map(|tls| secrets_of(&tls.common))
}

fn cluster_secrets(config: &ClusterConfig) -> impl Iterator<Item = &SecretRef> {
    let matches = config.transport_matches.iter().filter_map(|rule| rule.tls.as_deref());
    config.tls.as_deref().into_iter().chain(matches).flat_map(|tls| secrets_of(&tls.common))
}

fn secrets_of(common: &TlsCommon) -> impl Iterator<Item = &SecretRef> {
    let own = common.certificates.iter().filter_map(|source| match source {
        CertificateSource::Secret(secret) => Some(secret),
        CertificateSource::Inline(_) => None,
    });
    own.chain(common.validation.as_ref().and_then(|validation| validation.secret.as_ref()))
}

fn refusal(kind: &'static str, name: &Arc<str>, message: String) -> UpdateError {
    UpdateError { kind, name: name.clone(), faults: vec![Fault { path: String::new(), message }] }
}

fn duplicates(updates: &[Update]) -> Vec<UpdateError> {
    let mut seen = HashSet::new();
    let twice = updates.iter().filter(|update| !seen.insert((update.type_url.clone(), update.name.clone())));
    twice
        .map(|update| refusal(kind_of(&update.type_url), &update.name, "stands twice in static_resources".into()))
        .collect()
}

fn kind_of(type_url: &str) -> &'static str {
    match type_url {
        LISTENER => "Listener",
        CLUSTER => "Cluster",
        ROUTE => "RouteConfiguration",
        ENDPOINTS => "ClusterLoadAssignment",
        SECRET => "Secret",
        EXTENSION => "TypedExtensionConfig",
        _ => "resource",
    }
}

fn sorted(names: impl Iterator<Item = Arc<str>>) -> Vec<Arc<str>> {
    let set: BTreeSet<_> = names.collect();
    set.into_iter().collect()
}
