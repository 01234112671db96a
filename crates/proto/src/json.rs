//! Canonical protobuf JSON, and the same as YAML, to and from messages.
//!
//! Reading keeps line and column of everything and collects faults with the field's path instead of stopping at the
//! first; an unknown field is a fault. `Any` is written as Envoy does: the message's fields beside `@type`. YAML follows
//! Envoy's habits: an unquoted word is what the field needs, where the field takes anything (a Struct) it is a
//! boolean, an integer, or else a string.

use std::fmt;

use prost::{Message, Name};

use crate::envoy::config::bootstrap::v3::Bootstrap;
use crate::google::protobuf::Any;
use crate::schema::MessageType;
use crate::surface::{self, FieldPath};
use crate::type_url;

mod read;
mod scalar;
mod text;
mod time;
mod tree;
mod write;
mod yaml;

/// The notation of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// YAML 1.2, one document.
    Yaml,
    /// JSON.
    Json,
}

impl Format {
    /// By the file's name: `.json` is JSON, anything else YAML (of which JSON is nearly a part).
    pub fn of_file(name: &str) -> Self {
        if name.ends_with(".json") { Self::Json } else { Self::Yaml }
    }
}

/// Something wrong in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The field: `static_resources.listeners[0].filter_chains[1].name`; empty for the text as a whole.
    pub path: String,
    /// Line, from 1; 0 = unknown.
    pub line: usize,
    /// Column in characters, from 1; 0 = unknown.
    pub column: usize,
    /// What is wrong and, where it can be said, what would be right.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "{}:{}: ", self.line, self.column)?;
        }
        if self.path.is_empty() { write!(f, "{}", self.message) } else { write!(f, "{}: {}", self.path, self.message) }
    }
}

impl std::error::Error for Fault {}

/// A field of a bootstrap that is accepted and does nothing.
pub type Ignored = FieldPath;

/// Reads one message.
pub fn parse<M: Message + Name + Default>(text: &str, format: Format) -> Result<M, Vec<Fault>> {
    let bytes = parse_named(&M::full_name(), text, format)?;
    M::decode(bytes.as_slice()).map_err(|error| vec![whole(error.to_string())])
}

/// Reads one message of the given full name into its wire bytes.
pub fn parse_named(full_name: &str, text: &str, format: Format) -> Result<Vec<u8>, Vec<Fault>> {
    read_text(full_name, text, format).map(|read| read.bytes)
}

/// Reads an Envoy bootstrap and checks it against [`surface`]: a field that the proxy refuses is a fault with its
/// path and place, the ignored ones are told.
pub fn parse_bootstrap(text: &str, format: Format) -> Result<(Bootstrap, Vec<Ignored>), Vec<Fault>> {
    let read = read_text(&Bootstrap::full_name(), text, format)?;
    let findings = surface::check_any(type_url::BOOTSTRAP, &read.bytes);
    if !findings.is_acceptable() {
        return Err(read.refused(findings.refused));
    }
    let bootstrap = Bootstrap::decode(read.bytes.as_slice()).map_err(|error| vec![whole(error.to_string())])?;
    Ok((bootstrap, findings.ignored))
}

/// A message as JSON, with field names as in the .proto files, as in Envoy's `/config_dump`.
pub fn to_json<M: Message + Name>(message: &M) -> serde_json::Value {
    to_json_named(&M::full_name(), &message.encode_to_vec())
}

/// Wire bytes of a message as JSON. What cannot be read stays as base64 under `@bytes`.
pub fn to_json_named(full_name: &str, bytes: &[u8]) -> serde_json::Value {
    write::message(full_name, bytes, write::Secrets::Shown)
}

/// An `Any` as JSON: the fields of its message beside `@type`.
pub fn any_to_json(any: &Any) -> serde_json::Value {
    write::any(&any.type_url, &any.value, write::Secrets::Shown)
}

/// Like [`to_json`], with keys and passwords replaced by `[redacted]`: for `/config_dump`.
pub fn to_json_redacted<M: Message + Name>(message: &M) -> serde_json::Value {
    write::message(&M::full_name(), &message.encode_to_vec(), write::Secrets::Redacted)
}

/// Like [`any_to_json`], with keys and passwords replaced by `[redacted]`.
pub fn any_to_json_redacted(any: &Any) -> serde_json::Value {
    write::any(&any.type_url, &any.value, write::Secrets::Redacted)
}

/// A message as YAML.
pub fn to_yaml<M: Message + Name>(message: &M) -> String {
    yaml::print(&to_json(message))
}

/// A JSON value as YAML.
pub fn value_to_yaml(value: &serde_json::Value) -> String {
    yaml::print(value)
}

/// A text that was read: the message, and the text's values with their places.
struct Read {
    bytes: Vec<u8>,
    message: MessageType,
    tree: tree::Node,
}

impl Read {
    /// The fields that the surface refuses, with their places. These are looked for only here: most texts are good, and
    /// noting the place of every field costs more than reading it.
    fn refused(&self, found: Vec<FieldPath>) -> Vec<Fault> {
        let places = read::Places::all(self.message, &self.tree);
        let fault = |found: FieldPath| {
            let (line, column) = places.of(&found.path);
            Fault { path: found.path, line, column, message: found.reason }
        };
        found.into_iter().map(fault).collect()
    }
}

fn read_text(full_name: &str, text: &str, format: Format) -> Result<Read, Vec<Fault>> {
    let Some(message) = MessageType::named(full_name) else {
        return Err(vec![whole(format!("no message is called `{full_name}`"))]);
    };
    let tree = match format {
        Format::Yaml => yaml::parse(text),
        Format::Json => text::parse(text),
    };
    let tree = tree.map_err(|fault| vec![fault])?;
    let mut reader = read::Reader::default();
    let bytes = reader.message(message, &tree);
    if reader.faults.is_empty() { Ok(Read { bytes, message, tree }) } else { Err(reader.faults) }
}

fn whole(message: String) -> Fault {
    Fault { path: String::new(), line: 0, column: 0, message }
}

#[cfg(test)]
mod tests;
