//! Behaviour tables: what is configured, what is asked, what must come of it.
//!
//! A table is a JSON or YAML file; the repository's own stand in `tests/scenarios/`. Unknown fields are errors, so
//! that no expectation is passed over in silence.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Reads a JSON or YAML file (by its ending).
///
/// # Errors
/// When it cannot be read or does not have the form of `T`; the message names the file.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let json = path.extension().is_some_and(|ending| ending == "json");
    if json {
        serde_json::from_str(&text).with_context(|| path.display().to_string())
    } else {
        serde_saphyr::from_str(&text).map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))
    }
}

/// A whole table.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// 1.
    pub schema_version: u32,
    /// Name.
    pub table: String,
    /// What the table is about.
    #[serde(default)]
    pub set: String,
    /// For people.
    #[serde(default)]
    pub note: String,
    /// Which topology; `std`.
    #[serde(default)]
    pub fixture: String,
    /// Whether programs have proxies of their own; by default all have but in the tables of [`CALLERS_ONLY`].
    #[serde(default)]
    pub backends: Option<Backends>,
    /// Configurations by id.
    pub configs: BTreeMap<String, Config>,
    /// Cases, in order.
    pub cases: Vec<Case>,
}

/// Whether programs have proxies of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backends {
    /// Each has one.
    Meshed,
    /// None has: what they record is what the caller's proxy sent.
    Bare,
}

/// Tables about what the caller's proxy alone does: a second proxy would retry, pool and answer too.
const CALLERS_ONLY: [&str; 3] = ["load-balancing", "resilience", "retries"];

impl Table {
    /// Whether programs have proxies of their own.
    pub fn backends(&self) -> Backends {
        let known = CALLERS_ONLY.contains(&self.table.as_str());
        self.backends.unwrap_or(if known { Backends::Bare } else { Backends::Meshed })
    }
}

/// One configuration.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Objects to apply.
    #[serde(default)]
    pub resources: Vec<Value>,
    /// MeshConfig fields.
    #[serde(default)]
    pub mesh: Option<Value>,
    /// Endpoints of service `a` instead of its one workload.
    #[serde(default)]
    pub endpoints: Vec<EndpointSpec>,
    /// An Envoy bootstrap instead: one proxy runs it, before programs without proxies. `@NAME@` is a workload's address;
    /// requests go to its first listener, or to the one that they name.
    #[serde(default)]
    pub bootstrap: Option<Value>,
    /// Gateway tables name the gateway's own facts here.
    #[serde(default)]
    pub note: Option<String>,
}

/// One endpoint of service `a`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointSpec {
    /// Name of the workload and its recorder.
    pub id: String,
    /// `region/zone/sub-zone`.
    pub locality: String,
    /// Further labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// False: known to be unhealthy.
    #[serde(default = "yes")]
    pub healthy: bool,
    /// Waits before each answer.
    #[serde(default)]
    pub delay_ms: u64,
    /// Answers this status to everything.
    #[serde(default)]
    pub always: Option<u16>,
    /// Answers these statuses in turn.
    #[serde(default)]
    pub pattern: Option<String>,
    /// Nothing listens.
    #[serde(default)]
    pub down: bool,
    /// Packets vanish.
    #[serde(default)]
    pub blackhole: bool,
}

fn yes() -> bool {
    true
}

/// One case.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Unique name.
    pub id: String,
    /// Subject; `--skip` names it.
    pub area: String,
    /// Which configuration.
    pub config: String,
    /// What is asked; `None` for cases about status conditions.
    pub request: Option<Ask>,
    /// What must come of it.
    pub expect: Expect,
    /// Why, for people.
    pub why: String,
    /// Reported, not counted.
    #[serde(default)]
    pub optional: bool,
    /// Ask so many times; each must hold.
    #[serde(default)]
    pub repeat: Option<usize>,
}

/// A request.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ask {
    /// Client; `plain` (outside the mesh) where missing.
    pub from: Option<String>,
    /// Service.
    pub to: Option<String>,
    /// Port of `to`, by name or number.
    pub port: Option<Value>,
    /// Host asked for.
    pub authority: Option<String>,
    /// `ingress`, `gateway`, `mesh`.
    pub via: Option<String>,
    /// Gateway listener.
    pub listener: Option<String>,
    /// `http1`, `http2`, `grpc`, `tcp`, `tls`.
    #[serde(default)]
    pub protocol: String,
    /// Method.
    pub method: Option<String>,
    /// Path.
    pub path: Option<String>,
    /// Headers.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Body.
    pub body: Option<String>,
    /// SNI.
    pub sni: Option<String>,
    /// Address that workload of the service.
    pub subset: Option<String>,
    /// The client's address.
    pub source_ip: Option<String>,
    /// Requests at once.
    pub concurrency: Option<usize>,
    /// Requests in all.
    pub requests: Option<usize>,
    /// JWT to mint.
    pub jwt: Option<Value>,
    /// Where the JWT goes.
    pub jwt_in: Option<Value>,
    /// True: do not touch the path; a text: the whole byte stream.
    pub raw: Option<Value>,
    /// The whole HTTP/2 header block: names and values, in order, each character a byte.
    pub h2_headers: Option<Vec<(String, String)>>,
    /// `header:NAME`, `query:NAME`, `cookie:NAME`, `source_ip`.
    pub hash_key: Option<String>,
    /// How many keys.
    pub keys: Option<usize>,
    /// Requests for each key.
    pub per_key: Option<usize>,
    /// Endpoints that stay for a second round.
    pub endpoints_after: Option<Vec<String>>,
    /// `region/zone/sub-zone` of the client.
    pub client_locality: Option<String>,
    /// Further labels of the client.
    pub client_labels: Option<BTreeMap<String, String>>,
    /// Ask from this client too.
    pub second_client: Option<String>,
    /// Rounds with waits between.
    pub phases: Option<Vec<Phase>>,
    /// Endpoints that answer well from now on, after the phases.
    pub then_heal: Option<OneOf<String>>,
    /// Wait before `requests_after`.
    pub wait_ms: Option<u64>,
    /// Wait between the requests of a series, which come on one connection.
    pub pause_ms: Option<u64>,
    /// Requests after the wait.
    pub requests_after: Option<usize>,
}

/// One round.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    /// Wait before it.
    #[serde(default)]
    pub wait_ms: u64,
    /// Requests.
    pub requests: usize,
}

/// One value or any of a list.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum OneOf<T> {
    /// Any of them.
    Any(Vec<T>),
    /// This one.
    One(T),
}

impl<T> OneOf<T> {
    /// All of them.
    pub fn as_slice(&self) -> &[T] {
        match self {
            Self::Any(all) => all,
            Self::One(one) => std::slice::from_ref(one),
        }
    }
}

impl<T: PartialEq> OneOf<T> {
    /// Whether `value` is allowed.
    pub fn allows(&self, value: &T) -> bool {
        match self {
            Self::Any(all) => all.contains(value),
            Self::One(one) => one == value,
        }
    }
}

/// A status, or that the connection is closed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Status {
    /// HTTP status.
    Code(u16),
    /// `connection-closed`.
    Word(String),
}

/// What must come of a request; what is not given is not looked at.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Expect {
    /// allow, deny, unauthenticated, forbidden-audience, connection-refused, bad-request.
    pub decision: Option<OneOf<String>>,
    /// Status the client gets.
    pub status: Option<OneOf<Status>>,
    /// gRPC status the client gets.
    pub grpc_status: Option<u32>,
    /// Recorder that got it; null: none. The outer `Option` tells whether it was given.
    #[serde(deserialize_with = "given")]
    pub backend: Option<Option<OneOf<String>>>,
    /// What the backend received.
    pub upstream: Option<Upstream>,
    /// Response headers.
    pub response_headers: BTreeMap<String, String>,
    /// Response headers that must not be there.
    pub response_headers_absent: Vec<String>,
    /// Location header.
    pub location: Option<String>,
    /// Body.
    pub body: Option<String>,
    /// At least this long.
    pub min_ms: Option<u64>,
    /// At most this long.
    pub max_ms: Option<u64>,
    /// Alternatives: any of them may hold.
    pub any_of: Option<Vec<Self>>,
    /// Share by backend.
    pub distribution: Option<BTreeMap<String, f64>>,
    /// Share by status.
    pub status_distribution: Option<BTreeMap<String, f64>>,
    /// Share of requests that a mirror received.
    pub mirrored_to: Option<BTreeMap<String, f64>>,
    /// How the mirror's authority ends.
    pub mirror_authority_suffix: Option<String>,
    /// The mirror's body.
    pub mirror_body: Option<String>,
    /// Requests for a statistic.
    pub requests: Option<usize>,
    /// Absolute tolerance of shares.
    pub tolerance: Option<f64>,
    /// Largest share by backend.
    pub distribution_max: Option<BTreeMap<String, f64>>,
    /// Smallest share by backend.
    pub distribution_min: Option<BTreeMap<String, f64>>,
    /// Share by backend in the second round.
    pub after_distribution: Option<BTreeMap<String, f64>>,
    /// Most requests by backend.
    pub endpoint_requests_max: Option<BTreeMap<String, usize>>,
    /// Fewest requests by backend.
    pub endpoint_requests_min: Option<BTreeMap<String, usize>>,
    /// Most answers by status.
    pub status_max: Option<BTreeMap<String, usize>>,
    /// Fewest answers by status.
    pub status_min: Option<BTreeMap<String, usize>>,
    /// No other statuses.
    pub status_only: Option<Vec<u16>>,
    /// Numbers of the client's proxy (`/stats`), at least.
    pub stats_min: Option<BTreeMap<String, u64>>,
    /// Numbers of the client's proxy, at most.
    pub stats_max: Option<BTreeMap<String, u64>>,
    /// Ejected endpoints.
    pub ejected: Option<Vec<String>>,
    /// Most ejected endpoints.
    pub ejected_max: Option<usize>,
    /// Largest share of keys that may move.
    pub moved_max: Option<f64>,
    /// Each key has one endpoint.
    pub one_endpoint_per_key: Option<bool>,
    /// Largest share of any endpoint.
    pub max_share_any: Option<f64>,
    /// Both clients choose alike.
    pub same_endpoint_from_both: Option<bool>,
    /// Most requests at one backend at one time.
    pub backend_concurrency_max: Option<usize>,
    /// Connections the backends saw.
    pub upstream_connections: Option<usize>,
    /// At least so many connections.
    pub upstream_connections_min: Option<usize>,
    /// `http1` or `http2` at the backend.
    pub upstream_protocol: Option<String>,
    /// Most requests by backend, for each phase.
    pub phase_endpoint_requests_max: Option<Vec<BTreeMap<String, usize>>>,
    /// Requests the recorders saw for one request.
    pub attempts: Option<usize>,
    /// At most so many.
    pub attempts_max: Option<usize>,
    /// At most so many in all.
    pub attempts_total_max: Option<usize>,
    /// Every attempt carried the whole body.
    pub upstream_body_every_attempt: Option<bool>,
    /// Most requests that may fail.
    pub max_failures: Option<usize>,
    /// reject, accept, reject-or-repair, reset.
    pub outcome: Option<String>,
    /// Complete requests that may reach the backend.
    pub upstream_requests_max: Option<usize>,
    /// Headers that the backend must not get.
    pub upstream_headers_absent: Vec<String>,
    /// Paths that reached the backend.
    pub upstream_paths: Option<Vec<String>>,
    /// Status conditions of objects.
    pub conditions: Option<Value>,
    /// For people.
    pub note: Option<String>,
}

/// What the backend received.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Upstream {
    /// Path and query.
    pub path: Option<OneOf<String>>,
    /// Host.
    pub authority: Option<String>,
    /// Headers and their values.
    pub headers: BTreeMap<String, OneOf<String>>,
    /// Headers and texts that must be in them.
    pub headers_with: BTreeMap<String, Vec<String>>,
    /// Headers that must not be there.
    pub headers_absent: Vec<String>,
    /// Header list of an HTTP/2 case.
    pub cookie: Option<Value>,
}

fn given<'de, D, T>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::<T>::deserialize(deserializer).map(Some)
}
