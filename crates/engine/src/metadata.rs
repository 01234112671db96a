//! Metadata: named trees of values that ride on routes, clusters and endpoints, and that filters give to requests.

use std::collections::BTreeMap;
use std::sync::Arc;

use proto::envoy::config::core::v3 as core;
use proto::google::protobuf::{ListValue, Struct, Value, value::Kind};

/// One value of a tree (protobuf's `google.protobuf.Value`).
#[derive(Debug, Clone, PartialEq)]
pub enum Datum {
    /// JSON null.
    Null,
    /// A number; xDS knows only doubles.
    Number(f64),
    /// A string.
    Text(Arc<str>),
    /// true or false.
    Flag(bool),
    /// A list.
    List(Vec<Self>),
    /// An object, sorted by key.
    Object(BTreeMap<Arc<str>, Self>),
}

/// Trees by namespace, such as `envoy.lb`, `istio` or `tulle`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata {
    spaces: BTreeMap<Arc<str>, Datum>,
}

impl Metadata {
    /// Nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self { spaces: BTreeMap::new() }
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.spaces.is_empty()
    }

    /// The tree of one namespace.
    #[must_use]
    pub fn space(&self, name: &str) -> Option<&Datum> {
        self.spaces.get(name)
    }

    /// Puts a tree under a namespace, replacing what was there.
    pub fn set(&mut self, name: impl Into<Arc<str>>, datum: Datum) {
        self.spaces.insert(name.into(), datum);
    }

    /// All namespaces with their trees, in order of name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Datum)> {
        self.spaces.iter().map(|(name, datum)| (&**name, datum))
    }

    /// The value at `path` inside a namespace.
    #[must_use]
    pub fn find<'a>(&self, space: &str, path: impl IntoIterator<Item = &'a str>) -> Option<&Datum> {
        path.into_iter().try_fold(self.space(space)?, |datum, key| datum.key(key))
    }

    /// The line of the user's YAML that caused this object: `tulle.origin`.
    #[must_use]
    pub fn origin(&self) -> Option<&Arc<str>> {
        match self.find("tulle", ["origin"])? {
            Datum::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn from_proto(message: Option<&core::Metadata>) -> Self {
        let spaces = message.into_iter().flat_map(|message| &message.filter_metadata);
        Self { spaces: spaces.map(|(name, tree)| (Arc::from(name.as_str()), Datum::from_struct(tree))).collect() }
    }
}

/// Where a value stands: a namespace, and keys from the top (`envoy.type.metadata.v3.MetadataKey`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetadataKey {
    /// The namespace.
    pub space: Arc<str>,
    /// At least one.
    pub path: Vec<Arc<str>>,
}

/// What a filter adds to a request's metadata (Envoy's `set_metadata`).
#[derive(Debug, Clone, PartialEq)]
pub struct MetadataAddition {
    /// Its namespace.
    pub space: Arc<str>,
    /// The tree, an object.
    pub value: Datum,
    /// It is merged into what is there already. Default false: what is there stays.
    pub overwrite: bool,
}

impl Metadata {
    /// Adds to a namespace.
    pub(crate) fn add(&mut self, addition: &MetadataAddition) {
        match self.spaces.get_mut(&addition.space) {
            None => self.set(Arc::clone(&addition.space), addition.value.clone()),
            Some(there) if addition.overwrite => there.merge(&addition.value),
            Some(_) => {}
        }
    }
}

impl Datum {
    /// Takes over what another value says: members of objects one by one, items of lists behind those that are there; anything else
    /// replaces what was there.
    fn merge(&mut self, other: &Self) {
        match (self, other) {
            (Self::Object(members), Self::Object(others)) => {
                for (name, other) in others {
                    match members.get_mut(name) {
                        Some(there) => there.merge(other),
                        None => {
                            members.insert(Arc::clone(name), other.clone());
                        }
                    }
                }
            }
            (Self::List(items), Self::List(others)) => items.extend(others.iter().cloned()),
            (there, other) => *there = other.clone(),
        }
    }

    /// The member `name` of an object.
    #[must_use]
    pub fn key(&self, name: &str) -> Option<&Self> {
        match self {
            Self::Object(members) => members.get(name),
            _ => None,
        }
    }

    /// The text, if it is one.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The same as JSON.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Null => serde_json::Value::Null,
            Self::Number(number) if number.fract() == 0.0 && number.abs() < 9e15 => (*number as i64).into(),
            Self::Number(number) => (*number).into(),
            Self::Text(text) => text.as_ref().into(),
            Self::Flag(flag) => (*flag).into(),
            Self::List(items) => items.iter().map(Self::to_json).collect(),
            Self::Object(members) => {
                serde_json::Value::Object(members.iter().map(|(k, v)| (k.to_string(), v.to_json())).collect())
            }
        }
    }

    /// From protobuf's object type.
    #[must_use]
    pub fn from_struct(message: &Struct) -> Self {
        Self::Object(message.fields.iter().map(|(k, v)| (Arc::from(k.as_str()), Self::from_value(v))).collect())
    }

    fn from_value(message: &Value) -> Self {
        match &message.kind {
            None | Some(Kind::NullValue(_)) => Self::Null,
            Some(Kind::NumberValue(number)) => Self::Number(*number),
            Some(Kind::StringValue(text)) => Self::Text(Arc::from(text.as_str())),
            Some(Kind::BoolValue(flag)) => Self::Flag(*flag),
            Some(Kind::StructValue(tree)) => Self::from_struct(tree),
            Some(Kind::ListValue(ListValue { values })) => Self::List(values.iter().map(Self::from_value).collect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(members: &[(&str, Datum)]) -> Datum {
        Datum::Object(members.iter().map(|(name, datum)| (Arc::from(*name), datum.clone())).collect())
    }

    #[test]
    fn what_is_added_is_merged_only_where_it_may() {
        let number = |number| Datum::Number(number);
        let list = |items: &[f64]| Datum::List(items.iter().copied().map(Datum::Number).collect());
        let add = |value, overwrite| MetadataAddition { space: "ns".into(), value, overwrite };
        let mut metadata = Metadata::new();
        metadata.add(&add(tree(&[("a", number(1.0)), ("l", list(&[1.0])), ("o", tree(&[("x", number(1.0))]))]), false));
        metadata.add(&add(tree(&[("b", number(1.0))]), false));
        let more = [("a", Datum::Text("t".into())), ("l", list(&[2.0])), ("o", tree(&[("y", number(2.0))]))];
        metadata.add(&add(tree(&more), true));
        let json = metadata.space("ns").unwrap().to_json().to_string();
        assert_eq!(json, r#"{"a":"t","l":[1,2],"o":{"x":1,"y":2}}"#);
    }
}
