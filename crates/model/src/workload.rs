//! A running program with an identity, its addresses and its ports.

use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use crate::name::Labels;
use crate::origin::Origin;
use crate::spiffe::SpiffeId;

/// One instance of a program (a pod, a process on a machine).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Workload {
    /// Instance name, unique in its namespace: `web-1`.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Service account; with the trust domain and namespace it makes the SPIFFE identity.
    pub service_account: String,
    /// Labels; `app` and `version` (or the `app.kubernetes.io` ones) name it in metrics.
    pub labels: Labels,
    /// The workload (deployment) this is an instance of; the instance name where nothing better is known.
    pub workload_name: String,
    /// Addresses at which peers reach it. May be empty for a client that nobody calls.
    pub addresses: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<WorkloadPort>,
    /// Whether it has a proxy of the mesh (mTLS is spoken to it only then).
    pub meshed: bool,
    /// Relative weight among the endpoints of a service; 1 by default.
    pub weight: u32,
    /// Region, zone and sub-zone, each may be empty.
    pub locality: Locality,
    /// How traffic reaches its proxy.
    pub interception: Interception,
    /// Where it was declared.
    pub origin: Origin,
}

impl Workload {
    /// Its identity in a trust domain; `None` when a name cannot be part of one.
    pub fn identity(&self, trust_domain: &str) -> Option<SpiffeId> {
        SpiffeId::new(trust_domain, &self.namespace, &self.service_account).ok()
    }

    /// `NAME.NAMESPACE`, as `--workload` takes it.
    pub fn id(&self) -> String {
        format!("{}.{}", self.name, self.namespace)
    }
}

/// A port on which a workload listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WorkloadPort {
    /// Name, matched by a Service's named `targetPort`; may be empty.
    pub name: String,
    /// The port peers see and policies (`ports`, `destination.port`) speak of.
    pub number: u16,
    /// Where the proxy finds the program itself. `None` with transparent interception: 127.0.0.6-style
    /// loopback to the same port.
    pub app: Option<AppAddress>,
    /// Where the proxy listens for this port when nothing redirects to it (explicit interception): the
    /// address that goes into other proxies' endpoints. `None` = workload address and `number`.
    pub bind: Option<SocketAddr>,
}

/// Where a proxy reaches its own program.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub enum AppAddress {
    /// An IP socket.
    Socket(SocketAddr),
    /// A Unix stream socket by path.
    Unix(String),
}

/// How traffic of a workload comes to its proxy.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub enum Interception {
    /// Rules in the workload's network namespace redirect to 15001 (out) and 15006 (in).
    #[default]
    Redirect,
    /// The program has a network namespace of its own, in which rules redirect what it sends to 15001. Its proxy is outside:
    /// it listens in there for what the program sends, out here on each port's `bind` for what comes to it, and reaches
    /// the program in there at each port's `app`.
    Namespace {
        /// The file of the network namespace.
        path: String,
    },
    /// Nothing is redirected: the proxy listens on explicit loopback addresses.
    Explicit {
        /// For each service this workload calls: where its proxy listens for it.
        outbound: Vec<ExplicitOutbound>,
    },
}

/// One explicit outbound listener: `bind` stands for `host:port` of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExplicitOutbound {
    /// The service, fully qualified: `catalog.shop.svc.cluster.local`.
    pub host: String,
    /// The service's port.
    pub port: u16,
    /// Where the proxy listens.
    pub bind: SocketAddr,
}

/// Region, zone, sub-zone (Envoy `core.v3.Locality`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize)]
pub struct Locality {
    /// Region.
    pub region: String,
    /// Zone.
    pub zone: String,
    /// Sub-zone.
    pub sub_zone: String,
}
