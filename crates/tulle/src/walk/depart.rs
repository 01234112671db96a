//! The caller's side: which route, which cluster, which endpoints.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use compile::Mesh;
use engine::facts::Protocol as Version;
use engine::listener::NetworkFilter;
use engine::routes::{ClusterChoice, RouteAction};
use engine::{Cluster, ConnectionFacts, Dice, Facts, FilterChain, Listener, Moment, Outcome, Plan};
use model::service::Protocol;
use model::workload::Interception;
use model::{Service, Workload};

use super::plan::plan_of;
use super::request::{Request, detected, version};

/// What the caller's proxy makes of a request.
#[derive(Debug)]
pub(crate) struct Departed {
    /// Where the program's connection comes out: the listener.
    pub(crate) listener: Arc<str>,
    /// The rule that matched, as its place in the user's files, or its name.
    pub(crate) route: Option<String>,
    /// The shares, when the route splits: cluster and weight.
    pub(crate) shares: Vec<(Arc<str>, u32)>,
    /// Limits worth telling: the whole time, retries.
    pub(crate) limits: Vec<String>,
    /// What happens.
    pub(crate) way: Way,
}

/// Where a request goes.
#[derive(Debug)]
pub(crate) enum Way {
    /// To a cluster.
    Cluster(Arc<Cluster>),
    /// The proxy answers itself: status and reason.
    Answer(u16, String),
}

/// Sends a request through the proxy of its caller.
pub(crate) fn depart(
    mesh: &Mesh,
    from: &Workload,
    service: &Service,
    port: u16,
    request: &Request,
) -> Result<Departed, String> {
    let plan = plan_of(mesh, from)?;
    let spoken = service.ports.iter().find(|known| known.number == port).map_or(Protocol::Auto, |known| known.protocol);
    let (listener, local) = listener(&plan, from, service, port)?;
    let connection = connection(from, local, spoken);
    let chain = listener.chains.pick(&connection).ok_or("no filter chain of the listener takes such a connection")?;
    match chain.http() {
        Some(_) => Ok(http(&plan, &listener, chain, &connection, version(spoken), request)),
        None => connections(&plan, &listener, chain),
    }
}

fn listener(plan: &Plan, from: &Workload, service: &Service, port: u16) -> Result<(Arc<Listener>, SocketAddr), String> {
    let host = &service.hostname;
    if let Interception::Explicit { outbound } = &from.interception {
        let bound = outbound.iter().find(|bound| bound.host == *host && bound.port == port);
        let bind = bound.map(|bound| bound.bind).ok_or_else(|| {
            format!("{} has no address for {host}:{port}: add it to `spec.interception.explicit.outbound`", from.id())
        })?;
        let name = format!("outbound|{port}||{host}");
        let found = plan.listener(&name).cloned().ok_or_else(|| format!("{} has no listener {name}", from.id()))?;
        return Ok((found, bind));
    }
    let address = service.addresses.first().copied().or_else(|| {
        let clusters = plan.cluster(&format!("outbound|{port}||{host}"))?;
        clusters.endpoints.iter().find_map(|endpoint| endpoint.address.socket()).map(|at| at.ip())
    });
    let at = SocketAddr::new(address.unwrap_or(IpAddr::V4(Ipv4Addr::new(240, 0, 0, 1))), port);
    let found = plan.listener_for(at).or_else(|| plan.listener("virtualOutbound"));
    found.cloned().map(|found| (found, at)).ok_or_else(|| format!("nothing listens for {at} at {}", from.id()))
}

fn connection(from: &Workload, local: SocketAddr, spoken: Protocol) -> ConnectionFacts {
    let source = SocketAddr::new(from.addresses.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)), 40_000);
    let http = spoken.is_http() || spoken == Protocol::Auto;
    ConnectionFacts {
        application_protocols: if http { vec![detected(spoken).into()] } else { Vec::new() },
        ..ConnectionFacts::between(source, local, 1)
    }
}

fn http(
    plan: &Plan,
    listener: &Listener,
    chain: &FilterChain,
    connection: &ConnectionFacts,
    protocol: Version,
    request: &Request,
) -> Departed {
    let mut departed = Departed {
        listener: listener.name.clone(),
        route: None,
        shares: Vec::new(),
        limits: Vec::new(),
        way: Way::Answer(404, "no route".to_owned()),
    };
    let Some(manager) = chain.http() else { return departed };
    let path = match engine::path::canonical(&request.path, &manager.path) {
        engine::path::Canonical::Changed(path) => path,
        _ => request.path.clone(),
    };
    let facts = Facts {
        connection,
        method: &request.method,
        path: &path,
        authority: &request.authority,
        scheme: "http",
        headers: &request.headers,
        protocol,
        remote: connection.remote.ip(),
        started: SystemTime::UNIX_EPOCH,
        metadata: None,
    };
    let decision = engine::decide(plan, manager, &facts, Moment::START, &mut Dice::new(1));
    if let Some(matched) = &decision.matched {
        let origin = matched.route.metadata.origin().map(ToString::to_string);
        departed.route = Some(origin.unwrap_or_else(|| matched.route.name.to_string()));
        if let RouteAction::Forward(forward) = &matched.route.action {
            departed.shares = shares(&forward.clusters);
            departed.limits.extend(forward.timeout.map(|limit| format!("timeout {limit:?}")));
            departed.limits.extend(forward.retry.as_ref().map(|retry| format!("up to {} retries", retry.num_retries)));
        }
    }
    departed.limits.extend(decision.delay.map(|delay| format!("delayed {delay:?} by a fault")));
    departed.way = match decision.outcome {
        Outcome::Forward(forward) => Way::Cluster(forward.cluster),
        Outcome::Reply(reply) => Way::Answer(reply.status.as_u16(), reply.details.into_owned()),
    };
    departed
}

fn shares(choice: &ClusterChoice) -> Vec<(Arc<str>, u32)> {
    let ClusterChoice::Weighted(weighted) = choice else { return Vec::new() };
    let share = |one: &engine::routes::WeightedCluster| Some((one.cluster.as_ref().ok()?.clone(), one.weight));
    weighted.clusters.iter().filter_map(share).collect()
}

fn connections(plan: &Plan, listener: &Listener, chain: &FilterChain) -> Result<Departed, String> {
    let proxy = chain.filters.iter().find_map(|filter| match filter {
        NetworkFilter::Tcp(proxy) => Some(proxy),
        _ => None,
    });
    let names = proxy.map(|proxy| tcp_clusters(&proxy.clusters)).unwrap_or_default();
    let first = names.first().map(|(name, _)| name.clone()).ok_or("the listener forwards nowhere")?;
    let way = match plan.cluster(&first) {
        Some(cluster) => Way::Cluster(cluster.clone()),
        None => Way::Answer(503, format!("there is no cluster {first}")),
    };
    Ok(Departed {
        listener: listener.name.clone(),
        route: chain.metadata.origin().map(ToString::to_string),
        shares: if names.len() > 1 { names } else { Vec::new() },
        limits: Vec::new(),
        way,
    })
}

fn tcp_clusters(clusters: &engine::listener::TcpClusters) -> Vec<(Arc<str>, u32)> {
    use engine::listener::TcpClusters;
    match clusters {
        TcpClusters::One(name) => vec![(name.clone(), 1)],
        TcpClusters::Weighted { clusters, .. } => clusters.clone(),
    }
}
