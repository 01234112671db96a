//! Reads `docs/reference/xds.toml`: what the proxy does with each field of each message.

use std::collections::BTreeMap;
use std::path::Path;

use prost_reflect::{DescriptorPool, MessageDescriptor};
use serde::Deserialize;

use crate::Outcome;

/// The file: message name -> its fields.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    message: BTreeMap<String, Entry>,
}

/// One message. A field that is in none of the three is refused without further reason.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// Fields with Envoy's meaning; the single word `*` stands for all of them.
    #[serde(default)]
    honoured: Vec<String>,
    /// Fields that are accepted and counted but do nothing, and why.
    #[serde(default)]
    ignored: BTreeMap<String, String>,
    /// Fields that are refused, and why.
    #[serde(default)]
    refused: BTreeMap<String, String>,
}

/// What is done with one field. The numbers are the table's.
#[derive(Clone, Copy)]
pub(crate) enum Status {
    Unlisted = 0,
    Honoured = 1,
    Ignored = 2,
    Refused = 3,
}

/// Message -> field -> status and reason.
pub(crate) type Surface = BTreeMap<String, BTreeMap<String, (Status, String)>>;

/// Reads the file and refuses names that no descriptor has.
pub(crate) fn read(path: &Path, pool: &DescriptorPool) -> Outcome<Surface> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let file: File = toml::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut wrong = Vec::new();
    let mut surface = Surface::new();
    for (name, entry) in file.message {
        match pool.get_message_by_name(&name) {
            Some(message) => {
                surface.insert(name, fields(&message, entry, &mut wrong));
            }
            None => wrong.push(format!("no message is called `{name}`")),
        }
    }
    if wrong.is_empty() { Ok(surface) } else { Err(format!("{}:\n  {}", path.display(), wrong.join("\n  ")).into()) }
}

fn fields(message: &MessageDescriptor, entry: Entry, wrong: &mut Vec<String>) -> BTreeMap<String, (Status, String)> {
    let mut fields = BTreeMap::new();
    let all = entry.honoured.iter().any(|field| field == "*");
    let honoured: Vec<String> =
        if all { message.fields().map(|field| field.name().to_owned()).collect() } else { entry.honoured };
    let listed = honoured.into_iter().map(|field| (field, (Status::Honoured, String::new())));
    let listed = listed.chain(entry.ignored.into_iter().map(|(field, reason)| (field, (Status::Ignored, reason))));
    let listed = listed.chain(entry.refused.into_iter().map(|(field, reason)| (field, (Status::Refused, reason))));
    for (field, said) in listed {
        if message.get_field_by_name(&field).is_none() {
            wrong.push(format!("`{}` has no field `{field}`", message.full_name()));
        }
        if fields.insert(field.clone(), said).is_some() && !all {
            wrong.push(format!("`{}` lists `{field}` twice", message.full_name()));
        }
    }
    fields
}
