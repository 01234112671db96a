//! JSON formats, with Envoy's typing: an operator alone keeps its type, among other text it becomes text.

use std::fmt::Write as _;

use super::format::{FormatError, Piece, Template};
use super::operator::{Ask, Operator, write_number};
use super::{Exchange, Value};

/// A JSON format or a part of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    /// Keys as `"key":`, in the order of their bytes.
    Object(Vec<(Vec<u8>, Node)>),
    List(Vec<Node>),
    /// An operator alone.
    Typed(Operator),
    /// Operators among text.
    Mixed(Template),
    /// Written already.
    Fixed(Vec<u8>),
}

impl Node {
    pub(super) fn parse(value: &serde_json::Value) -> Result<Self, FormatError> {
        Ok(match value {
            serde_json::Value::Object(object) => {
                let mut members: Vec<_> = object.iter().collect();
                members.sort_by_key(|(key, _)| key.as_bytes());
                let member = |(key, value): (&String, &serde_json::Value)| {
                    let mut written = Vec::new();
                    write_text(key.as_bytes(), &mut written);
                    written.push(b':');
                    Self::parse(value).map(|node| (written, node))
                };
                Self::Object(members.into_iter().map(member).collect::<Result<_, _>>()?)
            }
            serde_json::Value::Array(items) => Self::List(items.iter().map(Self::parse).collect::<Result<_, _>>()?),
            serde_json::Value::String(text) => Self::text(Template::parse(text)?),
            // Envoy prints a number of the format as text.
            serde_json::Value::Number(number) => Self::Fixed(format!("\"{number}\"").into_bytes()),
            serde_json::Value::Bool(_) | serde_json::Value::Null => Self::Fixed(value.to_string().into_bytes()),
        })
    }

    fn text(mut template: Template) -> Self {
        match (template.0.pop(), template.0.is_empty()) {
            (None, _) => Self::Fixed(b"\"\"".to_vec()),
            (Some(Piece::Operator(operator)), true) => Self::Typed(operator),
            (Some(Piece::Literal(text)), true) => {
                let mut written = Vec::new();
                write_text(text.as_bytes(), &mut written);
                Self::Fixed(written)
            }
            (Some(last), false) => {
                template.0.push(last);
                Self::Mixed(template)
            }
        }
    }

    pub(super) fn write(&self, exchange: &dyn Exchange, omit_empty: bool, out: &mut Vec<u8>) {
        match self {
            Self::Object(members) => {
                out.push(b'{');
                let begun = out.len();
                for (key, node) in members {
                    let before = out.len();
                    if before > begun {
                        out.push(b',');
                    }
                    out.extend_from_slice(key);
                    let value_at = out.len();
                    node.write(exchange, omit_empty, out);
                    if omit_empty && out.get(value_at..) == Some(b"null") {
                        out.truncate(before);
                    }
                }
                out.push(b'}');
            }
            Self::List(items) => {
                out.push(b'[');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    item.write(exchange, omit_empty, out);
                }
                out.push(b']');
            }
            Self::Typed(operator) => write_typed(operator, exchange, out),
            Self::Mixed(template) => {
                let mut text = Vec::new();
                template.write(exchange, if omit_empty { b"" } else { b"-" }, &mut text);
                write_text(&text, out);
            }
            Self::Fixed(text) => out.extend_from_slice(text),
        }
    }

    pub(super) fn any(&self, test: &dyn Fn(&Operator) -> bool) -> bool {
        match self {
            Self::Object(members) => members.iter().any(|(_, node)| node.any(test)),
            Self::List(items) => items.iter().any(|node| node.any(test)),
            Self::Typed(operator) => test(operator),
            Self::Mixed(template) => template.any(test),
            Self::Fixed(_) => false,
        }
    }
}

fn write_typed(operator: &Operator, exchange: &dyn Exchange, out: &mut Vec<u8>) {
    if let (Ask::StartTime(format), None) = (&operator.ask, operator.most) {
        // The formats of time hold nothing that JSON would escape, but for what a user wrote between them.
        if *format == super::clock::TimeFormat::Default {
            out.push(b'"');
            format.write(exchange.started(), out);
            out.push(b'"');
            return;
        }
    }
    if matches!(operator.ask, Ask::Flags { long: false }) && exchange.flags().is_empty() {
        out.extend_from_slice(b"\"-\"");
        return;
    }
    match operator.value(exchange) {
        Value::Missing => out.extend_from_slice(b"null"),
        Value::Number(number) => write_number(number, out),
        Value::Bytes(bytes) => write_text(&bytes, out),
        Value::Json(value) => {
            // Writing to a Vec cannot fail.
            let _ = serde_json::to_writer(out, &value);
        }
    }
}

/// Writes a JSON string. Bytes that are not UTF-8 as a whole are written one by one as code points, as Envoy does.
pub(super) fn write_text(bytes: &[u8], out: &mut Vec<u8>) {
    let valid = std::str::from_utf8(bytes).is_ok();
    out.push(b'"');
    for byte in bytes {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' if valid => out.extend_from_slice(b"\\n"),
            b'\r' if valid => out.extend_from_slice(b"\\r"),
            b'\t' if valid => out.extend_from_slice(b"\\t"),
            0..0x20 => escaped(*byte, out),
            0x80.. if !valid => escaped(*byte, out),
            _ => out.push(*byte),
        }
    }
    out.push(b'"');
}

fn escaped(byte: u8, out: &mut Vec<u8>) {
    let mut text = String::new();
    let _ = write!(text, "\\u{byte:04x}");
    out.extend_from_slice(text.as_bytes());
}
