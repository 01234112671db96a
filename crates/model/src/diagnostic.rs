//! What is wrong with an input, where, and what to write instead.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use crate::name::ObjectKey;
use crate::origin::Position;

/// A stable diagnostic code, printed `TL0107`. `tulle explain TL0107` tells more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Code(pub u16);

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TL{:04}", self.0)
    }
}

/// How bad a finding is. An object with an [`Severity::Error`] takes no effect; the others do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// Works, but probably not as meant.
    Warning,
    /// Cannot take effect.
    Error,
}

/// One underlined place of a diagnostic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Label {
    /// First character.
    pub start: Position,
    /// How many characters to underline on that line; at least 1.
    pub length: u32,
    /// What to say there; may be empty.
    pub text: String,
}

/// A finding about one input object or file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// Stable code.
    pub code: Code,
    /// How bad.
    pub severity: Severity,
    /// One line: what is wrong.
    pub message: String,
    /// The object, where it could be known.
    pub object: Option<Arc<ObjectKey>>,
    /// The field's path: `spec.http[0].route[1].weight`; empty for the whole object.
    pub field: String,
    /// The file as it was given to the program.
    pub file: Option<Arc<str>>,
    /// Places to underline; the first is the place of the finding.
    pub labels: Vec<Label>,
    /// What to write instead.
    pub help: Option<String>,
}

impl fmt::Display for Diagnostic {
    /// One line, for logs: `shop/catalog.yaml:17:19: error[TL0107]: weights add up to 110`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{file}:")?;
            if let Some(label) = self.labels.first() {
                write!(f, "{}:{}:", label.start.line, label.start.column)?;
            }
            write!(f, " ")?;
        }
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Info => "info",
        };
        write!(f, "{severity}[{}]: ", self.code)?;
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        write!(f, "{}", self.message)
    }
}
