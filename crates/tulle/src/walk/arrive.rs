//! The called side: is the connection taken, and do the policies let the request pass?

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use compile::{Arrival, Mesh};
use engine::decide::Guard;
use engine::facts::Peer;
use engine::http_manager::HttpFilterKind;
use engine::listener::NetworkFilter;
use engine::metadata::Metadata;
use engine::rbac::{HttpRbac, Rules, Subject, Trace};
use engine::{ConnectionFacts, Dice, Facts, FilterChain, HttpManager, Listener, Moment, Outcome, Plan};
use model::service::Protocol;
use model::workload::Interception;
use model::{SpiffeId, Workload};

use super::plan::plan_of;
use super::request::{Request, detected, version};

/// What the called proxy makes of a request.
#[derive(Debug)]
pub(crate) struct Arrived {
    /// What it says.
    pub(crate) verdict: Verdict,
    /// Whether requests are seen there.
    pub(crate) http: bool,
    /// Who it takes the caller for.
    pub(crate) peer: Option<String>,
    /// What each set of enforced rules saw.
    pub(crate) traces: Vec<Trace>,
    /// What each set of dry-run rules would have seen.
    pub(crate) shadow: Vec<Trace>,
    /// Where each rule stands, by name.
    pub(crate) origins: BTreeMap<String, String>,
    /// Authorizers (their clusters) that would have to be asked, and may refuse.
    pub(crate) unasked: Vec<String>,
    /// What became of the request's token, where there was one.
    pub(crate) token: Option<String>,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The program gets it.
    Allowed,
    /// A policy, or the lack of one that allows, refuses it.
    Denied,
    /// No chain takes such a connection: plaintext where mTLS is asked for.
    Refused(String),
    /// The proxy answers something else.
    Answer(u16, String),
}

/// Sends a request to the proxy of the called workload.
pub(crate) fn arrive(
    mesh: &Mesh,
    from: &Workload,
    to: &Workload,
    number: u16,
    arrival: Arrival,
    request: &Request,
) -> Result<Arrived, String> {
    let origins = mesh.policy_origins(to);
    let spoken = mesh.served_ports(to).into_iter().find(|(port, _)| *port == number).map(|(_, spoken)| spoken);
    let spoken = spoken.unwrap_or(Protocol::Auto);
    let plan = plan_of(mesh, to)?;
    let listener = match &to.interception {
        Interception::Explicit { .. } | Interception::Namespace { .. } => plan.listener(&format!("inbound|{number}||")),
        Interception::Redirect => plan.listener("virtualInbound"),
    };
    let listener = listener.ok_or_else(|| format!("{} takes nothing in on port {number}", to.id()))?;
    let identity = from.identity(&mesh.config().trust_domain).filter(|_| arrival.mtls);
    let connection = connection(from, arrival, spoken, identity.as_ref());
    let peer = identity.map(|identity| identity.to_string());
    let Some(chain) = listener.chains.pick(&connection) else {
        let judged = Judged::of(Verdict::Refused(refusal(listener, arrival.mtls)));
        return Ok(judged.arrived(false, peer, origins));
    };
    let judged = match chain.http() {
        Some(manager) => judge_request(&plan, manager, &connection, spoken, request),
        None => judge_connection(chain, &connection),
    };
    Ok(judged.arrived(chain.http().is_some(), peer, origins))
}

fn refusal(listener: &Listener, mtls: bool) -> String {
    let how = if mtls { "mesh mTLS" } else { "plaintext" };
    format!("{} does not take {how}", listener.name)
}

fn connection(from: &Workload, arrival: Arrival, spoken: Protocol, identity: Option<&SpiffeId>) -> ConnectionFacts {
    let source = SocketAddr::new(from.addresses.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)), 40_000);
    let offered: &[&str] = match (arrival.mtls, spoken) {
        (true, Protocol::Http | Protocol::Auto) => &["istio-http/1.1", "istio"],
        (true, Protocol::Http2 | Protocol::Grpc) => &["istio-h2", "istio"],
        (true, _) => &["istio"],
        (false, Protocol::Tcp | Protocol::Tls | Protocol::Https) => &[],
        (false, _) => &[detected(spoken)],
    };
    let peer = identity.map(|identity| {
        Arc::new(Peer { uri_sans: vec![identity.to_string().into()], validated: true, ..Peer::default() })
    });
    ConnectionFacts {
        tls: arrival.mtls,
        application_protocols: offered.iter().map(|name| (*name).into()).collect(),
        peer,
        ..ConnectionFacts::between(source, arrival.address, 2)
    }
}

/// An answer with its reasons.
struct Judged {
    verdict: Verdict,
    traces: Vec<Trace>,
    shadow: Vec<Trace>,
    unasked: Vec<String>,
    token: Option<String>,
}

impl Judged {
    fn of(verdict: Verdict) -> Self {
        Self { verdict, traces: Vec::new(), shadow: Vec::new(), unasked: Vec::new(), token: None }
    }

    fn arrived(self, http: bool, peer: Option<String>, origins: BTreeMap<String, String>) -> Arrived {
        let Self { verdict, traces, shadow, unasked, token } = self;
        Arrived { verdict, http, peer, traces, shadow, origins, unasked, token }
    }
}

fn judge_request(
    plan: &Plan,
    manager: &HttpManager,
    connection: &ConnectionFacts,
    spoken: Protocol,
    request: &Request,
) -> Judged {
    let path = match engine::path::canonical(&request.path, &manager.path) {
        engine::path::Canonical::Changed(path) => path,
        engine::path::Canonical::Reject(reason) => return Judged::of(Verdict::Answer(400, reason.to_owned())),
        _ => request.path.clone(),
    };
    let started = SystemTime::now();
    let (assumed, token) = match request.claims.as_deref().map(|claims| assume(plan, manager, claims, started)) {
        None => (None, None),
        Some(Ok((metadata, words))) => (Some(metadata), Some(words)),
        Some(Err(verdict)) => return Judged::of(verdict),
    };
    let facts = Facts {
        connection,
        method: &request.method,
        path: &path,
        authority: &request.authority,
        scheme: "http",
        headers: &request.headers,
        protocol: version(spoken),
        remote: connection.remote.ip(),
        started,
        metadata: assumed.as_ref(),
    };
    let decision = engine::decide(plan, manager, &facts, Moment::START, &mut Dice::new(1));
    let seen = decision.changed.as_ref().map(|changed| changed.facts(&facts));
    let subject = Subject::request(seen.as_ref().unwrap_or(&facts));
    let filters = manager.filters.iter().filter_map(|filter| match plan.kind_of(filter) {
        HttpFilterKind::Rbac(rbac) => Some((rbac.rules.as_ref(), rbac.shadow.as_ref().filter(|_| !asks(rbac)))),
        _ => None,
    });
    let (traces, shadow) = explained(filters, &subject);
    let denied = decision.rbac.iter().any(|report| report.enforced.as_ref().is_some_and(|verdict| !verdict.allowed));
    let token_denied = decision.guards().contains(&Guard::TokenDenied);
    let unasked = decision.asked.iter().flat_map(|asked| &asked.unasked);
    let unasked = unasked.map(|filter| filter.service.cluster().to_string()).collect();
    let verdict = match decision.outcome {
        Outcome::Forward(_) => Verdict::Allowed,
        Outcome::Reply(_) if denied => Verdict::Denied,
        Outcome::Reply(reply) if token_denied => {
            Verdict::Answer(reply.status.as_u16(), String::from_utf8_lossy(&reply.body).into_owned())
        }
        Outcome::Reply(reply) => Verdict::Answer(reply.status.as_u16(), reply.details.into_owned()),
    };
    let token = token.or_else(|| seen.and_then(|seen| principal(seen.metadata?)));
    Judged { verdict, traces, shadow, unasked, token }
}

/// Whether a filter only finds the requests that an authorizer is asked about.
fn asks(rbac: &HttpRbac) -> bool {
    rbac.shadow_stat_prefix.as_deref() == Some("istio_ext_authz_")
}

/// What claims would tell the policies if a good token carried them, or the answer to such a token.
fn assume(
    plan: &Plan,
    manager: &HttpManager,
    claims: &str,
    started: SystemTime,
) -> Result<(Metadata, String), Verdict> {
    let filter = manager.filters.iter().find_map(|filter| match plan.kind_of(filter) {
        HttpFilterKind::Jwt(filter) => Some(filter),
        _ => None,
    });
    let mut metadata = Metadata::new();
    let Some(filter) = filter else {
        return Ok((metadata, "not looked at: no RequestAuthentication selects the workload".to_owned()));
    };
    match filter.assume(claims, started) {
        Ok(effects) => {
            effects.tell(&mut metadata);
            let words = principal(&metadata).map_or_else(|| "assumed".to_owned(), |who| format!("{who}, assumed"));
            Ok((metadata, words))
        }
        Err(status) => {
            let code = if status == engine::jwt::Status::AudienceNotAllowed { 403 } else { 401 };
            Err(Verdict::Answer(code, status.text().to_owned()))
        }
    }
}

/// `ISSUER/SUBJECT` of a token that was found good.
fn principal(metadata: &Metadata) -> Option<String> {
    let claim = |name: &str| metadata.find(engine::jwt::SPACE, ["payload", name]).and_then(|datum| datum.text());
    Some(format!("{}/{}", claim("iss")?, claim("sub").unwrap_or_default()))
}

fn judge_connection(chain: &FilterChain, connection: &ConnectionFacts) -> Judged {
    let rbac = || {
        chain.filters.iter().filter_map(|filter| match filter {
            NetworkFilter::Rbac(rbac) => Some(rbac),
            _ => None,
        })
    };
    let subject = Subject::connection(connection);
    let (traces, shadow) = explained(rbac().map(|rbac| (rbac.rules.as_ref(), rbac.shadow.as_ref())), &subject);
    let allowed = rbac().all(|rbac| rbac.judge(connection).allowed);
    let verdict = if allowed { Verdict::Allowed } else { Verdict::Denied };
    Judged { traces, shadow, ..Judged::of(verdict) }
}

fn explained<'r>(
    filters: impl Iterator<Item = (Option<&'r Arc<Rules>>, Option<&'r Arc<Rules>>)>,
    subject: &Subject<'_>,
) -> (Vec<Trace>, Vec<Trace>) {
    let (mut enforced, mut shadow) = (Vec::new(), Vec::new());
    for (rules, tried) in filters {
        enforced.extend(rules.map(|rules| rules.explain(subject)));
        shadow.extend(tried.map(|rules| rules.explain(subject)));
    }
    (enforced, shadow)
}
