//! From what the control plane knows to what the API says.

use std::time::Instant;

use model::{Diagnostic, ObjectKey, Severity};

use crate::api::{Finding, Missing, Object, Programmed, Proxy, RefusedResource};
use crate::manifest;
use crate::proxies::{self, Concerned, Proxies};
use crate::world::{Model, Unit};

pub(crate) fn finding(diagnostic: &Diagnostic) -> Finding {
    let at = diagnostic.labels.first().map(|label| label.start);
    Finding {
        code: diagnostic.code.to_string(),
        severity: match diagnostic.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Info => "info",
        }
        .to_owned(),
        message: diagnostic.message.clone(),
        object: diagnostic.object.as_ref().map(ToString::to_string),
        field: diagnostic.field.clone(),
        file: diagnostic.file.as_ref().map(ToString::to_string),
        line: at.map(|at| at.line),
        column: at.map(|at| at.column),
        help: diagnostic.help.clone(),
    }
}

pub(crate) fn proxy(proxy: &proxies::Proxy) -> Proxy {
    let since = jiff::Timestamp::try_from(proxy.since).map(|since| since.to_string()).unwrap_or_default();
    let refused = proxy.refused.iter().map(|one| RefusedResource {
        type_url: one.type_url.to_string(),
        name: one.name.to_string(),
        message: one.message.to_string(),
    });
    Proxy {
        node: proxy.node.clone(),
        workload: proxy.workload.to_string(),
        peer: proxy.peer.clone(),
        agent: proxy.agent.clone(),
        admin: proxy.admin.clone(),
        protocol: match proxy.flavor {
            xds::Flavor::Delta => "delta",
            xds::Flavor::StateOfTheWorld => "sotw",
        }
        .to_owned(),
        since,
        wanted: proxy.wanted,
        acknowledged: proxy.settled,
        refused: refused.collect(),
    }
}

/// All objects of a unit, those that cannot be read included.
pub(crate) fn objects(model: &Model, file: &str, unit: &Unit, proxies: &Proxies) -> Vec<Object> {
    let documents = manifest::documents(&unit.text, "default");
    let ends = documents.iter().skip(1).map(|next| next.line).chain([u32::MAX]);
    let all = documents.iter().zip(ends);
    all.map(|(document, end)| {
        let inside = |diagnostic: &&Diagnostic| {
            diagnostic.labels.first().is_some_and(|label| (document.line..end).contains(&label.start.line))
        };
        let mut findings: Vec<Finding> = unit.diagnostics.iter().filter(inside).map(finding).collect();
        let broken = findings.iter().any(|finding| finding.severity == "error");
        let key = document.object.as_ref().map(|object| entry_key(unit, &object.key));
        if let Some(key) = &key {
            findings.extend(model.mesh().diagnostics_of(key).iter().map(finding));
        }
        let accepted = !broken && key.as_ref().is_some_and(|key| unit.entry(key).is_some());
        let programmed = key.as_ref().filter(|_| accepted).and_then(|key| programmed(model, key, proxies));
        let origin = format!("{file}:{}", document.line);
        let mut object = Object {
            kind: "?".to_owned(),
            name: origin.clone(),
            origin,
            revision: unit.revision,
            accepted,
            findings,
            programmed,
            ..Object::default()
        };
        if let Some(typed) = &document.object {
            object.api_version.clone_from(&typed.api_version);
            object.kind.clone_from(&typed.key.kind);
            object.namespace.clone_from(&typed.key.namespace);
            object.name.clone_from(&typed.key.name);
            object.object = typed.value.clone();
        }
        object.object = with_status(&object);
        object
    })
    .collect()
}

/// The entry's own key: it knows which kinds have no namespace.
fn entry_key(unit: &Unit, typed: &ObjectKey) -> ObjectKey {
    let same = |key: &ObjectKey| key.kind == typed.kind && key.name == typed.name;
    let exact = unit.entries.iter().find(|entry| same(&entry.key) && entry.key.namespace == typed.namespace);
    let near = exact.or_else(|| unit.entries.iter().find(|entry| same(&entry.key) && entry.key.namespace.is_empty()));
    near.map_or_else(|| typed.clone(), |entry| entry.key.clone())
}

fn programmed(model: &Model, key: &ObjectKey, proxies: &Proxies) -> Option<Programmed> {
    let (revision, workloads) = model.last_change(key)?;
    let (waited, _) = proxies.look(&workloads, revision, Concerned::All, Instant::now());
    Some(Programmed {
        revision,
        proxies: waited.acknowledged.len() + waited.missing.len(),
        acknowledged: waited.acknowledged.len(),
        missing: missing(waited.missing),
    })
}

pub(crate) fn missing(missing: Vec<(String, String)>) -> Vec<Missing> {
    missing.into_iter().map(|(proxy, reason)| Missing { proxy, reason }).collect()
}

/// Adds `status.conditions` as the Gateway API has them, and the revision.
fn with_status(object: &Object) -> serde_json::Value {
    use serde_json::{Value, json};
    let Value::Object(mut typed) = object.object.clone() else { return Value::Null };
    let first = object.findings.iter().find(|finding| finding.severity == "error");
    let accepted = match first {
        _ if object.accepted => json!({"type": "Accepted", "status": "True", "reason": "Accepted"}),
        Some(finding) => {
            let place = match (&finding.file, finding.line) {
                (Some(file), Some(line)) => format!("{file}:{line}"),
                _ => object.origin.clone(),
            };
            let place = format!("{place} ({}): {}", finding.code, finding.message);
            json!({"type": "Accepted", "status": "False", "reason": "Invalid", "message": place})
        }
        None => {
            json!({"type": "Accepted", "status": "False", "reason": "NotUsed", "message": "it declares nothing that the mesh uses"})
        }
    };
    let mut conditions = vec![accepted];
    if let Some(programmed) = &object.programmed {
        let all = programmed.missing.is_empty();
        let message = match programmed.missing.first() {
            Some(first) => format!(
                "{} of {} proxies; {}: {}",
                programmed.acknowledged, programmed.proxies, first.proxy, first.reason
            ),
            None => format!("{} of {} proxies", programmed.acknowledged, programmed.proxies),
        };
        let reason = if all { "Programmed" } else { "Pending" };
        let status = if all { "True" } else { "False" };
        conditions.push(json!({"type": "Programmed", "status": status, "reason": reason, "message": message}));
    }
    typed.insert("status".to_owned(), json!({"conditions": conditions, "origin": object.origin}));
    if let (Some(revision), Some(Value::Object(metadata))) = (object.revision, typed.get_mut("metadata")) {
        metadata.insert("resourceVersion".to_owned(), json!(revision.to_string()));
    }
    Value::Object(typed)
}

/// Whether a kind is meant: without case, singular or plural, short name, with or without group.
pub(crate) fn kind_matches(asked: &str, kind: &str) -> bool {
    let asked = asked.split('.').next().unwrap_or_default().to_ascii_lowercase();
    let kind = kind.to_ascii_lowercase();
    let short = match kind.as_str() {
        "virtualservice" => "vs",
        "destinationrule" => "dr",
        "serviceentry" => "se",
        "workloadentry" => "we",
        "peerauthentication" => "pa",
        "authorizationpolicy" => "ap",
        "trafficsplit" => "ts",
        "service" => "svc",
        "workload" => "wl",
        "namespace" => "ns",
        _ => "",
    };
    let plural = kind.strip_suffix('y').map_or_else(|| format!("{kind}s"), |stem| format!("{stem}ies"));
    asked == kind || asked == plural || (!short.is_empty() && asked == short)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_many_names() {
        for asked in ["VirtualService", "virtualservices", "vs", "virtualservices.networking.istio.io"] {
            assert!(kind_matches(asked, "VirtualService"), "{asked}");
        }
        assert!(kind_matches("authorizationpolicies", "AuthorizationPolicy"));
        assert!(kind_matches("serviceentries", "ServiceEntry"));
        assert!(!kind_matches("v", "VirtualService") && !kind_matches("", "Other"));
    }
}
