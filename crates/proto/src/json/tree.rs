//! A parsed text of either notation: values with their places.

/// A value and where it begins.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) line: usize,
    pub(super) column: usize,
    pub(super) value: Value,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Null,
    /// A word without quotes in YAML, or `true`, `false` or a number in JSON: what it is depends on the field.
    Word(String),
    /// A number in JSON: in a Struct it stays a number even with a fraction.
    Number(String),
    /// Text in quotes.
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A key of a map.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Key {
    pub(super) line: usize,
    pub(super) column: usize,
    pub(super) name: String,
}

/// Texts nested deeper than this are refused.
pub(super) const MAX_DEPTH: usize = 100;
/// Texts with more values than this are refused: aliases of YAML can multiply.
pub(super) const MAX_NODES: usize = 2_000_000;

impl Node {
    /// What it is, for a message to a person.
    pub(super) fn described(&self) -> String {
        match &self.value {
            Value::Null => "nothing".to_owned(),
            Value::Word(word) | Value::Number(word) => format!("`{}`", short(word)),
            Value::Text(text) => format!("the text {:?}", short(text)),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a map".to_owned(),
        }
    }
}

fn short(text: &str) -> String {
    let mut cut: String = text.chars().take(60).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    cut
}
