//! Exact places for findings that other crates make: they know the object and the field, not the text.

use std::collections::HashMap;

use model::{Diagnostic, Label};

use crate::node::{Node, Span, Value};
use crate::yaml;

/// The places of all fields of all objects of one text.
#[derive(Debug)]
pub struct Places {
    /// By kind, namespace (empty where none is written) and name.
    objects: HashMap<(String, String, String), Node>,
}

impl Places {
    /// Reads a text. Documents that cannot be read have no places.
    pub fn of(text: &str) -> Self {
        let mut objects = HashMap::new();
        for node in yaml::documents(text).into_iter().flatten() {
            collect(node, &mut objects);
        }
        Self { objects }
    }

    /// Moves a finding from its object to its field, when the field can be found in this text. The field may
    /// be given from the root (`spec.http[0]`) or from `spec` (`http[0]`).
    pub fn sharpen(&self, finding: &mut Diagnostic) {
        let Some(key) = &finding.object else { return };
        let name = |namespace: &str| (key.kind.clone(), namespace.to_owned(), key.name.clone());
        let object = self.objects.get(&name(&key.namespace)).or_else(|| self.objects.get(&name("")));
        let Some(object) = object else { return };
        let below = |root: &str| span(object, &format!("{root}{}", finding.field));
        let found = match finding.field.is_empty() {
            // The whole object: its name tells the reader most.
            true => span(object, "metadata.name"),
            false => below("spec.").or_else(|| below("")),
        };
        let Some(span) = found else { return };
        let text = finding.labels.first().map(|label| label.text.clone()).unwrap_or_default();
        let label = Label { start: span.start, length: span.length, text };
        match finding.labels.first_mut() {
            Some(first) => *first = label,
            None => finding.labels.push(label),
        }
    }
}

fn collect(node: Node, objects: &mut HashMap<(String, String, String), Node>) {
    if node.text("kind").is_some_and(|kind| kind.ends_with("List"))
        && let Some(Value::List(items)) = node.entry("items").map(|entry| &entry.node.value)
    {
        for item in items.clone() {
            collect(item, objects);
        }
        return;
    }
    let text = |node: &Node, key: &str| node.text(key).unwrap_or_default().to_owned();
    let kind = text(&node, "kind");
    let (namespace, name) = match node.entry("metadata") {
        Some(entry) => (text(&entry.node, "namespace"), text(&entry.node, "name")),
        None => (String::new(), String::new()),
    };
    objects.entry((kind, namespace, name)).or_insert(node);
}

/// What to underline for a path: a simple value itself, a collection by its key.
fn span(object: &Node, path: &str) -> Option<Span> {
    let mut at = object;
    let mut span = object.span;
    for step in path.split('.').filter(|step| !step.is_empty()) {
        let (key, indices) = step.split_once('[').map_or((step, ""), |(key, rest)| (key, rest));
        if !key.is_empty() {
            let entry = at.entry(key)?;
            at = &entry.node;
            span =
                if matches!(at.value, Value::Map(_) | Value::List(_) | Value::Null) { entry.key_span } else { at.span };
        }
        for index in indices.split('[').filter(|index| !index.is_empty()) {
            let index = index.trim_end_matches(']');
            at = match (&at.value, index.parse::<usize>()) {
                (Value::List(items), Ok(index)) => items.get(index)?,
                (Value::Map(_), _) => &at.entry(index)?.node,
                _ => return None,
            };
            span = at.span;
        }
    }
    Some(span)
}
