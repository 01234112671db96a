//! WorkloadGroup: checked, but nothing registers by it.

use model::Declaration;

use super::workload_entry;
use crate::codes;
use crate::document::Subject;
use crate::field::{Field, Object};

const PROBES: [&str; 4] = ["httpGet", "tcpSocket", "exec", "grpc"];

/// Checks a WorkloadGroup.
pub(crate) fn read(spec: &Object<'_>, _subject: &Subject<'_>) -> Vec<Declaration> {
    if let Some(metadata) = spec.get("metadata") {
        let metadata = metadata.object();
        if let Some(labels) = metadata.get("labels") {
            labels.labels();
        }
        metadata.ignore(&["annotations"]);
    }
    if let Some(template) = spec.need("template") {
        let template = template.object();
        template.ignore(&["network"]);
        if let Some(labels) = template.get("labels") {
            labels.labels();
        }
        if template.get("address").is_some() {
            workload_entry::endpoint(&template);
        }
        for pair in template.get("ports").map(|ports| ports.pairs()).unwrap_or_default() {
            pair.port();
        }
        if let Some(place) = template.get("locality") {
            workload_entry::locality(&place);
        }
        template.get("weight").map(|weight| weight.count());
        template.get("serviceAccount").map(|account| account.text());
    }
    if let Some(field) = spec.get("probe") {
        probe(&field);
    }
    spec.field.warn(codes::NO_EFFECT, "a WorkloadGroup has no effect: workloads are declared one by one");
    Vec::new()
}

fn probe(field: &Field<'_>) {
    let object = field.object();
    for name in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        object.get(name).map(|field| field.count());
    }
    object.at_most_one(&PROBES);
    let Some(method) = object.given(&PROBES).into_iter().next() else {
        field.error(codes::PROBE, "the probe does not say how").help(format!("give one of {}", PROBES.join(", ")));
        return;
    };
    let inner = method.object();
    if method.name() == "exec" {
        if inner.need("command").is_some_and(|command| command.filled_texts().is_empty()) {
            method.error(codes::PROBE, "the probe's command is empty");
        }
    } else {
        inner.need("port").map(|port| port.port());
    }
    inner.ignore(&["path", "host", "scheme", "httpHeaders", "service"]);
}
