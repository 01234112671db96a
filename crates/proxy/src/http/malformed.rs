//! Requests that are none: what the codec refuses, and heads that do not come in time. They are answered, counted and logged like
//! any other.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use engine::facts::Protocol;
use engine::framing::Fault;
use engine::reply::Flags;
use http::{HeaderMap, StatusCode};
use tokio::time::Instant;

use super::form::{self, Form};
use super::respond::server_and_via;
use super::serve::HttpConnection;
use crate::net::frames::Flood;
use crate::report::record::{Kind, Record};

/// Why there is no request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unread {
    status: StatusCode,
    flags: Flags,
    details: &'static str,
    text: &'static str,
}

impl From<Fault> for Unread {
    fn from(fault: Fault) -> Self {
        let status = fault.status();
        let text = status.canonical_reason().unwrap_or_default();
        Self { status, flags: Flags::DOWNSTREAM_PROTOCOL_ERROR, details: fault.details(), text }
    }
}

impl Unread {
    /// The head was under way for longer than a head may be (`request_headers_timeout`).
    pub const LATE_HEAD: Self = Self::late("request_header_timeout", "request header timeout", Flags::NONE);
    /// Than a request may be (`request_timeout`).
    pub const LATE_REQUEST: Self = Self::late("request_overall_timeout", "request timeout", Flags::NONE);
    /// Than an exchange may stand still (`stream_idle_timeout`).
    pub const IDLE: Self = Self::late("stream_idle_timeout", "stream timeout", Flags::STREAM_IDLE_TIMEOUT);

    const fn late(details: &'static str, text: &'static str, flags: Flags) -> Self {
        Self { status: StatusCode::REQUEST_TIMEOUT, flags, details, text }
    }

    /// Reports it and gives the answer. Nothing is known of the request but the connection that it was to come on, and when it
    /// began.
    pub fn answer(self, shared: &HttpConnection, began: Instant) -> (StatusCode, HeaderMap, Bytes) {
        let mut record = record(shared, self.flags, self.details, began);
        let mut headers = HeaderMap::new();
        let form = Form::plain(self.status, Bytes::from_static(self.text.as_bytes()));
        let replies = shared.manager.local_replies.as_ref();
        let form = form::write(replies, &mut record, &mut shared.worker.dice.borrow_mut(), form, &mut headers);
        server_and_via(&shared.manager, &mut headers);
        record.status = Some(form.status);
        record.bytes_sent = form.body.len() as u64;
        finish(shared, &record);
        (form.status, headers, form.body)
    }
}

/// Reports an HTTP/2 connection that was ended because of what its client sent. Nothing was answered.
pub fn report_h2(shared: &HttpConnection, error: &h2::Error) {
    if let Some(details) = fault_of(error) {
        finish(shared, &record(shared, Flags::DOWNSTREAM_PROTOCOL_ERROR, &details, Instant::now()));
    }
}

fn record(shared: &HttpConnection, flags: Flags, details: &str, began: Instant) -> Record {
    let mut record = Record::begin(Kind::Http, &shared.downstream, SystemTime::now(), began.into_std());
    record.protocol = Some(if shared.h2 { Protocol::Http2 } else { Protocol::Http11 });
    record.remote = Some(shared.downstream.facts.remote.ip());
    record.flags = flags;
    record.details = Some(Arc::from(details));
    record.duration = began.elapsed();
    record.complete = true;
    record
}

fn finish(shared: &HttpConnection, record: &Record) {
    if record.flags.has(Flags::DOWNSTREAM_PROTOCOL_ERROR)
        && let Some(cells) = shared.site.as_ref().and_then(|site| site.http.as_ref())
    {
        cells.downstream_cx_protocol_error.inc();
    }
    shared.worker.tally.finish(&shared.worker.shared.plan.load(), record);
}

/// What a client did to have its connection ended; `None`: it did nothing wrong, or went away.
fn fault_of(error: &h2::Error) -> Option<String> {
    if error.is_library() {
        return error.reason().map(|reason| format!("http2.codec_error{{{reason:?}}}"));
    }
    // h2 keeps of an error below it what it says.
    let flood = error.get_io().is_some_and(|error| error.to_string() == Flood.to_string());
    flood.then(|| "http2.inbound_control_frames_flood".to_owned())
}
