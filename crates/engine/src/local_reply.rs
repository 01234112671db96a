//! Answers of the proxy's own in the form that the manager wants (`local_reply_config`).

use bytes::Bytes;
use http::{HeaderValue, StatusCode};

use crate::access_log::LogFilter;
use crate::format::{JsonTemplate, Template};
use crate::routes::HeaderAddition;

/// Changes to local replies (`envoy...http_connection_manager.v3.LocalReplyConfig`).
#[derive(Debug, Clone)]
pub struct LocalReplies {
    /// The first whose filter takes the answer changes it.
    pub mappers: Vec<Mapper>,
    /// The form of every body whose mapper has none of its own; `None`: plain text as it is.
    pub format: Option<BodyFormat>,
}

/// What happens to answers of one kind.
#[derive(Debug, Clone)]
pub struct Mapper {
    /// Which answers; it is asked as one of an access log's is.
    pub filter: LogFilter,
    /// The status in place of the answer's own.
    pub status: Option<StatusCode>,
    /// The body in place of the answer's own.
    pub body: Option<Bytes>,
    /// The form of the body.
    pub format: Option<BodyFormat>,
    /// Headers to add.
    pub headers: Vec<HeaderAddition>,
}

/// The form of a body, in which `%LOCAL_REPLY_BODY%` is the body that there was.
#[derive(Debug, Clone, PartialEq)]
pub struct BodyFormat {
    /// The text.
    pub template: BodyTemplate,
    /// Default `text/plain`, `application/json` for JSON.
    pub content_type: HeaderValue,
}

/// The text of a body.
#[derive(Debug, Clone, PartialEq)]
pub enum BodyTemplate {
    /// Text, and what stands for a value that is absent: `-`, or nothing where those are to be left out.
    Text(Template, &'static str),
    /// A JSON object and a line feed.
    Json(JsonTemplate),
}
