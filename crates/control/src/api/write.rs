//! Changes: checked as a whole, written together, and followed to the proxies.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use model::{Diagnostic, ObjectKey, Severity};
use resources::ParseOptions;

use super::serve::Api;
use super::{ApplyRequest, ChangeAnswer, Changed, DeleteRequest, Finding, ObjectName, Problem, Waited};
use crate::inputs::{Store, StoreError, Write, stored_name};
use crate::manifest::{self, Document};
use crate::view;
use crate::world::Model;

/// Longest wait that a request may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(600);
/// How long a written revision may take to come back from the store's watch.
const TAKEN_IN: Duration = Duration::from_secs(10);

pub(super) async fn apply(
    State(api): State<Api>,
    Json(request): Json<ApplyRequest>,
) -> Result<Json<ChangeAnswer>, Problem> {
    let since = Instant::now();
    let store = writable(&api)?;
    let namespace = request.namespace.as_deref().unwrap_or("default");
    let findings = check(&request, namespace)?;
    let documents = manifest::documents(&request.manifest, namespace);
    let (mut writes, mut changes) = (Vec::new(), Vec::new());
    {
        let model = api.world.read();
        for document in &documents {
            let (changed, write) = plan(&model, document, namespace)?;
            writes.extend(write);
            changes.push(changed);
        }
    }
    if changes.is_empty() {
        return Err(invalid("there is no object in it".to_owned(), Vec::new()));
    }
    let mut answer = ChangeAnswer { changes, findings, ..ChangeAnswer::default() };
    if !request.dry_run && !writes.is_empty() {
        answer.revision = commit(&store, writes).await?;
        answer.wait = follow(&api, answer.revision, since, request.wait_ms).await;
    } else if !request.dry_run {
        answer.revision = api.world.stored();
        answer.wait = request.wait_ms.map(|_| Waited::default());
    }
    Ok(Json(answer))
}

pub(super) async fn delete(
    State(api): State<Api>,
    Json(request): Json<DeleteRequest>,
) -> Result<Json<ChangeAnswer>, Problem> {
    let since = Instant::now();
    let store = writable(&api)?;
    let (mut writes, mut changes) = (Vec::new(), Vec::new());
    {
        let model = api.world.read();
        for asked in &request.objects {
            let key = find(&model, asked)?;
            let expected = expected(asked.resource_version.as_deref())?;
            changes.push(changed(&key, "deleted"));
            writes.push(Write::Delete { key, expected });
        }
    }
    let revision = commit(&store, writes).await?;
    let wait = follow(&api, revision, since, request.wait_ms).await;
    Ok(Json(ChangeAnswer { revision, changes, findings: Vec::new(), wait }))
}

fn writable(api: &Api) -> Result<Arc<dyn Store>, Problem> {
    api.store.clone().ok_or_else(|| Problem {
        kind: "read-only".to_owned(),
        message: "this control plane reads a directory (--config) and has no store to write to".to_owned(),
        next: Some("edit the files there, or start it with --store redb:PATH".to_owned()),
        findings: Vec::new(),
    })
}

/// Refuses a manifest with errors; gives its warnings back.
fn check(request: &ApplyRequest, namespace: &str) -> Result<Vec<Finding>, Problem> {
    let options = ParseOptions {
        file: Some(request.file.as_deref().unwrap_or("manifest").into()),
        default_namespace: namespace.to_owned(),
        ..ParseOptions::default()
    };
    let parsed = resources::parse(&request.manifest, &options);
    let findings: Vec<Finding> = parsed.diagnostics.iter().map(view::finding).collect();
    let is_error = |diagnostic: &&Diagnostic| diagnostic.severity == Severity::Error;
    match parsed.diagnostics.iter().find(is_error) {
        Some(first) => Err(invalid(first.to_string(), findings)),
        None => Ok(findings),
    }
}

/// What one document changes.
fn plan(model: &Model, document: &Document, namespace: &str) -> Result<(Changed, Option<Write>), Problem> {
    let Some(object) = &document.object else {
        return Err(invalid(format!("line {}: it has no kind and metadata.name", document.line), Vec::new()));
    };
    // The parser knows which kinds have no namespace; the stored text must name it for those that have.
    let options = ParseOptions { default_namespace: namespace.to_owned(), ..ParseOptions::default() };
    let parsed = resources::parse(&document.text, &options);
    let key = parsed.entries.into_iter().next().map_or_else(|| object.key.clone(), |entry| entry.key);
    let text = text_to_store(document, &key);
    let expected = expected(object.resource_version.as_deref())?;
    let before = model.units.get(&stored_name(&key));
    let action = match before {
        None => "created",
        Some(unit) if unit.text == text => "unchanged",
        Some(_) => "configured",
    };
    let write = (action != "unchanged").then(|| Write::Put { key: key.clone(), text, expected });
    Ok((changed(&key, action), write))
}

/// The document as typed; with its namespace and without a revision where that differs.
fn text_to_store(document: &Document, key: &ObjectKey) -> Arc<str> {
    let Some(object) = &document.object else { return document.text.as_str().into() };
    let named = object.value.pointer("/metadata/namespace").is_some() || key.namespace.is_empty();
    if named && object.resource_version.is_none() && object.value.get("status").is_none() {
        return document.text.as_str().into();
    }
    let mut value = object.value.clone();
    if let Some(top) = value.as_object_mut() {
        top.shift_remove("status");
    }
    if let Some(metadata) = value.pointer_mut("/metadata").and_then(serde_json::Value::as_object_mut) {
        metadata.shift_remove("resourceVersion");
        if !key.namespace.is_empty() {
            metadata.insert("namespace".to_owned(), key.namespace.clone().into());
        }
    }
    proto::json::value_to_yaml(&value).into()
}

fn expected(resource_version: Option<&str>) -> Result<Option<u64>, Problem> {
    let Some(text) = resource_version else { return Ok(None) };
    let number = text.parse().map_err(|_| {
        invalid(format!("metadata.resourceVersion `{text}` is not a revision of this store"), Vec::new())
    })?;
    Ok(Some(number))
}

fn find(model: &Model, asked: &ObjectName) -> Result<ObjectKey, Problem> {
    let matches = |key: &ObjectKey| {
        view::kind_matches(&asked.kind, &key.kind)
            && key.name == asked.name
            && (key.namespace.is_empty() || key.namespace == asked.namespace)
    };
    let mut elsewhere = None;
    for (file, unit) in &model.units {
        let documents = manifest::documents(&unit.text, "default");
        let typed = documents.into_iter().filter_map(|document| document.object).map(|object| object.key);
        let keys = unit.entries.iter().map(|entry| entry.key.clone()).chain(typed);
        for key in keys.filter(matches) {
            if unit.revision.is_some() {
                return Ok(key);
            }
            elsewhere = Some((key, file.clone()));
        }
    }
    match elsewhere {
        Some((key, file)) => Err(Problem {
            kind: "read-only".to_owned(),
            message: format!("{key} is declared in the file {file}, not in the store"),
            next: Some("delete it there".to_owned()),
            findings: Vec::new(),
        }),
        None => {
            let name = if asked.namespace.is_empty() {
                asked.name.clone()
            } else {
                format!("{}/{}", asked.namespace, asked.name)
            };
            let message = format!("there is no {} {name}", asked.kind);
            let next = Some("tulle get -A lists what there is".to_owned());
            Err(Problem { kind: "not-found".to_owned(), message, next, findings: Vec::new() })
        }
    }
}

async fn commit(store: &Arc<dyn Store>, writes: Vec<Write>) -> Result<u64, Problem> {
    let store = store.clone();
    let written = tokio::task::spawn_blocking(move || store.commit(&writes)).await;
    let problem = |kind: &str, message: String, next: Option<&str>| Problem {
        kind: kind.to_owned(),
        message,
        next: next.map(str::to_owned),
        findings: Vec::new(),
    };
    match written {
        Ok(Ok(revision)) => Ok(revision),
        Ok(Err(error @ StoreError::Conflict { .. })) => {
            Err(problem("conflict", error.to_string(), Some("get it again, make your change there and apply that")))
        }
        Ok(Err(error)) => Err(problem("internal", error.to_string(), None)),
        Err(_) => Err(problem("internal", "the store failed; the control plane's log says why".to_owned(), None)),
    }
}

/// Waits until a written revision is in force, and, if asked, until the proxies have it.
async fn follow(api: &Api, revision: u64, since: Instant, wait_ms: Option<u64>) -> Option<Waited> {
    let applied = tokio::time::timeout(TAKEN_IN, api.world.wait_for_store(revision)).await;
    let timeout = Duration::from_millis(wait_ms?).min(LONGEST_WAIT);
    let Ok(Some(applied)) = applied else {
        let reason = "the change was written but is not in force yet".to_owned();
        let missing = vec![super::Missing { proxy: "control plane".to_owned(), reason }];
        return Some(Waited { missing, ..Waited::default() });
    };
    let left = timeout.saturating_sub(since.elapsed());
    let waited = api.proxies.wait(&applied.workloads, applied.revision, since, left).await;
    let ms = |share| waited.percentile(share).map(|took| took.as_secs_f64() * 1e3);
    Some(Waited {
        acknowledged: waited.acknowledged.len(),
        p50_ms: ms(0.5),
        p99_ms: ms(0.99),
        missing: view::missing(waited.missing),
    })
}

fn changed(key: &ObjectKey, action: &str) -> Changed {
    let (kind, namespace, name) = (key.kind.clone(), key.namespace.clone(), key.name.clone());
    Changed { kind, namespace, name, action: action.to_owned() }
}

fn invalid(message: String, findings: Vec<Finding>) -> Problem {
    let next = Some("tulle analyze -f FILE shows each finding with its lines".to_owned());
    Problem { kind: "invalid".to_owned(), message, next, findings }
}
