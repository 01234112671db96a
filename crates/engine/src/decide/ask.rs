//! Decisions that must ask outside on their way: for keys, or an authorizer. The shell asks and hands the answer back.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::{Decision, Matched, Outcome, resolve, run};
use crate::dice::Dice;
use crate::ext_authz::{Asking, BodyView, Call, ExtAuthz, Verdict};
use crate::facts::Facts;
use crate::health_filter::HealthCheckFilter;
use crate::http_manager::{HttpFilter, HttpFilterKind, HttpManager};
use crate::jwt::{Effects, RemoteKeys};
use crate::limit::LimitReport;
use crate::metadata::Metadata;
use crate::moment::Moment;
use crate::plan::Plan;
use crate::reply::LocalReply;

/// What came of token filters, authorizers and limits.
#[derive(Debug, Default)]
pub struct Asked {
    /// What token filters and authorizers said, in order.
    pub guards: Vec<Guard>,
    /// What filters that limit requests said, in order.
    pub limits: Vec<LimitReport>,
    /// Headers of authorizers and limits for the response, whoever makes it.
    pub external: Vec<(HeaderName, HeaderValue)>,
    /// Key sets that should be fetched in the background.
    pub outdated: Vec<Arc<RemoteKeys>>,
    /// Authorizers that nobody asked (see [`decide`](super::decide())).
    pub unasked: Vec<Arc<ExtAuthz>>,
    /// Filters that took the request for a health check.
    pub checks: Vec<Check>,
}

/// A health check that a filter saw.
#[derive(Debug)]
pub struct Check {
    /// The filter.
    pub filter: Arc<HealthCheckFilter>,
    /// The workload is to answer; the filter hears what it says.
    pub passed_on: bool,
}

/// What one of the filters that guard a request said, to be counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// The tokens are good, or none is needed.
    TokenAllowed,
    /// A token is missing or bad.
    TokenDenied,
    /// The authorizer lets it pass.
    ExternalAllowed,
    /// The authorizer refuses it.
    ExternalDenied,
    /// The authorizer could not be asked.
    ExternalError,
    /// The authorizer could not be asked, and that lets it pass.
    ExternalFailedOpen,
}

/// What filters made of a request.
#[derive(Debug, Clone, Default)]
pub struct Changed {
    /// All its headers.
    pub headers: HeaderMap,
    /// Its path and query, where they changed.
    pub path: Option<String>,
    /// What filters tell those behind them.
    pub metadata: Metadata,
}

/// What a decision is made in; the same from its begin to its end.
#[derive(Debug, Clone, Copy)]
pub struct World<'w, 'f> {
    /// The plan.
    pub plan: &'w Plan,
    /// The manager that the request came to.
    pub manager: &'w HttpManager,
    /// The request as it came.
    pub facts: &'w Facts<'f>,
    /// The time.
    pub now: Moment,
}

/// A decision on its way.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "a decision is the rule, and boxing it would cost every request")]
pub enum Step {
    /// It is made.
    Done(Decision),
    /// Something outside must be asked first.
    Ask(Box<Pending>),
}

/// A decision that waits for an answer.
#[derive(Debug)]
pub struct Pending {
    /// What is asked.
    pub question: Question,
    pub(super) decision: Decision,
    /// The filter that asks.
    pub(super) at: usize,
    pub(super) tried: Vec<Arc<RemoteKeys>>,
}

/// What must be asked outside.
#[derive(Debug, Clone)]
pub enum Question {
    /// Fetch these keys; the answer is in them.
    Keys(Arc<RemoteKeys>),
    /// Ask an authorizer; [`Pending::call`] says how.
    Authorize(Asking),
    /// Wait for the whole body, of at most so many bytes.
    Body(u64),
    /// Does the process fail its health checks?
    Health(Arc<HealthCheckFilter>),
}

/// What came of a question.
#[derive(Debug)]
pub enum Answered {
    /// Keys were fetched, or could not be: they know.
    Keys,
    /// The authorizer's verdict.
    Verdict(Verdict),
    /// The body has come, so many bytes of it.
    Body(u64),
    /// The process fails its checks.
    Failing,
    /// The request cannot be asked about.
    Refused(LocalReply),
    /// It was not asked.
    NotAsked,
}

impl Pending {
    /// The call that asks an authorizer.
    #[must_use]
    pub fn call(&self, asking: &Asking, facts: &Facts<'_>, body: Option<&BodyView>) -> Call {
        let route = self.decision.matched.as_ref().map(|matched| &matched.route.metadata);
        match &self.decision.changed {
            None => asking.call(facts, route, body),
            Some(changed) => asking.call(&changed.facts(facts), route, body),
        }
    }

    /// Goes on with what came of the question.
    #[must_use]
    pub fn go_on(self: Box<Self>, world: World<'_, '_>, answered: Answered, dice: &mut Dice) -> Step {
        let Self { question, mut decision, mut at, mut tried } = *self;
        let refusal = match (question, answered) {
            (_, Answered::Refused(reply)) => Some(reply),
            (Question::Keys(keys), _) => {
                tried.push(keys);
                None
            }
            (Question::Authorize(asking), answered) => {
                at += 1;
                authorized(world, &mut decision, &asking, answered, dice)
            }
            (Question::Body(_), answered) => {
                at += 1;
                if let Answered::Body(length) = answered {
                    measured(world, &mut decision, length);
                }
                None
            }
            (Question::Health(filter), answered) => {
                at += 1;
                let reply = filter.answer(world.plan, matches!(answered, Answered::Failing), world.now);
                decision.asked().checks.push(Check { filter, passed_on: reply.is_none() });
                reply
            }
        };
        if let Some(reply) = refusal {
            decision.outcome = Outcome::Reply(reply);
            return Step::Done(decision);
        }
        run(world, decision, at, tried, dice)
    }
}

/// Does what an authorizer said; an answer ends the request.
fn authorized(
    world: World<'_, '_>,
    decision: &mut Decision,
    asking: &Asking,
    answered: Answered,
    dice: &mut Dice,
) -> Option<LocalReply> {
    let Answered::Verdict(verdict) = answered else {
        decision.asked().unasked.push(asking.filter.clone());
        return None;
    };
    let (verdict, failed) = match verdict {
        Verdict::Error => (asking.filter.failed(), true),
        verdict => (verdict, false),
    };
    let changes = match verdict {
        Verdict::Allowed(changes) => changes,
        Verdict::Denied(reply) => {
            decision.asked().guards.push(if failed { Guard::ExternalError } else { Guard::ExternalDenied });
            return Some(*reply).filter(|_| !asking.filter.shadow);
        }
        Verdict::Error => return None,
    };
    decision.asked().guards.push(if failed { Guard::ExternalFailedOpen } else { Guard::ExternalAllowed });
    decision.asked().external.extend(changes.response.iter().cloned());
    if !changes.touches_request() && changes.metadata.is_none() {
        return None;
    }
    let changed = Changed::begun(&mut decision.changed, world.facts);
    changes.apply(changed, world.facts.path);
    if asking.filter.clear_route && changes.touches_request() {
        decision.matched = resolve_anew(world, changed, dice);
    }
    None
}

/// Says how long a body is that was waited for.
fn measured(world: World<'_, '_>, decision: &mut Decision, length: u64) {
    let changed = Changed::begun(&mut decision.changed, world.facts);
    changed.headers.entry(header::CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
}

/// Does what a filter does to every request.
pub(super) fn change(world: World<'_, '_>, decision: &mut Decision, (filter, kind): (&HttpFilter, &HttpFilterKind)) {
    let changed = Changed::begun(&mut decision.changed, world.facts);
    match kind {
        HttpFilterKind::HeaderMutation(mutations) => {
            mutations.request(&filter.name, decision.matched.as_ref(), world.facts, changed);
        }
        HttpFilterKind::Metadata(additions) => additions.iter().for_each(|one| changed.metadata.add(one)),
        _ => {}
    }
}

fn resolve_anew(world: World<'_, '_>, changed: &Changed, dice: &mut Dice) -> Option<Matched> {
    let plain = world.manager.router.suppress_envoy_headers;
    let table = world.plan.routes_of(world.manager)?;
    resolve(table, plain, &changed.facts(world.facts), dice)
}

/// The request goes on with these headers.
pub(super) fn replace(world: World<'_, '_>, decision: &mut Decision, headers: HeaderMap) {
    match &mut decision.changed {
        Some(changed) => changed.headers = headers,
        // The headers as they came are not copied only to be replaced.
        none => *none = Some(Box::new(Changed { headers, ..Changed::with_metadata(world.facts) })),
    }
}

/// Does what good tokens do.
pub(super) fn accept(world: World<'_, '_>, decision: &mut Decision, effects: &Effects, dice: &mut Dice) {
    if *effects == Effects::default() {
        return;
    }
    let changed = Changed::begun(&mut decision.changed, world.facts);
    for name in &effects.drop_headers {
        changed.headers.remove(name);
    }
    for (name, value) in &effects.headers {
        changed.headers.append(name, value.clone());
    }
    let path = effects.path(changed.path.as_deref().unwrap_or(world.facts.path));
    changed.path = path.or_else(|| changed.path.take());
    effects.tell(&mut changed.metadata);
    if effects.clear_route {
        decision.matched = resolve_anew(world, changed, dice);
    }
}

impl Changed {
    /// The request as it was changed so far, from now on to be changed.
    fn begun<'c>(changed: &'c mut Option<Box<Self>>, facts: &Facts<'_>) -> &'c mut Self {
        changed.get_or_insert_with(|| Box::new(Self { headers: facts.headers.clone(), ..Self::with_metadata(facts) }))
    }

    /// No headers, and the metadata that there is.
    fn with_metadata(facts: &Facts<'_>) -> Self {
        Self { metadata: facts.metadata.cloned().unwrap_or_default(), ..Self::default() }
    }

    /// The request as it is now.
    #[must_use]
    pub fn facts<'a>(&'a self, facts: &Facts<'a>) -> Facts<'a> {
        Facts {
            headers: &self.headers,
            path: self.path.as_deref().unwrap_or(facts.path),
            metadata: Some(&self.metadata),
            ..*facts
        }
    }
}

impl Decision {
    /// What came of token filters and authorizers, to be added to.
    pub(super) fn asked(&mut self) -> &mut Asked {
        self.asked.get_or_insert_default()
    }

    /// What token filters and authorizers said, in order.
    #[must_use]
    pub fn guards(&self) -> &[Guard] {
        self.asked.as_ref().map_or(&[], |asked| &asked.guards)
    }
}
