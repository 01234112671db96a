//! Pick, reach, relay, settle: the attempts of one exchange.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::time::Duration;

use engine::circuit::{self, Resource};
use engine::reply::{Flags, LocalReply};
use engine::retry::{self, Next, Retries, RetryPolicy, Why};
use engine::routes::{ForwardAction, Priority};
use engine::{Discovery, Endpoint, Forward, balance, outlier, shape};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use hyper::body::Incoming;
use tokio::time::{Instant, sleep, sleep_until};

use super::arrive::Head;
use super::body::{SharedSource, UpBody};
use super::exchange::{Exchange, millis};
use crate::upstream::failure::{Failure, Kind};
use crate::upstream::reach::{Via, Want, Way, reach};

const ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
const EXPECTED_TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");

/// How often a request that was not sent, because its kept-alive connection had just been closed, is sent anew.
const UNSENT_TRIES: u32 = 3;

/// A request's head as the upstream gets it, ready for any number of attempts.
pub struct Letter {
    pub(super) method: Method,
    pub(super) path: PathAndQuery,
    pub(super) authority: String,
    pub(super) headers: HeaderMap,
    pub(super) scheme: &'static str,
    pub(super) upgrade: Option<String>,
    pub(super) retries: Retries,
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
    pub(super) life: Option<Instant>,
    pub(super) arrival: Option<Instant>,
    pub(super) source: Option<SharedSource>,
}

impl Letter {
    /// Applies the route's changes to a head.
    ///
    /// # Errors
    /// The answer when the result cannot be sent (a rewrite made an impossible path).
    pub(super) fn write(exchange: &mut Exchange, head: Head, forward: &Forward) -> Result<Self, LocalReply> {
        let matched = exchange.record.matched.clone();
        let policy = matched.as_ref().and_then(|m| m.forward()).and_then(|action| action.retry.clone());
        let retries = Retries::new(policy.as_deref(), &exchange.facts(&head));
        let Head { method, scheme, upgrade, .. } = &head;
        let (method, scheme, upgrade) = (method.clone(), *scheme, upgrade.clone());
        let shaped = match &matched {
            Some(matched) if shape::changes_request(matched) => {
                let mut shaped = shape::RequestHead {
                    path: head.path.clone(),
                    authority: head.authority.clone(),
                    headers: head.headers.clone(),
                };
                exchange.record.request_headers.clone_from(&head.headers);
                shape::request(matched, &exchange.facts(&head), &exchange.record, &mut shaped);
                if shaped.path != head.path {
                    exchange.record.path = Some(shaped.path.as_str().into());
                }
                if shaped.authority != head.authority {
                    exchange.record.authority = Some(shaped.authority.as_str().into());
                }
                shaped
            }
            _ => shape::RequestHead { path: head.path, authority: head.authority, headers: head.headers },
        };
        let impossible = |what| {
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            LocalReply::error(status, "", what, Flags::NONE)
        };
        let path = PathAndQuery::try_from(shaped.path).map_err(|_| impossible("path_rewrite_failed"))?;
        let mut headers = shaped.headers;
        let manager = &exchange.shared.manager;
        if !manager.router.suppress_envoy_headers
            && let Some(timeout) = forward.timeout
        {
            let per_try = policy.as_ref().and_then(|policy| policy.per_try_timeout);
            let expected = per_try.map_or(timeout, |per_try| per_try.min(timeout));
            headers.insert(EXPECTED_TIMEOUT, HeaderValue::from(millis(expected)));
        }
        // What is forwarded is what logs and response formatters read.
        exchange.record.request_headers.clone_from(&headers);
        Ok(Self { method, path, authority: shaped.authority, headers, scheme, upgrade, retries })
    }

    /// The same head for a copy.
    pub(super) fn again(&self) -> Self {
        Self {
            method: self.method.clone(),
            path: self.path.clone(),
            authority: self.authority.clone(),
            headers: self.headers.clone(),
            scheme: self.scheme,
            upgrade: None,
            retries: self.retries.clone(),
        }
    }

    /// The request of one attempt.
    pub(super) fn request(
        &self,
        way: &Way,
        host: Option<&str>,
        attempt: Option<u32>,
        body: UpBody,
    ) -> Option<Request<UpBody>> {
        let host = host.unwrap_or(&self.authority);
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.headers_mut() = self.headers.clone();
        match &way.via {
            Via::H1(_) => {
                let host = HeaderValue::try_from(host).ok()?;
                request.headers_mut().insert(header::HOST, host);
                *request.uri_mut() = Uri::from(self.path.clone());
                if let Some(upgrade) = &self.upgrade {
                    request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
                    request.headers_mut().insert(header::UPGRADE, HeaderValue::try_from(upgrade.as_str()).ok()?);
                }
            }
            Via::H2(_) => {
                *request.version_mut() = Version::HTTP_2;
                let mut parts = http::uri::Parts::default();
                parts.scheme = Some(if self.scheme == "https" { Scheme::HTTPS } else { Scheme::HTTP });
                parts.authority = Some(Authority::try_from(host).ok()?);
                parts.path_and_query = Some(self.path.clone());
                *request.uri_mut() = Uri::from_parts(parts).ok()?;
            }
        }
        if let Some(attempt) = attempt {
            request.headers_mut().insert(ATTEMPT_COUNT, HeaderValue::from(attempt));
        }
        Some(request)
    }
}

impl Exchange {
    /// Tries until an answer can be passed on or there is nothing left to try.
    pub(super) async fn attempts(&mut self, forward: &Forward, letter: &Letter) -> Result<Answer, Failure> {
        let matched = self.record.matched.clone();
        let action = matched.as_ref().and_then(|matched| matched.forward());
        let policy = action.and_then(|action| action.retry.clone());
        let priority = action.map_or(Priority::Default, |action| action.priority);
        let mut retries = letter.retries.clone();
        let clock = self.clock(forward);
        let mut tried = Vec::new();
        let mut retry_slot = None;
        loop {
            self.record.upstream.attempts = retries.attempts();
            let limits = forward.cluster.config.limits(priority);
            self.slot = None;
            self.slot = circuit::take(&forward.cluster.state, limits, priority, Resource::Requests);
            if self.slot.is_none() {
                return Err(Kind::Overflow.into());
            }
            let endpoint = self.pick(forward, policy.as_deref(), &tried).ok_or(Kind::NoHealthyUpstream)?;
            self.busy = None;
            self.occupy(&endpoint);
            let result = self.attempt(forward, action, &endpoint, letter, &clock, retries.attempts()).await;
            drop(retry_slot.take());
            self.feed_outlier(forward, &endpoint, &result);
            let Some(policy) = &policy else { return result };
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
            retry_slot = circuit::take(&forward.cluster.state, limits, priority, Resource::Retries);
            if retry_slot.is_none() {
                self.record.flags = self.record.flags.with(Flags::UPSTREAM_OVERFLOW);
                return result;
            }
            drop(result);
            self.shared.worker.tally.cluster(&forward.cluster).upstream_rq_retry.inc();
            tried.push(endpoint);
            limited(sleep(after), None, &clock).await?;
        }
    }

    fn pick(&self, forward: &Forward, policy: Option<&RetryPolicy>, tried: &[Arc<Endpoint>]) -> Option<Arc<Endpoint>> {
        let cluster = &forward.cluster;
        if let Discovery::OriginalDst { header, port } = &cluster.config.discovery {
            let named = header.as_ref().and_then(|name| self.record.request_headers.get(name));
            let named = named.and_then(|value| value.to_str().ok()).and_then(|value| value.parse().ok());
            let address = named.unwrap_or(self.shared.downstream.facts.local);
            return Some(crate::upstream::original::endpoint(address, *port));
        }
        let avoid = policy.filter(|policy| policy.previous_hosts);
        let request = balance::Request {
            hash: forward.hash,
            tried,
            avoid_attempts: avoid.map_or(0, |policy| policy.host_attempts),
        };
        let worker = &self.shared.worker;
        cluster.balancer.pick(request, worker.shared.now(), &mut worker.dice.borrow_mut())
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
        let matched = self.record.matched.clone();
        let host = matched.as_ref().and_then(|matched| shape::auto_host(matched, endpoint));
        let count = matched.as_ref().is_some_and(|matched| matched.host.attempt_count_in_request).then_some(number);
        let mut body = self.source.as_ref().map_or(UpBody::Empty, UpBody::attempt);
        let worker = self.shared.worker.clone();
        let mut want = Want {
            cluster: &forward.cluster,
            endpoint,
            priority: action.map_or(Priority::Default, |action| action.priority),
            downstream_h2: self.shared.h2,
            authority: host.unwrap_or(&letter.authority),
            fresh: false,
            upgrade: letter.upgrade.is_some(),
        };
        let began = Instant::now();
        let deadline = per_try.map(|limit| began + limit);
        for _ in 0..UNSENT_TRIES {
            let mut way = limited(reach(&worker, want), deadline, clock).await??;
            self.note_link(&way);
            let Some(mut request) = letter.request(&way, host, count, body) else { return Err(Kind::Protocol.into()) };
            if way.via.link().mtls {
                // Only a mesh peer is told who this workload is.
                worker.tally.tower().own.introduce(request.headers_mut());
            }
            match limited(send(&mut way, request), deadline, clock).await? {
                Sent::Answered(response) => {
                    let record = &mut self.record;
                    record.response_begun = Some(self.began.elapsed());
                    record.upstream.service_time = Some(began.elapsed());
                    return Ok(Answer { response, way, clock: clock.clone() });
                }
                Sent::Returned(request) if way.reused => {
                    body = request.into_body();
                    want.fresh = true;
                }
                Sent::Returned(_) => return Err(Kind::Termination.into()),
                Sent::Failed(failure) if way.reused && !want.fresh && self.is_stale(&failure, &letter.method) => {
                    body = self.source.as_ref().map_or(UpBody::Empty, UpBody::attempt);
                    want.fresh = true;
                }
                Sent::Failed(failure) => {
                    let broken = self.source.as_ref().is_some_and(|source| source.borrow().broken());
                    return Err(if broken { Kind::Downstream.into() } else { failure });
                }
            }
        }
        Err(Kind::Termination.into())
    }

    /// Whether a kept connection failed in the way of one that the server had just closed, and the request may be sent
    /// anew: refused unseen, or of a kind that may be repeated (RFC 9110 section 9.2.2).
    fn is_stale(&self, failure: &Failure, method: &Method) -> bool {
        let whole = self.source.as_ref().is_none_or(|source| source.borrow().replayable());
        let harmless = match failure.kind {
            Kind::RefusedStream => true,
            Kind::Termination => method.is_idempotent(),
            _ => false,
        };
        whole && harmless
    }

    fn note_link(&mut self, way: &Way) {
        let link = way.via.link();
        let upstream = &mut self.record.upstream;
        upstream.local = link.local;
        upstream.identity.clone_from(&link.identity);
        upstream.mtls = link.mtls;
        upstream.h2 = matches!(way.via, Via::H2(_));
    }

    fn feed_outlier(&self, forward: &Forward, endpoint: &Arc<Endpoint>, result: &Result<Answer, Failure>) {
        use std::sync::atomic::Ordering;
        let report = match result {
            Ok(answer) => outlier::Report::Status(answer.response.status().as_u16()),
            Err(failure) => match failure.kind {
                Kind::ConnectFailure => outlier::Report::ConnectFailure,
                Kind::ConnectTimeout | Kind::PerTryTimeout | Kind::Timeout => outlier::Report::Timeout,
                Kind::Termination | Kind::RemoteReset | Kind::RefusedStream | Kind::Protocol => outlier::Report::Reset,
                Kind::Overflow | Kind::NoHealthyUpstream | Kind::Downstream => return,
            },
        };
        let failed = result.as_ref().map_or(true, |answer| answer.response.status().is_server_error());
        if failed {
            endpoint.state.errors.fetch_add(1, Ordering::Relaxed);
        }
        if forward.cluster.config.outlier.is_none() {
            return;
        }
        let worker = &self.shared.worker;
        let mut dice = worker.dice.borrow_mut();
        let cluster = &forward.cluster;
        let event = cluster.state.monitor.record(cluster, endpoint, report, worker.shared.now(), &mut dice);
        if let Some(event) = event {
            drop(dice);
            worker.tally.outlier(cluster, &event);
        }
    }

    fn settle(&self, policy: &RetryPolicy, retries: &mut Retries, result: &Result<Answer, Failure>) -> Next {
        let mut dice = self.shared.worker.dice.borrow_mut();
        match result {
            Ok(answer) => {
                let headers = answer.response.headers();
                let grpc = headers.get("grpc-status").and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
                let status = answer.response.status().as_u16();
                retries.on_response(policy, status, headers, grpc, self.record.started_at, &mut dice)
            }
            Err(failure) => match failure.kind {
                Kind::ConnectFailure | Kind::ConnectTimeout => {
                    retries.on_failure(policy, retry::Failure::Connect, &mut dice)
                }
                Kind::Termination | Kind::RemoteReset | Kind::Protocol => {
                    retries.on_failure(policy, retry::Failure::Reset, &mut dice)
                }
                Kind::RefusedStream => retries.on_failure(policy, retry::Failure::RefusedStream, &mut dice),
                Kind::PerTryTimeout => retries.on_failure(policy, retry::Failure::PerTryTimeout, &mut dice),
                Kind::Overflow => retries.on_failure(policy, retry::Failure::Overflow, &mut dice),
                Kind::Timeout | Kind::NoHealthyUpstream | Kind::Downstream => Next::Finish(Why::NotRetriable),
            },
        }
    }
}

/// What became of a request.
pub(super) enum Sent {
    /// The answer's head is there.
    Answered(Response<Incoming>),
    /// Not a byte of it went out; here it is back.
    Returned(Box<Request<UpBody>>),
    /// It failed.
    Failed(Failure),
}

/// Sends a request and waits for the head of the answer.
pub(super) async fn send(way: &mut Way, request: Request<UpBody>) -> Sent {
    let sent = match &mut way.via {
        Via::H1(h1) => h1.sender.try_send_request(request).await,
        Via::H2(stream) => stream.sender().try_send_request(request).await,
    };
    match sent {
        Ok(response) => Sent::Answered(response),
        Err(mut error) => match error.take_message() {
            Some(request) => Sent::Returned(Box::new(request)),
            None => Sent::Failed(failure_of(error.error())),
        },
    }
}

/// What hyper's error means.
fn failure_of(error: &hyper::Error) -> Failure {
    let kind = if error.is_parse() || error.is_parse_status() || error.is_parse_too_large() {
        Kind::Protocol
    } else {
        let h2 = std::error::Error::source(error).and_then(|source| source.downcast_ref::<h2::Error>());
        match h2 {
            Some(h2) if h2.reason() == Some(h2::Reason::REFUSED_STREAM) => Kind::RefusedStream,
            Some(h2) if h2.is_reset() => Kind::RemoteReset,
            // The server had said which streams it would still serve; this is not one of them.
            Some(h2) if h2.is_go_away() && h2.reason() == Some(h2::Reason::NO_ERROR) => Kind::RefusedStream,
            _ => Kind::Termination,
        }
    };
    Failure { kind, transport: Some(error.to_string().into()) }
}

/// Runs a step of an attempt under the limits of the attempt and of the whole exchange.
async fn limited<F: Future>(step: F, per_try: Option<Instant>, clock: &Clock) -> Result<F::Output, Kind> {
    tokio::select! {
        biased;
        output = step => Ok(output),
        kind = clock.out(per_try) => Err(kind),
    }
}

impl Clock {
    /// Ends when the first of the limits is reached, and says which.
    async fn out(&self, per_try: Option<Instant>) -> Kind {
        let idle = self.idle.map(|idle| Instant::now() + idle);
        if self.source.as_ref().is_some_and(|source| source.borrow().ended().is_none()) {
            let waits = [(per_try, Kind::PerTryTimeout), (self.life, Kind::Timeout), (self.arrival, Kind::Timeout)];
            let first = waits.into_iter().filter_map(|(at, kind)| at.map(|at| (at, kind))).min_by_key(|(at, _)| *at);
            tokio::select! {
                () = self.request_ended() => {}
                kind = expire(first) => return kind,
            }
        }
        let timeout = self.timeout_at();
        let waits = [
            (timeout, Kind::Timeout),
            (per_try, Kind::PerTryTimeout),
            (self.life, Kind::Timeout),
            (idle, Kind::Timeout),
        ];
        let first = waits.into_iter().filter_map(|(at, kind)| at.map(|at| (at, kind))).min_by_key(|(at, _)| *at);
        expire(first).await
    }

    /// When the route's limit is reached; `None` while the request is still arriving.
    pub(super) fn timeout_at(&self) -> Option<Instant> {
        let timeout = self.timeout?;
        match &self.source {
            None => Some(self.started + timeout),
            Some(source) => source.borrow().ended().map(|ended| ended + timeout),
        }
    }

    async fn request_ended(&self) {
        let Some(source) = &self.source else { return };
        poll_fn(|cx| source.borrow_mut().poll_ended(cx)).await;
    }
}

async fn expire(first: Option<(Instant, Kind)>) -> Kind {
    match first {
        Some((at, kind)) => {
            sleep_until(at).await;
            kind
        }
        None => std::future::pending().await,
    }
}
