//! Sets every field of every message that a resource can hold, once each and one at a time, and holds what the walk
//! says of it against `docs/reference/xds.toml` itself (not against the table that the build made of it).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::Deserialize;

use super::*;
use crate::type_url::{BOOTSTRAP, CLUSTER, ENDPOINTS, EXTENSION, LISTENER, PREFIX, ROUTE, SECRET};
use crate::wire::{put_bytes, put_tag, put_varint};

#[derive(Deserialize)]
struct File {
    message: BTreeMap<String, Entry>,
}

#[derive(Deserialize, Default)]
struct Entry {
    #[serde(default)]
    honoured: BTreeSet<String>,
    #[serde(default)]
    ignored: BTreeMap<String, String>,
    #[serde(default)]
    refused: BTreeMap<String, String>,
}

/// What must become of one field.
#[derive(Debug, PartialEq)]
enum Fate<'a> {
    Honoured,
    Ignored(&'a str),
    Refused(&'a str),
}

impl Entry {
    fn fate(&self, field: &str) -> Fate<'_> {
        match (self.ignored.get(field), self.refused.get(field)) {
            (Some(reason), _) => Fate::Ignored(reason),
            (_, Some(reason)) => Fate::Refused(reason),
            _ if self.honoured.contains(field) || self.honoured.contains("*") => Fate::Honoured,
            _ => Fate::Refused("not implemented"),
        }
    }
}

/// The way from a resource down to a message: its fields, and the types of messages in an `Any`.
#[derive(Clone)]
struct Place {
    root: &'static str,
    down: Vec<(FieldType, Option<MessageType>)>,
    message: MessageType,
}

impl Place {
    /// A resource whose only content is `bytes` at this place.
    fn resource(&self, bytes: Vec<u8>) -> Vec<u8> {
        self.down.iter().rev().fold(bytes, |inner, (field, any)| {
            let inner = match any {
                Some(message) => {
                    let mut any = Vec::new();
                    put_bytes(&mut any, 1, format!("{PREFIX}{}", message.name()).as_bytes());
                    put_bytes(&mut any, 2, &inner);
                    any
                }
                None => inner,
            };
            put(*field, inner)
        })
    }

    /// The path of a field at this place.
    fn path(&self, field: &str) -> String {
        let steps = self.down.iter().map(|(field, _)| shown(*field));
        steps.chain([field.to_owned()]).collect::<Vec<_>>().join(".")
    }
}

/// One field that holds a message, on the wire.
fn put(field: FieldType, message: Vec<u8>) -> Vec<u8> {
    let mut out = Vec::new();
    if field.is_map() {
        let mut entry = Vec::new();
        put_bytes(&mut entry, 1, b"k");
        put_bytes(&mut entry, 2, &message);
        put_bytes(&mut out, field.number(), &entry);
    } else {
        put_bytes(&mut out, field.number(), &message);
    }
    out
}

fn shown(field: FieldType) -> String {
    match (field.is_map(), field.is_list()) {
        (true, _) => format!("{}[\"k\"]", field.name()),
        (_, true) => format!("{}[0]", field.name()),
        _ => field.name().to_owned(),
    }
}

/// The field with some value of its type, or of another wire type where `wrong`.
fn set(field: FieldType, wrong: bool) -> Vec<u8> {
    let mut out = Vec::new();
    let wire_type = match field.kind() {
        Kind::Message(_) => return if wrong { tagged(field.number(), 0) } else { put(field, Vec::new()) },
        Kind::String | Kind::Bytes => 2,
        Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => 1,
        Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => 5,
        _ => 0,
    };
    match (wire_type, wrong) {
        (2, false) => put_bytes(&mut out, field.number(), b"x"),
        (wire_type, false) => out = tagged(field.number(), wire_type),
        (5, true) => out = tagged(field.number(), 1),
        (_, true) => out = tagged(field.number(), 5),
    }
    out
}

fn tagged(number: u32, wire_type: u8) -> Vec<u8> {
    let mut out = Vec::new();
    put_tag(&mut out, number, wire_type);
    match wire_type {
        0 => put_varint(&mut out, 1),
        1 => out.extend([0; 8]),
        _ => out.extend([0; 4]),
    }
    out
}

/// Every message that has a place in some resource: through honoured fields, else in the `Any` of a network filter.
fn places(file: &File) -> Vec<Place> {
    let root = |type_url: &'static str| Place {
        root: type_url,
        down: Vec::new(),
        message: MessageType::named(message_name(type_url)).expect("a resource"),
    };
    let mut waiting: VecDeque<Place> =
        [LISTENER, ROUTE, CLUSTER, ENDPOINTS, SECRET, EXTENSION, BOOTSTRAP].into_iter().map(root).collect();
    let mut any = root(LISTENER);
    for name in ["filter_chains", "filters", "typed_config"] {
        let field = any.message.field_named(name).expect("a field of listeners");
        let Kind::Message(message) = field.kind() else { panic!("{name} holds a message") };
        any = Place { down: [any.down, vec![(field, None)]].concat(), message, ..any };
    }
    for name in file.message.keys() {
        let message = MessageType::named(name).unwrap_or_else(|| panic!("{name} is a message"));
        let mut down = any.down.clone();
        down.last_mut().expect("the filter's configuration").1 = Some(message);
        waiting.push_back(Place { root: LISTENER, down, message });
    }
    let mut found: Vec<Place> = Vec::new();
    while let Some(place) = waiting.pop_front() {
        if found.iter().any(|known| known.message == place.message) {
            continue;
        }
        let entry = file.message.get(place.message.name());
        for field in place.message.fields() {
            let Some((message, Fate::Honoured)) = held(field).zip(entry.map(|entry| entry.fate(field.name()))) else {
                continue;
            };
            if message.special() == Special::None {
                let down = [place.down.clone(), vec![(field, None)]].concat();
                waiting.push_back(Place { root: place.root, down, message });
            }
        }
        found.push(place);
    }
    found
}

/// The message that a field holds; for a map that of its values.
fn held(field: FieldType) -> Option<MessageType> {
    let Kind::Message(message) = field.kind() else { return None };
    if !field.is_map() {
        return Some(message);
    }
    match message.field_numbered(2)?.kind() {
        Kind::Message(value) => Some(value),
        _ => None,
    }
}

fn lines(fields: &[FieldPath]) -> Vec<String> {
    fields.iter().map(FieldPath::to_string).collect()
}

#[test]
fn every_field_meets_the_fate_that_the_list_gives_it() {
    let file: File = toml::from_str(include_str!("../../../../docs/reference/xds.toml")).expect("the list");
    let nothing = Entry::default();
    let (mut messages, mut fields) = (0, 0);
    for place in places(&file) {
        let entry = file.message.get(place.message.name());
        assert!(entry.is_some(), "{} is held by an honoured field and not in the list", place.message.name());
        let entry = entry.unwrap_or(&nothing);
        messages += 1;
        for field in place.message.fields() {
            fields += 1;
            let path = place.path(&shown(field));
            let found = check_any(place.root, &place.resource(set(field, false)));
            let seen = (lines(&found.refused), lines(&found.ignored));
            let wanted = match entry.fate(field.name()) {
                Fate::Honoured => (vec![], vec![]),
                Fate::Ignored(reason) => (vec![], vec![format!("{path}: {reason}")]),
                Fate::Refused(reason) => (vec![format!("{path}: {reason}")], vec![]),
            };
            assert_eq!(seen, wanted, "{}.{}", place.message.name(), field.name());
        }
    }
    assert!(messages > 200 && fields > 1100, "only {messages} messages with {fields} fields");
}

#[test]
fn unknown_numbers_and_wrong_wire_types_are_refused_everywhere() {
    let file: File = toml::from_str(include_str!("../../../../docs/reference/xds.toml")).expect("the list");
    for place in places(&file) {
        for (number, wire_type) in [(536_870_911, 0), (19_999, 1), (536_870_910, 5)] {
            let found = check_any(place.root, &place.resource(tagged(number, wire_type)));
            let wanted = format!("{}: no such field is known", place.path(&format!("#{number}")));
            assert_eq!(lines(&found.refused), [wanted], "{}", place.message.name());
        }
        let entry = file.message.get(place.message.name());
        let honoured =
            place.message.fields().filter(|field| entry.is_some_and(|e| e.fate(field.name()) == Fate::Honoured));
        for field in honoured.filter(|field| !field.is_map()) {
            let found = check_any(place.root, &place.resource(set(field, true)));
            let wanted = format!("{}: has the wrong wire type", place.path(&shown(field)));
            assert_eq!(lines(&found.refused), [wanted], "{}", place.message.name());
        }
    }
}
