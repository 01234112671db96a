//! The mesh's question: this caller wants that; may it, and where does it go?

mod ask;
mod hash;
mod limit;
mod redirect;
mod timeouts;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::alpn::AlpnOverrides;
use crate::cluster::Cluster;
use crate::cors::Cors;
use crate::dice::Dice;
use crate::ext_authz::Asks;
use crate::facts::Facts;
use crate::fault::{FaultHold, FaultPolicy};
use crate::http_manager::{HttpFilter, HttpFilterKind, HttpManager};
use crate::jwt::{self, Effects, JwtAuthn, RemoteKeys};
use crate::matcher::HeaderKey;
use crate::moment::Moment;
use crate::plan::Plan;
use crate::rbac::{self, HttpRbac, RbacReport, Subject};
use crate::reply::{Flags, LocalReply};
use crate::routes::{
    ClusterChoice, FilterOverride, ForwardAction, MirrorPolicy, RequireTls, Route, RouteAction, RouteTable,
    VirtualHost, WeightedCluster, WeightedClusters,
};

pub use ask::{Answered, Asked, Changed, Check, Guard, Pending, Question, Step, World};

/// The answer for one request.
#[derive(Debug)]
pub struct Decision {
    /// What to do, after `delay`.
    pub outcome: Outcome,
    /// A fault's delay: wait so long first (`DI`). The route's timeout begins afterwards.
    pub delay: Option<Duration>,
    /// Keep it as long as the request lives.
    pub fault: Option<FaultHold>,
    /// What each authorization filter said, in order.
    pub rbac: Vec<RbacReport>,
    /// CORS headers to put on the response, whoever makes it.
    pub cors: Vec<(HeaderName, HeaderValue)>,
    /// A cookie that the hash policy makes, for the response.
    pub set_cookie: Option<HeaderValue>,
    /// The route's header changes apply to the response: to an upstream's, and to answers of the proxy's own but for
    /// those of authorization and CORS (that is what Envoy does).
    pub shapes_response: bool,
    /// The route that matched, whatever then happened; for logs, metrics and header changes.
    pub matched: Option<Matched>,
    /// Response flags so far (`DI`).
    pub flags: Flags,
    /// The request as filters changed it; `None`: as it came.
    pub changed: Option<Box<Changed>>,
    /// What a filter says that upstreams are offered by ALPN.
    pub alpn: Option<Arc<AlpnOverrides>>,
    /// What came of token filters, authorizers and limits; `None`: there was nothing to ask.
    pub asked: Option<Box<Asked>>,
}

/// What to do with the request.
#[derive(Debug)]
pub enum Outcome {
    /// Send it on.
    Forward(Forward),
    /// Answer it.
    Reply(LocalReply),
}

/// The route that matched.
#[derive(Debug, Clone)]
pub struct Matched {
    /// The table.
    pub table: Arc<RouteTable>,
    /// The virtual host.
    pub host: Arc<VirtualHost>,
    /// The route.
    pub route: Arc<Route>,
    /// Which of its weighted clusters, if it has such.
    pub weighted: Option<usize>,
    /// No `x-envoy-*` headers are to be added (the router's `suppress_envoy_headers`).
    pub plain: bool,
}

/// Where a request goes.
#[derive(Debug, Clone)]
pub struct Forward {
    /// The cluster.
    pub cluster: Arc<Cluster>,
    /// The route's hash of the request (ring hash, Maglev).
    pub hash: Option<u64>,
    /// Limit of the whole exchange, retries included; `None`: none.
    pub timeout: Option<Duration>,
    /// Idle limit of the exchange; `None`: none.
    pub idle_timeout: Option<Duration>,
    /// Limit of the exchange's life (route, manager, `grpc-timeout`); `None`: none. The cluster has one of its own for attempts.
    pub max_stream_duration: Option<Duration>,
    /// Copies to make: cluster, keep the host name as it is.
    pub mirrors: Vec<Mirror>,
    /// What the endpoint is offered by ALPN; `None`: what the cluster says.
    pub alpn: Option<Arc<AlpnOverrides>>,
}

/// A copy to make.
#[derive(Debug, Clone)]
pub struct Mirror {
    /// Where to.
    pub cluster: Arc<Cluster>,
    /// Leave the authority without `-shadow`.
    pub keep_host: bool,
}

impl Matched {
    /// The forwarding settings, if the route forwards.
    #[must_use]
    pub fn forward(&self) -> Option<&ForwardAction> {
        self.route.forward()
    }
}

/// Decides without asking anybody: keys that would have to be fetched cannot be had, and authorizers let pass (what
/// they were to be asked is in [`Asked::unasked`]).
#[must_use]
pub fn decide(plan: &Plan, manager: &HttpManager, facts: &Facts<'_>, now: Moment, dice: &mut Dice) -> Decision {
    let world = World { plan, manager, facts, now };
    let mut step = begin(world, dice);
    loop {
        match step {
            Step::Done(decision) => return decision,
            Step::Ask(pending) => step = pending.go_on(world, Answered::NotAsked, dice),
        }
    }
}

/// Begins a decision. Filters run in the manager's order; then the route acts.
#[must_use]
pub fn begin(world: World<'_, '_>, dice: &mut Dice) -> Step {
    let plain = world.manager.router.suppress_envoy_headers;
    let table = world.plan.routes_of(world.manager);
    let decision = Decision {
        outcome: Outcome::Reply(no_route()),
        delay: None,
        fault: None,
        rbac: Vec::new(),
        cors: Vec::new(),
        set_cookie: None,
        shapes_response: false,
        matched: table.and_then(|table| resolve(table, plain, world.facts, dice)),
        flags: Flags::NONE,
        changed: None,
        alpn: None,
        asked: None,
    };
    run(world, decision, 0, Vec::new(), dice)
}

/// Runs the filters from one on.
fn run(
    world: World<'_, '_>,
    mut decision: Decision,
    mut at: usize,
    tried: Vec<Arc<RemoteKeys>>,
    dice: &mut Dice,
) -> Step {
    while let Some(filter) = world.manager.filters.get(at) {
        let changed = decision.changed.take();
        let changed_facts = changed.as_ref().map(|changed| changed.facts(world.facts));
        let facts = changed_facts.as_ref().unwrap_or(world.facts);
        let kind = world.plan.kind_of(filter);
        let ran = run_filter(&mut decision, (filter, kind), facts, (world.now, &tried), dice);
        decision.changed = changed;
        match ran {
            Ran::Next => {}
            Ran::Reply(reply) => {
                decision.outcome = Outcome::Reply(reply);
                return Step::Done(decision);
            }
            Ran::Headers(headers) => ask::replace(world, &mut decision, *headers),
            Ran::Token(effects) => ask::accept(world, &mut decision, &effects, dice),
            Ran::Change => ask::change(world, &mut decision, (filter, kind)),
            Ran::Offer(overrides) => decision.alpn = Some(overrides),
            Ran::Ask(question) => return Step::Ask(Box::new(Pending { question, decision, at, tried })),
        }
        at += 1;
    }
    let changed = decision.changed.take();
    let view = changed.as_ref().map(|changed| changed.facts(world.facts));
    if let Some(matched) = &decision.matched {
        let (mut outcome, set_cookie) =
            act(world.plan, world.manager, matched, view.as_ref().unwrap_or(world.facts), dice);
        if let Outcome::Forward(forward) = &mut outcome {
            forward.alpn = decision.alpn.take().filter(|_| !forward.cluster.config.keeps_alpn);
        }
        decision.shapes_response = true;
        decision.set_cookie = set_cookie;
        decision.outcome = outcome;
    }
    decision.changed = changed;
    Step::Done(decision)
}

/// Finds the virtual host, the route, and the one of its clusters.
fn resolve(table: &Arc<RouteTable>, plain: bool, facts: &Facts<'_>, dice: &mut Dice) -> Option<Matched> {
    let host = table.host(facts.authority)?;
    let route = host.index.find(&host.routes, facts, dice)?;
    let weighted = match &route.action {
        RouteAction::Forward(action) => match &action.clusters {
            ClusterChoice::Weighted(several) => several.at(weighted_point(several, action, facts, dice)),
            _ => None,
        },
        _ => None,
    };
    Some(Matched { table: table.clone(), host: host.clone(), route: route.clone(), weighted, plain })
}

fn weighted_point(several: &WeightedClusters, action: &ForwardAction, facts: &Facts<'_>, dice: &mut Dice) -> u64 {
    let from_header = several.random_header.as_ref().and_then(|name| facts.headers.get(name));
    if let Some(point) = from_header.and_then(|value| value.to_str().ok()).and_then(|text| text.trim().parse().ok()) {
        return point;
    }
    let hashed = if several.use_hash { hash::of(&action.hash, facts).0 } else { None };
    hashed.unwrap_or_else(|| dice.below(several.total))
}

/// What came of one filter.
enum Ran {
    /// The next one runs.
    Next,
    /// The request ends here.
    Reply(LocalReply),
    /// The next one runs, on what good tokens made of the request.
    Token(Box<Effects>),
    /// The next one runs, on what this one makes of the request.
    Change,
    /// The next one runs; this one says what upstreams are offered.
    Offer(Arc<AlpnOverrides>),
    /// The next one runs, on the request with these headers.
    Headers(Box<HeaderMap>),
    /// The filter runs again after this was asked.
    Ask(Question),
}

impl From<Option<LocalReply>> for Ran {
    fn from(reply: Option<LocalReply>) -> Self {
        reply.map_or(Self::Next, Self::Reply)
    }
}

/// Runs one filter.
fn run_filter(
    decision: &mut Decision,
    (filter, kind): (&HttpFilter, &HttpFilterKind),
    facts: &Facts<'_>,
    (now, tried): (Moment, &[Arc<RemoteKeys>]),
    dice: &mut Dice,
) -> Ran {
    let setting = decision.matched.as_ref().and_then(|matched| matched.filter_override(&filter.name));
    if !filter.is_on(setting) {
        return Ran::Next;
    }
    match (kind, setting) {
        (HttpFilterKind::Rbac(own), setting) => {
            let other = match setting {
                Some(FilterOverride::Rbac(None)) => return Ran::Next,
                Some(FilterOverride::Rbac(Some(other))) => Some(other.clone()),
                _ => None,
            };
            authorize(decision, other.as_ref().unwrap_or(own), facts).into()
        }
        (HttpFilterKind::Jwt(filter), setting) => {
            let setting = match setting {
                Some(FilterOverride::Jwt(setting)) => Some(setting.clone()),
                _ => None,
            };
            authenticate(decision, filter, filter.judge(setting.as_ref(), facts, now, tried, dice), now)
        }
        (HttpFilterKind::ExtAuthz(filter), setting) => {
            let setting = match setting {
                Some(FilterOverride::ExtAuthz(setting)) => Some(setting.clone()),
                _ => None,
            };
            match filter.asks(setting.as_ref(), facts, &decision.rbac, dice) {
                Asks::Yes(asking) => Ran::Ask(Question::Authorize(asking)),
                Asks::No => Ran::Next,
                Asks::Refuse(reply) => Ran::Reply(*reply),
            }
        }
        (HttpFilterKind::Cors(_), Some(FilterOverride::Cors(policy))) => match policy.clone().judge(facts, dice) {
            Cors::Pass => Ran::Next,
            Cors::Actual(headers) => {
                decision.cors = headers;
                Ran::Next
            }
            Cors::Preflight(reply) => Ran::Reply(*reply),
        },
        (HttpFilterKind::Fault(own), setting) => {
            let other = match setting {
                Some(FilterOverride::Fault(other)) => Some(other.clone()),
                _ => None,
            };
            inject(decision, other.as_ref().unwrap_or(own), facts, dice).into()
        }
        (HttpFilterKind::HeaderMutation(_) | HttpFilterKind::Metadata(_), _) => Ran::Change,
        (HttpFilterKind::Buffer(own), setting) => {
            let other = match setting {
                Some(FilterOverride::Buffer(other)) => Some(*other),
                _ => None,
            };
            Ran::Ask(Question::Body(other.unwrap_or(*own)))
        }
        (HttpFilterKind::HealthCheck(filter), _) if filter.takes(facts) => {
            Ran::Ask(Question::Health(Arc::clone(filter)))
        }
        (HttpFilterKind::Alpn(overrides), _) => Ran::Offer(Arc::clone(overrides)),
        (HttpFilterKind::LocalRateLimit(own), setting) => {
            let other = match setting {
                Some(FilterOverride::LocalRateLimit(other)) => Some(other.clone()),
                _ => None,
            };
            limit::run(decision, other.as_ref().unwrap_or(own), facts, now, dice)
        }
        (HttpFilterKind::Missing, _) => {
            decision.shapes_response = true;
            Ran::Reply(crate::discovered::missing())
        }
        _ => Ran::Next,
    }
}

fn authenticate(decision: &mut Decision, filter: &JwtAuthn, outcome: jwt::Outcome, now: Moment) -> Ran {
    decision.asked().outdated.extend(filter.outdated(now).cloned());
    match outcome {
        jwt::Outcome::Fetch(keys) => Ran::Ask(Question::Keys(keys)),
        jwt::Outcome::Untouched => Ran::Next,
        jwt::Outcome::Pass(effects) => {
            decision.asked().guards.push(Guard::TokenAllowed);
            Ran::Token(effects)
        }
        jwt::Outcome::Refuse(reply) => {
            decision.asked().guards.push(Guard::TokenDenied);
            Ran::Reply(*reply)
        }
    }
}

fn authorize(decision: &mut Decision, rbac: &HttpRbac, facts: &Facts<'_>) -> Option<LocalReply> {
    let route = decision.matched.as_ref().map(|matched| &matched.route.metadata);
    let subject = Subject { route, ..Subject::request(facts) };
    let enforced = rbac.rules.as_ref().map(|rules| rules.judge(&subject));
    let shadow = rbac.shadow.as_ref().map(|rules| rules.judge(&subject));
    let denied = enforced.as_ref().filter(|verdict| !verdict.allowed).map(|verdict| {
        let details = rbac::denied_details(verdict);
        let reply = LocalReply::error(StatusCode::FORBIDDEN, "RBAC: access denied", details, Flags::NONE);
        LocalReply { origin: verdict.policy.clone(), ..reply }
    });
    decision.rbac.push(RbacReport {
        stat_prefix: rbac.stat_prefix.clone(),
        enforced,
        shadow_stat_prefix: rbac.shadow_stat_prefix.clone(),
        shadow,
    });
    denied
}

fn inject(decision: &mut Decision, policy: &FaultPolicy, facts: &Facts<'_>, dice: &mut Dice) -> Option<LocalReply> {
    let cluster = decision.matched.as_ref().and_then(|matched| matched.cluster_name(facts));
    let injected = policy.inject(facts, cluster.as_deref(), dice);
    if injected.delay.is_some() {
        decision.flags = decision.flags.with(Flags::DELAY_INJECTED);
        decision.delay = injected.delay;
    }
    if injected.hold.is_some() {
        decision.fault = injected.hold;
    }
    let matched = decision.matched.as_ref();
    let reply = injected.abort.map(|reply| match matched {
        Some(matched) => reply.from_origin(&matched.route.metadata),
        None => reply,
    });
    decision.shapes_response = reply.is_some();
    reply
}

type Acted = (Outcome, Option<HeaderValue>);

fn act(plan: &Plan, manager: &HttpManager, matched: &Matched, facts: &Facts<'_>, dice: &mut Dice) -> Acted {
    if let Some(reply) = require_tls(matched, facts) {
        return (Outcome::Reply(reply), None);
    }
    let reply = match &matched.route.action {
        RouteAction::Forward(action) => return forward(plan, manager, matched, action, facts, dice),
        RouteAction::Redirect(redirect) => redirect::reply(redirect, &matched.route.rule, facts),
        RouteAction::Direct(direct) => LocalReply {
            status: direct.status,
            body: direct.body.clone(),
            format: direct.format.clone(),
            headers: Vec::new(),
            details: "direct_response".into(),
            flags: Flags::NONE,
            grpc_status: None,
            origin: None,
            is_error: true,
        },
        // What a router makes of a route that names no cluster.
        RouteAction::NonForwarding => {
            let code = StatusCode::SERVICE_UNAVAILABLE;
            LocalReply::error(code, "", "cluster_not_found", Flags::NO_CLUSTER_FOUND)
        }
    };
    (Outcome::Reply(reply.from_origin(&matched.route.metadata)), None)
}

fn forward(
    plan: &Plan,
    manager: &HttpManager,
    matched: &Matched,
    action: &ForwardAction,
    facts: &Facts<'_>,
    dice: &mut Dice,
) -> Acted {
    let name = matched.cluster_name(facts);
    let Some(cluster) = name.as_deref().and_then(|name| plan.cluster(name)) else {
        let reply = LocalReply::error(action.not_found, "", "cluster_not_found", Flags::NO_CLUSTER_FOUND);
        return (Outcome::Reply(reply.from_origin(&matched.route.metadata)), None);
    };
    if cluster.endpoints.drops.iter().any(|(_, share)| dice.hits(*share)) {
        let code = StatusCode::SERVICE_UNAVAILABLE;
        let reply = LocalReply::error(code, "drop_overload", "drop_overload", Flags::DROP_OVERLOAD);
        return (Outcome::Reply(reply), None);
    }
    let (hash, set_cookie) = if action.hash.is_empty() { (None, None) } else { hash::of(&action.hash, facts) };
    let times = timeouts::of(manager, action, facts);
    let mirrors = action.mirrors.iter().filter_map(|policy| mirror(plan, policy, facts, dice));
    let forward = Forward {
        mirrors: mirrors.collect(),
        cluster: cluster.clone(),
        hash,
        timeout: times.request,
        idle_timeout: times.idle,
        max_stream_duration: times.stream,
        alpn: None,
    };
    (Outcome::Forward(forward), set_cookie)
}

fn mirror(plan: &Plan, policy: &MirrorPolicy, facts: &Facts<'_>, dice: &mut Dice) -> Option<Mirror> {
    let name = match &policy.cluster {
        Ok(name) => Cow::Borrowed(&**name),
        Err(key) => header_text(key, facts)?,
    };
    let cluster = plan.cluster(&name).filter(|_| dice.hits(policy.fraction))?;
    Some(Mirror { cluster: cluster.clone(), keep_host: policy.keep_host })
}

/// A redirect to https, where the virtual host wants that.
fn require_tls(matched: &Matched, facts: &Facts<'_>) -> Option<LocalReply> {
    let internal = || facts.headers.get("x-envoy-internal").is_some_and(|value| value == "true");
    let wanted = match matched.host.require_tls {
        RequireTls::None => false,
        RequireTls::External => !internal(),
        RequireTls::All => true,
    };
    (wanted && facts.scheme != "https").then(|| {
        let location = format!("https://{}{}", crate::routes::without_port(facts.authority), facts.path);
        redirect::to(StatusCode::MOVED_PERMANENTLY, &location)
    })
}

impl Matched {
    /// The most specific setting for a filter: weighted cluster, route, virtual host, table.
    pub(crate) fn filter_override(&self, name: &str) -> Option<&FilterOverride> {
        let weighted = self.weighted_cluster().and_then(|cluster| cluster.filters.find(name));
        weighted
            .or_else(|| self.route.filters.find(name))
            .or_else(|| self.host.filters.find(name))
            .or_else(|| self.table.filters.find(name))
    }

    /// What each of these levels says of a filter, the most specific first.
    pub(crate) fn filter_overrides(&self, name: &str) -> [Option<&FilterOverride>; 4] {
        [
            self.weighted_cluster().and_then(|cluster| cluster.filters.find(name)),
            self.route.filters.find(name),
            self.host.filters.find(name),
            self.table.filters.find(name),
        ]
    }

    /// The one of several clusters that was chosen.
    #[must_use]
    pub fn weighted_cluster(&self) -> Option<&WeightedCluster> {
        match &self.forward()?.clusters {
            ClusterChoice::Weighted(several) => several.clusters.get(self.weighted?),
            _ => None,
        }
    }

    /// The name of the cluster that the request goes to, whether it exists or not.
    #[must_use]
    pub fn cluster_name<'a>(&'a self, facts: &Facts<'a>) -> Option<Cow<'a, str>> {
        match &self.forward()?.clusters {
            ClusterChoice::One(name) => Some(Cow::Borrowed(name)),
            ClusterChoice::Header(key) => header_text(key, facts),
            ClusterChoice::Weighted(_) => match &self.weighted_cluster()?.cluster {
                Ok(name) => Some(Cow::Borrowed(name)),
                Err(key) => header_text(key, facts),
            },
        }
    }
}

fn header_text<'a>(key: &HeaderKey, facts: &Facts<'a>) -> Option<Cow<'a, str>> {
    match key.value(facts)? {
        Cow::Borrowed(bytes) => std::str::from_utf8(bytes).ok().map(Cow::Borrowed),
        Cow::Owned(bytes) => String::from_utf8(bytes).ok().map(Cow::Owned),
    }
}

fn no_route() -> LocalReply {
    LocalReply::error(StatusCode::NOT_FOUND, "", "route_not_found", Flags::NO_ROUTE_FOUND)
}
