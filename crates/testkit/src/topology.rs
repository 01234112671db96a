//! The standing topology of the tables, laid out on loopback addresses with explicit listeners.
//!
//! Workload N owns 127.77.0.N (its proxy listens there), its program listens on 127.78.0.N, and the services it
//! calls stand at 127.79.N.S, as in the demo's loopback mode. A world lives in a network namespace of its own, so
//! the ports are always free.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::oracle::Oracle;
use crate::table::{Ask, Backends, Config, EndpointSpec};
use crate::token;

/// The topology as its file tells it.
#[derive(Debug, Clone, Deserialize)]
pub struct Fixture {
    /// Mesh-wide settings.
    #[serde(default)]
    pub mesh: FixtureMesh,
    /// Namespaces and their labels.
    #[serde(default)]
    pub namespaces: BTreeMap<String, Value>,
    /// Programs.
    pub workloads: Vec<FixtureWorkload>,
    /// Names.
    pub services: Vec<FixtureService>,
    /// Callers.
    pub clients: BTreeMap<String, FixtureClient>,
    /// The workload that a configuration's `endpoints` stand for.
    #[serde(default = "endpoints_of")]
    pub endpoints_of: String,
}

fn endpoints_of() -> String {
    "a".to_owned()
}

/// Mesh-wide settings.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FixtureMesh {
    /// Trust domain.
    pub trust_domain: String,
    /// Root namespace.
    pub root_namespace: String,
}

/// A program.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FixtureWorkload {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Service account.
    pub service_account: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Ports by name.
    pub ports: BTreeMap<String, u16>,
    /// What it does, where it is no recorder: `external authorizer...`, `key server...`.
    #[serde(default)]
    pub behaviour: Option<String>,
}

/// A name.
#[derive(Debug, Clone, Deserialize)]
pub struct FixtureService {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Which workloads.
    pub selector: BTreeMap<String, String>,
    /// Ports.
    pub ports: Vec<FixturePort>,
}

/// A service's port.
#[derive(Debug, Clone, Deserialize)]
pub struct FixturePort {
    /// Name.
    pub name: String,
    /// Number.
    pub port: u16,
}

/// A caller.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FixtureClient {
    /// Namespace.
    pub namespace: String,
    /// Service account.
    pub service_account: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Whether it has a proxy.
    pub mesh: bool,
}

/// A workload at its place.
#[derive(Debug, Clone)]
pub struct Placed {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Service account.
    pub service_account: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Its number.
    pub number: u8,
    /// Where its proxy listens and from where it calls.
    pub address: IpAddr,
    /// Ports: name, number, where the program listens.
    pub ports: Vec<(String, u16, SocketAddr)>,
    /// `region/zone/sub-zone`; may be empty.
    pub locality: String,
    /// The endpoint's behaviour, for endpoints of a configuration.
    pub endpoint: Option<EndpointSpec>,
    /// Whether it calls others (a client).
    pub client: bool,
    /// What it answers to proxies that ask, where it is no recorder.
    pub oracle: Option<Oracle>,
    /// Whether it has a proxy.
    pub meshed: bool,
}

impl Placed {
    /// `NAME.NAMESPACE`.
    pub fn id(&self) -> String {
        format!("{}.{}", self.name, self.namespace)
    }

    /// Whether its program runs.
    pub fn up(&self) -> bool {
        self.endpoint.as_ref().is_none_or(|endpoint| !endpoint.down && !endpoint.blackhole)
    }
}

/// A service that clients can ask for.
#[derive(Debug, Clone)]
pub struct Callable {
    /// Fully qualified host.
    pub host: String,
    /// Short name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Ports: name and number.
    pub ports: Vec<(String, u16)>,
    /// Labels of its workloads.
    pub selector: BTreeMap<String, String>,
}

/// Who is where, for one group of cases.
#[derive(Debug, Clone)]
pub struct Topology {
    /// Workloads and clients.
    pub workloads: Vec<Placed>,
    /// Services, in the order of their numbers.
    pub services: Vec<Callable>,
    documents: Vec<Value>,
    bootstrap: Option<Value>,
}

/// The name of the one proxy of a configuration that is a bootstrap.
pub const PROXY: &str = "proxy";
/// And its number among workloads.
const PROXY_NUMBER: u8 = 250;

/// What differs between groups of cases that share a configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Variant {
    /// Address of the clients, instead of 127.77.0.N.
    pub source_ip: Option<String>,
    /// Locality of the clients.
    pub locality: Option<String>,
    /// Further labels of the clients.
    pub labels: BTreeMap<String, String>,
    /// Programs have no proxies.
    pub bare: bool,
}

impl Variant {
    /// The variant that a request needs.
    pub fn of(ask: &Ask, backends: Backends) -> Self {
        Self {
            source_ip: ask.source_ip.clone(),
            locality: ask.client_locality.clone(),
            labels: ask.client_labels.clone().unwrap_or_default(),
            bare: backends == Backends::Bare,
        }
    }
}

impl Topology {
    /// Lays the fixture out for a configuration.
    ///
    /// # Errors
    /// When an address of the variant is none.
    pub fn lay(fixture: &Fixture, config: &Config, variant: &Variant) -> Result<Self> {
        let source: Option<IpAddr> =
            variant.source_ip.as_deref().map(str::parse).transpose().context("source_ip of a case")?;
        let six = source.is_some_and(|ip| ip.is_ipv6());
        let mut workloads = Vec::new();
        let bare = variant.bare || config.bootstrap.is_some();
        place_programs(fixture, config, six, &mut workloads);
        for workload in &mut workloads {
            open_named_ports(workload, config);
            workload.meshed = !bare;
            if bare {
                let address = workload.address;
                workload.ports.iter_mut().for_each(|(_, number, app)| *app = SocketAddr::new(address, *number));
            }
        }
        match config.bootstrap {
            Some(_) => workloads.push(the_proxy()),
            None => place_clients(fixture, variant, source, six, &mut workloads),
        }
        let services = callable(fixture, config);
        let mut topology = Self { workloads, services, documents: Vec::new(), bootstrap: None };
        topology.documents = topology.write(fixture, config);
        topology.bootstrap = config.bootstrap.as_ref().map(|bootstrap| topology.complete(bootstrap));
        Ok(topology)
    }

    /// The same topology with only these endpoints of the configuration; all keep their addresses.
    #[must_use]
    pub fn keeping(&self, endpoints: &[String], fixture: &Fixture, config: &Config) -> Self {
        let mut left = self.clone();
        left.workloads.retain(|workload| workload.endpoint.is_none() || endpoints.contains(&workload.name));
        left.documents = left.write(fixture, config);
        left
    }

    /// What the one proxy runs, where the configuration is a bootstrap.
    pub fn bootstrap(&self) -> Option<&Value> {
        self.bootstrap.as_ref()
    }

    /// Where a bootstrap's listener of this name (or the first) listens.
    pub fn door(&self, name: Option<&str>) -> Option<SocketAddr> {
        let listeners = self.bootstrap.as_ref()?["static_resources"]["listeners"].as_array()?;
        let listener = listeners.iter().find(|listener| name.is_none_or(|name| listener["name"] == name))?;
        let address = &listener["address"]["socket_address"];
        let port = u16::try_from(address["port_value"].as_u64()?).ok()?;
        Some(SocketAddr::new(address["address"].as_str()?.parse().ok()?, port))
    }

    /// The bootstrap with addresses, and with what every one needs.
    fn complete(&self, bootstrap: &Value) -> Value {
        let mut whole = self.fill_in(bootstrap);
        let admin = json!({"address": "127.80.0.250", "port_value": 15000});
        if let Some(object) = whole.as_object_mut() {
            object.insert("admin".to_owned(), json!({"address": {"socket_address": admin}}));
            object.entry("node").or_insert_with(|| json!({"id": PROXY, "cluster": PROXY}));
        }
        whole
    }

    /// All objects to configure, the configuration's own included.
    pub fn documents(&self) -> &[Value] {
        &self.documents
    }

    /// The workload with this name.
    pub fn workload(&self, name: &str) -> Option<&Placed> {
        self.workloads.iter().find(|workload| workload.name == name)
    }

    /// The servers that a configuration lets proxies ask: those whose host it names.
    pub fn asked(&self, config: &Config) -> Vec<&Placed> {
        let mut text = config.mesh.as_ref().map(Value::to_string).unwrap_or_default();
        text.extend(config.resources.iter().map(Value::to_string));
        let named = |workload: &&Placed| text.contains(&format!("{}.{}.svc", workload.name, workload.namespace));
        self.workloads.iter().filter(|workload| workload.oracle.is_some()).filter(named).collect()
    }

    /// Addresses that the namespace's loopback device must have besides 127.0.0.0/8.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let local = |ip: &IpAddr| matches!(ip, IpAddr::V4(ip) if ip.is_loopback());
        self.workloads
            .iter()
            .flat_map(|w| std::iter::once(w.address).chain(w.ports.iter().map(|port| port.2.ip())))
            .filter(|ip| !local(ip))
            .collect()
    }

    /// Where `client` finds `host:port` (or, outside the mesh, the first workload itself).
    pub fn listener(&self, client: &Placed, host: &str, port: u16) -> Option<SocketAddr> {
        let number = self.services.iter().position(|service| service.host == host)?;
        Some(outbound(client, number, port))
    }

    /// The service that a client means by an authority.
    pub fn service(&self, namespace: &str, authority: &str) -> Option<&Callable> {
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host).to_ascii_lowercase();
        self.services.iter().find(|service| {
            service.host == host
                || (service.name == host && service.namespace == namespace)
                || format!("{}.{}", service.name, service.namespace) == host
                || format!("{}.{}.svc", service.name, service.namespace) == host
        })
    }

    /// The service with this short name, the client's own namespace first.
    pub fn service_named(&self, namespace: &str, name: &str) -> Option<&Callable> {
        let named = |service: &&Callable| service.name == name;
        self.services
            .iter()
            .filter(named)
            .find(|service| service.namespace == namespace)
            .or_else(|| self.services.iter().find(named))
    }

    /// The workloads behind a service.
    pub fn behind<'a>(&'a self, service: &'a Callable) -> impl Iterator<Item = &'a Placed> {
        self.workloads.iter().filter(move |workload| {
            !workload.client
                && workload.namespace == service.namespace
                && !service.selector.is_empty()
                && service.selector.iter().all(|(key, value)| workload.labels.get(key) == Some(value))
        })
    }

    fn write(&self, fixture: &Fixture, config: &Config) -> Vec<Value> {
        let mut documents = vec![mesh_config(fixture, config)];
        for (name, namespace) in &fixture.namespaces {
            let labels = namespace.get("labels").cloned().unwrap_or_else(|| json!({}));
            documents.push(json!({"apiVersion": "v1", "kind": "Namespace",
                                  "metadata": {"name": name, "labels": labels}}));
        }
        documents.extend(self.services.iter().filter(|s| !s.selector.is_empty()).map(service_document));
        documents.extend(self.workloads.iter().map(|workload| self.workload_document(workload)));
        documents.extend(config.resources.iter().map(|resource| self.fill_in(resource)));
        documents
    }

    fn workload_document(&self, workload: &Placed) -> Value {
        let ports: Vec<_> = workload
            .ports
            .iter()
            .map(|(name, number, app)| json!({"name": name, "number": number, "app": app.to_string()}))
            .collect();
        let mut outbound_list = Vec::new();
        if workload.client {
            for (number, service) in self.services.iter().enumerate() {
                for (_, port) in &service.ports {
                    let bind = outbound(workload, number, *port).to_string();
                    outbound_list.push(json!({"host": service.host, "port": port, "bind": bind}));
                }
            }
        }
        let mut spec = json!({
            "serviceAccount": workload.service_account,
            "meshed": workload.meshed,
            "addresses": [workload.address],
            "ports": ports,
            "interception": {"explicit": {"outbound": outbound_list}},
        });
        if !workload.locality.is_empty() {
            spec["locality"] = json!(workload.locality);
        }
        json!({
            "apiVersion": "tulle.dev/v1alpha1", "kind": "Workload",
            "metadata": {"name": workload.name, "namespace": workload.namespace, "labels": workload.labels},
            "spec": spec,
        })
    }

    /// Replaces `@NAME@` by the address of that workload, and `@JWKS-N@` by a key set.
    fn fill_in(&self, resource: &Value) -> Value {
        let mut text = resource.to_string();
        for number in [1, 2] {
            let place = format!("@JWKS-{number}@");
            if text.contains(&place) {
                let set = token::mint().map(|mint| mint.key_set(number)).unwrap_or_default();
                // Inside a JSON text.
                let quoted = Value::from(set).to_string();
                text = text.replace(&place, quoted.trim_matches('"'));
            }
        }
        for workload in &self.workloads {
            text = text.replace(&format!("@{}@", workload.name), &workload.address.to_string());
        }
        serde_json::from_str(&text).unwrap_or_else(|_| resource.clone())
    }
}

fn place_programs(fixture: &Fixture, config: &Config, six: bool, placed: &mut Vec<Placed>) {
    for workload in &fixture.workloads {
        let replaced = workload.name == fixture.endpoints_of && !config.endpoints.is_empty();
        if replaced {
            for endpoint in &config.endpoints {
                let mut one = place(workload, next(placed), six);
                one.name.clone_from(&endpoint.id);
                one.labels.extend(endpoint.labels.clone());
                one.locality.clone_from(&endpoint.locality);
                one.endpoint = Some(endpoint.clone());
                placed.push(one);
            }
        } else {
            placed.push(place(workload, next(placed), six));
        }
    }
}

fn the_proxy() -> Placed {
    Placed {
        name: PROXY.to_owned(),
        namespace: String::new(),
        service_account: String::new(),
        labels: BTreeMap::new(),
        number: PROXY_NUMBER,
        address: IpAddr::V4(Ipv4Addr::new(127, 77, 0, PROXY_NUMBER)),
        ports: Vec::new(),
        locality: String::new(),
        endpoint: None,
        client: true,
        oracle: None,
        meshed: true,
    }
}

fn place(workload: &FixtureWorkload, number: u8, six: bool) -> Placed {
    let app = if six { six_address(0x78, number) } else { IpAddr::V4(Ipv4Addr::new(127, 78, 0, number)) };
    Placed {
        name: workload.name.clone(),
        namespace: workload.namespace.clone(),
        service_account: workload.service_account.clone(),
        labels: workload.labels.clone(),
        number,
        address: if six { six_address(0x77, number) } else { IpAddr::V4(Ipv4Addr::new(127, 77, 0, number)) },
        ports: workload.ports.iter().map(|(n, port)| (n.clone(), *port, SocketAddr::new(app, *port))).collect(),
        locality: String::new(),
        endpoint: None,
        client: false,
        oracle: workload.behaviour.as_deref().and_then(Oracle::of),
        meshed: true,
    }
}

/// A ServiceEntry that names a workload as `@NAME@` means its own port numbers: the workload listens there too.
fn open_named_ports(workload: &mut Placed, config: &Config) {
    let mark = format!("@{}@", workload.name);
    let entries = config.resources.iter().filter(|resource| resource["kind"] == "ServiceEntry");
    for entry in entries.filter(|entry| entry.to_string().contains(&mark)) {
        for port in entry["spec"]["ports"].as_array().into_iter().flatten() {
            let number = port["targetPort"].as_u64().or_else(|| port["number"].as_u64());
            let Some(number) = number.and_then(|number| u16::try_from(number).ok()) else { continue };
            let Some(ip) = workload.ports.first().map(|(_, _, app)| app.ip()) else { continue };
            if workload.ports.iter().all(|(_, known, _)| *known != number) {
                let name = format!("{}-{number}", port["name"].as_str().unwrap_or("http"));
                workload.ports.push((name, number, SocketAddr::new(ip, number)));
            }
        }
    }
}

fn place_clients(fixture: &Fixture, variant: &Variant, source: Option<IpAddr>, six: bool, placed: &mut Vec<Placed>) {
    for (name, client) in fixture.clients.iter().filter(|(_, client)| client.mesh) {
        let number = next(placed);
        let own = if six { six_address(0x77, number) } else { IpAddr::V4(Ipv4Addr::new(127, 77, 0, number)) };
        let mut labels = client.labels.clone();
        labels.extend(variant.labels.clone());
        placed.push(Placed {
            name: name.clone(),
            namespace: client.namespace.clone(),
            service_account: client.service_account.clone(),
            labels,
            number,
            address: source.unwrap_or(own),
            ports: Vec::new(),
            locality: variant.locality.clone().unwrap_or_default(),
            endpoint: None,
            client: true,
            oracle: None,
            meshed: true,
        });
    }
}

fn next(placed: &[Placed]) -> u8 {
    u8::try_from(placed.len() + 1).unwrap_or(u8::MAX)
}

fn six_address(group: u16, number: u8) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd00, group, 0, 0, 0, 0, 0, u16::from(number)))
}

fn outbound(client: &Placed, service: usize, port: u16) -> SocketAddr {
    let number = u8::try_from(service + 1).unwrap_or(u8::MAX);
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 79, client.number, number)), port)
}

/// The fixture's services, one for each single workload (so that a case can address it), and ServiceEntry hosts.
fn callable(fixture: &Fixture, config: &Config) -> Vec<Callable> {
    let mut services: Vec<_> = fixture
        .services
        .iter()
        .map(|service| Callable {
            host: format!("{}.{}.svc.cluster.local", service.name, service.namespace),
            name: service.name.clone(),
            namespace: service.namespace.clone(),
            ports: service.ports.iter().map(|port| (port.name.clone(), port.port)).collect(),
            selector: service.selector.clone(),
        })
        .collect();
    let alone = fixture.workloads.iter().filter(|w| w.labels.contains_key("version") && w.name != "server");
    services.extend(alone.map(|workload| Callable {
        host: format!("{}.{}.svc.cluster.local", workload.name, workload.namespace),
        name: workload.name.clone(),
        namespace: workload.namespace.clone(),
        ports: workload.ports.iter().map(|(name, port)| (name.clone(), *port)).collect(),
        selector: workload.labels.clone(),
    }));
    for entry in config.resources.iter().filter(|resource| resource["kind"] == "ServiceEntry") {
        let strings = |value: &Value| -> Vec<String> {
            value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
        };
        let ports: Vec<_> = entry["spec"]["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|port| {
                let number = u16::try_from(port["number"].as_u64()?).ok()?;
                Some((port["name"].as_str().unwrap_or_default().to_owned(), number))
            })
            .collect();
        services.extend(strings(&entry["spec"]["hosts"]).into_iter().map(|host| Callable {
            name: host.clone(),
            host,
            namespace: entry["metadata"]["namespace"].as_str().unwrap_or("default").to_owned(),
            ports: ports.clone(),
            selector: BTreeMap::new(),
        }));
    }
    services
}

fn service_document(service: &Callable) -> Value {
    let ports: Vec<_> =
        service.ports.iter().map(|(name, port)| json!({"name": name, "port": port, "targetPort": port})).collect();
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": service.name, "namespace": service.namespace},
        "spec": {"selector": service.selector, "ports": ports},
    })
}

fn mesh_config(fixture: &Fixture, config: &Config) -> Value {
    let mut spec = json!({
        "trustDomain": fixture.mesh.trust_domain,
        "rootNamespace": fixture.mesh.root_namespace,
    });
    if let (Some(spec), Some(Value::Object(more))) = (spec.as_object_mut(), &config.mesh) {
        spec.extend(more.clone());
    }
    let mut document = json!({"apiVersion": "mesh.istio.io/v1alpha1", "kind": "MeshConfig"});
    if let (Some(document), Some(spec)) = (document.as_object_mut(), spec.as_object()) {
        document.extend(spec.clone());
    }
    document
}
