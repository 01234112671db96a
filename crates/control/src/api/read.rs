//! Questions.

use axum::Json;
use axum::extract::{Path, Query, State};
use compile::{EncodeOptions, WorkloadKey};
use model::Severity;
use serde::Deserialize;

use super::serve::Api;
use super::{Config, Finding, Object, Problem, Proxy, Status, Workload};
use crate::view;

/// Which objects; everything absent = all.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Selection {
    kind: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
}

impl Selection {
    fn takes(&self, object: &Object) -> bool {
        let is = |asked: &Option<String>, value: &str| asked.as_deref().is_none_or(|asked| asked == value);
        // What could not be read has no kind, and is shown with everything.
        let kind = self.kind.as_deref().is_none_or(|kind| view::kind_matches(kind, &object.kind));
        let namespace = object.namespace.is_empty() || is(&self.namespace, &object.namespace);
        kind && namespace && is(&self.name, &object.name)
    }
}

pub(super) async fn status(State(api): State<Api>) -> Json<Status> {
    let proxies = api.proxies.list();
    let model = api.world.read();
    let diagnostics = model.diagnostics();
    let count = |severity| diagnostics.iter().filter(|one| one.severity == severity).count();
    Json(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        revision: model.revision,
        store: api.store.as_ref().map(|store| store.name().to_owned()),
        trust_domain: model.config().trust_domain.clone(),
        proxies: proxies.len(),
        synced: proxies.iter().filter(|proxy| view::proxy(proxy).is_synced()).count(),
        workloads: model.mesh().workload_keys().count(),
        services: model.services(),
        errors: count(Severity::Error),
        warnings: count(Severity::Warning),
    })
}

pub(super) async fn objects(State(api): State<Api>, Query(wanted): Query<Selection>) -> Json<Vec<Object>> {
    let model = api.world.read();
    let units = model.units.iter();
    let all = units.flat_map(|(file, unit)| view::objects(&model, file, unit, &api.proxies));
    let mut objects: Vec<Object> = all.filter(|object| wanted.takes(object)).collect();
    objects.sort_by(|a, b| (&a.kind, &a.namespace, &a.name).cmp(&(&b.kind, &b.namespace, &b.name)));
    Json(objects)
}

pub(super) async fn findings(State(api): State<Api>) -> Json<Vec<Finding>> {
    Json(api.world.read().diagnostics().iter().map(view::finding).collect())
}

pub(super) async fn proxies(State(api): State<Api>) -> Json<Vec<Proxy>> {
    let mut proxies: Vec<Proxy> = api.proxies.list().iter().map(view::proxy).collect();
    proxies.sort_by(|a, b| (&a.workload, &a.node).cmp(&(&b.workload, &b.node)));
    Json(proxies)
}

pub(super) async fn workloads(State(api): State<Api>) -> Json<Vec<Workload>> {
    let connected: std::collections::BTreeSet<WorkloadKey> =
        api.proxies.list().into_iter().map(|proxy| proxy.workload).collect();
    let model = api.world.read();
    let domain = &model.config().trust_domain;
    let all = model.mesh().workload_keys().filter_map(|key| {
        let workload = model.mesh().workload(key)?;
        Some(Workload {
            workload: key.to_string(),
            identity: workload.identity(domain).map(|identity| identity.to_string()),
            addresses: workload.addresses.iter().map(ToString::to_string).collect(),
            meshed: workload.meshed,
            connected: connected.contains(key),
        })
    });
    Json(all.collect())
}

pub(super) async fn config(State(api): State<Api>, Path(workload): Path<String>) -> Result<Json<Config>, Problem> {
    let invalid = |message: String| Problem { kind: "invalid".to_owned(), message, ..Problem::default() };
    let key: WorkloadKey = workload.parse().map_err(invalid)?;
    let snapshot = {
        let model = api.world.read();
        if model.mesh().workload(&key).is_none() {
            let message = format!("there is no workload {key}");
            let next = Some("tulle get workload -A lists them".to_owned());
            return Err(Problem { kind: "not-found".to_owned(), message, next, ..Problem::default() });
        }
        compile::encode(model.mesh(), &key, &EncodeOptions::default())
    };
    let json = |list: Vec<std::sync::Arc<compile::Resource>>| {
        list.iter().map(|resource| proto::json::any_to_json_redacted(&resource.body)).collect()
    };
    Ok(Json(Config {
        workload: key.to_string(),
        listeners: json(snapshot.listeners),
        routes: json(snapshot.routes),
        clusters: json(snapshot.clusters),
        endpoints: json(snapshot.endpoints),
    }))
}
