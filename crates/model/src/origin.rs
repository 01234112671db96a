//! Where a piece of configuration came from: it rides along from the user's file to every denial and metric.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use crate::name::ObjectKey;

/// A place in a text; line and column count from 1, columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Position {
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

/// Which rule of which object, and the line of the file that says it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Origin {
    /// The object.
    pub object: Arc<ObjectKey>,
    /// The rule inside the object, as a field path (`http[0]`, `rules[1]`); empty for the whole object.
    pub rule: String,
    /// The file as it was given to the program, or a store's name (`redb`); `None` for what the mesh made itself.
    pub file: Option<Arc<str>>,
    /// The rule's first line and column in that file.
    pub at: Option<Position>,
}

impl fmt::Display for Origin {
    /// `AuthorizationPolicy shop/payments rules[1] (intents.yaml:21)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.object)?;
        if !self.rule.is_empty() {
            write!(f, " {}", self.rule)?;
        }
        match (&self.file, self.at) {
            (Some(file), Some(at)) => write!(f, " ({file}:{})", at.line),
            (Some(file), None) => write!(f, " ({file})"),
            _ => Ok(()),
        }
    }
}
