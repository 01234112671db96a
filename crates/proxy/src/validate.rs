//! `--mode validate`: what a bootstrap would do, without doing it.

use std::collections::BTreeSet;

use engine::{NetworkFilter, Plan, Store, UpdateError};
use proto::envoy::config::bootstrap::v3::Bootstrap;

/// What is said about a bootstrap that is right.
#[derive(Debug, Default)]
pub struct Findings {
    /// Safe limits that the file leaves open and that are set here, where Envoy sets none.
    pub defaults: Vec<String>,
}

/// Builds everything that the bootstrap itself holds.
///
/// # Errors
/// All resources that are wrong, with the paths of the fields.
pub fn validate(bootstrap: &Bootstrap) -> Result<Findings, Vec<UpdateError>> {
    let mut store = Store::new();
    store.bootstrap(bootstrap)?;
    store.stop_waiting();
    let mut findings = Findings { defaults: chosen(&store.plan()) };
    findings.defaults.retain(|line| !line.is_empty());
    Ok(findings)
}

/// One line per limit that this proxy sets where Envoy would set none.
fn chosen(plan: &Plan) -> Vec<String> {
    let mut lines = BTreeSet::new();
    for listener in plan.listeners() {
        for filter in listener.chains.iter().flat_map(|chain| &chain.filters) {
            let NetworkFilter::Http(manager) = filter else { continue };
            let name = &listener.name;
            let millis = |limit: Option<std::time::Duration>| {
                limit.map_or_else(|| "none".to_owned(), |limit| format!("{} ms", limit.as_millis()))
            };
            lines.insert(format!(
                "listener `{name}`: request_headers_timeout = {}",
                millis(manager.request_headers_timeout)
            ));
            lines.insert(format!("listener `{name}`: stream_idle_timeout = {}", millis(manager.stream_idle_timeout)));
            lines.insert(format!("listener `{name}`: idle_timeout = {}", millis(manager.idle_timeout)));
            lines.insert(format!(
                "listener `{name}`: http2 max_concurrent_streams = {}, stream window = {}, connection window = {}",
                manager.http2.max_concurrent_streams, manager.http2.stream_window, manager.http2.connection_window
            ));
            lines.insert(format!(
                "listener `{name}`: request head <= {} headers and {} bytes; path normalisation {}",
                manager.max_headers_count,
                manager.max_request_headers_bytes,
                if manager.path.normalize { "on" } else { "off" }
            ));
        }
    }
    lines.into_iter().collect()
}
