//! Matchers over strings, headers, metadata and paths, compiled once and used for every request.

mod header;
mod regex;
mod string;
mod template;
mod value;

pub use header::{HeaderKey, HeaderMatcher, HeaderPattern, HeaderValues, header_values};
pub use regex::{Pattern, PatternError, Substitution};
pub use string::{StringMatcher, StringPattern};
pub use template::{PathTemplate, TemplateError, TemplateRewrite};
pub use value::{MetadataMatcher, ValueMatcher};
