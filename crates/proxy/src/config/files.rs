//! Resources from files: `lds_config` and `cds_config` by path, read anew whenever the file changes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use engine::Update;
use prost::Message as _;
use proto::envoy::config::bootstrap::v3::Bootstrap;
use proto::envoy::config::core::v3::ConfigSource;
use proto::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use proto::envoy::service::discovery::v3::DiscoveryResponse;
use proto::json::{self, Format};
use proto::type_url;
use tokio::sync::mpsc;

use super::Message;

/// Between two looks at a file.
const LOOK: Duration = Duration::from_millis(500);

/// Watches the files that the bootstrap names.
pub fn watch(bootstrap: &Bootstrap, outbox: &mpsc::Sender<Message>) {
    let Some(dynamic) = &bootstrap.dynamic_resources else { return };
    for (source, kind) in [(&dynamic.cds_config, type_url::CLUSTER), (&dynamic.lds_config, type_url::LISTENER)] {
        if let Some(path) = source.as_ref().and_then(path_of) {
            tokio::spawn(follow(path, kind, outbox.clone()));
        }
    }
}

#[allow(deprecated, reason = "old bootstraps name the path so, and Envoy still reads it")]
fn path_of(source: &ConfigSource) -> Option<PathBuf> {
    match source.config_source_specifier.as_ref()? {
        ConfigSourceSpecifier::Path(path) => Some(PathBuf::from(path)),
        ConfigSourceSpecifier::PathConfigSource(source) => Some(PathBuf::from(&source.path)),
        _ => None,
    }
}

async fn follow(path: PathBuf, kind: &'static str, outbox: mpsc::Sender<Message>) {
    let mut last = None;
    let mut known = BTreeSet::new();
    loop {
        match tokio::fs::read_to_string(&path).await {
            Ok(text) if last.as_deref() != Some(text.as_str()) => {
                match response(&path, &text) {
                    Ok(response) => {
                        let updates = changes(kind, &response, &mut known);
                        let origin = path.display().to_string();
                        if outbox.send(Message::Resources { origin, updates }).await.is_err() {
                            return;
                        }
                    }
                    Err(problem) => tracing::error!(event = "config-refused", %problem, "the last good one stays"),
                }
                last = Some(text);
            }
            Err(error) if last.is_none() => tracing::warn!(path = %path.display(), %error, "cannot read resources"),
            _ => {}
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Reads a DiscoveryResponse from YAML or JSON.
///
/// # Errors
/// What is wrong, with file, line and field.
pub fn response(path: &Path, text: &str) -> Result<DiscoveryResponse, String> {
    json::parse::<DiscoveryResponse>(text, format_of(path)).map_err(|faults| {
        let lines = faults.iter().map(|fault| {
            format!("{}:{}:{}: {}: {}", path.display(), fault.line, fault.column, fault.path, fault.message)
        });
        lines.collect::<Vec<_>>().join("\n")
    })
}

/// By the file's name; everything that is not `.json` is YAML, of which JSON is a part.
pub fn format_of(path: &Path) -> Format {
    if path.extension().is_some_and(|extension| extension == "json") { Format::Json } else { Format::Yaml }
}

fn changes(kind: &str, response: &DiscoveryResponse, known: &mut BTreeSet<String>) -> Vec<Update> {
    let type_url: Arc<str> = Arc::from(kind);
    let mut updates = Vec::new();
    let mut now = BTreeSet::new();
    for any in response.resources.iter().filter(|any| any.type_url == kind) {
        let name = name_of(kind, &any.value);
        now.insert(name.clone());
        let body = Some(any.value.clone().into());
        updates.push(Update { type_url: Arc::clone(&type_url), name: name.into(), body });
    }
    for gone in known.difference(&now) {
        updates.push(Update { type_url: Arc::clone(&type_url), name: gone.as_str().into(), body: None });
    }
    *known = now;
    updates
}

fn name_of(kind: &str, bytes: &[u8]) -> String {
    if kind == type_url::CLUSTER {
        proto::envoy::config::cluster::v3::Cluster::decode(bytes).map(|c| c.name).unwrap_or_default()
    } else {
        proto::envoy::config::listener::v3::Listener::decode(bytes).map(|l| l.name).unwrap_or_default()
    }
}
