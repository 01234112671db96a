//! One worker's way to all the numbers: handles are resolved once and kept, so that an exchange costs a few look-ups.

use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use engine::decide::Guard;
use engine::limit::{LimitReport, LimitSaid};
use engine::listener::Direction;
use engine::rbac::{RbacReport, Verdict};
use engine::reply::Flags;
use engine::{Cluster, Dice, FilterChain, Plan};
use hashbrown::{HashMap, HashSet};
use telemetry::istio::{Edge, EdgeHandle, Party, Reporter, ResponseKey, Sample, Security, ServiceName};
use telemetry::registry::{ClusterCells, Counter, HttpCells, LimitCells, ListenerCells, Shard, TcpCells};

use super::blame::Blame;
use super::line::Log;
use super::party;
use super::record::{Downstream, Kind, Record, Wants};
use super::watchtower::Watchtower;
use crate::net::stream::Stream;
use crate::overload::Door;

/// Most pointers to edges that are kept at once; beyond, all are forgotten and found again.
const MOST_SHORTCUTS: usize = 4_096;
/// Most edges of named workloads; the rest count as unknown.
const MOST_EDGES: usize = 8_192;

/// Most callers without an identity that are told apart by address.
const MOST_STRANGERS: usize = 64;

/// Everything that one worker reports to. Not shared between threads.
pub struct Tally {
    tower: Arc<Watchtower>,
    worker: usize,
    sites: RefCell<HashMap<usize, Rc<Site>>>,
    clusters: RefCell<HashMap<Arc<str>, Arc<Shard<ClusterCells>>>>,
    limits: RefCell<HashMap<Arc<str>, Arc<Shard<LimitCells>>>>,
    edges: RefCell<Edges>,
    policies: RefCell<HashMap<PolicyKey, PolicyCounter>>,
    scratch: RefCell<String>,
    dice: RefCell<Dice>,
}

/// A policy by address, whether it allowed, whether it was enforced.
type PolicyKey = (usize, bool, bool);
/// The policy's name (held, so that its address stays its own) and its counter.
type PolicyCounter = (Option<Arc<str>>, Arc<Counter>);

/// What is known of a filter chain: its logs and its counters.
pub struct Site {
    chain: Arc<FilterChain>,
    logs: Vec<Log>,
    wants: Wants,
    /// Of the HTTP connection manager, where the chain ends in one.
    pub http: Option<Arc<Shard<HttpCells>>>,
    /// Of the TCP proxy, where the chain ends in one.
    pub tcp: Option<Arc<Shard<TcpCells>>>,
    /// Of the listener.
    pub listener: Arc<Shard<ListenerCells>>,
}

fn count_guard(cells: &HttpCells, guard: Guard) {
    match guard {
        Guard::TokenAllowed => &cells.jwt_authn_allowed,
        Guard::TokenDenied => &cells.jwt_authn_denied,
        Guard::ExternalAllowed => &cells.ext_authz_ok,
        Guard::ExternalDenied => &cells.ext_authz_denied,
        Guard::ExternalError => &cells.ext_authz_error,
        Guard::ExternalFailedOpen => {
            cells.ext_authz_error.inc();
            &cells.ext_authz_failure_mode_allowed
        }
    }
    .inc();
}

impl Site {
    /// What its logs read beyond what every record has.
    pub fn wants(&self) -> Wants {
        self.wants
    }
}

#[derive(Default)]
struct Edges {
    /// By the addresses of what an edge is made of, which `pins` keeps alive.
    shortcuts: HashMap<EdgeKey, usize>,
    pins: Vec<Pin>,
    by_edge: HashMap<Edge, usize>,
    handles: Vec<EdgeHandle>,
    /// Addresses of callers without an identity that have an edge of their own.
    strangers: HashSet<IpAddr>,
}

impl Edges {
    /// The address of a caller that proves no identity, for the first of them.
    fn stranger(&mut self, record: &Record) -> Option<IpAddr> {
        let outbound = record.downstream.listener.direction == Direction::Outbound;
        if outbound || record.downstream.identity().is_some() {
            return None;
        }
        let address = record.downstream.facts.remote.ip();
        if self.strangers.contains(&address) {
            return Some(address);
        }
        let room = self.strangers.len() < MOST_STRANGERS;
        room.then(|| self.strangers.insert(address)).map(|_| address)
    }
}

/// What an edge follows from, by address.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct EdgeKey {
    chain: usize,
    identity: usize,
    peer: usize,
    cluster: usize,
    endpoint: usize,
    route: usize,
    upstream_identity: usize,
    upstream_peer: usize,
    stranger: Option<IpAddr>,
}

/// Keeps the addresses of an [`EdgeKey`] from being used for something else.
type Pin = (
    [Option<Arc<str>>; 4],
    Option<Arc<engine::cluster::ClusterConfig>>,
    Option<Arc<engine::metadata::Metadata>>,
    Option<Arc<engine::routes::Route>>,
);

fn at<T: ?Sized>(arc: Option<&Arc<T>>) -> usize {
    arc.map_or(0, |arc| Arc::as_ptr(arc).cast::<()>() as usize)
}

impl Tally {
    /// The reporting side of worker number `worker`.
    pub fn new(tower: Arc<Watchtower>, worker: usize) -> Self {
        Self {
            tower,
            worker,
            sites: RefCell::default(),
            clusters: RefCell::default(),
            limits: RefCell::default(),
            edges: RefCell::default(),
            policies: RefCell::default(),
            scratch: RefCell::default(),
            dice: RefCell::new(Dice::new(rand::random())),
        }
    }

    /// What all workers report to.
    pub fn tower(&self) -> &Arc<Watchtower> {
        &self.tower
    }

    /// The logs and counters of a connection's chain; `None` where no chain took the connection.
    pub fn site(&self, downstream: &Downstream) -> Option<Rc<Site>> {
        let chain = downstream.chain.as_ref()?;
        let key = at(Some(chain));
        if let Some(site) = self.sites.borrow().get(&key) {
            return Some(Rc::clone(site));
        }
        let site = Rc::new(self.new_site(downstream, chain));
        self.sites.borrow_mut().insert(key, Rc::clone(&site));
        Some(site)
    }

    fn new_site(&self, downstream: &Downstream, chain: &Arc<FilterChain>) -> Site {
        let registry = &self.tower.registry;
        let configured = match (chain.http(), chain.tcp()) {
            (Some(manager), _) => manager.access_log.as_slice(),
            (None, Some(tcp)) => tcp.access_log.as_slice(),
            (None, None) => &[],
        };
        let open = |config: &Arc<engine::access_log::AccessLog>| match Log::open(config, &self.tower.sinks) {
            Ok(log) => Some(log),
            Err(error) => {
                tracing::warn!(event = "access-log-closed", sink = ?config.sink, %error, "an access log cannot be written");
                None
            }
        };
        let logs: Vec<Log> = configured.iter().filter_map(open).collect();
        let wants = logs.iter().map(Log::wants).fold(Wants::default(), |all, one| Wants {
            response_headers: all.response_headers || one.response_headers,
            response_trailers: all.response_trailers || one.response_trailers,
        });
        Site {
            chain: Arc::clone(chain),
            logs,
            wants,
            http: chain.http().map(|manager| registry.http(&manager.stat_prefix, self.worker)),
            tcp: chain.tcp().map(|tcp| registry.tcp(&tcp.stat_prefix, self.worker)),
            listener: self.listener(&downstream.listener),
        }
    }

    /// The counters of a listener.
    pub fn listener(&self, listener: &engine::Listener) -> Arc<Shard<ListenerCells>> {
        let name = listener.stat_prefix.as_ref().map_or_else(|| listener.address.to_string(), ToString::to_string);
        self.tower.registry.listener(&name, self.worker)
    }

    /// The counters of a cluster.
    pub fn cluster(&self, cluster: &Cluster) -> Arc<Shard<ClusterCells>> {
        let name = cluster.config.alt_stat_name.as_ref().unwrap_or(&cluster.config.name);
        if let Some(cells) = self.clusters.borrow().get(name).filter(|cells| !cells.is_retired()) {
            return Arc::clone(cells);
        }
        let cells = self.tower.registry.cluster(name, self.worker);
        self.clusters.borrow_mut().insert(Arc::clone(name), Arc::clone(&cells));
        cells
    }

    /// Forgets what the plan no longer has.
    pub fn plan_changed(&self) {
        self.sites.borrow_mut().retain(|_, site| Arc::strong_count(&site.chain) > 1);
        self.clusters.borrow_mut().retain(|_, cells| !cells.is_retired());
        let mut edges = self.edges.borrow_mut();
        edges.shortcuts.clear();
        edges.pins.clear();
    }

    /// Reports a finished exchange or connection.
    pub fn finish(&self, plan: &Plan, record: &Record) {
        let site = self.site(&record.downstream);
        match record.kind {
            Kind::Http => {
                self.count_http(site.as_deref(), record);
                self.count_response(plan, record);
            }
            Kind::Tcp => self.count_tcp(site.as_deref(), plan, record),
        }
        self.count_policies(&record.rbac, site.as_deref());
        record.limits.iter().for_each(|report| self.count_limit(report));
        if let Some(cells) = site.as_ref().and_then(|site| site.http.as_ref()) {
            record.guards.iter().for_each(|guard| count_guard(cells, *guard));
        }
        if let Some(site) = &site
            && !site.logs.is_empty()
        {
            let (mut dice, mut scratch) = (self.dice.borrow_mut(), self.scratch.borrow_mut());
            for log in &site.logs {
                log.write(record, self.worker, &mut dice, &mut scratch);
            }
        }
        if self.tower.tap.is_watched() {
            let edge = self.edge_of(plan, record);
            self.tower.tap.publish(super::event::event(record, edge));
        }
    }

    /// Logs a connection that no filter chain took (the listener's own logs).
    pub fn no_chain(&self, record: &Record) {
        let listener = &record.downstream.listener;
        self.listener(listener).no_filter_chain_match.inc();
        let (mut dice, mut scratch) = (self.dice.borrow_mut(), self.scratch.borrow_mut());
        for config in &listener.access_log {
            // Rare enough to open the log each time: the file itself stays open.
            if let Ok(log) = Log::open(config, &self.tower.sinks) {
                log.write(record, self.worker, &mut dice, &mut scratch);
            }
        }
    }

    /// Counts a client that said too little in time for its protocol to be known.
    pub fn detection_timed_out(&self, listener: &engine::Listener) {
        self.listener(listener).downstream_pre_cx_timeout.inc();
    }

    /// Counts a client whose first bytes a listener filter refused.
    pub fn detection_failed(&self, listener: &engine::Listener) {
        self.listener(listener).downstream_listener_filter_error.inc();
    }

    /// Counts a TLS handshake with a client, and whether it resumed a session.
    pub fn handshake(&self, listener: &engine::Listener, stream: &Stream) {
        let Some(state) = stream.tls() else { return };
        let cells = self.listener(listener);
        cells.ssl_handshake.inc();
        if state.handshake_kind() == Some(rustls::HandshakeKind::Resumed) {
            cells.ssl_session_reused.inc();
        }
    }

    /// Counts a TLS handshake with an endpoint, and whether it resumed a session.
    pub fn upstream_handshake(&self, cluster: &Cluster, stream: &Stream) {
        let Some(state) = stream.tls() else { return };
        let cells = self.cluster(cluster);
        cells.ssl_handshake.inc();
        if state.handshake_kind() == Some(rustls::HandshakeKind::Resumed) {
            cells.ssl_session_reused.inc();
        }
    }

    /// Counts a TLS handshake that failed on the client's side; `cause` is one of a small set of words.
    pub fn handshake_failed(&self, listener: &engine::Listener, cause: &str) {
        let cells = self.listener(listener);
        match Blame::of(cause) {
            Blame::Missing => cells.ssl_fail_verify_no_cert.inc(),
            Blame::Names => cells.ssl_fail_verify_san.inc(),
            Blame::Certificate => cells.ssl_fail_verify_error.inc(),
            Blame::Slow => cells.downstream_cx_transport_socket_connect_timeout.inc(),
            Blame::Connection => cells.ssl_connection_error.inc(),
        }
        self.tower.handshake_failed("downstream", cause);
    }

    /// Counts a TLS handshake with an endpoint that failed.
    pub fn upstream_handshake_failed(&self, cluster: &Cluster, cause: &str) {
        let cells = self.cluster(cluster);
        match Blame::of(cause) {
            Blame::Names => cells.ssl_fail_verify_san.inc(),
            Blame::Certificate | Blame::Missing => cells.ssl_fail_verify_error.inc(),
            Blame::Slow | Blame::Connection => cells.ssl_connection_error.inc(),
        }
        self.tower.handshake_failed("upstream", cause);
    }

    /// Counts a connection that was closed as soon as it was accepted.
    pub fn turned_away(&self, listener: &engine::Listener, why: Door) {
        let cells = self.listener(listener);
        match why {
            Door::Full => cells.downstream_global_cx_overflow.inc(),
            Door::ListenerFull => cells.downstream_cx_overflow.inc(),
            Door::Shed | Door::Open => cells.downstream_cx_overload_reject.inc(),
        }
    }

    /// Counts what outlier detection did.
    pub fn outlier(&self, cluster: &Cluster, event: &engine::outlier::Event) {
        use engine::outlier::{Cause, EventKind};
        self.tower.outlier_event(cluster.name(), event, self.worker);
        let cells = self.cluster(cluster);
        match &event.kind {
            EventKind::Ejected { cause, enforced } => {
                if !enforced {
                    return;
                }
                cells.outlier_ejections_enforced_total.inc();
                cells.outlier_ejections_active.inc();
                match cause {
                    Cause::Consecutive5xx => &cells.outlier_ejections_enforced_consecutive_5xx,
                    Cause::ConsecutiveGateway => &cells.outlier_ejections_enforced_consecutive_gateway_failure,
                    Cause::ConsecutiveLocalOrigin => &cells.outlier_ejections_enforced_consecutive_local_origin_failure,
                    Cause::SuccessRate | Cause::SuccessRateLocalOrigin => {
                        &cells.outlier_ejections_enforced_success_rate
                    }
                    Cause::FailurePercentage | Cause::FailurePercentageLocalOrigin => {
                        &cells.outlier_ejections_enforced_failure_percentage
                    }
                }
                .inc();
                self.tower.ejected(&cluster.config.name, *cause);
            }
            EventKind::Overflow { .. } => cells.outlier_ejections_overflow.inc(),
            EventKind::Returned => cells.outlier_ejections_active.dec(),
            // Nobody was put out.
            EventKind::Degraded | EventKind::Restored => {}
        }
    }

    /// A raw TCP connection that reached its endpoint: counts it as open until the flow is dropped.
    pub fn open(self: &Rc<Self>, plan: &Plan, record: &Record) -> Flow {
        let edge = self.edge_index(plan, record);
        if let Some(handle) = self.edges.borrow_mut().handles.get_mut(edge) {
            handle.connection_opened();
        }
        Flow { tally: Rc::clone(self), edge, closed: false }
    }

    fn count_http(&self, site: Option<&Site>, record: &Record) {
        let status = record.status.map_or(0, |status| status.as_u16());
        if let Some(cells) = site.and_then(|site| site.http.as_ref()) {
            cells.downstream_rq_total.inc();
            count_route(cells, record);
            cells.downstream_rq_time.observe_duration(record.duration);
            match record.protocol {
                Some(engine::facts::Protocol::Http2) => cells.downstream_rq_http2_total.inc(),
                _ => cells.downstream_rq_http1_total.inc(),
            }
            if status != 0 && !record.health_check {
                cells.downstream_rq_completed.inc();
                cells.responses.inc(status);
            }
            if !record.complete {
                cells.downstream_rq_rx_reset.inc();
            }
            if !record.flags.is_empty() {
                count_flags(cells, record.flags);
            }
        }
        if let Some(cluster) = &record.upstream.cluster {
            count_upstream(&self.cluster(cluster), record, status);
        }
    }

    fn count_response(&self, plan: &Plan, record: &Record) {
        let key = ResponseKey {
            code: record.status.map_or(0, |status| status.as_u16()),
            grpc_status: record.grpc_status,
            flags: record.flags.bits(),
            grpc: record.grpc,
        };
        let sample = Sample {
            duration: record.duration,
            request_bytes: record.bytes_received,
            response_bytes: record.bytes_sent,
            request_messages: record.request_messages.count(),
            response_messages: record.response_messages.count(),
            denied: record.denied_by().is_some(),
        };
        let index = self.edge_index(plan, record);
        if let Some(handle) = self.edges.borrow_mut().handles.get_mut(index) {
            handle.response(key, || record.flags.letters().into_owned(), &sample);
        }
    }

    /// A connection without a [`Flow`] (denied, or its endpoint never reached) is opened and closed in one.
    fn count_tcp(&self, site: Option<&Site>, plan: &Plan, record: &Record) {
        if let Some(cells) = site.and_then(|site| site.tcp.as_ref()) {
            cells.downstream_cx_rx_bytes_total.add(record.bytes_received);
            cells.downstream_cx_tx_bytes_total.add(record.bytes_sent);
        }
        if record.upstream.local.is_some() {
            if let Some(cluster) = &record.upstream.cluster {
                self.cluster(cluster).upstream_rq_total.inc();
            }
            return;
        }
        let index = self.edge_index(plan, record);
        if let Some(handle) = self.edges.borrow_mut().handles.get_mut(index) {
            handle.connection_opened();
            let letters = || record.flags.letters().into_owned();
            handle.connection_closed(record.flags.bits(), letters, record.denied_by().is_some());
        }
    }

    /// Counts a fetch of a key set.
    pub fn keys_fetched(&self, good: bool) {
        self.tower.keys_fetched(good);
    }

    fn count_policies(&self, reports: &[RbacReport], site: Option<&Site>) {
        for report in reports {
            let http = site.and_then(|site| site.http.as_ref());
            if let Some(verdict) = &report.enforced {
                if let Some(cells) = http {
                    if verdict.allowed { &cells.rbac_allowed } else { &cells.rbac_denied }.inc();
                }
                self.count_policy(verdict, true);
            }
            if let Some(verdict) = &report.shadow {
                if let Some(cells) = http {
                    if verdict.allowed { &cells.rbac_shadow_allowed } else { &cells.rbac_shadow_denied }.inc();
                }
                self.count_policy(verdict, false);
            }
        }
    }

    fn count_limit(&self, report: &LimitReport) {
        let mut limits = self.limits.borrow_mut();
        let make = || self.tower.registry.limit(&report.stat_prefix, self.worker);
        let cells = limits.entry(report.stat_prefix.clone()).or_insert_with(make);
        cells.enabled.inc();
        let (limited, further) = match report.said {
            LimitSaid::Ok => (false, &cells.ok),
            LimitSaid::Limited => return cells.rate_limited.inc(),
            LimitSaid::Shadowed => (true, &cells.shadow_mode),
            LimitSaid::Refused => (true, &cells.enforced),
        };
        further.inc();
        if limited {
            cells.rate_limited.inc();
        }
    }

    /// Counts a connection that came too fast.
    pub fn connection_limited(&self, stat_prefix: &str) {
        self.tower.registry.connection_limit(stat_prefix, self.worker).rate_limited.inc();
    }

    fn count_policy(&self, verdict: &Verdict, enforced: bool) {
        let key = (at(verdict.policy.as_ref()), verdict.allowed, enforced);
        if let Some((_, counter)) = self.policies.borrow().get(&key) {
            counter.inc();
            return;
        }
        let counter = self.tower.policy(verdict.policy.as_deref(), verdict.allowed, enforced);
        counter.inc();
        let mut policies = self.policies.borrow_mut();
        if policies.len() >= MOST_SHORTCUTS {
            policies.clear();
        }
        policies.insert(key, (verdict.policy.clone(), counter));
    }

    /// Where the handle of the record's edge stands.
    fn edge_index(&self, plan: &Plan, record: &Record) -> usize {
        let mut edges = self.edges.borrow_mut();
        let (upstream, downstream) = (&record.upstream, &record.downstream);
        let config = upstream.cluster.as_ref().map(|cluster| &cluster.config);
        let metadata = upstream.endpoint.as_ref().map(|endpoint| &endpoint.metadata);
        let route = record.matched.as_ref().map(|matched| &matched.route);
        let key = EdgeKey {
            chain: at(downstream.chain.as_ref()),
            identity: at(downstream.identity()),
            peer: at(record.peer.blob.as_ref()),
            cluster: at(config),
            endpoint: at(metadata),
            route: if config.is_some() { 0 } else { at(route) },
            upstream_identity: at(upstream.identity.as_ref()),
            upstream_peer: at(upstream.peer.blob.as_ref()),
            stranger: edges.stranger(record),
        };
        if let Some(index) = edges.shortcuts.get(&key).copied()
            && edges.handles.get(index).is_some_and(|handle| !handle.is_retired())
        {
            return index;
        }
        let edge = Edge { source_ip: key.stranger, ..self.edge_of(plan, record) };
        let index = self.handle_of(&mut edges, edge);
        if edges.shortcuts.len() >= MOST_SHORTCUTS {
            edges.shortcuts.clear();
            edges.pins.clear();
        }
        edges.shortcuts.insert(key, index);
        edges.pins.push((
            [
                downstream.identity().cloned(),
                record.peer.blob.clone(),
                upstream.identity.clone(),
                upstream.peer.blob.clone(),
            ],
            config.cloned(),
            metadata.cloned(),
            route.cloned(),
        ));
        index
    }

    fn handle_of(&self, edges: &mut Edges, edge: Edge) -> usize {
        let requests = self.tower.registry.requests();
        if let Some(index) = edges.by_edge.get(&edge).copied() {
            if let Some(handle) = edges.handles.get_mut(index).filter(|handle| handle.is_retired()) {
                *handle = requests.edge(&edge, self.worker);
            }
            return index;
        }
        let named = !edge.source.workload.is_empty() || !edge.destination.workload.is_empty();
        if named && edges.by_edge.len() >= MOST_EDGES {
            // Peers name themselves: what they say must not fill the memory.
            return self.handle_of(edges, Edge { source: Arc::default(), destination: Arc::default(), ..edge });
        }
        let index = edges.handles.len();
        edges.handles.push(requests.edge(&edge, self.worker));
        edges.by_edge.insert(edge, index);
        index
    }

    /// Who called whom.
    fn edge_of(&self, plan: &Plan, record: &Record) -> Edge {
        let own = &self.tower.own.party;
        let identity = record.downstream.identity().map(|id| &**id);
        if record.downstream.listener.direction == Direction::Outbound {
            let upstream = &record.upstream;
            let told = upstream.peer.blob.as_deref().and_then(party::peer);
            let known = || upstream.endpoint.as_ref().and_then(|endpoint| party::of_endpoint(&endpoint.metadata));
            let mut destination = match told {
                Some(told) => party::proven(told, upstream.identity.as_deref()),
                None => known().unwrap_or_default(),
            };
            upstream.identity.as_deref().unwrap_or_default().clone_into(&mut destination.principal);
            let mut source = own.clone();
            if upstream.mtls {
                source.principal = self.tower.own_principal(upstream.identity.as_deref());
            }
            return Edge {
                reporter: Reporter::Source,
                source: Arc::new(source),
                destination: Arc::new(destination),
                service: Arc::new(service_of(plan, record).unwrap_or_default()),
                security: Security::Unknown,
                source_ip: None,
            };
        }
        let told = record.peer.blob.as_deref().and_then(party::peer).unwrap_or_default();
        let source: Party = party::proven(told, identity);
        let mut destination = own.clone();
        if identity.is_some() {
            destination.principal = self.tower.own_principal(identity);
        }
        Edge {
            reporter: Reporter::Destination,
            source: Arc::new(source),
            destination: Arc::new(destination),
            service: Arc::new(self.own_service(service_of(plan, record))),
            security: if identity.is_some() { Security::MutualTls } else { Security::None },
            source_ip: None,
        }
    }

    /// The called service on the called side; where the configuration does not name it, the workload's own name.
    fn own_service(&self, named: Option<ServiceName>) -> ServiceName {
        let own = &self.tower.own.party;
        named.filter(|service| !service.name.is_empty()).unwrap_or_else(|| ServiceName {
            host: String::new(),
            name: own.canonical_service.clone(),
            namespace: own.namespace.clone(),
        })
    }
}

/// The service of the cluster that took the request, or that its route would have taken.
fn service_of(plan: &Plan, record: &Record) -> Option<ServiceName> {
    if let Some(cluster) = &record.upstream.cluster {
        return Some(party::service(&cluster.config.name, Some(&cluster.config.metadata)));
    }
    let routed = record.matched.as_ref().and_then(|matched| match &matched.forward()?.clusters {
        engine::routes::ClusterChoice::One(name) => Some(name),
        _ => None,
    });
    let name = record.upstream.cluster_name.as_ref().or(routed)?;
    let cluster = plan.cluster(name);
    Some(party::service(name, cluster.map(|cluster| &cluster.config.metadata)))
}

/// What the router counts: requests that came as far as the routes.
fn count_route(cells: &HttpCells, record: &Record) {
    use engine::RouteAction;
    let Some(matched) = &record.matched else {
        if record.flags.has(Flags::NO_ROUTE_FOUND) {
            cells.rq_total.inc();
        }
        return;
    };
    cells.rq_total.inc();
    match &matched.route.action {
        RouteAction::Direct(_) => cells.rq_direct_response.inc(),
        RouteAction::Redirect(_) => cells.rq_redirect.inc(),
        RouteAction::Forward(_) | RouteAction::NonForwarding => {}
    }
}

fn count_flags(cells: &HttpCells, flags: Flags) {
    for (flag, counter) in [
        (Flags::NO_ROUTE_FOUND, &cells.no_route),
        (Flags::NO_CLUSTER_FOUND, &cells.no_cluster),
        (Flags::FAULT_INJECTED, &cells.fault_aborts_injected),
        (Flags::DELAY_INJECTED, &cells.fault_delays_injected),
        (Flags::STREAM_IDLE_TIMEOUT, &cells.downstream_rq_idle_timeout),
        (Flags::UPSTREAM_MAX_STREAM_DURATION, &cells.downstream_rq_max_duration_reached),
    ] {
        if flags.has(flag) {
            counter.inc();
        }
    }
}

fn count_upstream(cells: &ClusterCells, record: &Record, status: u16) {
    let attempts = record.upstream.attempts;
    // The last attempt counts as a request only once it had a connection.
    let sent = if record.upstream.local.is_some() { attempts } else { attempts.saturating_sub(1) };
    cells.upstream_rq_total.add(u64::from(sent));
    if status != 0 {
        cells.upstream_rq_completed.inc();
        cells.responses.inc(status);
    }
    if let Some(time) = record.upstream.service_time {
        cells.upstream_rq_time.observe_duration(time);
    }
    if attempts > 1 && status != 0 && status < 500 {
        cells.upstream_rq_retry_success.inc();
    }
    if record.flags.is_empty() {
        return;
    }
    for (flag, counter) in [
        (Flags::UPSTREAM_REQUEST_TIMEOUT, &cells.upstream_rq_timeout),
        (Flags::UPSTREAM_OVERFLOW, &cells.upstream_rq_pending_overflow),
        (Flags::UPSTREAM_RETRY_LIMIT_EXCEEDED, &cells.upstream_rq_retry_limit_exceeded),
        (Flags::UPSTREAM_REMOTE_RESET, &cells.upstream_rq_rx_reset),
        (Flags::LOCAL_RESET, &cells.upstream_rq_tx_reset),
        (Flags::NO_HEALTHY_UPSTREAM, &cells.upstream_cx_none_healthy),
        (Flags::UPSTREAM_CONNECTION_FAILURE, &cells.upstream_rq_pending_failure_eject),
    ] {
        if record.flags.has(flag) {
            counter.inc();
        }
    }
}

/// A raw TCP connection while it is open.
pub struct Flow {
    tally: Rc<Tally>,
    edge: usize,
    closed: bool,
}

impl Flow {
    /// Counts bytes since the last call: `sent` to the client, `received` from it.
    pub fn progress(&self, sent: u64, received: u64) {
        if let Some(handle) = self.tally.edges.borrow_mut().handles.get_mut(self.edge) {
            handle.connection_bytes(sent, received);
        }
    }

    /// Reports its end. The record's byte counts are for the log; [`Flow::progress`] counts them for the metrics.
    pub fn finish(mut self, plan: &Plan, record: &Record) {
        self.close(record.flags, record.denied_by().is_some());
        self.tally.finish(plan, record);
    }

    fn close(&mut self, flags: Flags, denied: bool) {
        if !std::mem::replace(&mut self.closed, true)
            && let Some(handle) = self.tally.edges.borrow_mut().handles.get_mut(self.edge)
        {
            handle.connection_closed(flags.bits(), || flags.letters().into_owned(), denied);
        }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.close(Flags::NONE, false);
    }
}
