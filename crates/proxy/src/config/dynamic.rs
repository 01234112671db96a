//! The stream to the control plane: which server, which protocol, which names were asked for.

use std::collections::BTreeSet;
use std::sync::Arc;

use hashbrown::HashMap;
use proto::envoy::config::bootstrap::v3::Bootstrap;
use proto::envoy::config::core::v3::api_config_source::ApiType;
use proto::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use proto::envoy::config::core::v3::grpc_service::TargetSpecifier;
use proto::envoy::config::core::v3::{ApiConfigSource, ConfigSource};
use proto::type_url;
use tokio::sync::mpsc;
use xds::client::{Config, Event, Handle, dial};

use super::reach;
use crate::shared::Shared;

/// A running stream.
pub struct Dynamic {
    /// To answer and to ask.
    pub handle: Handle,
    events: mpsc::Receiver<Event>,
    asked: HashMap<&'static str, BTreeSet<Arc<str>>>,
    came: BTreeSet<String>,
    wanted: Vec<&'static str>,
    heard: bool,
}

/// The next event of a stream; never, where there is none.
pub async fn next(stream: &mut Option<Dynamic>) -> Event {
    match stream {
        Some(stream) => match stream.events.recv().await {
            Some(event) => {
                stream.heard |= matches!(event, Event::Update(_));
                event
            }
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

impl Dynamic {
    /// Starts the stream that the bootstrap asks for, if it asks for one.
    pub fn start(bootstrap: &Bootstrap, shared: &Arc<Shared>) -> Option<Self> {
        let dynamic = bootstrap.dynamic_resources.as_ref()?;
        let source = source(dynamic.ads_config.as_ref(), [&dynamic.lds_config, &dynamic.cds_config])?;
        let cluster = cluster_of(source)?;
        let node = bootstrap.node.clone().unwrap_or_default();
        let mut config = Config::new(node, dialler(Arc::clone(shared), cluster.into()));
        let delta = [ApiType::DeltaGrpc, ApiType::AggregatedDeltaGrpc];
        if !delta.iter().any(|kind| source.api_type == *kind as i32) {
            config.flavor = xds::Flavor::StateOfTheWorld;
        }
        config.metadata = metadata_of(source);
        let (handle, events) = xds::client::start(config);
        let mut wanted = Vec::new();
        if is_stream(dynamic.cds_config.as_ref()) {
            wanted.push(type_url::CLUSTER);
        }
        if is_stream(dynamic.lds_config.as_ref()) {
            wanted.push(type_url::LISTENER);
        }
        for kind in &wanted {
            handle.subscribe_all(kind);
        }
        Some(Self { handle, events, asked: HashMap::new(), came: BTreeSet::new(), wanted, heard: false })
    }

    /// Asks for exactly these names of a type, if that differs from before.
    pub fn ask(&mut self, kind: &'static str, names: Vec<Arc<str>>) {
        let names: BTreeSet<Arc<str>> = names.into_iter().collect();
        let asked = self.asked.entry(kind).or_default();
        if *asked != names {
            self.handle.set_names(kind, names.iter().map(ToString::to_string));
            *asked = names;
        }
    }

    /// Whether this is the first update of its type.
    pub fn first(&mut self, kind: &str) -> bool {
        self.came.insert(kind.to_owned())
    }

    /// Whether no update came yet.
    pub fn is_virgin(&self) -> bool {
        self.came.is_empty()
    }

    /// Whether the server has not said anything yet.
    pub fn silent(&self) -> bool {
        !self.heard
    }

    /// Whether every type that was asked for as a whole has come once.
    pub fn is_complete(&self) -> bool {
        self.wanted.iter().all(|kind| self.came.contains(*kind))
    }
}

/// The server: `ads_config`, or the one that `lds_config` or `cds_config` name directly.
fn source<'a>(ads: Option<&'a ApiConfigSource>, direct: [&'a Option<ConfigSource>; 2]) -> Option<&'a ApiConfigSource> {
    ads.or_else(|| {
        direct.into_iter().flatten().find_map(|source| match &source.config_source_specifier {
            Some(ConfigSourceSpecifier::ApiConfigSource(source)) => Some(source),
            _ => None,
        })
    })
}

fn is_stream(source: Option<&ConfigSource>) -> bool {
    let kind = source.and_then(|source| source.config_source_specifier.as_ref());
    matches!(kind, Some(ConfigSourceSpecifier::Ads(_) | ConfigSourceSpecifier::ApiConfigSource(_)))
}

/// The cluster through which a gRPC source is reached.
pub fn cluster_of(source: &ApiConfigSource) -> Option<String> {
    let service = source.grpc_services.first()?;
    match service.target_specifier.as_ref()? {
        TargetSpecifier::EnvoyGrpc(grpc) => Some(grpc.cluster_name.clone()),
        TargetSpecifier::GoogleGrpc(_) => None,
    }
}

fn metadata_of(source: &ApiConfigSource) -> Vec<(String, String)> {
    let services = source.grpc_services.iter().flat_map(|service| &service.initial_metadata);
    services.map(|header| (header.key.clone(), header.value.clone())).collect()
}

fn dialler(shared: Arc<Shared>, cluster: Arc<str>) -> dial::Dial {
    dial::from_fn(move || reach::stream(Arc::clone(&shared), Arc::clone(&cluster)))
}
