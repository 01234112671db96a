//! A small mesh to test on, and short ways to ask what a proxy gets.

use compile::{Delivery, EncodeOptions, Mesh, Resource, Secrets, Snapshot, WorkloadKey, encode};
use model::{Diagnostic, Entry};
use serde_json::Value;

/// Two versions of `catalog`, its callers `web` and `batch`, an opaque `ledger`; nothing redirected.
pub(crate) const SHOP: &str = concat!("\n", include_str!("../../../../tests/worlds/shop.yaml"));

/// Reads declarations; a finding of reading them is a mistake in the test.
pub(crate) fn entries(text: &str) -> Vec<Entry> {
    let parsed = resources::parse(text, &resources::ParseOptions::of_file("mesh.yaml"));
    let wrong = parsed.diagnostics.iter().find(|finding| finding.severity == model::Severity::Error);
    assert!(wrong.is_none(), "{wrong:#?}");
    parsed.entries
}

/// The shop with more declarations.
pub(crate) fn shop(more: &str) -> Mesh {
    compiled(more).0
}

/// The shop with more declarations, and what does not fit together.
pub(crate) fn compiled(more: &str) -> (Mesh, Vec<Diagnostic>) {
    Mesh::compile(&entries(&format!("{SHOP}\n---\n{more}")))
}

/// The codes of the findings about declarations of a kind.
pub(crate) fn codes(findings: &[Diagnostic], kind: &str) -> Vec<String> {
    let of_kind = |finding: &&Diagnostic| finding.object.as_ref().is_some_and(|object| object.kind == kind);
    findings.iter().filter(of_kind).map(|finding| finding.code.to_string()).collect()
}

/// What a workload's proxy gets, everything inside the listeners and clusters.
pub(crate) fn whole(mesh: &Mesh, workload: &str) -> Snapshot {
    let options =
        EncodeOptions { delivery: Delivery::Static, secrets: Secrets::Files { directory: "/certs".to_owned() } };
    encode(mesh, &workload.parse::<WorkloadKey>().unwrap(), &options)
}

/// A resource of a snapshot as JSON.
pub(crate) fn resource(list: &[std::sync::Arc<Resource>], name: &str) -> Value {
    let found = list.iter().find(|resource| resource.name == name);
    let known: Vec<&str> = list.iter().map(|resource| resource.name.as_str()).collect();
    proto::json::any_to_json(&found.unwrap_or_else(|| panic!("no {name} among {known:?}")).body)
}

/// The HTTP connection manager of a listener's first chain.
pub(crate) fn manager(listener: &Value) -> Value {
    listener["filter_chains"][0]["filters"][0]["typed_config"].clone()
}

/// The routes that `web-1` has for a host.
pub(crate) fn routes(mesh: &Mesh, workload: &str, host: &str) -> Value {
    let snapshot = whole(mesh, workload);
    let listener = resource(&snapshot.listeners, "outbound|80||catalog.shop.svc.cluster.local");
    let hosts = manager(&listener)["route_config"]["virtual_hosts"].clone();
    let found = hosts.as_array().unwrap().iter().find(|known| known["name"] == format!("{host}:80"));
    found.unwrap_or_else(|| panic!("no {host} in {hosts:#}"))["routes"].clone()
}
