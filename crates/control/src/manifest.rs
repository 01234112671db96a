//! The documents of a text as they were typed, with their names: what `get` shows and a store keeps.

use model::ObjectKey;
use serde_json::Value;

/// One document of a YAML or JSON text.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Document {
    /// Its own text, without separators.
    pub(crate) text: String,
    /// Line of its first content in the whole text, from 1.
    pub(crate) line: u32,
    /// The object, where it can be read at all.
    pub(crate) object: Option<Object>,
}

/// An object as typed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Object {
    pub(crate) api_version: String,
    pub(crate) key: ObjectKey,
    /// `metadata.resourceVersion`: the revision that a writer believes in.
    pub(crate) resource_version: Option<String>,
    pub(crate) value: Value,
}

/// Splits a text at its `---` lines. Objects without a namespace get the default one, unless their kind has none.
pub(crate) fn documents(text: &str, default_namespace: &str) -> Vec<Document> {
    let mut documents = Vec::new();
    let (mut current, mut first) = (String::new(), 1);
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let bare = line.trim_end();
        if bare == "---" || bare.starts_with("--- ") || bare == "..." {
            push(&mut documents, std::mem::take(&mut current), first, default_namespace);
            first = u32::try_from(index).unwrap_or(u32::MAX).saturating_add(2);
        } else {
            current.push_str(line);
        }
    }
    push(&mut documents, current, first, default_namespace);
    documents
}

fn push(documents: &mut Vec<Document>, text: String, first: u32, default_namespace: &str) {
    let content = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    let Some(skipped) = text.lines().position(|line| content(&line)) else { return };
    let line = first.saturating_add(u32::try_from(skipped).unwrap_or(u32::MAX));
    // `n` and `yes` are names, not truth values (YAML 1.2).
    let options = serde_saphyr::options! { strict_booleans: true };
    let value = serde_saphyr::from_str_with_options::<Value>(&text, options).ok();
    let object = value.and_then(|value| object(value, default_namespace));
    documents.push(Document { text, line, object });
}

/// Reads the name of an object; `None` when it has no kind or name.
pub(crate) fn object(value: Value, default_namespace: &str) -> Option<Object> {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let api_version = text("/apiVersion").unwrap_or_default();
    let kind = text("/kind")?;
    let name = text("/metadata/name")?;
    let group = api_version.rsplit_once('/').map(|(group, _)| group.to_owned()).unwrap_or_default();
    let namespace = match kind.as_str() {
        "Namespace" => String::new(),
        _ => text("/metadata/namespace").unwrap_or_else(|| default_namespace.to_owned()),
    };
    let resource_version = text("/metadata/resourceVersion");
    let key = ObjectKey { group, kind, namespace, name };
    Some(Object { api_version, key, resource_version, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_keep_their_lines() {
        let text = "# shop\napiVersion: v1\nkind: Service\nmetadata: {name: web}\n---\n\n---\nkind: [broken\n---\n\n# two\napiVersion: a.b/v1\nkind: K\nmetadata: {name: n, namespace: x, resourceVersion: \"7\"}\n";
        let found = documents(text, "shop");
        let lines: Vec<u32> = found.iter().map(|document| document.line).collect();
        assert_eq!(lines, [2, 8, 12]);
        let keys: Vec<_> = found.iter().map(|document| document.object.as_ref().map(|o| o.key.to_string())).collect();
        assert_eq!(keys, [Some("Service shop/web".to_owned()), None, Some("K x/n".to_owned())]);
        let last = found.last().and_then(|document| document.object.clone()).unwrap();
        assert_eq!((last.key.group.as_str(), last.resource_version.as_deref()), ("a.b", Some("7")));
    }
}
