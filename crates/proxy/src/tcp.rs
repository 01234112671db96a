//! Raw connections: authorized, sent to a cluster, copied both ways.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use bytes::Bytes;
use engine::circuit::{self, Resource};
use engine::rbac::RbacReport;
use engine::reply::Flags;
use engine::routes::Priority;
use engine::{Cluster, Discovery, Endpoint, TcpProxy, balance, outlier};
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep_until};

use crate::door::connection::Connection;
use crate::net::relay::{End, Moved, relay};
use crate::net::stream::Stream;
use crate::report::record::{Kind, Record};
use crate::report::{Flow, Site};
use crate::upstream::failure::{self, Failure};
use crate::upstream::{original, reach};
use crate::worker::Worker;

/// Carries one connection to the cluster of its TCP proxy.
pub async fn proxy(
    worker: &Rc<Worker>,
    connection: Connection,
    tcp: Arc<TcpProxy>,
    named: Option<Arc<str>>,
    said: Vec<RbacReport>,
    client: Stream,
) {
    let began = Instant::now();
    let mut record = Record::begin(Kind::Tcp, &connection.downstream, SystemTime::now(), began.into_std());
    record.rbac = said;
    let mut carrying = Carrying { worker, tcp, record, began, moved: Moved::default(), flow: None };
    let _open = Counted::begin(worker, &connection);
    carrying.run(connection, named, client).await;
}

/// Sends fixed bytes and closes.
pub async fn respond(bytes: &Bytes, mut client: Stream) {
    if client.write_all(bytes).await.is_ok() {
        let _ = client.shutdown().await;
    }
}

struct Carrying<'a> {
    worker: &'a Rc<Worker>,
    tcp: Arc<TcpProxy>,
    record: Record,
    began: Instant,
    moved: Moved,
    flow: Option<Flow>,
}

/// However the connection ends, it is reported once.
impl Drop for Carrying<'_> {
    fn drop(&mut self) {
        self.record.bytes_received = self.moved.received.get();
        self.record.bytes_sent = self.moved.sent.get();
        self.record.duration = self.began.elapsed();
        let plan = self.worker.shared.plan.load();
        match self.flow.take() {
            Some(flow) => flow.finish(&plan, &self.record),
            None => self.worker.tally.finish(&plan, &self.record),
        }
    }
}

impl Carrying<'_> {
    async fn run(&mut self, mut connection: Connection, named: Option<Arc<str>>, mut client: Stream) {
        let name = named.or_else(|| self.tcp.choose(&mut self.worker.dice.borrow_mut()).cloned());
        self.record.upstream.cluster_name.clone_from(&name);
        let plan = self.worker.shared.plan.load_full();
        let Some(cluster) = name.and_then(|name| plan.cluster(&name).cloned()) else {
            self.record.flags = Flags::NO_CLUSTER_FOUND;
            return;
        };
        drop(plan);
        self.record.upstream.cluster = Some(Arc::clone(&cluster));
        let limits = cluster.config.limits(Priority::Default);
        let Some(_slot) = circuit::take(&cluster.state, limits, Priority::Default, Resource::Connections) else {
            self.record.flags = Flags::UPSTREAM_OVERFLOW;
            return;
        };
        let Some((mut server, endpoint)) = self.connect(&cluster).await else { return };
        let _open = Open::begin(&endpoint);
        let life = self.tcp.max_connection_duration.map(|limit| self.began + limit);
        self.flow = Some(self.worker.tally.open(&self.worker.shared.plan.load(), &self.record));
        let end = tokio::select! {
            () = progress(self.flow.as_ref(), &self.moved) => None,
            end = relay(&mut client, &mut server, self.tcp.idle_timeout, &self.moved) => Some(end),
            () = at(life) => {
                self.record.flags = self.record.flags.with(Flags::DURATION_TIMEOUT);
                None
            }
            () = drained(&mut connection) => None,
            () = failed(&cluster, &endpoint) => None,
        };
        self.record.complete = true;
        match end {
            Some(End::Client(_)) => {
                self.record.flags = self.record.flags.with(Flags::DOWNSTREAM_CONNECTION_TERMINATION);
            }
            Some(End::Server(_)) => {
                self.record.flags = self.record.flags.with(Flags::UPSTREAM_CONNECTION_TERMINATION);
            }
            Some(End::Idle) => self.record.flags = self.record.flags.with(Flags::STREAM_IDLE_TIMEOUT),
            Some(End::Clean) | None => {}
        }
    }

    /// Connects, as often as the proxy allows.
    async fn connect(&mut self, cluster: &Arc<Cluster>) -> Option<(Stream, Arc<Endpoint>)> {
        let mut tried = Vec::new();
        let most = self.tcp.max_connect_attempts.max(1);
        for attempt in 1..=most {
            self.record.upstream.attempts = attempt;
            let Some(endpoint) = self.pick(cluster, &tried) else {
                self.record.flags = self.record.flags.with(Flags::NO_HEALTHY_UPSTREAM);
                return None;
            };
            self.record.upstream.endpoint = Some(Arc::clone(&endpoint));
            match reach::connect_endpoint(&self.worker.shared, cluster, &endpoint).await {
                Ok((stream, link)) => {
                    self.feed_outlier(cluster, &endpoint, outlier::Report::Connected);
                    self.worker.tally.upstream_handshake(cluster, &stream);
                    self.record.upstream.local = link.local;
                    self.record.upstream.identity = link.identity;
                    self.record.upstream.mtls = link.mtls;
                    return Some((stream, endpoint));
                }
                Err(failure) => self.failed(cluster, &endpoint, &failure, attempt == most && most > 1),
            }
            tried.push(endpoint);
        }
        None
    }

    fn failed(&mut self, cluster: &Arc<Cluster>, endpoint: &Arc<Endpoint>, failure: &Failure, last: bool) {
        endpoint.state.connect_failures.fetch_add(1, Ordering::Relaxed);
        let timeout = failure.kind == failure::Kind::ConnectTimeout;
        let report = if timeout { outlier::Report::Timeout } else { outlier::Report::ConnectFailure };
        self.feed_outlier(cluster, endpoint, report);
        self.record.flags = self.record.flags.with(Flags::UPSTREAM_CONNECTION_FAILURE);
        if last {
            self.record.flags = self.record.flags.with(Flags::UPSTREAM_RETRY_LIMIT_EXCEEDED);
        }
        self.record.upstream.transport_failure.clone_from(&failure.transport);
    }

    fn pick(&self, cluster: &Arc<Cluster>, tried: &[Arc<Endpoint>]) -> Option<Arc<Endpoint>> {
        if let Discovery::OriginalDst { port, .. } = &cluster.config.discovery {
            return Some(original::endpoint(self.record.downstream.facts.local, *port));
        }
        let hash = self.tcp.hash(&self.record.downstream.facts);
        let request =
            balance::Request { hash, tried, avoid_attempts: u32::from(!tried.is_empty()) * 5, priorities_every: 0 };
        let now = self.worker.shared.now();
        cluster.balancer.pick(request, now, &mut self.worker.dice.borrow_mut())
    }

    fn feed_outlier(&self, cluster: &Arc<Cluster>, endpoint: &Arc<Endpoint>, report: outlier::Report) {
        if cluster.config.outlier.is_none() {
            return;
        }
        let now = self.worker.shared.now();
        let events = {
            let mut dice = self.worker.dice.borrow_mut();
            cluster.state.monitor.record(cluster, endpoint, report, now, &mut dice)
        };
        events.iter().for_each(|event| self.worker.tally.outlier(cluster, event));
    }
}

/// Between two counts of the bytes of an open connection.
const PROGRESS: std::time::Duration = std::time::Duration::from_secs(5);

/// Counts bytes while the connection is open, so that a long one is seen before it ends. Never ends itself; what is left
/// is counted when it is dropped.
async fn progress(flow: Option<&Flow>, moved: &Moved) {
    let Some(flow) = flow else { return std::future::pending().await };
    let mut counted = Uncounted { flow, moved, sent: 0, received: 0 };
    loop {
        tokio::time::sleep(PROGRESS).await;
        counted.count();
    }
}

struct Uncounted<'a> {
    flow: &'a Flow,
    moved: &'a Moved,
    sent: u64,
    received: u64,
}

impl Uncounted<'_> {
    fn count(&mut self) {
        let (sent, received) = (self.moved.sent.get(), self.moved.received.get());
        self.flow.progress(sent - self.sent, received - self.received);
        (self.sent, self.received) = (sent, received);
    }
}

impl Drop for Uncounted<'_> {
    fn drop(&mut self) {
        self.count();
    }
}

/// Counts a raw client connection while it is open.
struct Counted {
    site: Option<Rc<Site>>,
}

impl Counted {
    fn begin(worker: &Worker, connection: &Connection) -> Self {
        let site = worker.tally.site(&connection.downstream);
        if let Some(site) = &site {
            site.listener.downstream_cx_total.inc();
            site.listener.downstream_cx_active.inc();
            if let Some(cells) = &site.tcp {
                cells.downstream_cx_total.inc();
            }
        }
        Self { site }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(site) = &self.site {
            site.listener.downstream_cx_active.dec();
            site.listener.downstream_cx_destroy.inc();
        }
    }
}

/// How long a raw connection may go on after its chain began to drain.
const DRAIN_LIMIT: std::time::Duration = std::time::Duration::from_secs(600);

/// How often an open connection's endpoint is looked at.
const LOOK: std::time::Duration = std::time::Duration::from_millis(100);

/// Ends when the endpoint of an open connection is found to fail, where the cluster wants that.
async fn failed(cluster: &Cluster, endpoint: &Endpoint) {
    if !cluster.config.close_on_failure {
        return std::future::pending().await;
    }
    while !endpoint.state.health.is_failed() && !endpoint.state.outlier.is_ejected() {
        tokio::time::sleep(LOOK).await;
    }
}

async fn drained(connection: &mut Connection) {
    if connection.drain.wait_for(|drain| *drain).await.is_ok() {
        tokio::time::sleep(DRAIN_LIMIT).await;
    } else {
        std::future::pending::<()>().await;
    }
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Counts a connection while it is open.
struct Open(Arc<Endpoint>);

impl Open {
    fn begin(endpoint: &Arc<Endpoint>) -> Self {
        endpoint.state.connections.fetch_add(1, Ordering::Relaxed);
        endpoint.state.connections_total.fetch_add(1, Ordering::Relaxed);
        endpoint.state.active.fetch_add(1, Ordering::Relaxed);
        endpoint.state.requests.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(endpoint))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.state.connections.fetch_sub(1, Ordering::Relaxed);
        self.0.state.active.fetch_sub(1, Ordering::Relaxed);
    }
}
