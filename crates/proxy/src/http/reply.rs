//! Answers of the proxy's own: plain text, or a gRPC status for gRPC callers.

use std::sync::Arc;

use bytes::Bytes;
use engine::reply::{Flags, LocalReply, grpc_status};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};

use super::arrive::Head;
use super::exchange::Exchange;
use super::respond::DownBody;

impl Exchange {
    /// Answers with a local reply. `head` is given where the request got no further than the decision.
    pub(super) fn reply(mut self: Box<Self>, reply: LocalReply, head: Option<&Head>) -> Response<DownBody> {
        if let Some(head) = head {
            self.record.request_headers.clone_from(&head.headers);
        }
        self.record.flags = self.record.flags.with(reply.flags);
        self.record.details = Some(Arc::from(&*reply.details));
        self.record.origin = reply.origin.clone().or_else(|| self.record.origin.take());
        let mut headers = HeaderMap::with_capacity(reply.headers.len() + 6);
        for (name, value) in &reply.headers {
            headers.append(name, value.clone());
        }
        self.decorate(&mut headers, false);
        if reply.is_error && self.record.grpc {
            return self.reply_grpc(&reply, headers);
        }
        let body = reply.body;
        if !body.is_empty() && !headers.contains_key(header::CONTENT_TYPE) {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        }
        let bodiless = self.record.method == Some(Method::HEAD) || reply.status == StatusCode::NO_CONTENT;
        if !bodiless || !body.is_empty() {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        }
        let body = if bodiless { Bytes::new() } else { body };
        self.send_local(reply.status, headers, body)
    }

    /// Answers a request for which the process has nothing left.
    pub(super) fn shed(self: Box<Self>) -> Response<DownBody> {
        if let Some(cells) = self.shared.site.as_ref().and_then(|site| site.http.as_ref()) {
            cells.downstream_rq_overload_close.inc();
        }
        let (status, flags) = (StatusCode::SERVICE_UNAVAILABLE, Flags::OVERLOAD_MANAGER);
        self.reply(LocalReply::error(status, "envoy overloaded", "overload", flags), None)
    }

    fn reply_grpc(mut self: Box<Self>, reply: &LocalReply, mut headers: HeaderMap) -> Response<DownBody> {
        let status = reply.grpc_status.unwrap_or_else(|| grpc_status(reply.status));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(HeaderName::from_static("grpc-status"), HeaderValue::from(status));
        if !reply.body.is_empty() {
            let text = percent_encoding::percent_encode(&reply.body, GRPC_MESSAGE).to_string();
            if let Ok(value) = HeaderValue::try_from(text) {
                headers.insert(HeaderName::from_static("grpc-message"), value);
            }
        }
        self.record.grpc_status = u16::try_from(status).ok();
        self.send_local(StatusCode::OK, headers, Bytes::new())
    }
}

/// What gRPC wants escaped in `grpc-message`: all but printable ASCII, and the percent sign.
const GRPC_MESSAGE: &percent_encoding::AsciiSet = &percent_encoding::CONTROLS.add(b'%');
