//! Who may have which configuration: the source behind the ADS service.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use identity::audit::{Audit, Event as AuditEvent};
use identity::door::Caller;
use model::Severity;
use proto::envoy::config::core::v3::Node;
use tonic::Status;
use xds::Flavor;
use xds::server::{Event, Observer, Opened, Response, Session, Source};

use crate::feeds::{Feeds, Shape};
use crate::metrics::Metrics;
use crate::node::{self, NodeFacts};
use crate::proxies::{ConnectionId, Proxies, Proxy};
use crate::world::World;

/// How many names that a stream may not see are written to the audit log; the metric counts all.
const AUDITED_NAMES: u32 = 20;

/// Serves the mesh to the proxies that belong to it.
#[derive(Debug)]
pub struct MeshSource {
    pub(crate) world: Arc<World>,
    pub(crate) feeds: Arc<Feeds>,
    pub(crate) proxies: Arc<Proxies>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) audit: Arc<Audit>,
}

impl Source for MeshSource {
    fn open(&self, node: &Node, flavor: Flavor, extensions: &http::Extensions) -> Result<Opened, Status> {
        let facts = node::read(node).map_err(Status::invalid_argument)?;
        // Without a caller the stream came through the plaintext loopback port, which knows nobody.
        let caller = extensions.get::<Caller>();
        let peer = match caller {
            Some(caller) => self.admit(caller, &facts)?,
            None => "insecure".to_owned(),
        };
        let shape = if facts.proxyless { Shape::Proxyless } else { Shape::Sidecar };
        let snapshots = self.feeds.subscribe(&self.world, &facts.workload, shape);
        tracing::info!(event = "proxy_connected", node = %node.id, %peer, agent = %facts.agent, ?flavor);
        let id = self.proxies.add(Proxy {
            node: node.id.clone(),
            workload: facts.workload,
            peer,
            agent: facts.agent,
            admin: facts.admin,
            flavor,
            since: SystemTime::now(),
            wanted: snapshots.borrow().revision,
            sent: 0,
            settled: 0,
            settled_at: None,
            refused: Vec::new(),
        });
        self.metrics.stream(1);
        let (world, proxies, metrics) = (self.world.clone(), self.proxies.clone(), self.metrics.clone());
        let watcher = Watcher {
            id,
            world,
            proxies,
            metrics,
            settled: 0,
            first: true,
            refused: 0,
            node: node.id.clone(),
            unknown: 0,
        };
        Ok(Opened { snapshots, observer: Box::new(watcher) })
    }
}

impl MeshSource {
    /// Brings the gauges up to date.
    pub(crate) fn measure(&self) {
        let model = self.world.read();
        let diagnostics = model.diagnostics();
        let count = |severity| diagnostics.iter().filter(|one| one.severity == severity).count();
        let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
        self.metrics.world(model.revision, model.services(), model.mesh().workload_keys().count(), errors, warnings);
    }

    /// Whether a caller may have a workload's configuration. With a certificate it must be the workload's own
    /// identity; without one, over the Unix socket, the door has already checked that it is the same user.
    #[allow(clippy::result_large_err, reason = "tonic's status is what ends a stream")]
    fn admit(&self, caller: &Caller, facts: &NodeFacts) -> Result<String, Status> {
        if caller.certificate.is_none() {
            return match caller.unix {
                Some(peer) => Ok(format!("uid {}", peer.uid)),
                None => Err(self.refuse(caller, facts, "a client certificate is needed")),
            };
        }
        let identity = caller.identity(SystemTime::now());
        let identity = identity.map_err(|refusal| self.refuse(caller, facts, &refusal.to_string()))?;
        let expected = {
            let model = self.world.read();
            let workload = model.mesh().workload(&facts.workload);
            workload.and_then(|workload| workload.identity(&model.config().trust_domain))
        };
        match expected {
            Some(expected) if expected == *identity => Ok(identity.to_string()),
            // The same answer for a workload of others and for none: it tells nothing.
            _ => Err(self.refuse(caller, facts, "this identity has no such workload")),
        }
    }

    fn refuse(&self, caller: &Caller, facts: &NodeFacts, why: &str) -> Status {
        self.metrics.refused_stream();
        let detail = format!("asked for the configuration of {}: {why}", facts.workload);
        self.audit.note(AuditEvent::OtherIdentityRefused, caller, &detail);
        Status::permission_denied(format!("{why} ({})", facts.workload))
    }
}

/// Follows one stream.
struct Watcher {
    id: ConnectionId,
    world: Arc<World>,
    proxies: Arc<Proxies>,
    metrics: Arc<Metrics>,
    settled: u64,
    first: bool,
    refused: usize,
    node: String,
    unknown: u32,
}

impl Observer for Watcher {
    fn event(&mut self, event: Event) {
        match event {
            Event::Acknowledged { .. } => {}
            Event::Unknown { type_url, name } => {
                self.metrics.unknown_name();
                self.unknown += 1;
                if self.unknown <= AUDITED_NAMES {
                    let node = &self.node;
                    tracing::warn!(target: "audit", event = "unknown_resource", %node, %type_url, %name);
                }
            }
            Event::Rejected(refused) => {
                for one in &refused {
                    self.metrics.rejected(&one.type_url);
                    tracing::warn!(
                        event = "proxy_refused",
                        connection = self.id,
                        type_url = %one.type_url,
                        name = %one.name,
                        message = %one.message,
                    );
                }
            }
        }
    }

    fn sent(&mut self, response: &Response) {
        let size = response.resources.iter().map(|resource| resource.size()).sum();
        self.metrics.sent(&response.type_url, size);
        let revision = response.version.parse().unwrap_or(0);
        self.proxies.update(self.id, |proxy| {
            proxy.sent = revision;
            false
        });
    }

    fn state(&mut self, session: &Session) {
        let settled = session.settled().unwrap_or(0);
        let refused = session.refused();
        if settled <= self.settled && refused.len() == self.refused {
            return;
        }
        self.refused = refused.len();
        let news = settled > self.settled;
        if news {
            self.settled = settled;
            let began = self.world.read().applied_at(settled);
            if let Some(began) = began.filter(|_| !self.first) {
                self.metrics.converged(began.elapsed());
            }
            self.first = false;
        }
        self.proxies.update(self.id, |proxy| {
            if news {
                (proxy.settled, proxy.settled_at) = (settled, Some(Instant::now()));
            }
            proxy.refused = refused;
            true
        });
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.metrics.stream(-1);
        if let Some(proxy) = self.proxies.remove(self.id) {
            tracing::info!(event = "proxy_disconnected", node = %proxy.node);
        }
    }
}
