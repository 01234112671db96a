//! The life of one request, read downward: facts, guard, steer, shape, pick, reach, relay, settle, report.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use engine::circuit::Slot;
use engine::facts::Protocol;
use engine::reply::{Flags, LocalReply};
use engine::routes::Upgrade;
use engine::{Decision, Endpoint, Facts, Forward, Outcome, Plan, shape};
use http::{HeaderValue, Request, Response, Version};
use http_body::Body as _;
use tokio::time::{Instant, sleep};

use super::arrive::{self, Head};
use super::attempt::{Clock, Letter};
use super::body::{Incoming, SharedSource, Source};
use super::interim::Interim;
use super::respond::DownBody;
use super::seen::Seen;
use super::serve::HttpConnection;
use super::tunnel::Side;
use crate::report::record::{Kind, PeerMetadata, Record};
use crate::upstream::failure::Failure;

/// Everything about one request from its first byte to its last.
pub struct Exchange {
    /// The connection it came on.
    pub shared: Rc<HttpConnection>,
    /// What will be reported.
    pub record: Record,
    /// What the engine decided.
    pub decision: Option<Decision>,
    /// The request's body, where it has one.
    pub source: Option<SharedSource>,
    /// Monotonic clock at its begin.
    pub began: Instant,
    /// Monotonic clock when it last went on after a wait: looking at the clock is not free.
    pub now: Instant,
    /// The request's place in the cluster's circuit limits.
    pub slot: Option<Slot>,
    /// The endpoint that works on it.
    pub busy: Option<Busy>,
    /// See [`Channels::interim`].
    pub interim: Option<Rc<Interim>>,
}

/// The ways to the client beside the answer.
#[derive(Debug, Default)]
pub struct Channels {
    /// The client's end of a tunnel, should one come of the request.
    pub upgrade: Option<Side>,
    /// Where interim answers are left for it; `None`: they end here.
    pub interim: Option<Rc<Interim>>,
}

/// Serves one request.
pub async fn exchange(
    shared: &Rc<HttpConnection>,
    request: Request<Incoming>,
    channels: Channels,
) -> Response<DownBody> {
    let Channels { upgrade, interim } = channels;
    let mut exchange = Exchange::begin(shared, &request, interim);
    if shared.worker.shared.overload.sheds_request(|| shared.worker.chance()) {
        return exchange.shed();
    }
    let (parts, incoming) = request.into_parts();

    // The dice are given back before an answer of our own takes them.
    let arrived = arrive::canonical(shared.client(), parts, &mut shared.worker.dice.borrow_mut());
    let mut head = match arrived {
        Ok(head) => head,
        Err(reply) => return exchange.reply(reply, None),
    };
    exchange.meet_peer(&mut head);
    #[cfg(test)]
    super::injected::panic_where_asked(&head.path);

    let mut incoming = Some(incoming);
    if shared.manager.asks() {
        let plan = shared.worker.shared.plan.load_full();
        Box::pin(exchange.consult(&plan, &mut head, &mut incoming)).await;
        exchange.now = Instant::now();
    } else {
        // Not kept beyond the decision: its count of users is one that all workers share.
        exchange.decide(&shared.worker.shared.plan.load(), &mut head);
    }
    if let Some(delay) = exchange.decision.as_ref().and_then(|decision| decision.delay) {
        sleep(delay).await;
        exchange.now = Instant::now();
    }
    if let Some(reply) = exchange.refuse_upgrade(&head) {
        return exchange.reply(reply, Some(&head));
    }
    let forward = match exchange.outcome() {
        Outcome::Forward(forward) => forward,
        Outcome::Reply(reply) => return exchange.reply(reply, Some(&head)),
    };

    if exchange.ends_connect(&head) {
        return exchange.terminate(&forward, upgrade).await;
    }
    exchange.take_body(incoming, &forward);
    exchange.change_trailers(&head);
    let letter = match exchange.shape(head, &forward) {
        Ok(letter) => letter,
        Err(reply) => return exchange.reply(reply, None),
    };
    exchange.mirror(&forward, &letter);
    match exchange.attempts(&forward, &letter).await {
        Ok(answer) => exchange.respond(answer, upgrade.zip(letter.upgrade)),
        Err(failure) => exchange.fail(&failure),
    }
}

impl Exchange {
    fn begin(shared: &Rc<HttpConnection>, request: &Request<Incoming>, interim: Option<Rc<Interim>>) -> Box<Self> {
        shared.active.set(shared.active.get() + 1);
        if let Some(cells) = shared.site.as_ref().and_then(|site| site.http.as_ref()) {
            cells.downstream_rq_active.inc();
        }
        let began = Instant::now();
        let protocol = match request.version() {
            Version::HTTP_2 => Protocol::Http2,
            Version::HTTP_10 | Version::HTTP_09 => Protocol::Http10,
            _ => Protocol::Http11,
        };
        let mut record = Record::begin(Kind::Http, &shared.downstream, SystemTime::now(), began.into_std());
        record.protocol = Some(protocol);
        record.method = Some(request.method().clone());
        // Made where it stands, as the exchange's future is: the record is large.
        Box::write(
            Box::new_uninit(),
            Self {
                shared: Rc::clone(shared),
                record,
                decision: None,
                source: None,
                began,
                now: began,
                slot: None,
                busy: None,
                interim,
            },
        )
    }

    /// Takes the peer's word about itself off the request; the application never sees it.
    fn meet_peer(&mut self, head: &mut Head) {
        if !head.seen.any(Seen::PEER) {
            return;
        }
        let mut last = self.shared.peer.borrow_mut();
        self.record.peer = PeerMetadata::take(&mut head.headers, &last);
        if self.record.peer != *last {
            last.clone_from(&self.record.peer);
        }
    }

    /// All that is known about the request.
    pub fn facts<'a>(&'a self, head: &'a Head) -> Facts<'a> {
        Facts {
            connection: &self.shared.downstream.facts,
            method: head.method.as_str(),
            path: &head.path,
            authority: &head.authority,
            scheme: head.scheme,
            headers: &head.headers,
            protocol: self.record.protocol.unwrap_or(Protocol::Http11),
            remote: head.remote,
            started: self.record.started_at,
            metadata: self.record.metadata.as_deref(),
        }
    }

    /// Guard and steer: the engine decides, the record notes it. What filters changed is then in `head`.
    fn decide(&mut self, plan: &Plan, head: &mut Head) {
        let worker = Rc::clone(&self.shared.worker);
        let facts = self.facts(head);
        let now = worker.shared.at(self.now);
        let mut decision = engine::decide(plan, &self.shared.manager, &facts, now, &mut worker.dice.borrow_mut());
        if let Some(changed) = decision.changed.take() {
            self.take_over(*changed, head);
        }
        self.note(decision, head);
    }

    /// Notes a decision in the record.
    pub(super) fn note(&mut self, mut decision: Decision, head: &Head) {
        let grpc = head.seen.any(Seen::CONTENT_TYPE) && self.facts(head).is_grpc();
        let record = &mut self.record;
        record.grpc = grpc;
        if let Some(asked) = &mut decision.asked {
            record.guards = std::mem::take(&mut asked.guards);
            record.health_check = !asked.checks.is_empty();
            record.limits = std::mem::take(&mut asked.limits);
        }
        record.trace = head.trace;
        record.tells_request_id = head.forced_trace || self.shared.manager.request_id_in_response;
        record.scheme = head.scheme;
        record.remote = Some(head.remote);
        record.original_path = Some(head.path.clone());
        record.authority = Some(head.authority.clone());
        record.flags = decision.flags;
        record.rbac = std::mem::take(&mut decision.rbac);
        record.matched = decision.matched.take();
        self.decision = Some(decision);
    }

    /// What the route that was chosen says of the upgrade that is asked for.
    fn route_upgrade(&self, head: &Head) -> Option<&Upgrade> {
        let action = self.record.matched.as_ref().and_then(|matched| matched.forward())?;
        action.upgrade(head.upgrade.as_deref()?)
    }

    /// The answer to a request for an upgrade that neither the route nor the manager allows.
    fn refuse_upgrade(&self, head: &Head) -> Option<LocalReply> {
        let name = head.upgrade.as_deref()?;
        let enabled = self.route_upgrade(head).map(|upgrade| upgrade.enabled);
        let allowed = enabled.unwrap_or_else(|| self.shared.manager.allows_upgrade(name));
        // A CONNECT that no route takes is told so.
        let pointless = name == arrive::CONNECT && self.record.matched.is_none();
        (!allowed && !pointless).then(|| arrive::refuse(http::StatusCode::FORBIDDEN, "upgrade_failed"))
    }

    /// Whether the request is a CONNECT whose bytes go to the endpoint as they are.
    fn ends_connect(&self, head: &Head) -> bool {
        self.route_upgrade(head).is_some_and(|upgrade| upgrade.terminate)
    }

    /// What to do; the decision itself stays for the response.
    fn outcome(&mut self) -> Outcome {
        let nothing = || Outcome::Reply(LocalReply::error(http::StatusCode::NOT_FOUND, "", "", Flags::NONE));
        let outcome = self.decision.as_mut().map(|decision| std::mem::replace(&mut decision.outcome, nothing()));
        outcome.unwrap_or_else(nothing)
    }

    /// Takes the body, unless an authorizer was shown it: then it is taken already.
    fn take_body(&mut self, incoming: Option<Incoming>, forward: &Forward) {
        self.record.upstream.cluster = Some(Arc::clone(&forward.cluster));
        let matched = self.record.matched.as_ref();
        let retries = matched.and_then(|matched| matched.forward()).is_some_and(|action| action.retry.is_some());
        let limit = if retries { self.buffer_limit() } else { 0 };
        if let Some(source) = &self.source {
            source.borrow_mut().remember_at_most(limit);
            return;
        }
        match incoming.filter(|incoming| !incoming.is_end_stream()) {
            Some(incoming) => self.source = Some(Source::new(incoming, limit, self.record.grpc)),
            None => self.record.request_complete = Some(self.now.duration_since(self.began)),
        }
    }

    /// What filters change of the request's trailers is told to who reads them.
    fn change_trailers(&self, head: &Head) {
        let Some(source) = self.source.as_ref().filter(|_| self.shared.manager.changes_trailers()) else { return };
        let plan = self.shared.worker.shared.plan.load();
        let around = (&**plan, &*self.shared.manager);
        let changes = shape::request_trailers(around, self.record.matched.as_ref(), &self.facts(head));
        if !changes.is_empty() {
            source.borrow_mut().change_trailers(changes);
        }
    }

    /// Most bytes of a body that are kept for another attempt, or for a copy that lags behind.
    pub(super) fn buffer_limit(&self) -> usize {
        let route = self.record.matched.as_ref().and_then(|matched| matched.route.buffer_limit);
        let limit = route.unwrap_or_else(|| u64::from(self.shared.downstream.listener.buffer_limit));
        usize::try_from(limit).unwrap_or(usize::MAX)
    }

    /// The time limits of the exchange.
    pub fn clock(&self, forward: &Forward) -> Clock {
        let idle = forward.idle_timeout;
        let life = forward.max_stream_duration.map(|limit| self.began + limit);
        let arrival = self.shared.manager.request_timeout.map(|limit| self.began + limit);
        // Streams of HTTP/2 run at the same time; requests of HTTP/1 follow each other and share one timer.
        let alarm = if self.shared.h2 { Rc::default() } else { Rc::clone(&self.shared.alarm) };
        let (started, timeout, source) = (self.now, forward.timeout, self.source.clone());
        Clock { started, timeout, idle, try_idle: None, life, try_life: None, arrival, source, alarm }
    }

    /// Where the request goes, with its head as the upstream gets it.
    fn shape(&mut self, head: Head, forward: &Forward) -> Result<Letter, LocalReply> {
        Letter::write(self, head, forward)
    }

    /// A failed request: the answer that Envoy gives.
    pub(super) fn fail(self: Box<Self>, failure: &Failure) -> Response<DownBody> {
        let retried = self.record.upstream.attempts > 1;
        let body = failure.body(retried);
        let mut reply = LocalReply::error(failure.status(self.has_arrived()), "", failure.details(), failure.flags());
        reply.body = body.into();
        reply.grpc_status = failure.grpc_status();
        if failure.kind == crate::upstream::failure::Kind::Overflow {
            let name = http::HeaderName::from_static("x-envoy-overloaded");
            reply.headers.push((name, http::HeaderValue::from_static("true")));
        }
        let mut exchange = self;
        exchange.record.upstream.transport_failure.clone_from(&failure.transport);
        exchange.reply(reply, None)
    }

    /// Whether the whole request has come.
    pub(super) fn has_arrived(&self) -> bool {
        self.source.as_ref().is_none_or(|source| source.borrow().ended().is_some())
    }

    /// Notes that an endpoint works on the request.
    pub fn occupy(&mut self, endpoint: &Arc<Endpoint>) {
        endpoint.state.active.fetch_add(1, Ordering::Relaxed);
        endpoint.state.requests.fetch_add(1, Ordering::Relaxed);
        self.busy = Some(Busy(Arc::clone(endpoint)));
        self.record.upstream.endpoint = Some(Arc::clone(endpoint));
    }
}

/// An endpoint that works on a request; dropping it ends that.
pub struct Busy(Arc<Endpoint>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.state.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// However the exchange ends - answered, given up by the client, or by a panic - it is reported once.
impl Drop for Exchange {
    fn drop(&mut self) {
        let record = &mut self.record;
        if let Some(source) = &self.source {
            let source = source.borrow();
            record.bytes_received = source.received();
            record.request_messages = source.messages();
            let ended = source.ended();
            record.request_complete = ended.map(|at| at.duration_since(self.began));
        }
        let now = Instant::now();
        record.duration = now.duration_since(self.began);
        if !record.complete {
            record.flags = record.flags.with(Flags::DOWNSTREAM_CONNECTION_TERMINATION);
            record.details.get_or_insert_with(|| Arc::from("downstream_remote_disconnect"));
        }
        let shared = &self.shared;
        if record.health_check
            && let Some(status) = record.status
        {
            let asked = self.decision.iter().flat_map(|decision| &decision.asked).flat_map(|asked| &asked.checks);
            asked
                .filter(|check| check.passed_on)
                .for_each(|check| check.filter.hear(status, shared.worker.shared.at(now)));
        }
        shared.active.set(shared.active.get().saturating_sub(1));
        shared.served.set(shared.served.get().saturating_add(1));
        shared.quiet_since.set(now);
        if let Some(interim) = &self.interim {
            interim.clear();
        }
        if let Some(cells) = shared.site.as_ref().and_then(|site| site.http.as_ref()) {
            cells.downstream_rq_active.dec();
        }
        shared.worker.tally.finish(&shared.worker.shared.plan.load(), record);
        crate::h1::recycle(std::mem::take(&mut record.request_headers));
    }
}

/// Milliseconds for headers, as Envoy rounds them: down.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A number as the value of a header. Most are small, and the same few are written again and again.
pub(super) fn number(number: u64) -> HeaderValue {
    thread_local! {
        static LAST: RefCell<(u64, HeaderValue)> = const { RefCell::new((0, HeaderValue::from_static("0"))) };
    }
    if let Some(text) = usize::try_from(number).ok().and_then(small) {
        return HeaderValue::from_static(text);
    }
    LAST.with_borrow_mut(|last| {
        if last.0 != number {
            *last = (number, HeaderValue::from(number));
        }
        last.1.clone()
    })
}

/// The digits of a number below a hundred.
fn small(number: usize) -> Option<&'static str> {
    const ALL: &str = "\
        0001020304050607080910111213141516171819202122232425262728293031323334353637383940414243444546474849\
        5051525354555657585960616263646566676869707172737475767778798081828384858687888990919293949596979899";
    let place = number.checked_mul(2)?;
    ALL.get(if number < 10 { place + 1 } else { place }..place.checked_add(2)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_numbers_are() {
        for n in (0..1_000).chain([u64::MAX / 2, u64::MAX]) {
            assert_eq!(number(n), n.to_string());
        }
    }
}
