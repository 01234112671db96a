//! All message types the programs know: names, fields, kinds, and what the proxy does with each field.
//!
//! The table is a block of bytes that `build.rs` writes (layout in `build/table.rs`) and the linker puts among the
//! read-only data: it costs no start time and no memory but for the pages that are read.

static BLOCK: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/schema.bin"));

const HEADER: usize = 24;
const MESSAGE: usize = 16;
const FIELD: usize = 24;
const ENUM: usize = 16;
const VALUE: usize = 12;

/// A message type.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct MessageType(u32);

/// A field of a message type.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct FieldType(u32);

/// An enum type.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct EnumType(u32);

/// What a field holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Message(MessageType),
    Enum(EnumType),
    Double,
    Float,
    Int32,
    Int64,
    Uint32,
    Uint64,
    Sint32,
    Sint64,
    Fixed32,
    Fixed64,
    Sfixed32,
    Sfixed64,
    Bool,
    String,
    Bytes,
}

/// Messages with a JSON form of their own.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Special {
    None,
    Any,
    Duration,
    Timestamp,
    Struct,
    Value,
    ListValue,
    FieldMask,
    Empty,
    Wrapper,
}

/// What the proxy does with a field.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Status {
    Unlisted,
    Honoured,
    Ignored,
    Refused,
}

impl MessageType {
    /// The type of this full name: `envoy.config.route.v3.Route`.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let (mut low, mut high) = (0, count(0));
        while low < high {
            let middle = low + (high - low) / 2;
            match Self(middle).name().cmp(name) {
                std::cmp::Ordering::Equal => return Some(Self(middle)),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    /// All types, by name.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..count(0)).map(Self)
    }

    fn row(self) -> usize {
        HEADER + self.0 as usize * MESSAGE
    }

    pub(crate) fn name(self) -> &'static str {
        text(word(self.row()), short(self.row() + 4))
    }

    pub(crate) fn special(self) -> Special {
        match byte(self.row() + 6) {
            1 => Special::Any,
            2 => Special::Duration,
            3 => Special::Timestamp,
            4 => Special::Struct,
            5 => Special::Value,
            6 => Special::ListValue,
            7 => Special::FieldMask,
            8 => Special::Empty,
            9 => Special::Wrapper,
            _ => Special::None,
        }
    }

    /// Whether the surface says anything of this message.
    pub(crate) fn listed(self) -> bool {
        byte(self.row() + 7) != 0
    }

    /// Its fields, by number.
    pub(crate) fn fields(self) -> impl Iterator<Item = FieldType> {
        let first = word(self.row() + 8);
        (first..first + word(self.row() + 12)).map(FieldType)
    }

    pub(crate) fn field_numbered(self, number: u32) -> Option<FieldType> {
        let first = word(self.row() + 8);
        let (mut low, mut high) = (first, first + word(self.row() + 12));
        while low < high {
            let middle = low + (high - low) / 2;
            match FieldType(middle).number().cmp(&number) {
                std::cmp::Ordering::Equal => return Some(FieldType(middle)),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    /// The field with this name as written in the .proto file, or in lowerCamelCase.
    pub(crate) fn field_named(self, name: &str) -> Option<FieldType> {
        let as_written = self.fields().find(|field| field.name_bytes() == name.as_bytes());
        let camel = || self.fields().find(|field| is_camel_of(name, field.name()));
        as_written.or_else(camel)
    }
}

/// Whether `camel` is the lowerCamelCase form of `snake`.
fn is_camel_of(camel: &str, snake: &str) -> bool {
    let mut camel = camel.chars();
    let mut upper = false;
    for letter in snake.chars() {
        if letter == '_' {
            upper = true;
            continue;
        }
        let wanted = if upper { letter.to_ascii_uppercase() } else { letter };
        upper = false;
        if camel.next() != Some(wanted) {
            return false;
        }
    }
    camel.next().is_none()
}

impl FieldType {
    fn row(self) -> usize {
        HEADER + count(0) as usize * MESSAGE + self.0 as usize * FIELD
    }

    pub(crate) fn name(self) -> &'static str {
        text(word(self.row()), short(self.row() + 4))
    }

    /// The name without looking whether it is text: for comparing.
    fn name_bytes(self) -> &'static [u8] {
        bytes(word(self.row()), short(self.row() + 4))
    }

    /// 0 = none, else the oneof's place in the message plus one.
    pub(crate) fn oneof(self) -> u8 {
        byte(self.row() + 6)
    }

    pub(crate) fn kind(self) -> Kind {
        let of = word(self.row() + 12);
        match byte(self.row() + 7) {
            1 => Kind::Message(MessageType(of)),
            2 => Kind::Enum(EnumType(of)),
            3 => Kind::Double,
            4 => Kind::Float,
            5 => Kind::Int32,
            6 => Kind::Int64,
            7 => Kind::Uint32,
            8 => Kind::Uint64,
            9 => Kind::Sint32,
            10 => Kind::Sint64,
            11 => Kind::Fixed32,
            12 => Kind::Fixed64,
            13 => Kind::Sfixed32,
            14 => Kind::Sfixed64,
            15 => Kind::Bool,
            16 => Kind::String,
            _ => Kind::Bytes,
        }
    }

    pub(crate) fn number(self) -> u32 {
        word(self.row() + 8)
    }

    pub(crate) fn is_list(self) -> bool {
        byte(self.row() + 16) & 1 != 0
    }

    pub(crate) fn is_map(self) -> bool {
        byte(self.row() + 16) & 2 != 0
    }

    /// Whether "absent" differs from "default".
    pub(crate) fn has_presence(self) -> bool {
        byte(self.row() + 16) & 4 != 0
    }

    /// Whether it holds a secret.
    pub(crate) fn is_sensitive(self) -> bool {
        byte(self.row() + 16) & 8 != 0
    }

    pub(crate) fn status(self) -> Status {
        match byte(self.row() + 17) {
            1 => Status::Honoured,
            2 => Status::Ignored,
            3 => Status::Refused,
            _ => Status::Unlisted,
        }
    }

    /// Why it is ignored or refused; may be empty.
    pub(crate) fn reason(self) -> &'static str {
        text(word(self.row() + 20), short(self.row() + 18))
    }
}

impl EnumType {
    fn row(self) -> usize {
        HEADER + count(0) as usize * MESSAGE + count(1) as usize * FIELD + self.0 as usize * ENUM
    }

    pub(crate) fn name(self) -> &'static str {
        text(word(self.row()), word(self.row() + 4))
    }

    /// Names and numbers, as declared.
    pub(crate) fn values(self) -> impl Iterator<Item = (&'static str, i32)> {
        let table = HEADER + count(0) as usize * MESSAGE + count(1) as usize * FIELD + count(2) as usize * ENUM;
        let first = word(self.row() + 8);
        (first..first + word(self.row() + 12)).map(move |at| {
            let row = table + at as usize * VALUE;
            (text(word(row), word(row + 4)), word(row + 8).cast_signed())
        })
    }
}

/// How many rows the table `which` has: messages, fields, enums, values.
fn count(which: usize) -> u32 {
    word(which * 4)
}

fn word(at: usize) -> u32 {
    BLOCK.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn short(at: usize) -> u32 {
    BLOCK
        .get(at..at + 2)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, |bytes| u32::from(u16::from_le_bytes(bytes)))
}

fn byte(at: usize) -> u8 {
    BLOCK.get(at).copied().unwrap_or(0)
}

fn text(offset: u32, length: u32) -> &'static str {
    std::str::from_utf8(bytes(offset, length)).unwrap_or("")
}

fn bytes(offset: u32, length: u32) -> &'static [u8] {
    let start = word(16) as usize + offset as usize;
    BLOCK.get(start..start + length as usize).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_number_and_by_both_names() {
        let listener = MessageType::named("envoy.config.listener.v3.Listener").expect("known");
        assert_eq!(listener.name(), "envoy.config.listener.v3.Listener");
        let chains = listener.field_named("filter_chains").expect("known");
        assert_eq!(chains.number(), 3);
        assert!(chains.is_list() && !chains.is_map());
        assert!(listener.field_named("filterChains") == Some(chains));
        assert!(listener.field_numbered(3) == Some(chains));
        assert!(listener.field_named("filter_chain").is_none());
        let Kind::Message(chain) = chains.kind() else { panic!("a message") };
        assert_eq!(chain.name(), "envoy.config.listener.v3.FilterChain");
    }

    #[test]
    fn enums_know_their_values() {
        let listener = MessageType::named("envoy.config.listener.v3.Listener").expect("known");
        let Some(Kind::Enum(direction)) = listener.field_named("traffic_direction").map(FieldType::kind) else {
            panic!("an enum")
        };
        assert_eq!(direction.name(), "envoy.config.core.v3.TrafficDirection");
        assert!(direction.values().any(|value| value == ("INBOUND", 1)));
    }

    #[test]
    fn secrets_are_marked() {
        let tls = MessageType::named("envoy.extensions.transport_sockets.tls.v3.TlsCertificate").expect("known");
        assert!(tls.field_named("private_key").is_some_and(FieldType::is_sensitive));
        assert!(!tls.field_named("certificate_chain").is_some_and(FieldType::is_sensitive));
    }

    #[test]
    fn all_names_are_unique_and_sorted() {
        let names: Vec<_> = MessageType::all().map(MessageType::name).collect();
        assert!(names.len() > 1000, "only {} messages", names.len());
        assert!(names.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
