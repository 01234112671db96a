//! JSON with places. `serde_json` says whether the text is JSON at all; here it is only cut into values.

use serde::de::IgnoredAny;

use super::Fault;
use super::tree::{Key, MAX_DEPTH, Node, Value};

pub(super) fn parse(text: &str) -> Result<Node, Fault> {
    if let Err(error) = serde_json::from_str::<IgnoredAny>(text) {
        let message = error.to_string();
        // serde_json repeats the place in its words.
        let message = message.split(" at line ").next().unwrap_or(&message).to_owned();
        return Err(Fault { path: String::new(), line: error.line(), column: error.column(), message });
    }
    let mut cutter = Cutter { text, at: 0, line: 1, counted: 0, columns: 0 };
    cutter.value(0)
}

struct Cutter<'a> {
    text: &'a str,
    at: usize,
    line: usize,
    /// Up to here the characters of the line are counted: a file may be one line of megabytes.
    counted: usize,
    columns: usize,
}

impl Cutter<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while let Some(byte @ (b' ' | b'\t' | b'\r' | b'\n')) = self.peek() {
            self.at += 1;
            if byte == b'\n' {
                self.line += 1;
                self.counted = self.at;
                self.columns = 0;
            }
        }
    }

    /// Skips space and this punctuation, if it is next.
    fn take(&mut self, byte: u8) -> bool {
        self.skip_space();
        let found = self.peek() == Some(byte);
        if found {
            self.at += 1;
        }
        found
    }

    fn place(&mut self) -> (usize, usize) {
        let passed = self.text.get(self.counted..self.at).unwrap_or("");
        self.columns += passed.chars().count();
        self.counted = self.at;
        (self.line, self.columns + 1)
    }

    fn fault(&mut self, message: &str) -> Fault {
        let (line, column) = self.place();
        Fault { path: String::new(), line, column, message: message.to_owned() }
    }

    fn value(&mut self, depth: usize) -> Result<Node, Fault> {
        self.skip_space();
        if depth > MAX_DEPTH {
            return Err(self.fault("nested too deeply"));
        }
        let (line, column) = self.place();
        let value = match self.peek() {
            Some(b'{') => self.map(depth)?,
            Some(b'[') => self.list(depth)?,
            Some(b'"') => Value::Text(self.string()?),
            _ => self.word(),
        };
        Ok(Node { line, column, value })
    }

    fn map(&mut self, depth: usize) -> Result<Value, Fault> {
        self.at += 1;
        let mut entries = Vec::new();
        while !self.take(b'}') {
            self.skip_space();
            let (line, column) = self.place();
            let key = Key { line, column, name: self.string()? };
            if !self.take(b':') {
                return Err(self.fault("expected `:`"));
            }
            entries.push((key, self.value(depth + 1)?));
            self.take(b',');
        }
        Ok(Value::Map(entries))
    }

    fn list(&mut self, depth: usize) -> Result<Value, Fault> {
        self.at += 1;
        let mut items = Vec::new();
        while !self.take(b']') {
            items.push(self.value(depth + 1)?);
            self.take(b',');
        }
        Ok(Value::List(items))
    }

    fn string(&mut self) -> Result<String, Fault> {
        let rest = self.text.get(self.at..).unwrap_or("");
        let mut stream = serde_json::Deserializer::from_str(rest).into_iter::<String>();
        match stream.next() {
            Some(Ok(text)) => {
                self.at += stream.byte_offset();
                Ok(text)
            }
            _ => Err(self.fault("expected a text in quotes")),
        }
    }

    fn word(&mut self) -> Value {
        let start = self.at;
        while let Some(byte) = self.peek() {
            if matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | b',' | b']' | b'}' | b':') {
                break;
            }
            self.at += 1;
        }
        match self.text.get(start..self.at).unwrap_or("") {
            "null" => Value::Null,
            word @ ("true" | "false") => Value::Word(word.to_owned()),
            number => Value::Number(number.to_owned()),
        }
    }
}
