//! A workload's plan, as its proxy would have it.

use std::sync::Arc;

use compile::{Delivery, EncodeOptions, Mesh, Secrets, WorkloadKey};
use engine::{Plan, Store, Update};
use model::Workload;

/// Builds what the proxy of a workload would run. The error is a configuration that our own proxy refuses.
pub(super) fn plan_of(mesh: &Mesh, workload: &Workload) -> Result<Arc<Plan>, String> {
    let options =
        EncodeOptions { delivery: Delivery::Static, secrets: Secrets::Files { directory: "certs".to_owned() } };
    let snapshot = compile::encode(mesh, &WorkloadKey::of(workload), &options);
    let resources = snapshot.clusters.iter().chain(&snapshot.listeners);
    let updates: Vec<Update> = resources
        .map(|resource| Update {
            type_url: resource.body.type_url.as_str().into(),
            name: resource.name.as_str().into(),
            body: Some(resource.body.value.clone().into()),
        })
        .collect();
    let mut store = Store::new();
    let refused = store.apply(&updates).into_iter().find_map(Result::err);
    match refused {
        Some(error) => Err(format!("the proxy of {} would refuse its configuration: {error}", workload.id())),
        None => Ok(store.plan()),
    }
}
