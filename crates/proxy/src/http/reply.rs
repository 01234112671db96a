//! Answers of the proxy's own: plain text, or a gRPC status for gRPC callers.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use engine::reply::{Flags, LocalReply, grpc_status};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use tokio::time::Instant;

use super::arrive::Head;
use super::exchange::Exchange;
use super::form::{self, Form, GRPC_STATUS};
use super::respond::DownBody;

impl Exchange {
    /// Answers with a local reply. `head` is given where the request got no further than the decision.
    pub(super) fn reply(mut self: Box<Self>, reply: LocalReply, head: Option<&Head>) -> Response<DownBody> {
        if let Some(head) = head {
            self.record.request_headers.clone_from(&head.headers);
        }
        self.record.flags = self.record.flags.with(reply.flags);
        self.record.status = Some(reply.status);
        self.record.details = Some(Arc::from(&*reply.details));
        self.record.origin = reply.origin.clone().or_else(|| self.record.origin.take());
        let mut headers = HeaderMap::with_capacity(reply.headers.len() + 6);
        for (name, value) in &reply.headers {
            headers.append(name, value.clone());
        }
        self.shape_answer(&mut headers);
        let form = match &reply.format {
            Some(format) => form::of(format, reply.status, &reply.body, &mut self.record, &mut headers),
            None => Form::plain(reply.status, reply.body.clone()),
        };
        let form = if reply.is_error { self.form(form, &mut headers) } else { form };
        if reply.is_error && self.record.grpc {
            return self.reply_grpc(&reply, form, headers);
        }
        self.sign(&mut headers);
        let ends = matches!(form.status, StatusCode::REQUEST_TIMEOUT | StatusCode::PAYLOAD_TOO_LARGE);
        if ends && !self.shared.h2 && !self.has_arrived() {
            // What is still to come of the request is not waited for.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        let bodiless = self.record.method == Some(Method::HEAD) || form.status == StatusCode::NO_CONTENT;
        if !bodiless || !form.body.is_empty() {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(form.body.len()));
        }
        let body = if bodiless { Bytes::new() } else { form.body };
        self.send_local(form.status, headers, body)
    }

    /// Brings an answer into the form that the manager wants.
    fn form(&mut self, form: Form, headers: &mut HeaderMap) -> Form {
        let shared = Rc::clone(&self.shared);
        let replies = shared.manager.local_replies.as_ref();
        if replies.is_some() {
            self.record.duration = Instant::now().duration_since(self.began);
        }
        form::write(replies, &mut self.record, &mut shared.worker.dice.borrow_mut(), form, headers)
    }

    /// Answers a request for which the process has nothing left.
    pub(super) fn shed(self: Box<Self>) -> Response<DownBody> {
        if let Some(cells) = self.shared.site.as_ref().and_then(|site| site.http.as_ref()) {
            cells.downstream_rq_overload_close.inc();
        }
        let (status, flags) = (StatusCode::SERVICE_UNAVAILABLE, Flags::OVERLOAD_MANAGER);
        self.reply(LocalReply::error(status, "envoy overloaded", "overload", flags), None)
    }

    fn reply_grpc(mut self: Box<Self>, reply: &LocalReply, form: Form, mut headers: HeaderMap) -> Response<DownBody> {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        if !headers.contains_key(GRPC_STATUS) {
            let status = reply.grpc_status.map_or_else(|| grpc_status(form.status), u32::from);
            headers.insert(GRPC_STATUS, HeaderValue::from(status));
        }
        let body: &[u8] = &form.body;
        let text = body.strip_suffix(b"\n").filter(|_| form.json).unwrap_or(body);
        if !text.is_empty() && self.record.method != Some(Method::HEAD) {
            let text = percent_encoding::percent_encode(text, GRPC_MESSAGE).to_string();
            if let Ok(value) = HeaderValue::try_from(text) {
                headers.insert(HeaderName::from_static("grpc-message"), value);
            }
        }
        let status = headers.get(GRPC_STATUS).and_then(|value| value.to_str().ok()?.parse().ok());
        self.record.grpc_status = status;
        self.sign(&mut headers);
        self.send_local(StatusCode::OK, headers, Bytes::new())
    }
}

/// What gRPC wants escaped in `grpc-message`: all but printable ASCII, and the percent sign.
const GRPC_MESSAGE: &percent_encoding::AsciiSet = &percent_encoding::CONTROLS.add(b'%');
