//! The control plane's API: JSON over HTTP, on a 0600 Unix socket and, with a token, on loopback TCP.
//!
//! | method and path | question | answer |
//! |---|---|---|
//! | `GET /api/v1/status` | | [`Status`] |
//! | `POST /api/v1/apply` | [`ApplyRequest`] | [`ChangeAnswer`] |
//! | `POST /api/v1/delete` | [`DeleteRequest`] | [`ChangeAnswer`] |
//! | `GET /api/v1/objects?kind=&namespace=&name=` | | list of [`Object`] |
//! | `GET /api/v1/findings` | | list of [`Finding`] |
//! | `GET /api/v1/proxies` | | list of [`Proxy`] |
//! | `GET /api/v1/workloads` | | list of [`Workload`] |
//! | `GET /api/v1/config/NAME.NAMESPACE` | | [`Config`] |
//!
//! Whatever goes wrong is a [`Problem`] with a status of 4xx or 5xx.

mod read;
mod serve;
mod write;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub(crate) use serve::{Api, serve_tcp, serve_unix};

/// Declare objects.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ApplyRequest {
    /// YAML or JSON, any number of documents.
    pub manifest: String,
    /// The file's name for messages.
    pub file: Option<String>,
    /// Namespace of objects that name none; `default` if absent.
    pub namespace: Option<String>,
    /// Only say what would happen.
    pub dry_run: bool,
    /// Wait so many milliseconds for the proxies; absent = do not wait.
    pub wait_ms: Option<u64>,
}

/// Remove objects.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DeleteRequest {
    /// Which.
    pub objects: Vec<ObjectName>,
    /// Wait so many milliseconds for the proxies; absent = do not wait.
    pub wait_ms: Option<u64>,
}

/// Names an object. The kind is matched without case, singular or plural, with or without its group.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ObjectName {
    /// `VirtualService`, `virtualservices`, `vs`.
    pub kind: String,
    /// Namespace; empty for kinds without.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// The revision it must have; absent = whatever.
    pub resource_version: Option<String>,
}

/// What a change did.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ChangeAnswer {
    /// The store's revision; 0 for a dry run.
    pub revision: u64,
    /// Object by object.
    pub changes: Vec<Changed>,
    /// Warnings about these objects.
    pub findings: Vec<Finding>,
    /// How the proxies took it, if it was waited for.
    pub wait: Option<Waited>,
}

/// One object of a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// Kind.
    pub kind: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// `created`, `configured`, `unchanged` or `deleted`.
    pub action: String,
}

/// How proxies took a change.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Waited {
    /// Connected proxies whose configuration changed and who have it.
    pub acknowledged: usize,
    /// Those who have not, or refused some of it.
    pub missing: Vec<Missing>,
    /// Milliseconds until half of them had it.
    pub p50_ms: Option<f64>,
    /// Milliseconds until 99 % of them had it.
    pub p99_ms: Option<f64>,
}

/// A proxy that has not got a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// Its node id.
    pub proxy: String,
    /// Why, with the proxy's own words where it spoke.
    pub reason: String,
}

/// An object with its state.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Object {
    /// `networking.istio.io/v1`; empty when the text could not be read.
    pub api_version: String,
    /// Kind; `?` when the text could not be read.
    pub kind: String,
    /// Namespace.
    pub namespace: String,
    /// Name; the file and line when the text could not be read.
    pub name: String,
    /// File and line, or the store's name.
    pub origin: String,
    /// The stored object's revision; absent for files.
    pub revision: Option<u64>,
    /// Whether it takes effect.
    pub accepted: bool,
    /// What is wrong with it.
    pub findings: Vec<Finding>,
    /// How the proxies have it; absent when it is not accepted.
    pub programmed: Option<Programmed>,
    /// As typed, with `status` added; null when the text could not be read.
    pub object: Value,
}

/// How the proxies have an object.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Programmed {
    /// The configuration's revision of its last change.
    pub revision: u64,
    /// Connected proxies that it may concern.
    pub proxies: usize,
    /// Those that have it.
    pub acknowledged: usize,
    /// The others.
    pub missing: Vec<Missing>,
}

/// Something wrong in the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Finding {
    /// `TL0107`.
    pub code: String,
    /// `error`, `warning` or `info`.
    pub severity: String,
    /// What is wrong.
    pub message: String,
    /// The object: `VirtualService shop/reviews`.
    pub object: Option<String>,
    /// The field's path.
    pub field: String,
    /// File.
    pub file: Option<String>,
    /// Line, from 1.
    pub line: Option<u32>,
    /// Column, from 1.
    pub column: Option<u32>,
    /// What to write instead.
    pub help: Option<String>,
}

/// A connected proxy.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Proxy {
    /// Its node id.
    pub node: String,
    /// `web-1.shop`.
    pub workload: String,
    /// Who it proved to be: a SPIFFE id or `uid N`.
    pub peer: String,
    /// What it calls itself: `envoy/1.40.0`.
    pub agent: String,
    /// Where its admin interface listens: `unix:/PATH` or `IP:PORT`; absent when it did not say.
    pub admin: Option<String>,
    /// `delta` or `sotw`.
    pub protocol: String,
    /// Since when, RFC 3339.
    pub since: String,
    /// The revision that it should have.
    pub wanted: u64,
    /// The revision it has completely; 0 = none yet.
    pub acknowledged: u64,
    /// What it refused, with its own words.
    pub refused: Vec<RefusedResource>,
}

impl Proxy {
    /// Whether it has everything and refused nothing.
    pub fn is_synced(&self) -> bool {
        self.acknowledged >= self.wanted && self.refused.is_empty()
    }
}

/// A resource that a proxy refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedResource {
    /// The resource's type URL.
    pub type_url: String,
    /// Its name.
    pub name: String,
    /// The proxy's words.
    pub message: String,
}

/// A declared workload.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Workload {
    /// `web-1.shop`.
    pub workload: String,
    /// Its SPIFFE identity.
    pub identity: Option<String>,
    /// Addresses.
    pub addresses: Vec<String>,
    /// Whether it should have a proxy.
    pub meshed: bool,
    /// Whether one is connected.
    pub connected: bool,
}

/// What the control plane serves a workload's proxy: resources in canonical JSON.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// `web-1.shop`.
    pub workload: String,
    /// Listeners.
    pub listeners: Vec<Value>,
    /// Route configurations.
    pub routes: Vec<Value>,
    /// Clusters.
    pub clusters: Vec<Value>,
    /// Endpoints.
    pub endpoints: Vec<Value>,
}

/// The control plane itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Its version.
    pub version: String,
    /// The configuration's revision.
    pub revision: u64,
    /// The store's name; absent when it is read-only.
    pub store: Option<String>,
    /// The trust domain.
    pub trust_domain: String,
    /// Connected proxies.
    pub proxies: usize,
    /// Those that have everything.
    pub synced: usize,
    /// Declared workloads.
    pub workloads: usize,
    /// Services.
    pub services: usize,
    /// Findings that are errors.
    pub errors: usize,
    /// Findings that are warnings.
    pub warnings: usize,
}

/// Why a request failed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Problem {
    /// `invalid`, `conflict`, `read-only`, `forbidden`, `not-found` or `internal`.
    pub kind: String,
    /// What went wrong, in one line.
    pub message: String,
    /// What to do.
    pub next: Option<String>,
    /// Findings in the input.
    pub findings: Vec<Finding>,
}
