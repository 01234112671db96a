//! Decisions that ask outside: keys are fetched and authorizers asked, then the decision goes on.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use engine::Plan;
use engine::decide::{Answered, Changed, Pending, Question, Step, World, begin};
use engine::ext_authz::{Answer, Asking, BodyView, Call, Verdict};
use engine::reply::{Flags, LocalReply};
use http::StatusCode;
use http_body::Body as _;
use tokio::time::timeout;

use super::arrive::Head;
use super::body::{Incoming, SharedSource, Source, arrive, prefetch};
use super::errand::{self, Errand};
use super::exchange::Exchange;
use super::keys;
use super::seen::Seen;
use crate::worker::Worker;

/// The largest answer of an authorizer, bytes.
const MAX_ANSWER: usize = 1024 * 1024;
/// How long a body is waited for where the manager sets no limit.
const BODY_LIMIT: Duration = Duration::from_secs(300);

impl Exchange {
    /// Guard and steer, for managers that may have to ask. What filters changed is then in `head`.
    pub(super) async fn consult(&mut self, plan: &Plan, head: &mut Head, incoming: &mut Option<Incoming>) {
        let worker = Rc::clone(&self.shared.worker);
        let facts = self.facts(head);
        let manager = &self.shared.manager;
        let mut world = World { plan, manager, facts: &facts, now: worker.shared.now() };
        let mut source = None;
        let mut step = begin(world, &mut worker.dice.borrow_mut());
        let mut decision = loop {
            let pending = match step {
                Step::Done(decision) => break decision,
                Step::Ask(pending) => pending,
            };
            let answered = match &pending.question {
                Question::Keys(keys) => {
                    keys::fetch(&worker, keys).await;
                    Answered::Keys
                }
                Question::Authorize(asking) => authorize(&worker, &pending, asking, world, incoming, &mut source).await,
                Question::Body(most) => whole(world, *most, incoming, &mut source).await,
                Question::Health(_) if worker.shared.fails_checks() => Answered::Failing,
                Question::Health(_) => Answered::NotAsked,
            };
            world.now = worker.shared.now();
            step = pending.go_on(world, answered, &mut worker.dice.borrow_mut());
        };
        for keys in decision.asked.iter().flat_map(|asked| &asked.outdated) {
            keys::begin(&worker, keys);
        }
        self.source = source;
        if let Some(changed) = decision.changed.take() {
            self.take_over(*changed, head);
        }
        self.note(decision, head);
    }

    /// The request goes on as filters changed it.
    pub(super) fn take_over(&mut self, changed: Changed, head: &mut Head) {
        head.headers = changed.headers;
        head.seen = Seen::of(&head.headers);
        if let Some(path) = changed.path {
            head.path = path.into();
        }
        if !changed.metadata.is_empty() {
            self.record.metadata = Some(Box::new(changed.metadata));
        }
    }
}

/// Asks an authorizer, after as much of the body as it wants has come.
async fn authorize(
    worker: &Rc<Worker>,
    pending: &Pending,
    asking: &Asking,
    world: World<'_, '_>,
    incoming: &mut Option<Incoming>,
    source: &mut Option<SharedSource>,
) -> Answered {
    let mut view = None;
    if let Some(settings) = asking.body() {
        view = Some(match taken(world, incoming, source) {
            None => BodyView::default(),
            Some(source) => match timeout(patience(world), prefetch(source, settings.max_bytes)).await {
                Ok((bytes, cut)) => BodyView { bytes, cut },
                Err(_) => return Answered::Refused(too_slow()),
            },
        });
        if view.as_ref().is_some_and(|view| view.cut) && !settings.partial {
            return Answered::Refused(LocalReply::too_large());
        }
    }
    let call = pending.call(asking, world.facts, view.as_ref());
    Answered::Verdict(ask(worker, asking, call).await)
}

/// Waits for a body until it has come to its end.
async fn whole(
    world: World<'_, '_>,
    most: u64,
    incoming: &mut Option<Incoming>,
    source: &mut Option<SharedSource>,
) -> Answered {
    let Some(source) = taken(world, incoming, source) else { return Answered::NotAsked };
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    match timeout(patience(world), arrive(source, most)).await {
        Err(_) => Answered::Refused(too_slow()),
        Ok(true) => Answered::Refused(LocalReply::too_large()),
        // Who sends it on finds out how it broke off.
        Ok(false) if source.borrow().broken().is_some() => Answered::NotAsked,
        Ok(false) => Answered::Body(source.borrow().received()),
    }
}

/// The request's body, which is kept in full from now on; `None`: it has none.
fn taken<'s>(
    world: World<'_, '_>,
    incoming: &mut Option<Incoming>,
    source: &'s mut Option<SharedSource>,
) -> Option<&'s SharedSource> {
    if let Some(body) = incoming.take().filter(|body| !body.is_end_stream()) {
        *source = Some(Source::new(body, usize::MAX, world.facts.is_grpc()));
    }
    source.as_ref()
}

/// How long a body is waited for.
fn patience(world: World<'_, '_>) -> Duration {
    world.manager.request_timeout.or(world.manager.stream_idle_timeout).unwrap_or(BODY_LIMIT)
}

/// The answer to a client whose body does not come.
fn too_slow() -> LocalReply {
    LocalReply::error(StatusCode::REQUEST_TIMEOUT, "request timeout", "request_overall_timeout", Flags::NONE)
}

async fn ask(worker: &Rc<Worker>, asking: &Asking, call: Call) -> Verdict {
    let Call { cluster, authority, method, path, headers, body, timeout, grpc } = call;
    let errand = Errand {
        cluster: Arc::clone(&cluster),
        authority,
        method,
        path,
        headers,
        body,
        timeout,
        h2: grpc,
        most: MAX_ANSWER,
    };
    match errand::run(worker, &errand).await {
        Ok(back) => asking.understand(&Answer { status: back.status, headers: back.headers, body: back.body }),
        Err(why) => {
            tracing::debug!(%cluster, why, "the authorizer was not reached");
            Verdict::Error
        }
    }
}
