//! Access logs as configured: where to, in which format, for which requests. Rendering and writing are `telemetry`'s.

use std::path::Path;
use std::sync::Arc;

use crate::dice::Fraction;
use crate::format::{JsonTemplate, Template};
use crate::matcher::{HeaderMatcher, MetadataMatcher};

/// One access log.
#[derive(Debug, Clone, PartialEq)]
pub struct AccessLog {
    /// Where lines go.
    pub sink: LogSink,
    /// What a line says.
    pub format: LogFormat,
    /// Which requests are written; `None`: all.
    pub filter: Option<LogFilter>,
}

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LogSink {
    /// A file, created if absent and reopened on request.
    File(Arc<Path>),
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What a line says.
#[derive(Debug, Clone, PartialEq)]
pub enum LogFormat {
    /// Envoy's own default text line.
    Default,
    /// Text; a line feed only where the template has one.
    Text(Template),
    /// One JSON object per line.
    Json(JsonTemplate),
}

/// Which requests are written.
#[derive(Debug, Clone, PartialEq)]
pub enum LogFilter {
    /// By response status (0 if there was none).
    Status(Comparison),
    /// By duration in milliseconds.
    Duration(Comparison),
    /// Not for requests that a health-check filter answered.
    NotHealthCheck,
    /// Only requests that somebody forced to be traced.
    Traceable,
    /// A share of them.
    Sample(Fraction),
    /// All must hold.
    And(Vec<Self>),
    /// One must hold.
    Or(Vec<Self>),
    /// By a request header.
    Header(HeaderMatcher),
    /// Any of these response flags, by Envoy's letters; empty: any flag at all.
    Flags(Vec<Arc<str>>),
    /// By gRPC status.
    GrpcStatus {
        /// Codes.
        codes: Vec<u32>,
        /// The result is turned round.
        exclude: bool,
    },
    /// By dynamic metadata.
    Metadata {
        /// The rule.
        matcher: MetadataMatcher,
        /// What absence means. Default true.
        if_missing: bool,
    },
}

/// A comparison with a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Comparison {
    /// How.
    pub op: ComparisonOp,
    /// With what.
    pub value: u32,
}

/// Ways to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ComparisonOp {
    /// =
    Equal,
    /// >=
    AtLeast,
    /// <=
    AtMost,
    /// !=
    NotEqual,
}

impl Comparison {
    /// Whether `value` compares so.
    #[must_use]
    pub const fn holds(&self, value: u64) -> bool {
        let bound = self.value as u64;
        match self.op {
            ComparisonOp::Equal => value == bound,
            ComparisonOp::AtLeast => value >= bound,
            ComparisonOp::AtMost => value <= bound,
            ComparisonOp::NotEqual => value != bound,
        }
    }
}
