//! From text to [`Node`]s: the only place that knows the YAML parser.
//!
//! JSON is read by the same way, being a part of YAML. A syntax error costs its own document and no other.

use std::collections::HashMap;

use model::Position;
use serde_saphyr::granit_parser::{Event, Marker, Options, Parser, ScalarStyle, ScanError, StrInput};

use crate::node::{Entry, Node, Span, Value};

/// Deepest nesting of a document, aliases followed.
const MAX_DEPTH: usize = 200;
/// Most values that anchors and aliases of one document may copy: stops "billion laughs".
const MAX_COPIED: usize = 100_000;

/// Why a document cannot be read.
#[derive(Debug)]
pub(crate) struct Fault {
    /// What kind of fault.
    pub(crate) kind: FaultKind,
    /// One line.
    pub(crate) message: String,
    /// Where.
    pub(crate) span: Span,
    /// A second place that explains the first.
    pub(crate) other: Option<(Span, &'static str)>,
}

/// Kinds of [`Fault`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FaultKind {
    /// Not YAML.
    Syntax,
    /// A key twice in one mapping.
    DuplicateKey,
    /// Too deep, or aliases multiply beyond reason.
    TooLarge,
}

/// Reads all documents of a text. Empty documents are left out.
pub(crate) fn documents(text: &str) -> Vec<Result<Node, Fault>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut options = Options::default();
    options.set_emit_comments(false);
    let mut parser = Parser::new_from_str_with_options(text, options);
    let lines = Lines::of(text);
    let mut documents = Vec::new();
    loop {
        match document(&mut parser, &lines) {
            Ok(Some(Node { value: Value::Null, .. })) => {}
            Ok(Some(node)) => documents.push(Ok(node)),
            Ok(None) => break,
            Err(fault) => {
                documents.push(Err(fault));
                match parser.proceed_next_document() {
                    Ok(true) => {}
                    Ok(false) | Err(_) => break,
                }
            }
        }
    }
    documents
}

/// Reads the next document; `None` at the end of the text.
fn document<'t>(parser: &mut Parser<'t, StrInput<'t>>, lines: &Lines<'_>) -> Result<Option<Node>, Fault> {
    let mut tree = Tree::default();
    while let Some(next) = parser.next_event() {
        let (event, span) = next.map_err(|error| lines.syntax(&error))?;
        let at = lines.span(&span.start, &span.end);
        match event {
            Event::StreamEnd => return Ok(None),
            Event::DocumentEnd => return Ok(tree.root.or(Some(Node { value: Value::Null, span: at }))),
            Event::Scalar(text, style, anchor, tag) => {
                let quoted = style != ScalarStyle::Plain || tag.is_some_and(|tag| tag.is_yaml_core_schema_tag("str"));
                let value = if quoted { Value::Text(text.into_owned()) } else { resolve(&text) };
                tree.leaf(Node { value, span: at }, anchor)?;
            }
            Event::SequenceStart(_, anchor, _) => tree.open(Open::List(Vec::new()), at, anchor)?,
            Event::MappingStart(_, anchor, _) => tree.open(Open::Map(Mapping::default()), at, anchor)?,
            Event::SequenceEnd | Event::MappingEnd => tree.close()?,
            Event::Alias(anchor) => tree.alias(anchor, at)?,
            _ => {}
        }
    }
    Ok(None)
}

/// YAML 1.2 core schema for plain scalars.
fn resolve(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ if is_number(text) => Value::Number(text.to_owned()),
        _ => Value::Text(text.to_owned()),
    }
}

fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if let Some(hex) = digits.strip_prefix("0x") {
        return !hex.is_empty() && hex.bytes().all(|b| b.is_ascii_hexdigit());
    }
    // `f64::from_str` also takes "inf", "nan" and "infinity", which YAML writes otherwise.
    digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && digits.contains(|c: char| c.is_ascii_digit())
        && digits.parse::<f64>().is_ok()
}

/// The tree under construction.
#[derive(Default)]
struct Tree {
    open: Vec<(Open, Span, usize)>,
    root: Option<Node>,
    anchors: HashMap<usize, Node>,
    copied: usize,
}

/// A collection that is not closed yet.
enum Open {
    List(Vec<Node>),
    Map(Mapping),
}

/// A mapping that is not closed yet.
#[derive(Default)]
struct Mapping {
    entries: Vec<Entry>,
    /// A key that waits for its value.
    waiting: Option<(String, Span)>,
    seen: HashMap<String, Span>,
}

impl Tree {
    fn open(&mut self, open: Open, span: Span, anchor: usize) -> Result<(), Fault> {
        if self.open.len() >= MAX_DEPTH {
            return Err(too_large(format!("nested deeper than {MAX_DEPTH} levels"), span));
        }
        self.open.push((open, span, anchor));
        Ok(())
    }

    fn leaf(&mut self, node: Node, anchor: usize) -> Result<(), Fault> {
        if anchor != 0 {
            self.copy(measure(&node).0, node.span)?;
            self.anchors.insert(anchor, node.clone());
        }
        self.put(node)
    }

    fn alias(&mut self, anchor: usize, span: Span) -> Result<(), Fault> {
        let Some(node) = self.anchors.get(&anchor) else {
            return Err(Fault {
                kind: FaultKind::Syntax,
                message: "an alias stands inside the value it names".to_owned(),
                span,
                other: None,
            });
        };
        let (count, depth) = measure(node);
        if depth + self.open.len() > MAX_DEPTH {
            return Err(too_large(format!("nested deeper than {MAX_DEPTH} levels by an alias"), span));
        }
        let node = node.clone();
        self.copy(count, span)?;
        self.put(node)
    }

    /// Counts values that anchors and aliases copy.
    fn copy(&mut self, count: usize, span: Span) -> Result<(), Fault> {
        self.copied += count;
        match self.copied > MAX_COPIED {
            true => Err(too_large(format!("anchors and aliases copy more than {MAX_COPIED} values"), span)),
            false => Ok(()),
        }
    }

    fn close(&mut self) -> Result<(), Fault> {
        let Some((open, span, anchor)) = self.open.pop() else { return Ok(()) };
        let node = match open {
            Open::List(items) => Node { value: Value::List(items), span },
            Open::Map(Mapping { entries, .. }) => {
                // Underline the first key rather than one character.
                let span = entries.first().filter(|e| e.key_span.start == span.start).map_or(span, |e| e.key_span);
                Node { value: Value::Map(merge(entries)), span }
            }
        };
        self.leaf(node, anchor)
    }

    fn put(&mut self, node: Node) -> Result<(), Fault> {
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some((Open::List(items), ..)) => items.push(node),
            Some((Open::Map(mapping), ..)) => match mapping.waiting.take() {
                Some((key, key_span)) => mapping.entries.push(Entry { key, key_span, node }),
                None => mapping.waiting = Some(key_of(node, &mut mapping.seen)?),
            },
        }
        Ok(())
    }
}

/// Makes a key of a node and checks that the mapping has it not yet.
fn key_of(node: Node, seen: &mut HashMap<String, Span>) -> Result<(String, Span), Fault> {
    let key = match node.value {
        Value::Text(text) | Value::Number(text) => text,
        Value::Bool(value) => value.to_string(),
        Value::Null => "null".to_owned(),
        Value::List(_) | Value::Map(_) => {
            return Err(Fault {
                kind: FaultKind::Syntax,
                message: "a key must be a text, not a list or a mapping".to_owned(),
                span: node.span,
                other: None,
            });
        }
    };
    match seen.insert(key.clone(), node.span) {
        Some(first) if key != "<<" => Err(Fault {
            kind: FaultKind::DuplicateKey,
            message: format!("the key `{key}` stands twice in this mapping"),
            span: node.span,
            other: Some((first, "first here")),
        }),
        _ => Ok((key, node.span)),
    }
}

/// Puts the entries of merge keys (`<<: *defaults`) in; keys written in the mapping itself win.
fn merge(entries: Vec<Entry>) -> Vec<Entry> {
    if entries.iter().all(|entry| entry.key != "<<") {
        return entries;
    }
    let (merges, mut own): (Vec<_>, Vec<_>) = entries.into_iter().partition(|entry| entry.key == "<<");
    for source in merges {
        let maps = match source.node.value {
            Value::List(items) => items,
            _ => vec![source.node],
        };
        for map in maps {
            let Value::Map(entries) = map.value else { continue };
            for entry in entries {
                if own.iter().all(|have| have.key != entry.key) {
                    own.push(entry);
                }
            }
        }
    }
    own
}

/// Number of values in a node, and its depth.
fn measure(node: &Node) -> (usize, usize) {
    let add = |(count, depth): (usize, usize), child: &Node| {
        let (more, below) = measure(child);
        (count + more, depth.max(below + 1))
    };
    match &node.value {
        Value::List(items) => items.iter().fold((1, 1), add),
        Value::Map(entries) => entries.iter().map(|entry| &entry.node).fold((1, 1), add),
        _ => (1, 1),
    }
}

fn too_large(message: String, span: Span) -> Fault {
    Fault { kind: FaultKind::TooLarge, message, span, other: None }
}

/// The lines of the text, to know how far a span reaches on its first line.
struct Lines<'t>(Vec<&'t str>);

impl<'t> Lines<'t> {
    fn of(text: &'t str) -> Self {
        Self(text.lines().collect())
    }

    fn span(&self, start: &Marker, end: &Marker) -> Span {
        let length = if start.line() == end.line() {
            end.col().saturating_sub(start.col())
        } else {
            let line = self.0.get(start.line().saturating_sub(1)).copied().unwrap_or_default();
            line.trim_end().chars().count().saturating_sub(start.col())
        };
        Span { start: position(start), length: clamp(length).max(1) }
    }

    fn syntax(&self, error: &ScanError) -> Fault {
        Fault {
            kind: FaultKind::Syntax,
            message: error.info(),
            span: Span { start: position(error.marker()), length: 1 },
            other: None,
        }
    }
}

fn position(marker: &Marker) -> Position {
    Position { line: clamp(marker.line()).max(1), column: clamp(marker.col()).saturating_add(1) }
}

fn clamp(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
