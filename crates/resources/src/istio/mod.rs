//! Istio's kinds.

pub(crate) mod authorization_policy;
mod cors;
pub(crate) mod destination_rule;
mod extension_providers;
mod fault;
mod headers;
mod http_match;
mod http_rule;
mod l4_rule;
mod load_balancer;
mod locality_balancing;
pub(crate) mod mesh_config;
pub(crate) mod peer_authentication;
mod policy_rule;
mod redirect;
pub(crate) mod request_authentication;
mod retries;
pub(crate) mod service_entry;
mod traffic_policy;
pub(crate) mod virtual_service;
pub(crate) mod workload_entry;
pub(crate) mod workload_group;

use model::Labels;

use crate::codes;
use crate::field::Object;

/// `selector: {matchLabels: ...}` (or `workloadSelector: {labels: ...}` by other names).
fn selector(spec: &Object<'_>, name: &'static str, inner: &'static str) -> Labels {
    let Some(field) = spec.get(name) else { return Labels::new() };
    let object = field.object();
    let Some(pairs) = object.get(inner) else { return Labels::new() };
    for (pair, (key, value)) in pairs.pairs().iter().zip(pairs.text_map()) {
        if key.contains('*') || value.contains('*') {
            pair.error_at_key(codes::LABEL, "a selector knows no wildcards");
        }
    }
    pairs.labels()
}
