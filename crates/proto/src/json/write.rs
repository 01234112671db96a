//! From wire bytes to JSON, by the message's type.

use prost::Message;
use serde_json::{Map, Value as Json};

use super::scalar::print_bytes;
use super::time;
use crate::google::protobuf::{Duration, Timestamp};
use crate::schema::{EnumType, FieldType, Kind, MessageType, Special};
use crate::type_url::message_name;
use crate::wire::{Entries, Value, array, varint};

/// Messages nested deeper than this are shown as bytes.
const MAX_DEPTH: usize = 100;

/// What becomes of keys and passwords.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Secrets {
    Shown,
    Redacted,
}

pub(super) fn message(full_name: &str, bytes: &[u8], secrets: Secrets) -> Json {
    let writer = Writer { secrets };
    MessageType::named(full_name).and_then(|message| writer.message(message, bytes, 0)).unwrap_or_else(|| raw(bytes))
}

pub(super) fn any(type_url: &str, bytes: &[u8], secrets: Secrets) -> Json {
    Writer { secrets }.typed(type_url, bytes, 0)
}

/// What no type explains.
fn raw(bytes: &[u8]) -> Json {
    Json::Object(Map::from_iter([("@bytes".to_owned(), Json::from(print_bytes(bytes)))]))
}

#[derive(Clone, Copy)]
struct Writer {
    secrets: Secrets,
}

impl Writer {
    /// `None`: these bytes are not such a message.
    fn message(self, message: MessageType, bytes: &[u8], depth: usize) -> Option<Json> {
        if depth > MAX_DEPTH {
            return None;
        }
        match message.special() {
            Special::None | Special::Empty => self.fields(message, bytes, depth).map(Json::Object),
            special => self.special(message, special, bytes, depth),
        }
    }

    fn fields(self, message: MessageType, bytes: &[u8], depth: usize) -> Option<Map<String, Json>> {
        let mut map = Map::new();
        for entry in Entries::new(bytes) {
            let entry = entry.ok()?;
            let Some(field) = message.field_numbered(entry.number) else {
                map.insert(format!("#{}", entry.number), unknown(entry.value));
                continue;
            };
            if field.is_map() {
                let (key, value) = self.map_entry(field, entry.value, depth)?;
                if let Json::Object(entries) = slot(&mut map, field, Json::Object(Map::new())) {
                    entries.insert(key, value);
                }
            } else if field.is_list() {
                let items = self.items(field, entry.value, depth)?;
                if let Json::Array(list) = slot(&mut map, field, Json::Array(Vec::new())) {
                    list.extend(items);
                }
            } else {
                let value = self.value(field, entry.value, depth)?;
                map.insert(field.name().to_owned(), value);
            }
        }
        // The order of a map's entries means nothing on the wire, but people and tests compare texts.
        for (name, value) in &mut map {
            if let (Some(true), Json::Object(entries)) = (message.field_named(name).map(FieldType::is_map), value) {
                entries.sort_keys();
            }
        }
        Some(map)
    }

    fn map_entry(self, field: FieldType, value: Value<'_>, depth: usize) -> Option<(String, Json)> {
        let (Kind::Message(entry), Value::Bytes(bytes)) = (field.kind(), value) else { return None };
        let (key_field, value_field) = (entry.field_numbered(1)?, entry.field_numbered(2)?);
        let (mut key, mut found) = (String::new(), None);
        for entry in Entries::new(bytes) {
            let entry = entry.ok()?;
            match entry.number {
                1 => {
                    key = match self.value(key_field, entry.value, depth)? {
                        Json::String(text) => text,
                        other => other.to_string(),
                    }
                }
                2 => found = Some(self.value(value_field, entry.value, depth)?),
                _ => {}
            }
        }
        let empty = || match value_field.kind() {
            Kind::Message(message) => self.message(message, b"", depth + 1).unwrap_or(Json::Null),
            kind => default(kind),
        };
        Some((key, found.unwrap_or_else(empty)))
    }

    /// One item, or several packed ones.
    fn items(self, field: FieldType, value: Value<'_>, depth: usize) -> Option<Vec<Json>> {
        let packable = !matches!(field.kind(), Kind::Message(_) | Kind::String | Kind::Bytes);
        let Value::Bytes(mut rest) = value else { return Some(vec![self.value(field, value, depth)?]) };
        if !packable {
            return Some(vec![self.value(field, value, depth)?]);
        }
        let mut items = Vec::new();
        while !rest.is_empty() {
            let value = match field.kind() {
                Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => {
                    Value::Fixed64(u64::from_le_bytes(array(&mut rest).ok()?))
                }
                Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => {
                    Value::Fixed32(u32::from_le_bytes(array(&mut rest).ok()?))
                }
                _ => Value::Varint(varint(&mut rest).ok()?),
            };
            items.push(self.value(field, value, depth)?);
        }
        Some(items)
    }

    fn value(self, field: FieldType, value: Value<'_>, depth: usize) -> Option<Json> {
        if field.is_sensitive() && self.secrets == Secrets::Redacted {
            return Some(Json::from("[redacted]"));
        }
        match (field.kind(), value) {
            (Kind::Message(message), Value::Bytes(bytes)) => {
                Some(self.message(message, bytes, depth + 1).unwrap_or_else(|| raw(bytes)))
            }
            (kind, value) => scalar(kind, value),
        }
    }

    fn special(self, message: MessageType, special: Special, bytes: &[u8], depth: usize) -> Option<Json> {
        match special {
            Special::Any => {
                let any = crate::google::protobuf::Any::decode(bytes).ok()?;
                Some(self.typed(&any.type_url, &any.value, depth))
            }
            Special::Duration => Some(Json::from(time::print_duration(Duration::decode(bytes).ok()?))),
            Special::Timestamp => time::print_timestamp(Timestamp::decode(bytes).ok()?).map(Json::from),
            Special::Wrapper => {
                let field = message.field_numbered(1)?;
                let value = Entries::new(bytes).flatten().find(|entry| entry.number == 1);
                value.map_or_else(|| Some(default(field.kind())), |entry| scalar(field.kind(), entry.value))
            }
            Special::Struct => {
                // A Struct is one map field.
                let mut fields = self.fields(message, bytes, depth)?;
                Some(fields.remove("fields").unwrap_or_else(|| Json::Object(Map::new())))
            }
            Special::ListValue => {
                let mut fields = self.fields(message, bytes, depth)?;
                Some(fields.remove("values").unwrap_or_else(|| Json::Array(Vec::new())))
            }
            Special::Value => {
                let (field, value) = self.fields(message, bytes, depth)?.into_iter().next()?;
                Some(if field == "null_value" { Json::Null } else { value })
            }
            _ => Some(Json::from(print_bytes(bytes))),
        }
    }

    fn typed(self, type_url: &str, bytes: &[u8], depth: usize) -> Json {
        let mut map = Map::new();
        if type_url.is_empty() && bytes.is_empty() {
            return Json::Object(map);
        }
        map.insert("@type".to_owned(), Json::from(type_url));
        let message = MessageType::named(message_name(type_url));
        match message.and_then(|message| self.message(message, bytes, depth + 1).map(|json| (message, json))) {
            Some((message, Json::Object(fields))) if message.special() == Special::None => map.extend(fields),
            Some((message, _)) if message.special() == Special::Empty => {}
            Some((_, value)) => {
                map.insert("value".to_owned(), value);
            }
            None => {
                map.insert("@bytes".to_owned(), Json::from(print_bytes(bytes)));
            }
        }
        Json::Object(map)
    }
}

fn slot(map: &mut Map<String, Json>, field: FieldType, empty: Json) -> &mut Json {
    map.entry(field.name()).or_insert(empty)
}

fn unknown(value: Value<'_>) -> Json {
    match value {
        Value::Varint(number) | Value::Fixed64(number) => Json::from(number.to_string()),
        Value::Fixed32(number) => Json::from(number),
        Value::Bytes(bytes) => Json::from(print_bytes(bytes)),
    }
}

fn scalar(kind: Kind, value: Value<'_>) -> Option<Json> {
    Some(match (kind, value) {
        (Kind::Double, Value::Fixed64(bits)) => float(f64::from_bits(bits)),
        (Kind::Float, Value::Fixed32(bits)) => short_float(f32::from_bits(bits)),
        (Kind::Int32, Value::Varint(number)) => Json::from(number as i32),
        (Kind::Uint32, Value::Varint(number)) => Json::from(number as u32),
        (Kind::Int64, Value::Varint(number)) => Json::from(number.cast_signed().to_string()),
        (Kind::Uint64, Value::Varint(number)) | (Kind::Fixed64, Value::Fixed64(number)) => {
            Json::from(number.to_string())
        }
        (Kind::Sint32, Value::Varint(number)) => {
            let number = number as u32;
            Json::from((number >> 1).cast_signed() ^ -((number & 1).cast_signed()))
        }
        (Kind::Sint64, Value::Varint(number)) => {
            Json::from(((number >> 1).cast_signed() ^ -((number & 1).cast_signed())).to_string())
        }
        (Kind::Fixed32, Value::Fixed32(number)) => Json::from(number),
        (Kind::Sfixed32, Value::Fixed32(number)) => Json::from(number.cast_signed()),
        (Kind::Sfixed64, Value::Fixed64(number)) => Json::from(number.cast_signed().to_string()),
        (Kind::Bool, Value::Varint(number)) => Json::from(number != 0),
        (Kind::Enum(kind), Value::Varint(number)) => enum_name(kind, number as i32),
        (Kind::String, Value::Bytes(bytes)) => Json::from(std::str::from_utf8(bytes).ok()?),
        (Kind::Bytes, Value::Bytes(bytes)) => Json::from(print_bytes(bytes)),
        _ => return None,
    })
}

fn default(kind: Kind) -> Json {
    match kind {
        Kind::Bool => Json::from(false),
        Kind::String | Kind::Bytes => Json::from(""),
        Kind::Int64 | Kind::Uint64 | Kind::Sint64 | Kind::Fixed64 | Kind::Sfixed64 => Json::from("0"),
        Kind::Enum(kind) => enum_name(kind, 0),
        Kind::Message(_) => Json::Null,
        _ => Json::from(0),
    }
}

fn enum_name(kind: EnumType, number: i32) -> Json {
    kind.values().find(|(_, known)| *known == number).map_or_else(|| Json::from(number), |(name, _)| Json::from(name))
}

/// Whole numbers without a fraction; what JSON has no number for, as text.
fn float(number: f64) -> Json {
    if number.fract() == 0.0 && number.abs() < 9.0e15 {
        return Json::from(number as i64);
    }
    serde_json::Number::from_f64(number).map_or_else(|| Json::from(odd_float(number)), Json::Number)
}

fn short_float(number: f32) -> Json {
    // The shortest decimal that is this float, not the double next to it.
    number.to_string().parse::<f64>().map_or_else(|_| Json::from(odd_float(f64::from(number))), float)
}

fn odd_float(number: f64) -> &'static str {
    if number.is_nan() {
        "NaN"
    } else if number > 0.0 {
        "Infinity"
    } else {
        "-Infinity"
    }
}
