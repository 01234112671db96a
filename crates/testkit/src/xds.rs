//! Tables about configurations of one proxy: an Envoy bootstrap, requests, and what must come of them.
//!
//! Bootstraps are Envoy's own. To keep them short, `http` stands for plaintext HTTP listeners on 127.0.0.1 and
//! `clusters` for clusters of recorders; `more` is taken as it is. Filters whose names begin with `istio.` are Istio's own:
//! our proxy has them, and for a plain Envoy they are left out. In every text `$dir` is the working directory, where
//! `certs/one` and `certs/two` hold certificate files and logs may be written; `@JWKS-1@` is a set of keys for tokens.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::checked::Checked;
use crate::names::Known;
use crate::oracle::Oracle;
use crate::redirection::Redirection;
use crate::table::{Ask, Expect};
use crate::token;

/// A whole table.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// 1.
    pub schema_version: u32,
    /// Name.
    pub table: String,
    /// What it is about.
    #[serde(default)]
    pub set: String,
    /// Backends, by name.
    pub recorders: BTreeMap<String, Recorded>,
    /// Bootstraps by id.
    pub bootstraps: BTreeMap<String, Bootstrap>,
    /// Cases, in order.
    pub cases: Vec<Case>,
}

/// One backend.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recorded {
    /// Where it listens.
    pub at: SocketAddr,
    /// Bytes instead of HTTP.
    #[serde(default)]
    pub tcp: bool,
    /// Answers this status to everything.
    pub always: Option<u16>,
    /// Answers these statuses in turn.
    #[serde(default)]
    pub pattern: Vec<u16>,
    /// Waits before each answer.
    #[serde(default)]
    pub delay_ms: u64,
    /// Nothing listens.
    #[serde(default)]
    pub down: bool,
    /// What health checks must be like.
    pub checked: Option<Checked>,
    /// Answers proxies' questions instead, and records nothing.
    pub oracle: Option<Oracle>,
    /// Brings connections to a proxy instead, as the kernel's redirection does.
    pub redirected: Option<Redirection>,
}

impl Recorded {
    /// Whether it is a backend that writes down what comes.
    pub fn records(&self) -> bool {
        !self.down && self.oracle.is_none() && self.redirected.is_none()
    }
}

/// A configuration.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bootstrap {
    /// HTTP connection managers by port of 127.0.0.1; the router filter is added at the end. A field `listener` holds
    /// fields of the listener, `chain` of its filter chain.
    #[serde(default)]
    pub http: BTreeMap<u16, Map<String, Value>>,
    /// Static clusters by name; the field `to` lists recorders (or addresses).
    #[serde(default)]
    pub clusters: BTreeMap<String, Map<String, Value>>,
    /// Files in the working directory that are there from the start, in JSON: responses for sources that are paths.
    #[serde(default)]
    pub files: BTreeMap<String, Value>,
    /// Anything else of a bootstrap; lists are appended, objects merged.
    #[serde(default)]
    pub more: Map<String, Value>,
    /// Resources that a server gives to all who ask for them by gRPC, at the Unix socket `$dir/ads.sock`.
    #[serde(default)]
    pub ads: Vec<Value>,
    /// Names that the system's name server (127.0.0.1) knows.
    #[serde(default)]
    pub names: BTreeMap<String, Known>,
    /// Variables of the proxy's environment; `<NAME` stands for what is in a file of the working directory.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
}

/// One case.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Unique name.
    pub id: String,
    /// Which configuration.
    pub bootstrap: String,
    /// Port of 127.0.0.1 to ask, or an address.
    pub at: Value,
    /// What is asked.
    pub request: Ask,
    /// What must come of it.
    pub expect: Expect,
    /// Files in the working directory that must hold these texts, some time after.
    #[serde(default)]
    pub files: BTreeMap<String, Vec<String>>,
    /// And those that must not hold these.
    #[serde(default)]
    pub files_without: BTreeMap<String, Vec<String>>,
    /// File in the working directory that is written before: name and content.
    pub write: Option<(String, String)>,
    /// Resources that the server gives from now on; asked is when the proxy has answered.
    #[serde(default)]
    pub gives: Vec<Value>,
    /// Names of resources that it takes away (only deltas can tell).
    #[serde(default)]
    pub takes: Vec<String>,
    /// Files in the working directory (sockets too) and their modes, in octal digits.
    #[serde(default)]
    pub modes: BTreeMap<String, String>,
    /// Ask so many times; each must hold.
    #[serde(default)]
    pub repeat: Option<usize>,
    /// The judges differ, and why; then only ours is asked.
    pub only_ours: Option<String>,
    /// Why, for people.
    pub why: String,
}

impl Case {
    /// Where it asks.
    ///
    /// # Errors
    /// When `at` is neither a port nor an address.
    pub fn at(&self) -> Result<SocketAddr> {
        match &self.at {
            Value::Number(port) => {
                let port = port.as_u64().and_then(|port| u16::try_from(port).ok()).context("a port")?;
                Ok(SocketAddr::from(([127, 0, 0, 1], port)))
            }
            Value::String(address) => address.parse().with_context(|| format!("{}: {address}", self.id)),
            other => bail!("{}: `at` must be a port or an address, not {other}", self.id),
        }
    }
}

const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
const MANAGER: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

impl Table {
    /// A bootstrap as Envoy takes it, in JSON. The admin address is 127.0.0.1:15000 unless it says otherwise.
    ///
    /// # Errors
    /// When it names what the table does not have.
    pub fn envoy(&self, id: &str, directory: &Path) -> Result<Value> {
        let own = self.bootstraps.get(id).with_context(|| format!("no bootstrap `{id}`"))?;
        let listeners: Vec<Value> = own.http.iter().map(|(port, manager)| listener(*port, manager)).collect();
        let clusters = own.clusters.iter().map(|(name, fields)| self.cluster(name, fields));
        let clusters = clusters.collect::<Result<Vec<_>>>().with_context(|| format!("bootstrap `{id}`"))?;
        let mut whole = json!({
            "node": {"id": "one", "cluster": "scenarios"},
            "admin": {"address": socket(SocketAddr::from(([127, 0, 0, 1], 15000)))},
            "static_resources": {"listeners": listeners, "clusters": clusters},
        });
        merge(&mut whole, &Value::Object(own.more.clone()));
        place(&mut whole, &directory.display().to_string());
        Ok(whole)
    }

    /// What the server at `$dir/ads.sock` gives, as a DiscoveryResponse in JSON; `None` where there is no server.
    pub fn served(&self, id: &str, directory: &Path) -> Option<Value> {
        let own = self.bootstraps.get(id).filter(|own| !own.ads.is_empty())?;
        Some(response(&own.ads, directory))
    }

    /// Files that the bootstrap reads: name and content.
    pub fn files(&self, id: &str, directory: &Path) -> Vec<(String, String)> {
        let files = self.bootstraps.get(id).into_iter().flat_map(|bootstrap| &bootstrap.files);
        let written = files.map(|(name, content)| {
            let mut content = content.clone();
            place(&mut content, &directory.display().to_string());
            (name.clone(), content.to_string())
        });
        written.collect()
    }

    fn cluster(&self, name: &str, fields: &Map<String, Value>) -> Result<Value> {
        let mut whole = json!({"name": name, "connect_timeout": "1s"});
        let mut fields = fields.clone();
        if let Some(to) = fields.remove("to") {
            let names = to.as_array().context("`to` is a list")?;
            let endpoints = names.iter().map(|name| {
                let name = name.as_str().context("`to` lists names")?;
                let at = match self.recorders.get(name) {
                    Some(recorder) => recorder.at,
                    None => name.parse().with_context(|| format!("no recorder `{name}`"))?,
                };
                Ok(json!({"endpoint": {"address": socket(at)}}))
            });
            let endpoints = endpoints.collect::<Result<Vec<_>>>()?;
            whole["load_assignment"] = json!({"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]});
        }
        merge(&mut whole, &Value::Object(fields));
        Ok(whole)
    }
}

/// Resources as a DiscoveryResponse in JSON.
pub fn response(resources: &[Value], directory: &Path) -> Value {
    let mut whole = json!({"version_info": "1", "resources": resources});
    place(&mut whole, &directory.display().to_string());
    whole
}

fn listener(port: u16, manager: &Map<String, Value>) -> Value {
    let mut manager = manager.clone();
    let own = manager.remove("listener").unwrap_or_else(|| json!({}));
    let chain = manager.remove("chain").unwrap_or_else(|| json!({}));
    let filters = manager.entry("http_filters").or_insert_with(|| json!([]));
    if let Some(filters) = filters.as_array_mut()
        && filters.last().is_none_or(|filter| filter["typed_config"]["@type"] != ROUTER)
    {
        filters.push(json!({"name": "router", "typed_config": {"@type": ROUTER}}));
    }
    let mut config = json!({"@type": MANAGER, "stat_prefix": format!("http-{port}")});
    merge(&mut config, &Value::Object(manager));
    let mut last = json!({"filters": [{"name": "http", "typed_config": config}]});
    // What the chain adds comes before the manager, which must be last.
    if let Some(before) = chain["filters"].as_array() {
        let after = last["filters"].take();
        last["filters"] = Value::Array([before.clone(), after.as_array().cloned().unwrap_or_default()].concat());
    }
    let mut rest = chain;
    if let Some(fields) = rest.as_object_mut() {
        fields.remove("filters");
    }
    merge(&mut last, &rest);
    let mut whole = json!({
        "name": format!("http-{port}"),
        "address": socket(SocketAddr::from(([127, 0, 0, 1], port))),
        "filter_chains": [last],
    });
    merge(&mut whole, &own);
    whole
}

fn socket(at: SocketAddr) -> Value {
    json!({"socket_address": {"address": at.ip().to_string(), "port_value": at.port()}})
}

/// Takes away Istio's own filters, which a plain Envoy does not have.
pub fn without_istio(value: &mut Value) {
    match value {
        Value::Array(items) => {
            items.retain(|item| !item["name"].as_str().is_some_and(|name| name.starts_with("istio.")));
            items.iter_mut().for_each(without_istio);
        }
        Value::Object(fields) => fields.values_mut().for_each(without_istio),
        _ => {}
    }
}

fn merge(into: &mut Value, more: &Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (name, value) in more {
                match into.get_mut(name) {
                    Some(known) => merge(known, value),
                    None => {
                        into.insert(name.clone(), value.clone());
                    }
                }
            }
        }
        (Value::Array(into), Value::Array(more)) => into.extend(more.iter().cloned()),
        (into, more) => *into = more.clone(),
    }
}

/// Puts the working directory where texts say `$dir`, and key sets where they say `@JWKS-N@`.
fn place(value: &mut Value, directory: &str) {
    match value {
        Value::String(text) if text.contains("$dir") => *text = text.replace("$dir", directory),
        Value::String(text) if text == "@JWKS-1@" || text == "@JWKS-2@" => {
            let number = if text.contains('1') { 1 } else { 2 };
            *text = token::mint().map(|mint| mint.key_set(number)).unwrap_or_default();
        }
        Value::Array(items) => items.iter_mut().for_each(|item| place(item, directory)),
        Value::Object(fields) => fields.values_mut().for_each(|item| place(item, directory)),
        _ => {}
    }
}
