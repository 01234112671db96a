//! Pick, reach, relay, settle: the attempts of one exchange.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use engine::circuit;
use engine::decide::Matched;
use engine::reply::{Flags, LocalReply};
use engine::retry::{self, Next, Retries, RetryPolicy, Why};
use engine::routes::{ForwardAction, Priority};
use engine::{Discovery, Endpoint, Forward, balance, outlier, shape};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode, Uri, Version};
use tokio::time::{Instant, sleep};

use super::alarm::Alarm;
use super::arrive::{Head, X_REQUEST_ID};
use super::body::{Broken, Incoming, SharedSource, UpBody};
use super::exchange::{Exchange, millis, number};
use super::interim::Interim;
use super::text::Text;
use crate::h1;
use crate::h2::client::Unanswered;
use crate::report::party::Own;
use crate::upstream::DEGRADED;
use crate::upstream::failure::{Failure, Kind};
use crate::upstream::pool::{H1, Link, Stream as H2Stream};
use crate::upstream::reach::{Via, Want, Way, reach};

const ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const EXPECTED_TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");

/// How often a request that was not sent, because its kept-alive connection had just been closed, is sent anew.
const UNSENT_TRIES: u32 = 3;

/// A request's head as the upstream gets it, ready for any number of attempts.
pub struct Letter {
    pub(super) method: Method,
    pub(super) path: PathAndQuery,
    pub(super) authority: Text,
    pub(super) scheme: &'static str,
    pub(super) upgrade: Option<String>,
    pub(super) retries: Retries,
    /// What a header of the request says that its server is called, where the cluster asks for it.
    pub(super) server: Option<Box<str>>,
}

/// The upstream's answer as it begins.
pub struct Answer {
    /// Its head, and its body to come.
    pub response: Response<Incoming>,
    /// Where it came from, to be given back afterwards.
    pub way: Way,
    /// The limits that go on.
    pub clock: Clock,
}

/// The time limits of an exchange. The route's limit counts from the moment when the whole request has arrived.
#[derive(Clone)]
pub struct Clock {
    pub(super) started: Instant,
    pub(super) timeout: Option<Duration>,
    pub(super) idle: Option<Duration>,
    /// How long an attempt may bring nothing (`per_try_idle_timeout`).
    pub(super) try_idle: Option<Duration>,
    pub(super) life: Option<Instant>,
    /// When the attempt that answers must have ended (the cluster's `max_stream_duration`).
    pub(super) try_life: Option<Instant>,
    pub(super) arrival: Option<Instant>,
    pub(super) source: Option<SharedSource>,
    pub(super) alarm: Rc<RefCell<Alarm>>,
}

impl Letter {
    /// Applies the route's changes to a head.
    ///
    /// # Errors
    /// The answer when the result cannot be sent (a rewrite made an impossible path).
    pub(super) fn write(exchange: &mut Exchange, head: Head, forward: &Forward) -> Result<Self, LocalReply> {
        let action = exchange.record.matched.as_ref().and_then(|matched| matched.forward());
        let policy = action.and_then(|action| action.retry.as_deref());
        let per_try = policy.and_then(|policy| policy.per_try_timeout);
        let retries = Retries::new(policy, &exchange.facts(&head));
        let shaped = exchange.record.matched.as_ref().filter(|matched| shape::changes_request(matched)).cloned();
        let impossible = |_| {
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            LocalReply::error(status, "", "path_rewrite_failed", Flags::NONE)
        };
        let (path, authority, mut headers) = match shaped {
            None => (head.path.to_path(), head.authority, head.headers),
            Some(matched) => {
                let shape::RequestHead { path, authority, headers } = rewrite(exchange, &matched, &head);
                (Text::from(path).to_path(), authority.into(), headers)
            }
        };
        let path = path.map_err(impossible)?;
        let Head { method, scheme, upgrade, .. } = head;
        if !exchange.shared.manager.router.suppress_envoy_headers
            && let Some(timeout) = forward.timeout
        {
            let expected = per_try.map_or(timeout, |per_try| per_try.min(timeout));
            headers.insert(EXPECTED_TIMEOUT, number(millis(expected)));
        }
        let server = forward.cluster.config.sni_header.as_ref().and_then(|name| headers.get(name)?.to_str().ok());
        let server = server.filter(|name| !name.is_empty()).map(Box::from);
        // What is forwarded is what logs and response formatters read: there is one copy of it.
        exchange.record.request_headers = headers;
        Ok(Self { method, path, authority, scheme, upgrade, retries, server })
    }

    /// The same head for a copy.
    pub(super) fn again(&self) -> Self {
        Self {
            method: self.method.clone(),
            path: self.path.clone(),
            authority: self.authority.clone(),
            scheme: self.scheme,
            upgrade: None,
            retries: self.retries.clone(),
            server: None,
        }
    }

    /// Sends it with its headers once and waits for the head of the answer. `host` replaces the authority, `own` tells the endpoint who this
    /// workload is. `None`: it cannot be said in the endpoint's version of HTTP.
    pub(super) async fn send(&self, headers: &HeaderMap, way: &Way, more: More<'_>, body: UpBody) -> Option<Sent> {
        match &way.via {
            Via::H1(h1) => Some(self.send_h1(h1, headers, more, body).await),
            Via::H2(stream) => {
                let interim = more.interim;
                let request = self.request(headers, more)?;
                Some(send_h2(stream, request, body, interim).await)
            }
        }
    }

    async fn send_h1(&self, h1: &H1, headers: &HeaderMap, more: More<'_>, body: UpBody) -> Sent {
        let attempt = more.attempt.map(|attempt| (ATTEMPT_COUNT, number(u64::from(attempt))));
        let replacing: Vec<_> = attempt.into_iter().chain(more.own.into_iter().flat_map(Own::introduction)).collect();
        let host = more.host.unwrap_or(&self.authority);
        let connect = self.method == Method::CONNECT;
        let head = h1::client::Outgoing {
            method: &self.method,
            target: if connect { host } else { self.path.as_str() },
            host,
            headers,
            more: &replacing,
            upgrade: self.upgrade.as_deref().filter(|_| !connect),
            interim: more.interim,
        };
        match h1.client.send(head, body).await {
            Ok(response) => Sent::Answered(response.map(Incoming::Response)),
            Err(h1::client::Unanswered { unsent: true, .. }) => Sent::Returned(None),
            Err(h1::client::Unanswered { fault, .. }) => Sent::Failed(failure_of_h1(fault)),
        }
    }

    /// The request over HTTP/2.
    fn request(&self, headers: &HeaderMap, more: More<'_>) -> Option<Request<()>> {
        let mut request = Request::new(());
        *request.method_mut() = self.method.clone();
        *request.headers_mut() = headers.clone();
        if let Some(id) = request.headers_mut().get_mut(X_REQUEST_ID) {
            // Never the same: in the peer's table it would push out what is, and each later one would be compared with it.
            id.set_sensitive(true);
        }
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = self.uri(more.host)?;
        if let Some(upgrade) = self.upgrade.as_deref().filter(|_| self.method != Method::CONNECT) {
            *request.method_mut() = Method::CONNECT;
            request.extensions_mut().insert(h2::ext::Protocol::from(upgrade));
        }
        if let Some(attempt) = more.attempt {
            request.headers_mut().insert(ATTEMPT_COUNT, number(u64::from(attempt)));
        }
        if let Some(own) = more.own {
            own.introduce(request.headers_mut());
        }
        Some(request)
    }
}

impl Letter {
    /// The target over HTTP/2; CONNECT has an authority alone (RFC 9113 section 8.5).
    fn uri(&self, host: Option<&str>) -> Option<Uri> {
        let authority = match host {
            Some(host) => Authority::try_from(host).ok()?,
            None => self.authority.to_authority().ok()?,
        };
        if self.method == Method::CONNECT {
            return Some(Uri::from(authority));
        }
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(if self.scheme == "https" { Scheme::HTTPS } else { Scheme::HTTP });
        parts.authority = Some(authority);
        parts.path_and_query = Some(self.path.clone());
        Uri::from_parts(parts).ok()
    }
}

/// What one attempt says beyond the letter.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct More<'a> {
    /// The endpoint's own name, in place of the authority.
    host: Option<&'a str>,
    /// Which attempt it is.
    attempt: Option<u32>,
    /// Who this workload is, for mesh peers.
    own: Option<&'a Own>,
    /// Where interim answers are left for the client; `None`: they end here.
    interim: Option<&'a Interim>,
}

/// Applies the changes of a route to a head; the record keeps both ends of them.
fn rewrite(exchange: &mut Exchange, matched: &Matched, head: &Head) -> shape::RequestHead {
    let mut shaped = shape::RequestHead {
        path: head.path.to_string(),
        authority: head.authority.to_string(),
        headers: head.headers.clone(),
    };
    exchange.record.request_headers.clone_from(&head.headers);
    shape::request(matched, &exchange.facts(head), &exchange.record, &mut shaped);
    if shaped.path != *head.path {
        exchange.record.path = Some(shaped.path.as_str().into());
    }
    if shaped.authority != *head.authority {
        exchange.record.authority = Some(shaped.authority.as_str().into());
    }
    shaped
}

impl Exchange {
    /// Tries until an answer can be passed on or there is nothing left to try.
    pub(super) async fn attempts(&mut self, forward: &Forward, letter: &Letter) -> Result<Answer, Failure> {
        let route = self.record.matched.as_ref().map(|matched| Arc::clone(&matched.route));
        let action = route.as_ref().and_then(|route| route.forward());
        let policy = action.and_then(|action| action.retry.as_deref());
        let priority = action.map_or(Priority::Default, |action| action.priority);
        let mut retries = letter.retries.clone();
        let mut clock = self.clock(forward);
        clock.try_idle = policy.as_ref().and_then(|policy| policy.per_try_idle_timeout);
        let mut tried = Vec::new();
        let mut retry_slot = None;
        loop {
            self.record.upstream.attempts = retries.attempts();
            let limits = forward.cluster.config.limits(priority);
            self.slot = None;
            self.slot =
                circuit::request(&forward.cluster.state, limits, priority, self.shared.worker.shared.at(self.now));
            if self.slot.is_none() {
                return Err(Kind::Overflow.into());
            }
            let endpoint = self.pick(forward, policy, &tried).ok_or(Kind::NoHealthyUpstream)?;
            self.busy = None;
            self.occupy(&endpoint);
            let result = self.attempt(forward, action, &endpoint, letter, &clock, retries.attempts()).await;
            drop(retry_slot.take());
            self.feed_outlier(forward, &endpoint, &result);
            let Some(policy) = policy else { return result };
            let may_send_again = self.source.as_ref().is_none_or(|source| source.borrow().replayable());
            let next = if may_send_again {
                self.settle(policy, &mut retries, &result)
            } else {
                Next::Finish(Why::NotRetriable)
            };
            let after = match next {
                Next::Finish(why) => {
                    if why == Why::Exhausted {
                        self.record.flags = self.record.flags.with(Flags::UPSTREAM_RETRY_LIMIT_EXCEEDED);
                    }
                    return result;
                }
                Next::Retry { after } => after,
            };
            retry_slot =
                circuit::retry(&forward.cluster.state, limits, priority, self.shared.worker.shared.at(self.now));
            if retry_slot.is_none() {
                self.record.flags = self.record.flags.with(Flags::UPSTREAM_OVERFLOW);
                return result;
            }
            drop(result);
            self.shared.worker.tally.cluster(&forward.cluster).upstream_rq_retry.inc();
            tried.push(endpoint);
            limited(sleep(after), Limits::NONE, &clock).await?;
            self.now = Instant::now();
        }
    }

    pub(super) fn pick(
        &self,
        forward: &Forward,
        policy: Option<&RetryPolicy>,
        tried: &[Arc<Endpoint>],
    ) -> Option<Arc<Endpoint>> {
        let cluster = &forward.cluster;
        if let Discovery::OriginalDst { header, noted, port } = &cluster.config.discovery {
            let noted = noted.as_ref().and_then(|key| self.record.noted_text(key)?.parse().ok());
            let headers = &self.record.request_headers;
            let named = || headers.get(header.as_ref()?)?.to_str().ok()?.parse().ok();
            let address = noted.or_else(named).unwrap_or(self.shared.downstream.facts.local);
            return Some(crate::upstream::original::endpoint(address, *port));
        }
        let avoid = policy.filter(|policy| policy.previous_hosts);
        let request = balance::Request {
            hash: forward.hash,
            tried,
            avoid_attempts: avoid.map_or(0, |policy| policy.host_attempts),
            priorities_every: policy.and_then(|policy| policy.previous_priorities).unwrap_or(0),
        };
        let worker = &self.shared.worker;
        cluster.balancer.pick(request, worker.shared.at(self.now), &mut worker.dice.borrow_mut())
    }

    async fn attempt(
        &mut self,
        forward: &Forward,
        action: Option<&ForwardAction>,
        endpoint: &Arc<Endpoint>,
        letter: &Letter,
        clock: &Clock,
        number: u32,
    ) -> Result<Answer, Failure> {
        let per_try = action.and_then(|action| action.retry.as_ref()).and_then(|policy| policy.per_try_timeout);
        let matched = self.record.matched.as_ref();
        let host = matched.and_then(|matched| shape::auto_host(matched, endpoint));
        let count = matched.is_some_and(|matched| matched.host.attempt_count_in_request).then_some(number);
        let mut body = self.source.as_ref().map_or(UpBody::Empty, UpBody::attempt);
        let worker = self.shared.worker.clone();
        let mut want = Want {
            cluster: &forward.cluster,
            endpoint,
            priority: action.map_or(Priority::Default, |action| action.priority),
            downstream_h2: self.shared.h2,
            authority: letter.server.as_deref().or(host).unwrap_or(&letter.authority),
            fresh: false,
            upgrade: letter.upgrade.is_some(),
            alpn: forward.alpn.as_deref(),
        };
        let began = self.now;
        let at = |limit: Option<Duration>| limit.map(|limit| began + limit);
        let life = at(forward.cluster.config.max_stream_duration);
        let limits = Limits { per_try: at(per_try), idle: at(clock.try_idle), life };
        for _ in 0..UNSENT_TRIES {
            let way = limited(reach(&worker, want), limits, clock).await??;
            self.note_link(&way);
            // Only a mesh peer is told who this workload is.
            let own = way.via.link().mtls.then(|| &worker.tally.tower().own);
            let interim = self.interim.as_deref();
            let more = More { host, attempt: count, own, interim };
            let sending = letter.send(&self.record.request_headers, &way, more, body);
            let Some(sent) = limited(sending, limits, clock).await? else { return Err(Kind::Protocol.into()) };
            self.now = Instant::now();
            match sent {
                Sent::Answered(response) => {
                    let record = &mut self.record;
                    record.response_begun = Some(self.now.duration_since(self.began));
                    record.upstream.service_time = Some(self.now.duration_since(began));
                    return Ok(Answer { response, way, clock: Clock { try_life: life, ..clock.clone() } });
                }
                Sent::Returned(returned) if way.reused && (returned.is_some() || self.is_whole()) => {
                    let again = || self.source.as_ref().map_or(UpBody::Empty, UpBody::attempt);
                    body = returned.unwrap_or_else(again);
                    want.fresh = true;
                }
                Sent::Returned(_) => return Err(self.blame(Kind::Termination.into())),
                Sent::Failed(failure) if way.reused && !want.fresh && self.is_stale(&failure, &letter.method) => {
                    body = self.source.as_ref().map_or(UpBody::Empty, UpBody::attempt);
                    want.fresh = true;
                }
                Sent::Failed(failure) => return Err(self.blame(failure)),
            }
        }
        Err(Kind::Termination.into())
    }

    /// The failure, or that of the client where it broke off while sending.
    fn blame(&self, failure: Failure) -> Failure {
        match self.source.as_ref().and_then(|source| source.borrow().broken()) {
            Some(Broken::Gone) => Kind::Downstream.into(),
            Some(Broken::Malformed) => Kind::Malformed.into(),
            None => failure,
        }
    }

    /// Whether a kept connection failed in the way of one that the server had just closed, and the request may be sent
    /// anew: refused unseen, or of a kind that may be repeated (RFC 9110 section 9.2.2).
    fn is_stale(&self, failure: &Failure, method: &Method) -> bool {
        let harmless = match failure.kind {
            Kind::RefusedStream => true,
            Kind::Termination => method.is_idempotent(),
            _ => false,
        };
        self.is_whole() && harmless
    }

    /// Whether the request can be sent from its start.
    fn is_whole(&self) -> bool {
        self.source.as_ref().is_none_or(|source| source.borrow().replayable())
    }

    fn note_link(&mut self, way: &Way) {
        self.note_connection(way.via.link());
        self.record.upstream.h2 = matches!(way.via, Via::H2(_));
    }

    pub(super) fn note_connection(&mut self, link: &Link) {
        let upstream = &mut self.record.upstream;
        upstream.local = link.local;
        upstream.identity.clone_from(&link.identity);
        upstream.mtls = link.mtls;
    }

    fn feed_outlier(&self, forward: &Forward, endpoint: &Arc<Endpoint>, result: &Result<Answer, Failure>) {
        use std::sync::atomic::Ordering;
        let report = match result {
            Ok(answer) => outlier::Report::Status(answer.response.status().as_u16()),
            Err(failure) => match failure.kind {
                Kind::ConnectFailure => outlier::Report::ConnectFailure,
                Kind::ConnectTimeout | Kind::PerTryTimeout | Kind::PerTryIdle | Kind::Timeout => {
                    outlier::Report::Timeout
                }
                Kind::Termination | Kind::RemoteReset | Kind::RefusedStream | Kind::Protocol => outlier::Report::Reset,
                // The exchange's own limits are not the endpoint's fault.
                Kind::Duration | Kind::TryDuration | Kind::Idle | Kind::Arrival => return,
                Kind::Overflow | Kind::NoHealthyUpstream | Kind::Downstream | Kind::Malformed => return,
            },
        };
        let failed = result.as_ref().map_or(true, |answer| answer.response.status().is_server_error());
        if failed {
            endpoint.state.errors.fetch_add(1, Ordering::Relaxed);
        }
        let Some(config) = &forward.cluster.config.outlier else { return };
        let worker = &self.shared.worker;
        let mut dice = worker.dice.borrow_mut();
        let cluster = &forward.cluster;
        let (monitor, now) = (&cluster.state.monitor, worker.shared.at(self.now));
        let mut events = monitor.record(cluster, endpoint, report, now, &mut dice);
        if config.detect_degraded
            && result.as_ref().is_ok_and(|answer| answer.response.headers().contains_key(DEGRADED))
        {
            events.extend(monitor.degrade(cluster, endpoint, now, &mut dice));
        }
        drop(dice);
        events.iter().for_each(|event| worker.tally.outlier(cluster, event));
    }

    fn settle(&self, policy: &RetryPolicy, retries: &mut Retries, result: &Result<Answer, Failure>) -> Next {
        let mut dice = self.shared.worker.dice.borrow_mut();
        match result {
            Ok(answer) => {
                let headers = answer.response.headers();
                let grpc = headers.get(GRPC_STATUS).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
                let status = answer.response.status().as_u16();
                retries.on_response(policy, status, headers, grpc, self.record.started_at, &mut dice)
            }
            Err(failure) => match failure.kind {
                Kind::ConnectFailure | Kind::ConnectTimeout => {
                    retries.on_failure(policy, retry::Failure::Connect, &mut dice)
                }
                Kind::Termination | Kind::RemoteReset | Kind::Protocol | Kind::TryDuration => {
                    retries.on_failure(policy, retry::Failure::Reset, &mut dice)
                }
                Kind::RefusedStream => retries.on_failure(policy, retry::Failure::RefusedStream, &mut dice),
                Kind::PerTryTimeout | Kind::PerTryIdle => {
                    retries.on_failure(policy, retry::Failure::PerTryTimeout, &mut dice)
                }
                Kind::Overflow => retries.on_failure(policy, retry::Failure::Overflow, &mut dice),
                Kind::Timeout | Kind::Duration | Kind::Idle | Kind::Arrival => Next::Finish(Why::NotRetriable),
                Kind::NoHealthyUpstream | Kind::Downstream | Kind::Malformed => Next::Finish(Why::NotRetriable),
            },
        }
    }
}

/// What became of a request.
pub(super) enum Sent {
    /// The answer's head is there.
    Answered(Response<Incoming>),
    /// Not a byte of it went out; its body, where that is untouched.
    Returned(Option<UpBody>),
    /// It failed.
    Failed(Failure),
}

async fn send_h2(stream: &H2Stream, request: Request<()>, body: UpBody, interim: Option<&Interim>) -> Sent {
    match stream.sender().send(request, body, interim).await {
        Ok(response) => Sent::Answered(response.map(Incoming::Http2)),
        Err(Unanswered::Unsent(body)) => Sent::Returned(Some(body)),
        Err(Unanswered::Failed(error)) => Sent::Failed(failure_of(&error)),
    }
}

/// What a fault of an HTTP/1 connection means.
fn failure_of_h1(fault: h1::Fault) -> Failure {
    let kind = if matches!(fault, h1::Fault::Malformed(_)) { Kind::Protocol } else { Kind::Termination };
    Failure { kind, transport: Some(fault.to_string().into()) }
}

/// What an error of an HTTP/2 stream or connection means.
fn failure_of(error: &h2::Error) -> Failure {
    let kind = match error.reason() {
        Some(h2::Reason::REFUSED_STREAM) => Kind::RefusedStream,
        _ if error.is_reset() => Kind::RemoteReset,
        // The server had said which streams it would still serve; this is not one of them.
        Some(h2::Reason::NO_ERROR) if error.is_go_away() => Kind::RefusedStream,
        // This side gave it up for what the server sent.
        Some(h2::Reason::ENHANCE_YOUR_CALM) if !error.is_go_away() => Kind::Protocol,
        _ => Kind::Termination,
    };
    Failure { kind, transport: Some(error.to_string().into()) }
}

/// The limits of one attempt.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    per_try: Option<Instant>,
    idle: Option<Instant>,
    life: Option<Instant>,
}

impl Limits {
    /// Only those of the whole exchange count.
    pub(super) const NONE: Self = Self { per_try: None, idle: None, life: None };
}

/// Runs a step of an attempt under the limits of the attempt and of the whole exchange.
pub(super) async fn limited<F: Future>(step: F, limits: Limits, clock: &Clock) -> Result<F::Output, Kind> {
    let mut step = pin!(step);
    poll_fn(|cx| match step.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Ok(output)),
        Poll::Pending => clock.poll_out(limits, cx).map(Err),
    })
    .await
}

impl Clock {
    /// Ready when the first of the limits is reached, and says which.
    fn poll_out(&self, limits: Limits, cx: &mut Context<'_>) -> Poll<Kind> {
        let arriving = self.source.as_ref().is_some_and(|source| source.borrow_mut().poll_ended(cx).is_pending());
        let still = self.idle.map(|limit| self.moved().unwrap_or(self.started) + limit);
        let first = earliest([
            (self.timeout_at().filter(|_| !arriving), Kind::Timeout),
            (limits.per_try, Kind::PerTryTimeout),
            (limits.idle.filter(|_| !arriving), Kind::PerTryIdle),
            (limits.life, Kind::TryDuration),
            (self.life, Kind::Duration),
            (self.arrival.filter(|_| arriving), Kind::Arrival),
            (still, Kind::Idle),
        ]);
        let Some((at, kind)) = first else { return Poll::Pending };
        ready!(self.alarm.borrow_mut().poll(at, cx));
        Poll::Ready(kind)
    }

    /// When something of the request's body came last.
    pub(super) fn moved(&self) -> Option<Instant> {
        self.source.as_ref().and_then(|source| source.borrow().moved())
    }

    /// When the route's limit is reached; `None` while the request is still arriving.
    pub(super) fn timeout_at(&self) -> Option<Instant> {
        let timeout = self.timeout?;
        match &self.source {
            None => Some(self.started + timeout),
            Some(source) => source.borrow().ended().map(|ended| ended + timeout),
        }
    }
}

/// The first of some moments that are set; of equals, the first named.
fn earliest(moments: [(Option<Instant>, Kind); 7]) -> Option<(Instant, Kind)> {
    moments.into_iter().filter_map(|(at, kind)| at.map(|at| (at, kind))).min_by_key(|(at, _)| *at)
}
