//! Packs descriptors and surface into one block of bytes: fixed records that refer to each other by index and to a
//! block of text by offset, so that nothing is parsed, allocated or relocated when a proxy starts.
//!
//! Layout (little endian): 6 words `messages, fields, enums, values, text start, 0`, then the records of the four
//! tables in this order, then the text. `schema.rs` is the reader.

use std::collections::HashMap;

use prost_reflect::{DescriptorPool, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor, Value};

use crate::Outcome;
use crate::surface::{Status, Surface};

/// Packages that no configuration carries.
const LEFT_OUT: [&str; 3] = ["validate", "udpa.annotations", "xds.annotations"];

#[derive(Default)]
struct Text {
    bytes: Vec<u8>,
    known: HashMap<String, u32>,
}

impl Text {
    fn place(&mut self, text: &str) -> (u32, u16) {
        let offset = *self.known.entry(text.to_owned()).or_insert_with(|| {
            let offset = self.bytes.len() as u32;
            self.bytes.extend_from_slice(text.as_bytes());
            offset
        });
        (offset, u16::try_from(text.len()).expect("names and reasons are short"))
    }
}

/// The whole block.
pub(crate) fn build(pool: &DescriptorPool, surface: &Surface) -> Outcome<Vec<u8>> {
    let mut messages: Vec<MessageDescriptor> =
        pool.all_messages().filter(|message| wanted(message.full_name())).collect();
    messages.sort_by(|a, b| a.full_name().cmp(b.full_name()));
    let mut enums: Vec<EnumDescriptor> = pool.all_enums().filter(|kind| wanted(kind.full_name())).collect();
    enums.sort_by(|a, b| a.full_name().cmp(b.full_name()));
    let index = Index {
        messages: messages
            .iter()
            .enumerate()
            .map(|(at, message)| (message.full_name().to_owned(), at as u32))
            .collect(),
        enums: enums.iter().enumerate().map(|(at, kind)| (kind.full_name().to_owned(), at as u32)).collect(),
    };
    let mut text = Text::default();
    let (mut message_rows, mut field_rows, mut enum_rows, mut value_rows) = (vec![], vec![], vec![], vec![]);
    let mut fields = 0_u32;
    for message in &messages {
        let said = surface.get(message.full_name());
        let mut rows: Vec<FieldDescriptor> = message.fields().collect();
        rows.sort_by_key(FieldDescriptor::number);
        let (name, length) = text.place(message.full_name());
        put(&mut message_rows, &[name]);
        put_short(&mut message_rows, length);
        message_rows.extend([special(message.full_name()), u8::from(said.is_some())]);
        put(&mut message_rows, &[fields, rows.len() as u32]);
        fields += rows.len() as u32;
        for field in rows {
            let said = said.and_then(|said| said.get(field.name()));
            field_row(&mut field_rows, &field, said, &index, &mut text)?;
        }
    }
    let mut values = 0_u32;
    for kind in &enums {
        let (name, length) = text.place(kind.full_name());
        put(&mut enum_rows, &[name, u32::from(length), values, kind.values().count() as u32]);
        for value in kind.values() {
            let (name, length) = text.place(value.name());
            put(&mut value_rows, &[name, u32::from(length), value.number() as u32]);
            values += 1;
        }
    }
    let start = 24 + message_rows.len() + field_rows.len() + enum_rows.len() + value_rows.len();
    let mut block = Vec::new();
    put(&mut block, &[messages.len() as u32, fields, enums.len() as u32, values, start as u32, 0]);
    for rows in [message_rows, field_rows, enum_rows, value_rows, text.bytes] {
        block.extend(rows);
    }
    Ok(block)
}

struct Index {
    messages: HashMap<String, u32>,
    enums: HashMap<String, u32>,
}

/// 24 bytes: name, its length, oneof, kind, number, type, flags, status, reason's length, reason.
fn field_row(
    rows: &mut Vec<u8>,
    field: &FieldDescriptor,
    said: Option<&(Status, String)>,
    index: &Index,
    text: &mut Text,
) -> Outcome<()> {
    let (kind, of) = match field.kind() {
        Kind::Message(message) => (1, index.messages.get(message.full_name())),
        Kind::Enum(kind) => (2, index.enums.get(kind.full_name())),
        other => (scalar(&other), Some(&0)),
    };
    let of = *of.ok_or_else(|| format!("{} has a type that was left out", field.full_name()))?;
    let (name, length) = text.place(field.name());
    // `optional` fields are members of a oneof of their own, which is not one to the user.
    let oneof = field.containing_oneof().filter(|oneof| !oneof.is_synthetic());
    let oneof = oneof.and_then(|oneof| field.parent_message().oneofs().position(|other| other == oneof));
    let flags = u8::from(field.is_list())
        | u8::from(field.is_map()) << 1
        | u8::from(field.supports_presence()) << 2
        | u8::from(sensitive(field)) << 3;
    let (status, reason) = said.map_or((Status::Unlisted, ""), |(status, reason)| (*status, reason));
    let (reason, reason_length) = text.place(reason);
    put(rows, &[name]);
    put_short(rows, length);
    rows.extend([oneof.map_or(0, |at| at as u8 + 1), kind]);
    put(rows, &[field.number(), of]);
    rows.extend([flags, status as u8]);
    put_short(rows, reason_length);
    put(rows, &[reason]);
    Ok(())
}

fn scalar(kind: &Kind) -> u8 {
    match kind {
        Kind::Double => 3,
        Kind::Float => 4,
        Kind::Int32 => 5,
        Kind::Int64 => 6,
        Kind::Uint32 => 7,
        Kind::Uint64 => 8,
        Kind::Sint32 => 9,
        Kind::Sint64 => 10,
        Kind::Fixed32 => 11,
        Kind::Fixed64 => 12,
        Kind::Sfixed32 => 13,
        Kind::Sfixed64 => 14,
        Kind::Bool => 15,
        Kind::String => 16,
        Kind::Bytes => 17,
        Kind::Message(_) => 1,
        Kind::Enum(_) => 2,
    }
}

/// Messages with a JSON form of their own.
fn special(name: &str) -> u8 {
    match name.strip_prefix("google.protobuf.") {
        Some("Any") => 1,
        Some("Duration") => 2,
        Some("Timestamp") => 3,
        Some("Struct") => 4,
        Some("Value") => 5,
        Some("ListValue") => 6,
        Some("FieldMask") => 7,
        Some("Empty") => 8,
        Some(name) if name.ends_with("Value") => 9,
        _ => 0,
    }
}

/// Whether Envoy marks the field as holding a secret (`udpa.annotations.sensitive`).
fn sensitive(field: &FieldDescriptor) -> bool {
    let options = field.options();
    options.extensions().any(|(extension, value)| {
        extension.full_name() == "udpa.annotations.sensitive" && matches!(value, Value::Bool(true))
    })
}

fn wanted(name: &str) -> bool {
    let descriptors = name.starts_with("google.protobuf.")
        && special(name) == 0
        && name != "google.protobuf.NullValue"
        && !name.starts_with("google.protobuf.Struct.");
    !descriptors && !LEFT_OUT.iter().any(|package| name.strip_prefix(package).is_some_and(|rest| rest.starts_with('.')))
}

fn put(rows: &mut Vec<u8>, words: &[u32]) {
    for word in words {
        rows.extend(word.to_le_bytes());
    }
}

fn put_short(rows: &mut Vec<u8>, number: u16) {
    rows.extend(number.to_le_bytes());
}
