//! Where in a message a walk stands.

use std::fmt;

use crate::schema::FieldType;
use crate::wire::Value;

/// The fields from the resource down; written out only when something is found.
#[derive(Default)]
pub(super) struct Path<'a> {
    steps: Vec<Step<'a>>,
}

/// One field on the way down.
pub(super) enum Step<'a> {
    Field(FieldType),
    Index(FieldType, usize),
    Key(FieldType, Value<'a>),
    /// A field that no table has.
    Number(u32),
}

impl<'a> Path<'a> {
    pub(super) fn push(&mut self, step: Step<'a>) {
        self.steps.push(step);
    }

    pub(super) fn pop(&mut self) {
        self.steps.pop();
    }

    pub(super) fn depth(&self) -> usize {
        self.steps.len()
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, step) in self.steps.iter().enumerate() {
            if at > 0 {
                f.write_str(".")?;
            }
            match step {
                Step::Field(field) => f.write_str(field.name())?,
                Step::Index(field, index) => write!(f, "{}[{index}]", field.name())?,
                Step::Key(field, Value::Bytes(key)) => {
                    let key: String = String::from_utf8_lossy(key).chars().take(200).collect();
                    write!(f, "{}[{key:?}]", field.name())?;
                }
                Step::Key(field, Value::Varint(key)) => write!(f, "{}[{key}]", field.name())?,
                Step::Key(field, _) => f.write_str(field.name())?,
                Step::Number(number) => write!(f, "#{number}")?,
            }
        }
        Ok(())
    }
}
