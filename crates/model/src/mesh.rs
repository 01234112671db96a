//! What all declarations are: the input of `compile`.

use std::time::Duration;

use serde::Serialize;

use crate::destination::{DestinationPolicy, LocalityBalancing};
use crate::name::ObjectKey;
use crate::route::RouteTable;
use crate::security::{AuthorizationPolicy, Authorizer, PeerAuthentication, RequestAuthentication};
use crate::service::Service;
use crate::workload::Workload;

/// Mesh-wide settings (Istio MeshConfig).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MeshConfig {
    /// Trust domain; `cluster.local` by default.
    pub trust_domain: String,
    /// Further trust domains whose identities count as this one's.
    pub trust_domain_aliases: Vec<String>,
    /// Namespace of mesh-wide policies; `istio-system` by default.
    pub root_namespace: String,
    /// DNS suffix of services; `cluster.local` by default.
    pub cluster_domain: String,
    /// What happens to calls of unknown hosts; true = they pass (Istio's ALLOW_ANY, the default).
    pub outbound_allow_any: bool,
    /// Connect timeout; 10 s by default.
    pub connect_timeout: Duration,
    /// Whether meshed peers are called by mTLS without being told (Istio `enableAutoMtls`, default true).
    pub auto_mtls: bool,
    /// Path normalization; BASE by default.
    pub path_normalization: PathNormalization,
    /// Default retries for routes without their own; `None` = Istio's.
    pub default_retry: Option<crate::route::RetryPolicy>,
    /// Which endpoints are preferred by where they are, unless a destination says otherwise; switched on by default.
    pub locality: LocalityBalancing,
    /// Whether proxies write access logs.
    pub access_log: AccessLogConfig,
    /// External authorizers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub authorizers: Vec<Authorizer>,
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".to_owned(),
            trust_domain_aliases: Vec::new(),
            root_namespace: "istio-system".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            outbound_allow_any: true,
            connect_timeout: Duration::from_secs(10),
            auto_mtls: true,
            path_normalization: PathNormalization::Base,
            default_retry: None,
            locality: LocalityBalancing::default(),
            access_log: AccessLogConfig::default(),
            authorizers: Vec::new(),
        }
    }
}

/// Istio's `pathNormalization.normalization`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PathNormalization {
    /// Leave paths alone.
    None,
    /// RFC 3986 dot segments and `\`.
    Base,
    /// And `//` to `/`.
    MergeSlashes,
    /// And `%2F`, `%5C` decoded.
    DecodeAndMergeSlashes,
}

/// Access logs (MeshConfig `accessLogFile`, `accessLogEncoding`, `accessLogFormat`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct AccessLogConfig {
    /// File, `/dev/stdout` for standard output; `None` = no log.
    pub file: Option<String>,
    /// JSON instead of text.
    pub json: bool,
    /// Envoy format; `None` = the default format.
    pub format: Option<String>,
}

/// One declared object, lowered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// The object's name.
    pub key: ObjectKey,
    /// What it declares; several for a ServiceEntry with several hosts or a workload list.
    pub declarations: Vec<Declaration>,
}

/// A lowered kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(clippy::large_enum_variant, reason = "few of them live at once; boxes would cost every reader")]
pub enum Declaration {
    /// A service.
    Service(Service),
    /// A workload.
    Workload(Workload),
    /// Routes.
    Routes(RouteTable),
    /// A traffic split by service name (SMI), before its services are known.
    Split(TrafficSplit),
    /// Destination policy.
    Destination(DestinationPolicy),
    /// mTLS mode.
    PeerAuthentication(PeerAuthentication),
    /// Tokens.
    RequestAuthentication(RequestAuthentication),
    /// Authorization.
    Authorization(AuthorizationPolicy),
    /// Mesh settings.
    Mesh(MeshConfig),
    /// A namespace and its labels.
    Namespace {
        /// Name.
        name: String,
        /// Labels.
        labels: crate::name::Labels,
    },
}

/// SMI TrafficSplit: requests to `service` go to backends by weight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TrafficSplit {
    /// Namespace.
    pub namespace: String,
    /// The root service.
    pub service: String,
    /// Backends and weights (milli units: `900m` = 900, `1` = 1000).
    pub backends: Vec<(String, u64)>,
    /// Where it was declared.
    pub origin: crate::origin::Origin,
}
