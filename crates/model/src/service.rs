//! A name that workloads call.

use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use crate::name::Labels;
use crate::origin::Origin;
use crate::workload::Locality;

/// A Kubernetes Service or one host of a ServiceEntry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Service {
    /// Fully qualified host: `catalog.shop.svc.cluster.local`, or a ServiceEntry's host (may be `*.wild.card`).
    pub hostname: String,
    /// Short name (`catalog`); the hostname itself for a ServiceEntry.
    pub name: String,
    /// Namespace of the declaring object.
    pub namespace: String,
    /// Virtual addresses.
    pub addresses: Vec<IpAddr>,
    /// CIDR virtual addresses of a ServiceEntry (`10.0.0.0/8`), for TCP matching.
    pub address_ranges: Vec<ipnet::IpNet>,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// How its endpoints are found.
    pub resolution: Resolution,
    /// Whether it is part of the mesh.
    pub location: Location,
    /// Selects workloads of the same namespace. Empty: see `endpoints`.
    pub selector: Labels,
    /// Endpoints given by hand (ServiceEntry `endpoints`, Kubernetes Endpoints).
    pub endpoints: Vec<StaticEndpoint>,
    /// Namespaces that may see it; empty means all. `.` was replaced by the own namespace.
    pub export_to: Vec<String>,
    /// SANs that its servers must present (ServiceEntry `subjectAltNames`).
    pub subject_alt_names: Vec<String>,
    /// Where it was declared.
    pub origin: Origin,
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServicePort {
    /// Name; also tells the protocol by Istio's prefix convention.
    pub name: String,
    /// The port callers use.
    pub number: u16,
    /// The port of the workloads.
    pub target: TargetPort,
    /// What is spoken there.
    pub protocol: Protocol,
}

/// A Service's `targetPort`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum TargetPort {
    /// By number.
    Number(u16),
    /// By the name of a workload's port.
    Name(String),
}

/// What is spoken on a port (Istio's protocol selection).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1 (HTTP/2 accepted).
    Http,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// gRPC.
    Grpc,
    /// TLS that the mesh does not terminate, with SNI.
    Tls,
    /// HTTPS that the mesh does not terminate; as `Tls`.
    Https,
    /// Opaque bytes; may be server-first.
    Tcp,
    /// Not said: detected.
    Auto,
}

impl Protocol {
    /// Whether requests are seen (HTTP of some kind for certain).
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2 | Self::Grpc)
    }

    /// Istio's convention: `appProtocol` first, else the port name up to the first `-`; `None` = [`Self::Auto`].
    pub fn from_name(name: &str) -> Self {
        match name.split('-').next().unwrap_or_default().to_ascii_lowercase().as_str() {
            "http" | "kubernetes.io/ws" => Self::Http,
            "http2" | "kubernetes.io/h2c" => Self::Http2,
            "grpc" => Self::Grpc,
            "tls" => Self::Tls,
            "https" => Self::Https,
            "tcp" | "mongo" | "mysql" | "redis" | "postgres" => Self::Tcp,
            _ => Self::Auto,
        }
    }
}

/// How endpoints of a service are found (ServiceEntry `resolution`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum Resolution {
    /// Workloads and static endpoints known to the control plane (EDS).
    Static,
    /// Forward to the address the caller used.
    None,
    /// Strict DNS.
    Dns,
    /// Logical DNS, one address at a time.
    DnsRoundRobin,
}

/// Inside or outside (ServiceEntry `location`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum Location {
    /// Its workloads may have mesh identities.
    MeshInternal,
    /// Never mesh mTLS.
    MeshExternal,
}

/// One endpoint given by hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StaticEndpoint {
    /// Address.
    pub address: EndpointAddress,
    /// Port by service port name; where missing, the service's target port.
    pub ports: Vec<(String, u16)>,
    /// Labels, for subsets.
    pub labels: Labels,
    /// Weight; 1 by default.
    pub weight: u32,
    /// Locality.
    pub locality: Locality,
    /// Service account, for the expected identity; may be empty.
    pub service_account: String,
}

/// An endpoint's address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum EndpointAddress {
    /// An IP address.
    Ip(IpAddr),
    /// An IP and a port of its own (overrides `ports`).
    Socket(SocketAddr),
    /// A DNS name.
    Dns(String),
    /// A Unix socket by path.
    Unix(String),
}
