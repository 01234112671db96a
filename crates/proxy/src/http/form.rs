//! The form of the proxy's own answers, as the manager's `local_reply_config` wants it. Envoy asks and writes in the same order
//! (`source/common/local_reply/local_reply.cc`, `Utility::prepareLocalReply`).

use bytes::Bytes;
use engine::Dice;
use engine::local_reply::{BodyFormat, LocalReplies};
use engine::shape;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{HeaderName, StatusCode};

use crate::report::line;
use crate::report::record::Record;

/// Headers without which gRPC callers get their status.
pub(super) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain");

/// What an answer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Form {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
    /// The body is JSON, with a line feed behind it.
    pub(super) json: bool,
}

/// Brings an answer into its form. Its headers get those of the mapper, and the type of its body. The record has all that filters
/// and formats read but the answer itself.
pub(super) fn write(
    replies: Option<&LocalReplies>,
    record: &mut Record,
    dice: &mut Dice,
    mut form: Form,
    headers: &mut HeaderMap,
) -> Form {
    let (given, before) = (headers.get(CONTENT_TYPE).cloned(), form.body.clone());
    let mut content_type = TEXT;
    if let Some(replies) = replies {
        let format = change(replies, record, dice, &mut form, headers);
        if let Some(format) = format {
            form.fill(format, record);
            content_type = format.content_type.clone();
        }
        // What logs want of it is noted when it is sent.
        record.response_headers.clear();
    }
    let named = headers.get(CONTENT_TYPE);
    if form.body.is_empty() {
        headers.remove(CONTENT_TYPE);
    } else if named.is_none() || (named == given.as_ref() && form.body != before) {
        headers.insert(CONTENT_TYPE, content_type);
    }
    form
}

/// Applies the first mapper that takes the answer; gives the format of the body.
fn change<'r>(
    replies: &'r LocalReplies,
    record: &mut Record,
    dice: &mut Dice,
    form: &mut Form,
    headers: &mut HeaderMap,
) -> Option<&'r BodyFormat> {
    record.status = Some(form.status);
    record.response_headers.clone_from(headers);
    let Some(mapper) = replies.mappers.iter().find(|mapper| line::takes(&mapper.filter, record, dice)) else {
        return replies.format.as_ref();
    };
    if let Some(body) = &mapper.body {
        form.body = body.clone();
    }
    for addition in &mapper.headers {
        shape::add(addition, &*record, headers);
    }
    form.status = mapper.status.unwrap_or(form.status);
    record.status = Some(form.status);
    record.response_headers.clone_from(headers);
    mapper.format.as_ref().or(replies.format.as_ref())
}

/// An answer whose body has a form of its own. It is written before the answer has a status, as in Envoy.
pub(super) fn of(
    format: &BodyFormat,
    status: StatusCode,
    body: &Bytes,
    record: &mut Record,
    headers: &mut HeaderMap,
) -> Form {
    let mut form = Form::plain(status, body.clone());
    let status = record.status.take();
    form.fill(format, record);
    record.status = status;
    headers.insert(CONTENT_TYPE, format.content_type.clone());
    form
}

impl Form {
    /// Writes the body anew.
    fn fill(&mut self, format: &BodyFormat, record: &mut Record) {
        record.local_body = Some(String::from_utf8_lossy(&self.body).into());
        self.body = line::body(&format.template, record).into();
        self.json = format.content_type == "application/json";
        record.local_body = None;
    }

    /// As the proxy words it.
    pub(super) fn plain(status: StatusCode, body: Bytes) -> Self {
        Self { status, body, json: false }
    }
}
