//! From a mesh to what one proxy gets: listeners, routes, clusters, endpoints.
//!
//! The shape is Istio's, so that Envoy and Tulle's proxy run the same resources and users find the names they
//! know: `outbound|8080|v1|reviews.shop.svc.cluster.local`, `virtualInbound`, `inbound|8080||`.

mod cluster;
mod endpoints;
mod ext_authz;
mod filters;
mod http;
mod inbound;
mod jwt;
mod locality;
mod log;
mod origin;
mod outbound;
mod proxyless;
mod rbac;
mod route;
mod route_action;
mod route_match;
mod tls;
mod virtual_host;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::workload::Interception;
use model::{Service, Workload};
use proto::envoy::config::cluster::v3::Cluster;
use proto::envoy::config::listener::v3::Listener;
use proto::envoy::config::route::v3::RouteConfiguration;
use proto::google::protobuf::Any;

pub use proxyless::proxyless;

pub(crate) use cluster::ads;
pub(crate) use endpoints::{core_locality, pipe, single, socket, subset_has_workloads};
pub(crate) use rbac::origins as policy_origins;
pub(crate) use tls::{grpc_source, mesh_client};
pub(crate) use wire::{seconds, uint32};

use crate::destination::Caller;
use crate::mesh::{Mesh, WorkloadKey};

/// How the parts of a configuration find each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Delivery {
    /// Listeners name their routes and clusters their endpoints; each comes as a resource of its own over ADS.
    #[default]
    Ads,
    /// Everything inside the listeners and clusters, for a bootstrap file.
    Static,
}

/// Where a proxy's key, certificate and trust bundle come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Secrets {
    /// The secrets `default` and `ROOTCA` over SDS from the cluster of this name (`sds-grpc`).
    Sds {
        /// The cluster, defined in the bootstrap.
        cluster: String,
    },
    /// The files `cert-chain.pem`, `key.pem` and `root-cert.pem` of a directory.
    Files {
        /// The directory, as the proxy will see it.
        directory: String,
    },
}

/// What [`encode`] cannot know from the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodeOptions {
    /// How parts find each other.
    pub delivery: Delivery,
    /// Where keys come from.
    pub secrets: Secrets,
}

impl Default for EncodeOptions {
    fn default() -> Self {
        Self { delivery: Delivery::Ads, secrets: Secrets::Sds { cluster: "sds-grpc".to_owned() } }
    }
}

/// One xDS resource.
#[derive(Debug, Clone, PartialEq)]
pub struct Resource {
    /// Name within its type.
    pub name: String,
    /// Hash of the content, 16 hexadecimal digits: equal content has the same version.
    pub version: String,
    /// The message.
    pub body: Any,
}

/// What one proxy gets, each list in order of names.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Snapshot {
    /// Listeners.
    pub listeners: Vec<Arc<Resource>>,
    /// Route configurations (none with [`Delivery::Static`]).
    pub routes: Vec<Arc<Resource>>,
    /// Clusters.
    pub clusters: Vec<Arc<Resource>>,
    /// Endpoints (none with [`Delivery::Static`]).
    pub endpoints: Vec<Arc<Resource>>,
}

impl Snapshot {
    /// The same snapshot with every unchanged resource taken from `earlier`, so that it is held only once.
    #[must_use]
    pub fn sharing(mut self, earlier: &Self) -> Self {
        let pairs = [
            (&mut self.listeners, &earlier.listeners),
            (&mut self.routes, &earlier.routes),
            (&mut self.clusters, &earlier.clusters),
            (&mut self.endpoints, &earlier.endpoints),
        ];
        for (now, before) in pairs {
            for resource in now {
                let place = before.binary_search_by(|other| other.name.cmp(&resource.name));
                let known = place.ok().and_then(|place| before.get(place));
                if let Some(known) = known.filter(|known| ***known == **resource) {
                    *resource = known.clone();
                }
            }
        }
        self
    }
}

/// Everything the proxy of a workload runs; empty for a workload that is not declared.
pub fn encode(mesh: &Mesh, key: &WorkloadKey, options: &EncodeOptions) -> Snapshot {
    let Some(workload) = mesh.workload(key) else { return Snapshot::default() };
    let mut encoder = Encoder::new(mesh, workload, options);
    encoder.inbound();
    encoder.outbound();
    encoder.finish()
}

/// One cluster of a service: its port and subset.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Target {
    pub(crate) hostname: String,
    pub(crate) port: u16,
    pub(crate) subset: Option<String>,
}

impl Target {
    /// Istio's name of the cluster.
    pub(crate) fn cluster_name(&self) -> String {
        format!("outbound|{}|{}|{}", self.port, self.subset.as_deref().unwrap_or_default(), self.hostname)
    }

    /// The server name that tells the receiving side which cluster was meant.
    pub(crate) fn sni(&self) -> String {
        format!("outbound_.{}_.{}_.{}", self.port, self.subset.as_deref().unwrap_or_default(), self.hostname)
    }
}

/// Collects one proxy's resources.
struct Encoder<'a> {
    mesh: &'a Mesh,
    workload: &'a Workload,
    options: &'a EncodeOptions,
    /// Clusters that routes and listeners name.
    wanted: BTreeSet<Target>,
    listeners: BTreeMap<String, Listener>,
    routes: BTreeMap<String, RouteConfiguration>,
    clusters: BTreeMap<String, Cluster>,
}

impl<'a> Encoder<'a> {
    fn new(mesh: &'a Mesh, workload: &'a Workload, options: &'a EncodeOptions) -> Self {
        Self {
            mesh,
            workload,
            options,
            wanted: BTreeSet::new(),
            listeners: BTreeMap::new(),
            routes: BTreeMap::new(),
            clusters: BTreeMap::new(),
        }
    }

    fn caller(&self) -> Caller<'a> {
        Caller { namespace: &self.workload.namespace, labels: &self.workload.labels }
    }

    fn service(&self, hostname: &str) -> Option<&'a Service> {
        self.mesh.service(hostname, &self.workload.namespace)
    }

    fn redirected(&self) -> bool {
        self.workload.interception == Interception::Redirect
    }

    /// Notes that a cluster is needed and gives its name.
    fn want(&mut self, target: Target) -> String {
        let name = target.cluster_name();
        self.wanted.insert(target);
        name
    }

    fn finish(mut self) -> Snapshot {
        let mut endpoints = BTreeMap::new();
        for target in std::mem::take(&mut self.wanted) {
            if let Some((cluster, assignment)) = self.service_cluster(&target) {
                if let Some(assignment) = assignment {
                    endpoints.insert(cluster.name.clone(), assignment);
                }
                self.clusters.insert(cluster.name.clone(), cluster);
            }
        }
        Snapshot {
            listeners: resources(self.listeners, &wire::LISTENER),
            routes: resources(self.routes, &wire::ROUTES),
            clusters: resources(self.clusters, &wire::CLUSTER),
            endpoints: resources(endpoints, &wire::ASSIGNMENT),
        }
    }
}

/// A message without maps as `Any`.
pub(crate) fn any<M: prost::Name>(message: &M) -> Any {
    wire::any(message, &wire::FLAT)
}

fn resources<M: prost::Name>(messages: BTreeMap<String, M>, shape: &wire::Shape) -> Vec<Arc<Resource>> {
    let resource = |(name, message): (String, M)| Arc::new(resource(name, &message, shape));
    messages.into_iter().map(resource).collect()
}

fn resource<M: prost::Name>(name: String, message: &M, shape: &wire::Shape) -> Resource {
    let body = wire::any(message, shape);
    let version = format!("{:016x}", xxhash_rust::xxh3::xxh3_64(&body.value));
    Resource { name, version, body }
}
