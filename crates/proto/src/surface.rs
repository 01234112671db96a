//! What the proxy does with each field of each message: honoured, ignored, or refused.
//!
//! The table is `docs/reference/xds.toml`; the rule is that **whatever it does not name is refused**. [`check_any`]
//! goes over a resource's wire bytes once, before any typed decode (which would drop unknown fields silently), and
//! names every field that the proxy would not honour.

use std::fmt;

use crate::google::protobuf::Any;
use crate::schema::{FieldType, Kind, MessageType, Special, Status};
use crate::type_url::message_name;
use crate::typed_struct;
use crate::wire::{Entries, Entry, Value};

mod coverage;
mod page;
mod path;

pub use coverage::Coverage;
pub use page::reference_page;
use path::{Path, Step};

/// Messages nested deeper than this are refused; prost's own limit is 100.
const MAX_DEPTH: usize = 90;
/// No resource reports more findings than this: the rest would only repeat them.
const MAX_FINDINGS: usize = 100;

/// What [`check_any`] found. Empty lists mean that the proxy honours every field that is set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Findings {
    /// Set fields that the proxy refuses: the resource must not be used.
    pub refused: Vec<FieldPath>,
    /// Set fields that are accepted and do nothing: to be counted and logged.
    pub ignored: Vec<FieldPath>,
}

impl Findings {
    /// Whether every set field is honoured or ignored.
    pub fn is_acceptable(&self) -> bool {
        self.refused.is_empty()
    }

    /// The refused fields in one line, for a NACK; `None` when there are none.
    pub fn refusal(&self) -> Option<String> {
        let lines: Vec<String> = self.refused.iter().map(FieldPath::to_string).collect();
        (!lines.is_empty()).then(|| lines.join("; "))
    }
}

/// A field that is set, and why it is not honoured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldPath {
    /// From the resource down: `filter_chains[1].filters[0].typed_config.scoped_routes`.
    pub path: String,
    /// Full name of the message that has the field; empty where there is none.
    pub message: &'static str,
    /// Why, as a phrase: `not implemented`.
    pub reason: String,
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = if self.path.is_empty() { "the resource itself" } else { &self.path };
        write!(f, "{path}: {}", self.reason)
    }
}

/// Checks a resource against the table. Garbage is refused with the path of the message that cannot be read.
pub fn check_any(type_url: &str, bytes: &[u8]) -> Findings {
    let mut walk = Walk { path: Path::default(), findings: Findings::default() };
    walk.typed(type_url, bytes, false);
    walk.findings
}

/// Like [`check_any`], for an `Any`.
pub fn check(any: &Any) -> Findings {
    check_any(&any.type_url, &any.value)
}

struct Walk<'a> {
    path: Path<'a>,
    findings: Findings,
}

impl<'a> Walk<'a> {
    /// A message that comes with its type's name. `optional`: an unknown type is ignored.
    fn typed(&mut self, type_url: &'a str, bytes: &'a [u8], optional: bool) {
        match typed_struct::open(type_url, bytes) {
            None => {}
            Some(Ok(any)) => return self.apart(&any, optional),
            Some(Err(reason)) => {
                let status = if optional { Status::Ignored } else { Status::Refused };
                return self.found(status, "", reason);
            }
        }
        match MessageType::named(message_name(type_url)) {
            Some(message) if message.listed() || message.special() != Special::None => self.message(message, bytes),
            _ => {
                let reason = format!("the type {} is not implemented", shown(type_url));
                self.found(if optional { Status::Ignored } else { Status::Refused }, "", reason);
            }
        }
    }

    /// A message that does not stand in the resource's own bytes.
    fn apart(&mut self, any: &Any, optional: bool) {
        let mut walk = Walk { path: Path::default(), findings: Findings::default() };
        walk.typed(&any.type_url, &any.value, optional);
        let before = self.path.to_string();
        let below = |mut found: FieldPath| {
            found.path = if found.path.is_empty() { before.clone() } else { format!("{before}.{}", found.path) };
            found
        };
        self.findings.refused.extend(walk.findings.refused.into_iter().map(below));
        self.findings.ignored.extend(walk.findings.ignored.into_iter().map(below));
    }

    fn message(&mut self, message: MessageType, bytes: &'a [u8]) {
        match message.special() {
            Special::Any => return self.any(message, bytes, false),
            Special::None => {}
            // Durations, wrappers, Structs: all of it is the value of the field that holds it.
            _ => return,
        }
        if self.path.depth() >= MAX_DEPTH {
            return self.found(Status::Refused, message.name(), "nested too deeply".to_owned());
        }
        let optional = is_optional(message, bytes);
        // How many times each list field was met; few fields of a message are lists.
        let mut seen: Vec<(u32, usize)> = Vec::new();
        for entry in Entries::new(bytes) {
            let Ok(entry) = entry else {
                return self.found(Status::Refused, message.name(), "these bytes are not protobuf".to_owned());
            };
            if self.findings.refused.len() + self.findings.ignored.len() >= MAX_FINDINGS {
                return;
            }
            self.field(message, entry, optional, &mut seen);
        }
    }

    fn field(&mut self, message: MessageType, entry: Entry<'a>, optional: bool, seen: &mut Vec<(u32, usize)>) {
        let Some(field) = message.field_numbered(entry.number) else {
            self.path.push(Step::Number(entry.number));
            self.found(Status::Refused, message.name(), "no such field is known".to_owned());
            return self.path.pop();
        };
        self.path.push(step(field, entry, seen));
        match field.status() {
            Status::Honoured => self.value(message, field, entry, optional),
            Status::Unlisted => self.found(Status::Refused, message.name(), "not implemented".to_owned()),
            status => self.found(status, message.name(), field.reason().to_owned()),
        }
        self.path.pop();
    }

    /// What an honoured field holds.
    fn value(&mut self, message: MessageType, field: FieldType, entry: Entry<'a>, optional: bool) {
        let (Kind::Message(of), Value::Bytes(bytes)) = (field.kind(), entry.value) else {
            if !fits(field, entry.value) {
                self.found(Status::Refused, message.name(), "has the wrong wire type".to_owned());
            }
            return;
        };
        if field.is_map() {
            // An entry of a map is a message of key and value.
            let value = of.field_numbered(2);
            if let Some(Kind::Message(of)) = value.map(FieldType::kind) {
                self.inside(of, map_value(bytes), optional);
            }
        } else {
            self.inside(of, bytes, optional);
        }
    }

    fn inside(&mut self, message: MessageType, bytes: &'a [u8], optional: bool) {
        match message.special() {
            Special::Any => self.any(message, bytes, optional),
            _ => self.message(message, bytes),
        }
    }

    fn any(&mut self, any: MessageType, bytes: &'a [u8], optional: bool) {
        let (mut type_url, mut value) = (&b""[..], &b""[..]);
        for entry in Entries::new(bytes) {
            match entry {
                Ok(Entry { number: 1, value: Value::Bytes(bytes) }) => type_url = bytes,
                Ok(Entry { number: 2, value: Value::Bytes(bytes) }) => value = bytes,
                Ok(_) => {}
                Err(_) => {
                    return self.found(Status::Refused, any.name(), "these bytes are not protobuf".to_owned());
                }
            }
        }
        match std::str::from_utf8(type_url) {
            _ if self.path.depth() >= MAX_DEPTH => {
                self.found(Status::Refused, any.name(), "nested too deeply".to_owned());
            }
            // An `Any` without a type is a field left empty.
            Ok("") if value.is_empty() => {}
            Ok(type_url) => self.typed(type_url, value, optional),
            Err(_) => self.found(Status::Refused, any.name(), "its type URL is not text".to_owned()),
        }
    }

    fn found(&mut self, status: Status, message: &'static str, reason: String) {
        let found = FieldPath { path: self.path.to_string(), message, reason };
        match status {
            Status::Ignored => self.findings.ignored.push(found),
            _ => self.findings.refused.push(found),
        }
    }
}

/// Whether the message says of itself that it may be left out when unknown (`is_optional: true`).
fn is_optional(message: MessageType, bytes: &[u8]) -> bool {
    let Some(field) = message.field_named("is_optional") else { return false };
    Entries::new(bytes).any(|entry| entry == Ok(Entry { number: field.number(), value: Value::Varint(1) }))
}

fn step<'a>(field: FieldType, entry: Entry<'a>, seen: &mut Vec<(u32, usize)>) -> Step<'a> {
    if field.is_map() {
        return match entry.value {
            Value::Bytes(bytes) => Step::Key(field, map_key(bytes)),
            _ => Step::Field(field),
        };
    }
    if !field.is_list() {
        return Step::Field(field);
    }
    let index = match seen.iter_mut().find(|(number, _)| *number == entry.number) {
        Some((_, count)) => {
            *count += 1;
            *count
        }
        None => {
            seen.push((entry.number, 0));
            0
        }
    };
    Step::Index(field, index)
}

fn map_key(entry: &[u8]) -> Value<'_> {
    let key = Entries::new(entry).flatten().find(|entry| entry.number == 1);
    key.map_or(Value::Bytes(b""), |entry| entry.value)
}

fn map_value(entry: &[u8]) -> &[u8] {
    let value = Entries::new(entry).flatten().find(|entry| entry.number == 2);
    match value.map(|entry| entry.value) {
        Some(Value::Bytes(bytes)) => bytes,
        _ => b"",
    }
}

/// Whether a value on the wire can be this field's; lists of numbers may be packed.
fn fits(field: FieldType, value: Value<'_>) -> bool {
    let packed = field.is_list() && matches!(value, Value::Bytes(_));
    match field.kind() {
        Kind::Message(_) => false,
        Kind::String | Kind::Bytes => matches!(value, Value::Bytes(_)),
        Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => packed || matches!(value, Value::Fixed64(_)),
        Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => packed || matches!(value, Value::Fixed32(_)),
        _ => packed || matches!(value, Value::Varint(_)),
    }
}

/// A peer's text, cut to a length that a log line bears.
fn shown(text: &str) -> String {
    let short: String = text.chars().take(200).collect();
    format!("{short:?}")
}

#[cfg(test)]
mod every_field;
#[cfg(test)]
mod tests;
