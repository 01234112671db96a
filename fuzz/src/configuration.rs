//! What control planes, bootstrap files and users' declarations say.

use compile::{Delivery, EncodeOptions, Mesh, Secrets};
use engine::{Store, Update};
use proto::json::{Format, parse_bootstrap};
use proto::type_url::{CLUSTER, ENDPOINTS, EXTENSION, LISTENER, ROUTE, SECRET};
use resources::ParseOptions;

const KINDS: [&str; 6] = [LISTENER, CLUSTER, ROUTE, ENDPOINTS, SECRET, EXTENSION];

/// A resource's wire bytes: the walk over all fields, the typed decode, the build. What was refused leaves the plan as
/// it was.
pub(crate) fn xds(data: &[u8]) {
    let Some((kind, body)) = data.split_first() else { return };
    let Some(type_url) = KINDS.get(usize::from(*kind) % KINDS.len()) else { return };
    let findings = proto::surface::check_any(type_url, body);
    let mut store = Store::new();
    let before = store.plan().generation;
    let update = |name: &str| Update {
        type_url: (*type_url).into(),
        name: name.into(),
        body: Some(bytes::Bytes::copy_from_slice(body)),
    };
    let outcomes = store.apply(&[update("x")]);
    for outcome in &outcomes {
        if outcome.is_ok() {
            assert!(findings.is_acceptable(), "taken, though {:?} is refused", findings.refusal());
        }
    }
    store.stop_waiting();
    assert!(store.plan().generation > before);
    // The same again has the same fate (which of several entries of a map is named first is chance).
    assert_eq!(store.apply(&[update("x")]).iter().all(Result::is_ok), outcomes.iter().all(Result::is_ok));
}

/// A bootstrap as YAML.
pub(crate) fn bootstrap(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let Ok((bootstrap, _)) = parse_bootstrap(&text, Format::Yaml) else { return };
    let mut store = Store::new();
    let _ = store.bootstrap(&bootstrap);
    store.stop_waiting();
    // What was read can be written and read again.
    let written = proto::json::to_yaml(&bootstrap);
    let (again, _) = parse_bootstrap(&written, Format::Yaml).unwrap_or_else(|faults| panic!("{faults:?}:\n{written}"));
    // Maps have no order, so not the texts are compared.
    assert_eq!(proto::json::to_json(&again), proto::json::to_json(&bootstrap));
}

/// Declarations as YAML: read, compiled, and encoded for one of the workloads in one of the ways, which the text chooses (all of
/// them would take milliseconds). What we encode our own engine takes.
pub(crate) fn yaml(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let parsed = resources::parse(&text, &ParseOptions::of_file("mesh.yaml"));
    for finding in &parsed.diagnostics {
        let _ = resources::render(finding, Some(&text), false);
    }
    let (mesh, _) = Mesh::compile(&parsed.entries);
    let choice = data.iter().fold(7, |sum: usize, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte)));
    let delivery = if choice & 1 == 0 { Delivery::Ads } else { Delivery::Static };
    let options = EncodeOptions { delivery, secrets: Secrets::Files { directory: "certs".to_owned() } };
    let keys: Vec<_> = mesh.workload_keys().take(8).collect();
    if let Some(key) = keys.get((choice >> 1) % keys.len().max(1)) {
        taken(&compile::encode(&mesh, key, &options));
    }
}

fn taken(snapshot: &compile::Snapshot) {
    let kinds = [
        (LISTENER, &snapshot.listeners),
        (ROUTE, &snapshot.routes),
        (CLUSTER, &snapshot.clusters),
        (ENDPOINTS, &snapshot.endpoints),
    ];
    let updates: Vec<Update> = kinds
        .iter()
        .flat_map(|(type_url, resources)| {
            resources.iter().map(|resource| Update {
                type_url: (*type_url).into(),
                name: resource.name.as_str().into(),
                body: Some(bytes::Bytes::from(resource.body.value.clone())),
            })
        })
        .collect();
    for outcome in Store::new().apply(&updates) {
        if let Err(error) = outcome {
            panic!("what we encode we refuse: {error}");
        }
    }
}
