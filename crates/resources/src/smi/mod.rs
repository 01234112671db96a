//! SMI TrafficSplit, in the shapes of all its versions.

use model::Declaration;
use model::mesh::TrafficSplit;

use crate::codes;
use crate::document::Subject;
use crate::field::{Field, Object};
use crate::node::Value;

/// Lowers a TrafficSplit.
pub(crate) fn read(spec: &Object<'_>, subject: &Subject<'_>) -> Vec<Declaration> {
    spec.refuse("matches", "a split by HTTPRouteGroup; use a VirtualService");
    let service = spec.need("service").map(|field| field.filled()).unwrap_or_default();
    let mut backends = Vec::new();
    if let Some(field) = spec.need("backends") {
        for item in field.items() {
            let object = item.object();
            let name = object.need("service").map(|field| field.filled()).unwrap_or_default();
            let share = object.need("weight").map_or(0, |field| weight(&field));
            if backends.iter().any(|(other, _)| *other == name) {
                item.error(codes::SPLIT_BACKENDS, format!("backend `{name}` stands twice"));
            }
            backends.push((name, share));
        }
        if backends.is_empty() {
            field.error(codes::SPLIT_BACKENDS, "the split has no backends");
        } else if backends.iter().all(|(_, weight)| *weight == 0) {
            field.error(codes::SPLIT_BACKENDS, "all weights are 0: nothing is forwarded");
        }
    }
    let origin = subject.origin.clone();
    vec![Declaration::Split(TrafficSplit { namespace: subject.namespace(), service, backends, origin })]
}

/// A weight in milli units: `900m`, `1`, `0.5`, `2k` (Kubernetes quantities) or a plain number.
fn weight(field: &Field<'_>) -> u64 {
    let text = match &field.node.value {
        Value::Number(text) | Value::Text(text) => text.as_str(),
        _ => {
            field.error(codes::WRONG_TYPE, "expected a number or a quantity").help("write 90, or 900m for 0.9");
            return 0;
        }
    };
    let (number, scale) = match text.strip_suffix('m') {
        Some(number) => (number, 1.0),
        None => match text.strip_suffix('k') {
            Some(number) => (number, 1_000_000.0),
            None => (text, 1000.0),
        },
    };
    match number.parse::<f64>() {
        // 2^40 milli units are beyond any sensible weight and far from losing precision.
        Ok(value) if value.is_finite() && (0.0..1.1e12).contains(&(value * scale)) => (value * scale).round() as u64,
        _ => {
            field.error(codes::SPLIT_BACKENDS, format!("`{text}` is no weight")).help("write 90, or 900m for 0.9");
            0
        }
    }
}
