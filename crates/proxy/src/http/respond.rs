//! The answer on its way to the client: its head shaped, its body counted and kept within the exchange's limits.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use engine::http_manager::{HttpManager, ServerHeader};
use engine::reply::Flags;
use engine::shape;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use super::arrive::X_REQUEST_ID;
use super::attempt::{Answer, Clock};
use super::body::{BodyError, Incoming};
use super::exchange::{Exchange, millis, number};
use super::seen::Seen;
use super::tunnel::{self, Side};
use crate::report::record::PeerMetadata;
use crate::upstream::failure::Kind;
use crate::upstream::reach::{Via, Way};

const UPSTREAM_SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");
const ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// A response's body with the exchange that it ends.
pub struct DownBody {
    from: From,
    /// Present until the exchange has ended.
    exchange: Option<Box<Exchange>>,
}

enum From {
    /// Bytes at hand; taken when sent.
    Local(Bytes),
    /// The upstream's body, with the connection that it comes on and the limits that go on.
    Upstream(Box<Coming>),
}

struct Coming {
    body: Incoming,
    way: Option<Way>,
    clock: Clock,
    /// Something is waited for.
    waited: bool,
    /// Since when.
    last: Instant,
}

impl Exchange {
    /// Passes the upstream's answer on.
    pub(super) fn respond(mut self: Box<Self>, answer: Answer, upgrade: Option<(Side, String)>) -> Response<DownBody> {
        let Answer { response, way, clock } = answer;
        let (mut parts, mut body) = response.into_parts();
        if let Some(source) = &self.source {
            // No further attempt will be made: what is still to come needs not be remembered.
            source.borrow_mut().forget();
        }
        let connect = self.record.method == Some(Method::CONNECT);
        let tunnel = tunnel::begin(&mut parts, &mut body, &way, upgrade, connect);
        if tunnel.is_none() && parts.status == StatusCode::SWITCHING_PROTOCOLS {
            // Nobody asked for another protocol: what follows would be bytes of no request.
            return self.fail(&Kind::Protocol.into());
        }
        self.record.status = Some(parts.status);
        self.record.details = Some(via_upstream());
        let seen = Seen::of(&parts.headers);
        if seen.any(Seen::PEER) {
            self.record.upstream.peer = PeerMetadata::take(&mut parts.headers, &PeerMetadata::default());
        }
        if seen.any(Seen::HOP.with(Seen::CONNECTION).with(Seen::TRANSFER_ENCODING)) {
            hop_by_hop(&mut parts.headers, parts.status == StatusCode::SWITCHING_PROTOCOLS && tunnel.is_some());
        }
        self.decorate(&mut parts.headers);
        if self.record.grpc || seen.any(Seen::GRPC_STATUS) {
            self.record.grpc_status = grpc_status(&parts.headers);
        }
        parts.extensions.clear();
        parts.version = http::Version::default();
        if let Some(tunnel) = tunnel {
            return tunnel::run(self, parts, tunnel, way, &clock);
        }
        let coming = Coming { body, way: Some(way), clock, last: self.now, waited: false };
        let mut body = DownBody { from: From::Upstream(Box::new(coming)), exchange: Some(self) };
        if body.is_end_stream() {
            body.end();
        }
        Response::from_parts(parts, body)
    }

    /// Header changes to an answer that is forwarded.
    pub(super) fn decorate(&mut self, headers: &mut HeaderMap) {
        if !self.shared.manager.router.suppress_envoy_headers {
            let time = self.record.upstream.service_time.map_or(0, millis);
            headers.insert(UPSTREAM_SERVICE_TIME, number(time));
        }
        if self.record.matched.as_ref().is_some_and(|matched| matched.host.attempt_count_in_response) {
            headers.insert(ATTEMPT_COUNT, number(u64::from(self.record.upstream.attempts)));
        }
        self.shape_answer(headers);
        self.sign(headers);
    }

    /// What the route and the decision change.
    pub(super) fn shape_answer(&self, headers: &mut HeaderMap) {
        if let Some(decision) = &self.decision {
            let (matched, manager, worker) = (self.record.matched.as_ref(), &self.shared.manager, &self.shared.worker);
            shape::response(decision, matched, &self.record, headers);
            if manager.changes_answers() {
                let cluster = worker.tally.tower().own.cluster.as_ref();
                let health = shape::Health { cluster, failing: worker.shared.fails_checks() };
                let around = (&**worker.shared.plan.load(), &**manager);
                shape::filtered(around, decision, matched, health, &self.record, headers);
            }
        }
    }

    /// What the manager itself adds to every answer; the last that happens to it.
    pub(super) fn sign(&mut self, headers: &mut HeaderMap) {
        let shared = &self.shared;
        let manager = &shared.manager;
        if self.record.tells_request_id
            && let Some(id) = self.record.request_headers.get(X_REQUEST_ID)
        {
            headers.insert(X_REQUEST_ID, id.clone());
        }
        server_and_via(manager, headers);
        let most = manager.max_requests_per_connection;
        if most.is_some_and(|most| shared.served.get().saturating_add(1) >= most) {
            shared.draining.set(true);
        }
        if shared.worker.shared.fails_checks() {
            shared.draining.set(true);
        }
        if !shared.draining.get() && shared.worker.shared.overload.ends_connection(|| shared.worker.chance()) {
            shared.draining.set(true);
            if let Some(cells) = shared.site.as_ref().and_then(|site| site.http.as_ref()) {
                cells.downstream_cx_overload_disable_keepalive.inc();
            }
        }
        if shared.draining.get() && !shared.h2 {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if shared.downstream.facts.peer.is_some() && self.record.peer.id.is_some() {
            shared.worker.tally.tower().own.introduce(headers);
        }
        if shared.wants().response_headers {
            self.record.response_headers = headers.clone();
        }
    }

    /// An answer of the proxy's own, ready to be sent.
    pub(super) fn send_local(
        mut self: Box<Self>,
        status: StatusCode,
        headers: HeaderMap,
        body: Bytes,
    ) -> Response<DownBody> {
        // A client that has gone gets nothing, whatever the answer would be.
        let gone = self.record.flags.has(Flags::DOWNSTREAM_CONNECTION_TERMINATION);
        self.record.status = Some(status).filter(|_| !gone);
        if let Some(source) = &self.source {
            source.borrow_mut().forget();
        }
        let mut response = Response::new(DownBody { from: From::Local(body), exchange: Some(self) });
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        if response.body().is_end_stream() {
            response.body_mut().end();
        }
        response
    }
}

/// The manager's own headers.
pub(super) fn server_and_via(manager: &HttpManager, headers: &mut HeaderMap) {
    let ours = match manager.server_header {
        ServerHeader::Overwrite => true,
        ServerHeader::AppendIfAbsent => !headers.contains_key(header::SERVER),
        ServerHeader::PassThrough => false,
    };
    if ours {
        headers.insert(header::SERVER, manager.server_name.clone());
    }
    if let Some(via) = &manager.via {
        headers.append(header::VIA, via.clone());
    }
}

fn grpc_status(headers: &HeaderMap) -> Option<u16> {
    headers.get(GRPC_STATUS)?.to_str().ok()?.trim().parse().ok()
}

/// `via_upstream`, of which a worker has one.
pub(super) fn via_upstream() -> Arc<str> {
    thread_local! {
        static DETAILS: Arc<str> = Arc::from("via_upstream");
    }
    DETAILS.with(Arc::clone)
}

/// Takes away what concerns only the upstream's own hop.
fn hop_by_hop(headers: &mut HeaderMap, upgrade: bool) {
    for name in [header::TRANSFER_ENCODING, KEEP_ALIVE, PROXY_CONNECTION] {
        headers.remove(name);
    }
    if !upgrade {
        headers.remove(header::CONNECTION);
        headers.remove(header::UPGRADE);
    }
}

impl DownBody {
    /// Goes on sending the request's body while this one cannot be passed on.
    pub fn drive_upload(&self, cx: &mut Context<'_>) {
        if let From::Upstream(coming) = &self.from {
            coming.body.drive_upload(cx);
        }
    }

    /// How long the client may take nothing of it.
    pub fn still_limit(&self) -> Option<std::time::Duration> {
        match &self.from {
            From::Upstream(coming) => [coming.clock.idle, coming.clock.try_idle].into_iter().flatten().min(),
            From::Local(_) => None,
        }
    }

    /// Bytes at hand, of no exchange.
    pub(super) fn local(bytes: Bytes) -> Self {
        Self { from: From::Local(bytes), exchange: None }
    }

    /// The body came to its proper end.
    fn end(&mut self) {
        if let From::Upstream(coming) = &mut self.from
            && let Some(Way { via: Via::H1(h1), pool, .. }) = coming.way.take()
        {
            let sent = self
                .exchange
                .as_ref()
                .is_none_or(|exchange| exchange.source.as_ref().is_none_or(|source| source.borrow().ended().is_some()));
            // A connection on which the request is still being sent cannot serve another.
            let limit = self.exchange.as_ref().and_then(|exchange| exchange.most_requests());
            if sent && limit.is_none_or(|limit| h1.served < limit) {
                pool.give_back(h1);
            }
        }
        if let Some(mut exchange) = self.exchange.take() {
            exchange.record.complete = true;
        }
    }

    fn broke(&mut self, flags: Flags, details: &str) {
        if let Some(mut exchange) = self.exchange.take() {
            exchange.record.complete = true;
            exchange.record.flags = exchange.record.flags.with(flags);
            exchange.record.details = Some(Arc::from(details));
        }
    }

    fn passed(&mut self, frame: &mut Frame<Bytes>) {
        let Some(exchange) = &mut self.exchange else { return };
        if let Some(trailers) = frame.trailers_mut() {
            exchange.change_answer_trailers(trailers);
        }
        if let Some(data) = frame.data_ref() {
            exchange.record.bytes_sent += data.len() as u64;
            if exchange.record.grpc {
                exchange.record.response_messages.pass(data);
            }
        } else if let Some(trailers) = frame.trailers_ref() {
            exchange.record.grpc_status = grpc_status(trailers).or(exchange.record.grpc_status);
            if exchange.shared.wants().response_trailers {
                exchange.record.response_trailers = trailers.clone();
            }
        }
    }
}

impl Exchange {
    /// What filters change of the answer's trailers.
    fn change_answer_trailers(&self, trailers: &mut HeaderMap) {
        let manager = &self.shared.manager;
        if manager.changes_trailers() {
            let plan = self.shared.worker.shared.plan.load();
            shape::response_trailers((&**plan, &**manager), self.record.matched.as_ref(), &self.record, trailers);
        }
    }

    fn most_requests(&self) -> Option<u32> {
        self.record.upstream.cluster.as_ref().and_then(|cluster| cluster.config.max_requests_per_connection)
    }
}

impl Coming {
    /// Whether a limit of the exchange was reached while nothing came.
    fn poll_limits(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        if !std::mem::replace(&mut self.waited, true) {
            self.last = Instant::now();
        }
        let clock = &self.clock;
        let last = clock.moved().map_or(self.last, |moved| moved.max(self.last));
        let limits = [
            (clock.timeout_at(), BodyError::Timeout),
            (clock.life, BodyError::Duration),
            (clock.try_life, BodyError::TryDuration),
            (clock.idle.map(|limit| last + limit), BodyError::Idle),
            (clock.try_idle.map(|limit| last + limit), BodyError::TryIdle),
        ];
        let limits = limits.into_iter().filter_map(|(at, error)| at.map(|at| (at, error)));
        let Some((at, error)) = limits.min_by_key(|(at, _)| *at) else { return Poll::Pending };
        ready!(self.clock.alarm.borrow_mut().poll(at, cx));
        Poll::Ready(error)
    }
}

impl Body for DownBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.get_mut();
        let coming = match &mut this.from {
            From::Local(bytes) => {
                let bytes = std::mem::take(bytes);
                if bytes.is_empty() {
                    this.end();
                    return Poll::Ready(None);
                }
                let mut frame = Frame::data(bytes);
                this.passed(&mut frame);
                this.end();
                return Poll::Ready(Some(Ok(frame)));
            }
            From::Upstream(coming) => coming,
        };
        match Pin::new(&mut coming.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(mut frame))) => {
                coming.waited = false;
                let ended = coming.body.is_end_stream();
                this.passed(&mut frame);
                if ended {
                    this.end();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                this.broke(
                    Flags::UPSTREAM_CONNECTION_TERMINATION,
                    "upstream_reset_after_response_started{connection_termination}",
                );
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(None) => {
                this.end();
                Poll::Ready(None)
            }
            Poll::Pending => {
                let error = ready!(coming.poll_limits(cx));
                let (flags, details) = match error {
                    BodyError::Timeout => (Flags::UPSTREAM_REQUEST_TIMEOUT, "response_timeout"),
                    BodyError::Duration => (Flags::NONE, "max_duration_timeout"),
                    BodyError::TryDuration => {
                        (Flags::UPSTREAM_MAX_STREAM_DURATION, "upstream_max_stream_duration_reached")
                    }
                    BodyError::TryIdle => (Flags::UPSTREAM_REQUEST_TIMEOUT, "upstream_per_try_idle_timeout"),
                    _ => (Flags::STREAM_IDLE_TIMEOUT, "stream_idle_timeout"),
                };
                this.broke(flags, details);
                Poll::Ready(Some(Err(error)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.from {
            From::Local(bytes) => bytes.is_empty(),
            From::Upstream(coming) => coming.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.from {
            From::Local(bytes) => SizeHint::with_exact(bytes.len() as u64),
            From::Upstream(coming) => coming.body.size_hint(),
        }
    }
}

/// Nobody asks for the end of a body whose length is known: dropped at its end, it is complete.
impl Drop for DownBody {
    fn drop(&mut self) {
        if self.exchange.is_some() && self.is_end_stream() {
            self.end();
        }
    }
}
