//! From a parsed text to wire bytes, by the message's type.

use std::collections::HashMap;
use std::fmt::Write;

use prost::Message;

use super::scalar;
use super::time;
use super::tree::{Key, Node, Value};
use super::{Fault, whole};
use crate::schema::{FieldType, Kind, MessageType, Special};
use crate::type_url::message_name;
use crate::wire::{put_bytes, put_tag, put_varint};

/// No text yields more faults than this.
const MAX_FAULTS: usize = 50;
/// Messages nested deeper than this are refused; prost's own limit is 100.
const MAX_DEPTH: usize = 90;

/// Where each field of the text stands.
#[derive(Default)]
pub(super) struct Places {
    of: HashMap<String, (usize, usize)>,
}

impl Places {
    /// Those of all fields of a text that was read without fault.
    pub(super) fn all(message: MessageType, node: &Node) -> Self {
        let mut reader = Reader { places: Some(Self::default()), ..Reader::default() };
        reader.message(message, node);
        reader.places.unwrap_or_default()
    }

    /// Line and column of the field, or of the nearest one above it; zeros when there is none.
    pub(super) fn of(&self, path: &str) -> (usize, usize) {
        let mut path = path;
        loop {
            if let Some(place) = self.of.get(path) {
                return *place;
            }
            match path.rfind('.') {
                Some(end) => path = &path[..end],
                None => return (0, 0),
            }
        }
    }
}

/// Collects faults and places on the way.
#[derive(Default)]
pub(super) struct Reader {
    path: String,
    depth: usize,
    pub(super) faults: Vec<Fault>,
    /// Noted only where they are asked for.
    places: Option<Places>,
}

impl Reader {
    /// The wire bytes of a message of this type.
    pub(super) fn message(&mut self, message: MessageType, node: &Node) -> Vec<u8> {
        if self.depth >= MAX_DEPTH {
            self.fault(node, "nested too deeply");
            return Vec::new();
        }
        self.depth += 1;
        let bytes = match message.special() {
            Special::None | Special::Empty => self.fields(message, node),
            special => self.special(message, special, node).unwrap_or_default(),
        };
        self.depth -= 1;
        bytes
    }

    fn fields(&mut self, message: MessageType, node: &Node) -> Vec<u8> {
        match &node.value {
            Value::Map(entries) => self.entries(message, entries, false),
            Value::Null => Vec::new(),
            _ => {
                self.fault(node, format!("expected the fields of {}, found {}", message.name(), node.described()));
                Vec::new()
            }
        }
    }

    /// `typed`: inside an `Any`, so `@type` is not a field.
    fn entries(&mut self, message: MessageType, entries: &[(Key, Node)], typed: bool) -> Vec<u8> {
        let mut out = Vec::new();
        let mut seen: Vec<FieldType> = Vec::new();
        for (key, node) in entries {
            if typed && key.name == "@type" {
                continue;
            }
            if self.faults.len() >= MAX_FAULTS {
                return out;
            }
            let length = self.path.len();
            let Some(field) = message.field_named(&key.name) else {
                self.enter(&key.name);
                self.fault_at(key.line, key.column, unknown_field(message, &key.name));
                self.path.truncate(length);
                continue;
            };
            self.enter(field.name());
            self.note(key.line, key.column);
            self.twice(key, field, &seen);
            if node.value != Value::Null || is_value(field) {
                seen.push(field);
                self.field(field, node, &mut out);
            }
            self.path.truncate(length);
        }
        out
    }

    /// A field may come once, and of the members of a oneof only one.
    fn twice(&mut self, key: &Key, field: FieldType, seen: &[FieldType]) {
        if seen.contains(&field) {
            return self.fault_at(key.line, key.column, "this field was given before");
        }
        let other = seen.iter().find(|other| field.oneof() != 0 && other.oneof() == field.oneof());
        if let Some(other) = other {
            let message = format!("only one of `{}` and `{}` can be set", other.name(), field.name());
            self.fault_at(key.line, key.column, message);
        }
    }

    fn field(&mut self, field: FieldType, node: &Node, out: &mut Vec<u8>) {
        if field.is_map() {
            return self.map(field, node, out);
        }
        if !field.is_list() {
            return self.single(field, node, out, !field.has_presence());
        }
        let Value::List(items) = &node.value else {
            return self.fault(node, format!("expected a list, found {}", node.described()));
        };
        for (index, item) in items.iter().enumerate() {
            let length = self.path.len();
            // Writing to a String cannot fail.
            let _ = write!(self.path, "[{index}]");
            self.note(item.line, item.column);
            self.single(field, item, out, false);
            self.path.truncate(length);
        }
    }

    /// `skip_default`: a default value is the same as none.
    fn single(&mut self, field: FieldType, node: &Node, out: &mut Vec<u8>, skip_default: bool) {
        if let Kind::Message(message) = field.kind() {
            let bytes = self.message(message, node);
            return put_bytes(out, field.number(), &bytes);
        }
        match scalar::read(field.kind(), node) {
            Ok(value) if skip_default && value.is_default() => {}
            Ok(value) => value.put(out, field.number()),
            Err(message) => self.fault(node, message),
        }
    }

    fn map(&mut self, field: FieldType, node: &Node, out: &mut Vec<u8>) {
        let Kind::Message(entry) = field.kind() else { return };
        let (Some(key_field), Some(value_field)) = (entry.field_numbered(1), entry.field_numbered(2)) else { return };
        let Value::Map(entries) = &node.value else {
            return self.fault(node, format!("expected a map, found {}", node.described()));
        };
        for (key, node) in entries {
            let length = self.path.len();
            let _ = write!(self.path, "[{:?}]", key.name);
            self.note(key.line, key.column);
            let mut bytes = Vec::new();
            let name = Node { line: key.line, column: key.column, value: Value::Text(key.name.clone()) };
            match scalar::read_key(key_field.kind(), &name) {
                Ok(value) => value.put(&mut bytes, 1),
                Err(message) => self.fault(&name, message),
            }
            if node.value != Value::Null || is_value(value_field) {
                self.single(value_field, node, &mut bytes, false);
            }
            put_bytes(out, field.number(), &bytes);
            self.path.truncate(length);
        }
    }

    /// Messages with a JSON form of their own.
    fn special(&mut self, message: MessageType, special: Special, node: &Node) -> Option<Vec<u8>> {
        match special {
            Special::Any => return self.any(node),
            Special::Wrapper => {
                let mut out = Vec::new();
                self.single(message.field_numbered(1)?, node, &mut out, true);
                return Some(out);
            }
            Special::Struct => return self.structure(node),
            Special::Value => return Some(self.value(node)),
            Special::ListValue => return self.list_value(node),
            _ => {}
        }
        let (Value::Text(text) | Value::Word(text)) = &node.value else {
            self.fault(node, format!("expected a {}, found {}", message.name(), node.described()));
            return None;
        };
        let bytes = match special {
            Special::Duration => time::parse_duration(text).map(|duration| duration.encode_to_vec()),
            Special::Timestamp => time::parse_timestamp(text).map(|time| time.encode_to_vec()),
            _ => Some(field_mask(text)),
        };
        if bytes.is_none() {
            let right = if special == Special::Duration {
                "seconds as in `0.25s`"
            } else {
                "a time as in `2026-01-31T12:00:00Z`"
            };
            self.fault(node, format!("expected {right}, found {}", node.described()));
        }
        bytes
    }

    fn any(&mut self, node: &Node) -> Option<Vec<u8>> {
        let Value::Map(entries) = &node.value else {
            self.fault(node, format!("expected fields with `@type`, found {}", node.described()));
            return None;
        };
        if entries.is_empty() {
            return Some(Vec::new());
        }
        let Some((_, type_node)) = entries.iter().find(|(key, _)| key.name == "@type") else {
            self.fault(node, "`@type` is missing: it names the message these fields are of");
            return None;
        };
        let (Value::Text(type_url) | Value::Word(type_url)) = &type_node.value else {
            self.fault(type_node, format!("`@type` is a name, found {}", type_node.described()));
            return None;
        };
        let Some(message) = MessageType::named(message_name(type_url)) else {
            self.fault(type_node, unknown_type(type_url));
            return None;
        };
        let bytes = if message.special() == Special::None || message.special() == Special::Empty {
            self.depth += 1;
            let bytes = if self.depth >= MAX_DEPTH { Vec::new() } else { self.entries(message, entries, true) };
            self.depth -= 1;
            bytes
        } else {
            let value = entries.iter().find(|(key, _)| key.name == "value");
            value.map_or_else(Vec::new, |(_, node)| self.message(message, node))
        };
        let mut out = Vec::new();
        put_bytes(&mut out, 1, type_url.as_bytes());
        if !bytes.is_empty() {
            put_bytes(&mut out, 2, &bytes);
        }
        Some(out)
    }

    fn structure(&mut self, node: &Node) -> Option<Vec<u8>> {
        let Value::Map(entries) = &node.value else {
            self.fault(node, format!("expected a map, found {}", node.described()));
            return None;
        };
        let mut out = Vec::new();
        for (key, node) in entries {
            let mut entry = Vec::new();
            put_bytes(&mut entry, 1, key.name.as_bytes());
            put_bytes(&mut entry, 2, &self.value(node));
            put_bytes(&mut out, 1, &entry);
        }
        Some(out)
    }

    fn list_value(&mut self, node: &Node) -> Option<Vec<u8>> {
        let Value::List(items) = &node.value else {
            self.fault(node, format!("expected a list, found {}", node.described()));
            return None;
        };
        let mut out = Vec::new();
        for item in items {
            put_bytes(&mut out, 1, &self.value(item));
        }
        Some(out)
    }

    /// A `google.protobuf.Value`.
    fn value(&mut self, node: &Node) -> Vec<u8> {
        let mut out = Vec::new();
        match &node.value {
            Value::Null => {
                put_tag(&mut out, 1, 0);
                put_varint(&mut out, 0);
            }
            Value::Word(word) | Value::Number(word) => {
                free_word(&mut out, word, matches!(node.value, Value::Number(_)))
            }
            Value::Text(text) => put_bytes(&mut out, 3, text.as_bytes()),
            Value::Map(_) => put_bytes(&mut out, 5, &self.structure(node).unwrap_or_default()),
            Value::List(_) => put_bytes(&mut out, 6, &self.list_value(node).unwrap_or_default()),
        }
        out
    }

    /// Where the field that is being read stands.
    fn note(&mut self, line: usize, column: usize) {
        if let Some(places) = &mut self.places {
            places.of.insert(self.path.clone(), (line, column));
        }
    }

    fn enter(&mut self, name: &str) {
        if !self.path.is_empty() {
            self.path.push('.');
        }
        self.path.push_str(name);
    }

    fn fault(&mut self, node: &Node, message: impl Into<String>) {
        self.fault_at(node.line, node.column, message);
    }

    fn fault_at(&mut self, line: usize, column: usize, message: impl Into<String>) {
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(Fault { path: self.path.clone(), line, column, ..whole(message.into()) });
        }
    }
}

/// A word where anything may stand, as Envoy reads it from YAML: boolean, integer, or else text.
fn free_word(out: &mut Vec<u8>, word: &str, number: bool) {
    if let Some(truth) = scalar::boolean(word) {
        put_tag(out, 4, 0);
        put_varint(out, u64::from(truth));
        return;
    }
    let parsed = if number { word.parse::<f64>().ok() } else { scalar::exact_integer(word) };
    match parsed {
        Some(number) => {
            put_tag(out, 2, 1);
            out.extend(number.to_le_bytes());
        }
        None => put_bytes(out, 3, word.as_bytes()),
    }
}

/// Whether `null` is a value for this field.
fn is_value(field: FieldType) -> bool {
    matches!(field.kind(), Kind::Message(message) if message.special() == Special::Value)
}

/// `a.b,cD` as the paths `a.b` and `c_d`.
fn field_mask(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for path in text.split(',').filter(|path| !path.is_empty()) {
        let mut snake = String::new();
        for letter in path.chars() {
            if letter.is_ascii_uppercase() {
                snake.push('_');
            }
            snake.push(letter.to_ascii_lowercase());
        }
        put_bytes(&mut out, 1, snake.as_bytes());
    }
    out
}

fn unknown_field(message: MessageType, name: &str) -> String {
    let names: Vec<&str> = message.fields().map(FieldType::name).collect();
    let hint = scalar::nearest(name, names.iter().copied());
    let hint = hint.map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
    format!("{} has no field `{name}`{hint}", message.name())
}

fn unknown_type(type_url: &str) -> String {
    let name = message_name(type_url);
    let last = |name: &str| name.rsplit('.').next().unwrap_or("").to_owned();
    let near = MessageType::all().find(|message| last(message.name()) == last(name) && message.listed());
    let hint = near.map_or_else(String::new, |near| format!("; did you mean `{}`?", near.name()));
    format!("no message type is called `{name}`{hint}")
}
