//! YAML with places, and back.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Write;

use serde_saphyr::granit_parser::{Event, Parser, ScalarStyle, Span};

use super::Fault;
use super::tree::{Key, MAX_DEPTH, MAX_NODES, Node, Value};

pub(super) fn parse(text: &str) -> Result<Node, Fault> {
    let mut builder = Builder::default();
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let (event, span) =
            event.map_err(|error| fault(error.marker().line(), error.marker().col() + 1, error.info()))?;
        builder.event(event, span)?;
    }
    Ok(builder.root.unwrap_or(Node { line: 1, column: 1, value: Value::Null }))
}

fn fault(line: usize, column: usize, message: impl Into<String>) -> Fault {
    Fault { path: String::new(), line, column, message: message.into() }
}

/// A list or map that is being read.
struct Open {
    node: Node,
    anchor: usize,
    key: Option<Key>,
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    anchors: HashMap<usize, (Node, usize)>,
    root: Option<Node>,
    nodes: usize,
}

impl Builder {
    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), Fault> {
        let (line, column) = (span.start.line(), span.start.col() + 1);
        match event {
            Event::DocumentStart(..) if self.root.is_some() => {
                Err(fault(line, column, "a second document: one is expected"))
            }
            Event::Scalar(text, style, anchor, tag) => {
                let word = matches!(style, ScalarStyle::Plain) && tag.is_none();
                let value = if word { plain(text) } else { Value::Text(text.into_owned()) };
                self.place(Node { line, column, value }, anchor, 1)
            }
            Event::SequenceStart(_, anchor, _) => self.start(Value::List(Vec::new()), line, column, anchor),
            Event::MappingStart(_, anchor, _) => self.start(Value::Map(Vec::new()), line, column, anchor),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(done) => self.place(done.node, done.anchor, 1),
                None => Ok(()),
            },
            Event::Alias(anchor) => match self.anchors.get(&anchor).cloned() {
                Some((node, size)) => self.place(node, 0, size),
                None => Err(fault(line, column, "this alias has no anchor before it")),
            },
            _ => Ok(()),
        }
    }

    fn start(&mut self, value: Value, line: usize, column: usize, anchor: usize) -> Result<(), Fault> {
        if self.open.len() >= MAX_DEPTH {
            return Err(fault(line, column, "nested too deeply"));
        }
        self.open.push(Open { node: Node { line, column, value }, anchor, key: None });
        Ok(())
    }

    /// Puts a finished value where it belongs. `size`: how many values it adds.
    fn place(&mut self, node: Node, anchor: usize, size: usize) -> Result<(), Fault> {
        self.nodes = self.nodes.saturating_add(size);
        let (line, column) = (node.line, node.column);
        if self.nodes > MAX_NODES {
            return Err(fault(line, column, "too many values"));
        }
        if anchor > 0 {
            self.anchors.insert(anchor, (node.clone(), count(&node)));
        }
        let Some(parent) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match (&mut parent.node.value, parent.key.take()) {
            (Value::List(items), _) => items.push(node),
            (Value::Map(entries), Some(key)) if key.name == "<<" => merge(entries, node)?,
            (Value::Map(entries), Some(key)) => entries.push((key, node)),
            (_, _) => {
                let (Value::Word(name) | Value::Text(name) | Value::Number(name)) = node.value else {
                    return Err(fault(line, column, "a key must be a word"));
                };
                parent.key = Some(Key { line, column, name });
            }
        }
        Ok(())
    }
}

/// `<<: *base` adds the entries of another map that this one does not have.
fn merge(entries: &mut Vec<(Key, Node)>, node: Node) -> Result<(), Fault> {
    let (line, column) = (node.line, node.column);
    let maps = match node.value {
        Value::Map(map) => vec![map],
        Value::List(items) => items
            .into_iter()
            .filter_map(|item| match item.value {
                Value::Map(map) => Some(map),
                _ => None,
            })
            .collect(),
        _ => return Err(fault(line, column, "`<<` takes a map")),
    };
    for (key, value) in maps.into_iter().flatten() {
        if !entries.iter().any(|(known, _)| known.name == key.name) {
            entries.push((key, value));
        }
    }
    Ok(())
}

fn count(node: &Node) -> usize {
    1 + match &node.value {
        Value::List(items) => items.iter().map(count).sum(),
        Value::Map(entries) => entries.iter().map(|(_, value)| count(value)).sum(),
        _ => 0,
    }
}

fn plain(text: Cow<'_, str>) -> Value {
    match text.as_ref() {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        _ => Value::Word(text.into_owned()),
    }
}

/// A key of 1024 characters or more must say that it is one (YAML 1.2 section 7.4.2).
const LONG_KEY: usize = 1000;

/// Writes a JSON value in YAML's block notation, so that [`parse`] reads the same value.
pub(super) fn print(value: &serde_json::Value) -> String {
    let mut out = String::new();
    block(&mut out, value, 0);
    if !out.ends_with('\n') {
        out.push('\n');
    }
    out
}

/// `value` at an indent, beginning on the current line.
fn block(out: &mut String, value: &serde_json::Value, indent: usize) {
    match value {
        serde_json::Value::Object(map) if !map.is_empty() => {
            for (at, (key, value)) in map.iter().enumerate() {
                if at > 0 {
                    let _ = write!(out, "{:indent$}", "");
                }
                let key = scalar(key);
                if key.len() > LONG_KEY {
                    let _ = write!(out, "? {key}\n{:indent$}:", "");
                } else {
                    let _ = write!(out, "{key}:");
                }
                entry(out, value, indent);
            }
        }
        serde_json::Value::Array(items) if !items.is_empty() => {
            for (at, value) in items.iter().enumerate() {
                if at > 0 {
                    let _ = write!(out, "{:indent$}", "");
                }
                out.push_str("- ");
                block(out, value, indent + 2);
            }
        }
        flat => {
            let _ = writeln!(out, "{}", word(flat));
        }
    }
}

/// What follows `key:`.
fn entry(out: &mut String, value: &serde_json::Value, indent: usize) {
    match value {
        serde_json::Value::Object(map) if !map.is_empty() => {
            let _ = write!(out, "\n{:1$}", "", indent + 2);
            block(out, value, indent + 2);
        }
        serde_json::Value::Array(items) if !items.is_empty() => {
            let _ = write!(out, "\n{:indent$}", "");
            block(out, value, indent);
        }
        _ => {
            out.push(' ');
            block(out, value, indent);
        }
    }
}

fn word(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => scalar(text),
        other => other.to_string(),
    }
}

/// A text in quotes unless it is certainly no number, boolean, null or syntax.
fn scalar(text: &str) -> String {
    let safe = text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '/')
        && text.chars().all(|letter| letter.is_ascii_alphanumeric() || "_-./".contains(letter))
        && !matches!(
            text.to_ascii_lowercase().as_str(),
            "true" | "false" | "yes" | "no" | "on" | "off" | "y" | "n" | "null"
        );
    if safe { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}
