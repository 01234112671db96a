//! Reading typed values out of [`Node`]s, reporting on the way whatever does not fit.
//!
//! A reader that finds a fault reports it and returns a harmless value: the object takes no effect
//! anyway once its report holds an error, and the rest of it is still checked.

use std::cell::RefCell;

use model::{Code, Labels, Origin, Severity};

use crate::codes;
use crate::node::{Entry, Node, Span, Value};
use crate::report::{Finding, Report};

/// A value, where it stands, and what it is called.
#[derive(Clone)]
pub(crate) struct Field<'a> {
    /// The value.
    pub(crate) node: &'a Node,
    /// `spec.http[0].timeout`.
    pub(crate) path: String,
    /// The key it stands under; for items of a list none.
    key: Option<&'a Entry>,
    report: &'a Report,
}

impl<'a> Field<'a> {
    /// The root of a document.
    pub(crate) fn root(node: &'a Node, report: &'a Report) -> Self {
        Self { node, path: String::new(), key: None, report }
    }

    /// What to underline: a simple value itself, a collection by its key.
    pub(crate) fn span(&self) -> Span {
        match (&self.node.value, self.key) {
            (Value::Map(_) | Value::List(_) | Value::Null, Some(entry)) => entry.key_span,
            _ => self.node.span,
        }
    }

    /// The place of the key, or of the value where there is no key.
    pub(crate) fn key_span(&self) -> Span {
        self.key.map_or(self.node.span, |entry| entry.key_span)
    }

    /// The key it stands under, empty for an item of a list.
    pub(crate) fn key(&self) -> &'a str {
        self.key.map_or("", |entry| entry.key.as_str())
    }

    /// A field that stands for one which is not given.
    pub(crate) fn instead<'n>(&self, node: &'n Node, path: &str) -> Field<'n>
    where
        'a: 'n,
    {
        Field { node, path: path.to_owned(), key: None, report: self.report }
    }

    /// Reports an error at this field.
    pub(crate) fn error(&self, code: Code, message: impl Into<String>) -> Finding<'a> {
        self.report.add(Severity::Error, code, &self.path, self.span(), message.into())
    }

    /// Reports a warning at this field.
    pub(crate) fn warn(&self, code: Code, message: impl Into<String>) -> Finding<'a> {
        self.report.add(Severity::Warning, code, &self.path, self.span(), message.into())
    }

    /// Reports something worth knowing at this field.
    pub(crate) fn note(&self, code: Code, message: impl Into<String>) -> Finding<'a> {
        self.report.add(Severity::Info, code, &self.path, self.span(), message.into())
    }

    /// Reports a warning at another place that belongs to this field.
    pub(crate) fn warn_at(&self, span: Span, code: Code, message: impl Into<String>) -> Finding<'a> {
        self.report.add(Severity::Warning, code, &self.path, span, message.into())
    }

    /// Reports an error at this field's key.
    pub(crate) fn error_at_key(&self, code: Code, message: impl Into<String>) -> Finding<'a> {
        self.report.add(Severity::Error, code, &self.path, self.key_span(), message.into())
    }

    /// Where this rule was declared; the rule's name is its path below `spec`.
    pub(crate) fn origin(&self) -> Origin {
        let rule = self.path.strip_prefix("spec.").unwrap_or(if self.path == "spec" { "" } else { &self.path });
        self.report.origin(rule.to_owned(), self.span())
    }

    fn wrong_type(&self, wanted: &str) -> Finding<'a> {
        self.error(codes::WRONG_TYPE, format!("expected {wanted}, found {}", self.node.value.describe()))
    }

    /// A mapping with known keys. Reports anything else, and at its end every key nobody asked for.
    pub(crate) fn object(&self) -> Object<'a> {
        let entries: &'a [Entry] = match &self.node.value {
            Value::Map(entries) => entries,
            Value::Null => &[],
            _ => {
                self.wrong_type("a mapping");
                &[]
            }
        };
        Object { field: self.clone(), entries, asked: RefCell::new(Vec::new()) }
    }

    /// A mapping with free keys.
    pub(crate) fn pairs(&self) -> Vec<Self> {
        match &self.node.value {
            Value::Map(entries) => entries.iter().map(|entry| self.child(entry)).collect(),
            Value::Null => Vec::new(),
            _ => {
                self.wrong_type("a mapping");
                Vec::new()
            }
        }
    }

    /// The items of a list.
    pub(crate) fn items(&self) -> Vec<Self> {
        match &self.node.value {
            Value::List(items) => items
                .iter()
                .enumerate()
                .map(|(index, node)| Self {
                    node,
                    path: format!("{}[{index}]", self.path),
                    key: None,
                    report: self.report,
                })
                .collect(),
            Value::Null => Vec::new(),
            _ => {
                self.wrong_type("a list").help("begin each item with `- ` on a line of its own");
                Vec::new()
            }
        }
    }

    /// A text.
    pub(crate) fn text(&self) -> String {
        self.text_ref().unwrap_or_default().to_owned()
    }

    fn text_ref(&self) -> Option<&'a str> {
        match &self.node.value {
            Value::Text(text) => Some(text),
            Value::Number(number) => {
                self.wrong_type("a text").help(format!("put it in quotes: \"{number}\""));
                None
            }
            Value::Bool(value) => {
                self.wrong_type("a text").help(format!("put it in quotes: \"{value}\""));
                None
            }
            _ => {
                self.wrong_type("a text");
                None
            }
        }
    }

    /// A text that is not empty.
    pub(crate) fn filled(&self) -> String {
        let text = self.text_ref();
        if text == Some("") {
            self.error(codes::EMPTY, format!("`{}` must not be empty", self.name()));
        }
        text.unwrap_or_default().to_owned()
    }

    /// The last part of the path, for messages.
    pub(crate) fn name(&self) -> &str {
        self.path.rsplit('.').next().unwrap_or_default()
    }

    /// A list of texts.
    pub(crate) fn texts(&self) -> Vec<String> {
        self.items().iter().map(Field::text).collect()
    }

    /// A list of texts none of which is empty.
    pub(crate) fn filled_texts(&self) -> Vec<String> {
        self.items().iter().map(Field::filled).collect()
    }

    /// A mapping from text to text.
    pub(crate) fn text_map(&self) -> Vec<(String, String)> {
        self.pairs().iter().map(|field| (field.key().to_owned(), field.text())).collect()
    }

    /// Labels, checked.
    pub(crate) fn labels(&self) -> Labels {
        self.pairs()
            .iter()
            .map(|field| {
                let value = field.text();
                if let Err(fault) = crate::names::label_key(field.key()) {
                    field.error_at_key(codes::LABEL, format!("label key `{}` {fault}", field.key()));
                }
                if let Err(fault) = crate::names::label_value(&value) {
                    field.error(codes::LABEL, format!("label value `{value}` {fault}"));
                }
                (field.key().to_owned(), value)
            })
            .collect()
    }

    /// `true` or `false`.
    pub(crate) fn boolean(&self) -> bool {
        match &self.node.value {
            Value::Bool(value) => *value,
            Value::Text(text) => {
                let yes = ["true", "yes", "on"].contains(&text.to_ascii_lowercase().as_str());
                self.wrong_type("a boolean").help(format!("write {yes} without quotes"));
                yes
            }
            _ => {
                self.wrong_type("a boolean").help("write true or false");
                false
            }
        }
    }

    /// A whole number within bounds.
    pub(crate) fn integer(&self, low: i64, high: i64) -> i64 {
        let Some(number) = self.number_text("a whole number").and_then(parse_integer) else {
            if matches!(self.node.value, Value::Number(_)) {
                self.error(codes::WRONG_TYPE, "expected a whole number");
            }
            return low;
        };
        if number < low || number > high {
            let bounds =
                if high >= i64::from(u32::MAX) { format!("at least {low}") } else { format!("{low} to {high}") };
            self.error(codes::RANGE, format!("`{}` is {number}, but must be {bounds}", self.name()));
        }
        number.clamp(low, high)
    }

    /// A number of things: 0 to 2147483647.
    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.integer(0, i64::from(i32::MAX))).unwrap_or_default()
    }

    /// A TCP port.
    pub(crate) fn port(&self) -> u16 {
        u16::try_from(self.integer(1, 65535)).unwrap_or_default()
    }

    /// A number within bounds.
    pub(crate) fn decimal(&self, low: f64, high: f64) -> f64 {
        let Some(number) = self.number_text("a number").and_then(|text| text.parse::<f64>().ok()) else { return low };
        if !(low..=high).contains(&number) {
            let bounds = if high == f64::MAX { format!("at least {low}") } else { format!("{low} to {high}") };
            self.error(codes::RANGE, format!("`{}` is {number}, but must be {bounds}", self.name()));
        }
        number.clamp(low, high)
    }

    fn number_text(&self, wanted: &str) -> Option<&'a str> {
        match &self.node.value {
            Value::Number(text) => Some(text),
            Value::Text(text) if text.parse::<f64>().is_ok() => {
                self.wrong_type(wanted).help(format!("write {text} without quotes"));
                None
            }
            _ => {
                self.wrong_type(wanted);
                None
            }
        }
    }

    /// One of some words.
    pub(crate) fn word<T: Copy>(&self, words: &[(&'static str, T)]) -> Option<T> {
        let text = self.text_ref()?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return Some(*value);
        }
        let all = words.iter().map(|(word, _)| *word).collect::<Vec<_>>();
        let finding = self.error(codes::ENUM, format!("`{text}` is none of {}", all.join(", ")));
        if let Some(near) = crate::names::nearest(text, all.iter().copied()) {
            finding.help(format!("did you mean {near}?"));
        }
        None
    }

    fn child(&self, entry: &'a Entry) -> Self {
        let simple = entry.key.chars().all(|c| c.is_ascii_alphanumeric() || "-_/".contains(c));
        let path = match (self.path.is_empty(), simple) {
            (true, _) => entry.key.clone(),
            (false, true) => format!("{}.{}", self.path, entry.key),
            (false, false) => format!("{}[{}]", self.path, entry.key),
        };
        Self { node: &entry.node, path, key: Some(entry), report: self.report }
    }
}

/// Decimal, or hexadecimal with `0x`.
fn parse_integer(text: &str) -> Option<i64> {
    let text = text.strip_prefix('+').unwrap_or(text);
    match text.strip_prefix("0x") {
        Some(hex) => i64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

/// A mapping with known keys. When it goes out of scope it reports the keys that nobody asked for, so no
/// reader can forget to.
pub(crate) struct Object<'a> {
    /// The mapping itself.
    pub(crate) field: Field<'a>,
    entries: &'a [Entry],
    asked: RefCell<Vec<&'static str>>,
}

impl<'a> Object<'a> {
    /// The field of a name, where it is given and not null.
    pub(crate) fn get(&self, name: &'static str) -> Option<Field<'a>> {
        self.get_even_null(name).filter(|field| !matches!(field.node.value, Value::Null))
    }

    /// The field of a name, where it is given, even as null or `{}`.
    pub(crate) fn get_even_null(&self, name: &'static str) -> Option<Field<'a>> {
        self.asked.borrow_mut().push(name);
        let entry = self.entries.iter().find(|entry| entry.key == name)?;
        Some(self.field.child(entry))
    }

    /// The field of a name; reports its absence.
    pub(crate) fn need(&self, name: &'static str) -> Option<Field<'a>> {
        let field = self.get(name);
        if field.is_none() {
            self.missing(name);
        }
        field
    }

    /// Reports that a field is missing.
    pub(crate) fn missing(&self, name: &'static str) -> Finding<'a> {
        let path = if self.field.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.field.path) };
        self.field.report.add(
            Severity::Error,
            codes::MISSING,
            &path,
            self.field.span(),
            format!("`{path}` is missing, and is required"),
        )
    }

    /// Whether nothing is given.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Of some fields, those given.
    pub(crate) fn given(&self, names: &[&'static str]) -> Vec<Field<'a>> {
        names.iter().filter_map(|name| self.get(name)).collect()
    }

    /// Reports an error if more than one of some fields is given.
    pub(crate) fn at_most_one(&self, names: &[&'static str]) {
        let given = self.given(names);
        if let [first, second, ..] = given.as_slice() {
            second
                .error_at_key(
                    codes::EXCLUSIVE,
                    format!("`{}` and `{}` exclude each other", first.name(), second.name()),
                )
                .also(first.key_span(), "given here as well");
        }
    }

    /// Refuses a field that has a meaning which is not supported.
    pub(crate) fn refuse(&self, name: &'static str, what: &str) {
        if let Some(field) = self.get(name) {
            field
                .error_at_key(codes::UNSUPPORTED_FIELD, format!("`{}` is not supported yet: {what}", field.name()))
                .help("the object takes no effect as long as the field is there");
        }
    }

    /// Knows a field that has no effect here.
    pub(crate) fn ignore(&self, names: &[&'static str]) {
        self.asked.borrow_mut().extend_from_slice(names);
    }

    /// Ends the reading of a mapping whose other keys do not matter.
    pub(crate) fn ignore_rest(mut self) {
        self.entries = &[];
    }
}

impl Drop for Object<'_> {
    fn drop(&mut self) {
        let asked = self.asked.borrow();
        // Looking for the words that were meant is dear: a mapping of a thousand unknown keys is of another kind.
        let unknown = self.entries.iter().filter(|entry| !asked.contains(&entry.key.as_str()));
        for entry in unknown.take(20) {
            let field = self.field.child(entry);
            let finding = field.error_at_key(codes::UNKNOWN_FIELD, format!("unknown field `{}`", entry.key));
            if let Some(near) = crate::names::nearest(&entry.key, asked.iter().copied()) {
                finding.help(format!("did you mean `{near}`?"));
            } else if !asked.is_empty() && asked.len() <= 16 {
                finding.help(format!("known here: {}", asked.join(", ")));
            }
        }
    }
}
