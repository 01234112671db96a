//! Which honoured fields some resources set, for those who ask whether every one of them is tested.

use std::collections::BTreeSet;

use crate::schema::{FieldType, Kind, MessageType, Special, Status};
use crate::type_url::message_name;
use crate::typed_struct;
use crate::wire::{Entries, Entry, Value};

/// Honoured fields, by message and name.
#[derive(Debug, Clone, Default)]
pub struct Coverage {
    set: BTreeSet<(&'static str, &'static str)>,
}

impl Coverage {
    /// Adds what a resource sets.
    pub fn add(&mut self, type_url: &str, bytes: &[u8]) {
        if let Some(message) = MessageType::named(message_name(type_url)) {
            self.message(message, bytes, 0);
        }
    }

    /// Whether a field was set.
    pub fn has(&self, message: &str, field: &str) -> bool {
        self.set.iter().any(|known| *known == (message, field))
    }

    /// How many of the honoured fields were set, and how many there are.
    pub fn count(&self) -> (usize, usize) {
        let all = honoured().count();
        (all - self.unasked().len(), all)
    }

    /// Honoured fields, by message and name, that were not set.
    pub fn unasked(&self) -> Vec<(&'static str, &'static str)> {
        honoured().filter(|field| !self.set.contains(field)).collect()
    }

    fn message(&mut self, message: MessageType, bytes: &[u8], depth: usize) {
        if message.special() == Special::Any {
            return self.any(bytes, depth);
        }
        if message.special() != Special::None || depth > 90 {
            return;
        }
        for Entry { number, value } in Entries::new(bytes).flatten() {
            let Some(field) = message.field_numbered(number) else { continue };
            if field.status() == Status::Honoured {
                self.set.insert((message.name(), field.name()));
            }
            let (Kind::Message(of), Value::Bytes(bytes)) = (field.kind(), value) else { continue };
            if !field.is_map() {
                self.message(of, bytes, depth + 1);
            } else if let Some(Kind::Message(of)) = of.field_numbered(2).map(FieldType::kind) {
                self.message(of, super::map_value(bytes), depth + 1);
            }
        }
    }

    fn any(&mut self, bytes: &[u8], depth: usize) {
        let part = |wanted| {
            Entries::new(bytes).flatten().find_map(|entry| match entry {
                Entry { number, value: Value::Bytes(bytes) } if number == wanted => Some(bytes),
                _ => None,
            })
        };
        let name = part(1).and_then(|url| std::str::from_utf8(url).ok()).unwrap_or_default();
        if let Some(Ok(any)) = typed_struct::open(name, part(2).unwrap_or_default()) {
            return self.add(&any.type_url, &any.value);
        }
        if let Some(message) = MessageType::named(message_name(name)) {
            self.message(message, part(2).unwrap_or_default(), depth + 1);
        }
    }
}

fn honoured() -> impl Iterator<Item = (&'static str, &'static str)> {
    MessageType::all().filter(|message| message.listed()).flat_map(|message| {
        let fields = message.fields().filter(|field| field.status() == Status::Honoured);
        fields.map(move |field| (message.name(), field.name()))
    })
}
