//! Numbers, texts, enums and bytes in their JSON forms.

use base64::Engine;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};

use super::tree::{Node, Value};
use crate::schema::{EnumType, Kind};
use crate::wire::{put_bytes, put_tag, put_varint};

/// Standard base64, with or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const BASE64_URL: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);
const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);

/// A scalar as it goes on the wire.
pub(super) enum Scalar {
    Varint(u64),
    Fixed32(u32),
    Fixed64(u64),
    Bytes(Vec<u8>),
}

impl Scalar {
    pub(super) fn is_default(&self) -> bool {
        match self {
            Self::Varint(number) | Self::Fixed64(number) => *number == 0,
            Self::Fixed32(number) => *number == 0,
            Self::Bytes(bytes) => bytes.is_empty(),
        }
    }

    pub(super) fn put(&self, out: &mut Vec<u8>, number: u32) {
        match self {
            Self::Varint(value) => {
                put_tag(out, number, 0);
                put_varint(out, *value);
            }
            Self::Fixed64(value) => {
                put_tag(out, number, 1);
                out.extend(value.to_le_bytes());
            }
            Self::Bytes(bytes) => put_bytes(out, number, bytes),
            Self::Fixed32(value) => {
                put_tag(out, number, 5);
                out.extend(value.to_le_bytes());
            }
        }
    }
}

/// Reads a value of a scalar kind; the error says what was expected.
pub(super) fn read(kind: Kind, node: &Node) -> Result<Scalar, String> {
    let expected = |what: &str| format!("expected {what}, found {}", node.described());
    let text = match &node.value {
        Value::Word(text) | Value::Number(text) | Value::Text(text) => text.as_str(),
        _ => return Err(expected(name(kind))),
    };
    match kind {
        Kind::String => string(node).map(|text| Scalar::Bytes(text.into_bytes())),
        Kind::Bytes => bytes(text).map(Scalar::Bytes).ok_or_else(|| expected("base64")),
        Kind::Bool => truth(node).map(|truth| Scalar::Varint(u64::from(truth))).ok_or_else(|| expected(name(kind))),
        Kind::Enum(kind) => enum_value(kind, text),
        Kind::Double => float(text).map(|number| Scalar::Fixed64(number.to_bits())).ok_or_else(|| expected(name(kind))),
        Kind::Float => {
            let number = float(text).filter(|number| !number.is_finite() || number.abs() <= f64::from(f32::MAX));
            number.map(|number| Scalar::Fixed32((number as f32).to_bits())).ok_or_else(|| expected(name(kind)))
        }
        _ => integer_of(kind, text).ok_or_else(|| expected(name(kind))),
    }
}

/// Reads the key of a map: in JSON always a text.
pub(super) fn read_key(kind: Kind, node: &Node) -> Result<Scalar, String> {
    match (&node.value, kind) {
        (Value::Text(text), Kind::Bool) if text == "true" || text == "false" => {
            Ok(Scalar::Varint(u64::from(text == "true")))
        }
        _ => read(kind, node),
    }
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::String => "a text",
        Kind::Bytes => "base64",
        Kind::Bool => "true or false",
        Kind::Double | Kind::Float => "a number",
        Kind::Uint32 | Kind::Fixed32 => "an integer from 0 to 4294967295",
        Kind::Uint64 | Kind::Fixed64 => "an integer, not negative",
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => "an integer of 32 bits",
        _ => "an integer",
    }
}

/// Envoy takes a word for an integer or boolean wherever it looks like one, and then it is no text.
fn string(node: &Node) -> Result<String, String> {
    match &node.value {
        Value::Text(text) => Ok(text.clone()),
        Value::Word(word) if boolean(word).is_none() && exact_integer(word).is_none() => Ok(word.clone()),
        _ => Err(format!("expected a text, found {}: put it in quotes", node.described())),
    }
}

fn truth(node: &Node) -> Option<bool> {
    match &node.value {
        Value::Word(word) => boolean(word),
        Value::Text(text) => match text.as_str() {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

/// YAML's words for true and false, in the three cases that are allowed.
pub(super) fn boolean(word: &str) -> Option<bool> {
    let lower = word.to_ascii_lowercase();
    let capital = word.starts_with(|first: char| first.is_ascii_uppercase());
    let rest = word.get(1..).unwrap_or("");
    let cased = word == lower || word == word.to_ascii_uppercase() || (capital && rest == lower.get(1..).unwrap_or(""));
    match lower.as_str() {
        "true" | "yes" | "y" | "on" if cased => Some(true),
        "false" | "no" | "n" | "off" if cased => Some(false),
        _ => None,
    }
}

/// An integer that a double holds exactly; larger ones stay text, as in Envoy.
pub(super) fn exact_integer(word: &str) -> Option<f64> {
    let number: i64 = word.parse().ok()?;
    (number.unsigned_abs() <= 1 << 53).then_some(number as f64)
}

fn float(text: &str) -> Option<f64> {
    match text {
        "NaN" => Some(f64::NAN),
        "Infinity" => Some(f64::INFINITY),
        "-Infinity" => Some(f64::NEG_INFINITY),
        _ => text.parse::<f64>().ok().filter(|number| number.is_finite()),
    }
}

/// An integer; `1e3` and `2.0` are integers too.
fn integer(text: &str) -> Option<i128> {
    if let Ok(number) = text.parse::<i128>() {
        return Some(number);
    }
    if let Some(digits) = text.strip_prefix("0x") {
        return i128::from_str_radix(digits, 16).ok();
    }
    let number = text.parse::<f64>().ok()?;
    (number.fract() == 0.0 && number.abs() < 9.0e15).then_some(number as i128)
}

fn integer_of(kind: Kind, text: &str) -> Option<Scalar> {
    let number = integer(text)?;
    Some(match kind {
        Kind::Int32 => Scalar::Varint(i64::from(i32::try_from(number).ok()?).cast_unsigned()),
        Kind::Int64 => Scalar::Varint(i64::try_from(number).ok()?.cast_unsigned()),
        Kind::Uint32 => Scalar::Varint(u64::from(u32::try_from(number).ok()?)),
        Kind::Uint64 => Scalar::Varint(u64::try_from(number).ok()?),
        Kind::Sint32 => {
            let number = i32::try_from(number).ok()?;
            Scalar::Varint(u64::from(((number << 1) ^ (number >> 31)).cast_unsigned()))
        }
        Kind::Sint64 => {
            let number = i64::try_from(number).ok()?;
            Scalar::Varint(((number << 1) ^ (number >> 63)).cast_unsigned())
        }
        Kind::Fixed32 => Scalar::Fixed32(u32::try_from(number).ok()?),
        Kind::Sfixed32 => Scalar::Fixed32(i32::try_from(number).ok()?.cast_unsigned()),
        Kind::Fixed64 => Scalar::Fixed64(u64::try_from(number).ok()?),
        Kind::Sfixed64 => Scalar::Fixed64(i64::try_from(number).ok()?.cast_unsigned()),
        _ => return None,
    })
}

fn enum_value(kind: EnumType, text: &str) -> Result<Scalar, String> {
    let varint = |number: i32| Scalar::Varint(i64::from(number).cast_unsigned());
    if let Some((_, number)) = kind.values().find(|(name, _)| *name == text) {
        return Ok(varint(number));
    }
    if let Some(number) = text.parse().ok().filter(|number| kind.values().any(|(_, known)| known == *number)) {
        return Ok(varint(number));
    }
    let names: Vec<&str> = kind.values().map(|(name, _)| name).collect();
    Err(format!("`{text}` is none of the values of {}: {}", kind.name(), names.join(", ")))
}

fn bytes(text: &str) -> Option<Vec<u8>> {
    BASE64.decode(text).or_else(|_| BASE64_URL.decode(text)).ok()
}

/// Bytes as JSON shows them.
pub(super) fn print_bytes(bytes: &[u8]) -> String {
    BASE64.encode(bytes)
}

/// The name most like the wanted one, if any is alike at all.
pub(super) fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = wanted.to_ascii_lowercase().replace('-', "_");
    let limit = wanted.len() / 3 + 1;
    names.map(|name| (distance(&wanted, name), name)).filter(|(far, _)| *far <= limit).min().map(|(_, name)| name)
}

/// How many letters must be put in, taken out or changed.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        let mut next = vec![left];
        for (other, above) in b.iter().zip(row.iter().skip(1)) {
            let cost = (diagonal + usize::from(letter != *other)).min(above + 1).min(left + 1);
            diagonal = *above;
            left = cost;
            next.push(cost);
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}
