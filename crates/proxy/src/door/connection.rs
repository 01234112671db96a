//! One connection from accept to its end: detect, choose a filter chain, end TLS, then HTTP or raw bytes.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use engine::rbac::RbacReport;
use engine::reply::Flags;
use engine::{ConnectionFacts, FilterChain, Listener, NetworkFilter};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;

use super::detect::{self, Found};
use super::limited::{self, Counted};
use crate::net::stream::{Raw, Socket, Stream};
use crate::net::{canonical, peers};
use crate::report::record::{Downstream, Kind, Record};
use crate::tls::Problem;
use crate::worker::Worker;
use crate::{http, tcp};

/// Longest TLS handshake where the chain sets no limit.
const TLS_LIMIT: Duration = Duration::from_secs(10);

/// A connection whose chain is chosen and whose TLS has ended: what the protocols above work with.
pub struct Connection {
    /// Where it came in.
    pub listener: Arc<Listener>,
    /// Its chain.
    pub chain: Arc<FilterChain>,
    /// What is known about it.
    pub downstream: Arc<Downstream>,
    /// Becomes true when the connection must come to its end.
    pub drain: watch::Receiver<bool>,
}

/// Serves an accepted socket until it ends.
pub async fn serve(worker: &Rc<Worker>, listener: Arc<Listener>, socket: Socket) {
    // The stages are on the heap one after the other: a connection holds no more than the one that it is in.
    let Some((connection, stream)) = Box::pin(establish(worker, listener, socket)).await else { return };
    let Some(service) = Box::pin(hand_over(worker, connection, stream)).await else { return };
    service.await;
}

/// What serves a connection from here to its end.
type Service<'w> = Pin<Box<dyn Future<Output = ()> + 'w>>;

/// Detects, chooses the chain and ends TLS; `None`: the connection is refused, which is noted.
async fn establish(worker: &Rc<Worker>, listener: Arc<Listener>, socket: Socket) -> Option<(Connection, Stream)> {
    let mut raw = Raw::accepted(socket);
    let Ends { remote, local } = ends(raw.socket());
    let mut found = Found::default();
    let listener = match admit(worker, listener, &mut raw, &mut found).await {
        Ok(listener) => listener,
        Err((listener, refusal)) => {
            refused(worker, &listener, remote, &refusal);
            return None;
        }
    };
    if found.timed_out {
        worker.tally.detection_timed_out(&listener);
    }
    let mut facts = first_facts(worker, &found, remote, local);
    let Some(chain) = listener.chains.pick(&facts).cloned() else {
        no_chain(worker, &listener, facts, found.timed_out);
        return None;
    };
    let mut own_uri = None;
    let stream = match &chain.tls {
        None => Stream::Plain(raw),
        Some(context) => {
            let limit = chain.tls_timeout.unwrap_or(TLS_LIMIT);
            let accepting = accept_tls(worker, context, raw);
            match timeout(limit, accepting).await.unwrap_or_else(|_| Err(TlsFailure::Timeout)) {
                Ok((stream, own)) => {
                    own_uri = own;
                    stream
                }
                Err(failure) => {
                    tls_failed(worker, &listener, &chain, &facts, &failure);
                    return None;
                }
            }
        }
    };
    let keep = chain.http().is_some_and(|manager| manager.tells_certificate());
    if let Err(refusal) = tls_facts(&stream, keep, &mut facts) {
        tls_failed(worker, &listener, &chain, &facts, &TlsFailure::Peer(refusal));
        return None;
    }
    worker.tally.handshake(&listener, &stream);
    let drain = worker.drain_of(&listener, &chain);
    let downstream = Downstream { facts, listener: Arc::clone(&listener), chain: Some(Arc::clone(&chain)), own_uri };
    Some((Connection { listener, chain, downstream: Arc::new(downstream), drain }, stream))
}

/// Runs the filters of the listener that accepted, and of the one that the original destination means.
async fn admit(
    worker: &Worker,
    listener: Arc<Listener>,
    raw: &mut Raw,
    found: &mut Found,
) -> Result<Arc<Listener>, (Arc<Listener>, detect::Refusal)> {
    if let Err(refusal) = detect::detect(raw, &listener, found).await {
        return Err((listener, refusal));
    }
    // What the PROXY protocol says of the destination restores it as the kernel's redirection does.
    let original = found.original.or_else(|| found.proxied.map(|proxied| proxied.destination));
    let Some(original) = original.filter(|_| listener.use_original_dst) else { return Ok(listener) };
    let plan = worker.shared.plan.load();
    let meant = plan.listener_for(original).filter(|meant| meant.name != listener.name).cloned();
    let Some(meant) = meant else { return Ok(listener) };
    drop(plan);
    match detect::detect(raw, &meant, found).await {
        Ok(()) => Ok(meant),
        Err(refusal) => Err((meant, refusal)),
    }
}

struct Ends {
    remote: SocketAddr,
    local: SocketAddr,
}

/// Both ends of a socket; Unix sockets count as loopback without port.
fn ends(socket: &Socket) -> Ends {
    let nowhere = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    match socket {
        Socket::Tcp(tcp) => Ends {
            remote: tcp.peer_addr().map_or(nowhere, canonical),
            local: tcp.local_addr().map_or(nowhere, canonical),
        },
        Socket::Unix(_) => Ends { remote: nowhere, local: nowhere },
    }
}

fn first_facts(worker: &Worker, found: &Found, remote: SocketAddr, local: SocketAddr) -> ConnectionFacts {
    let local = found.original.unwrap_or(local);
    ConnectionFacts {
        remote: found.proxied.map_or(remote, |proxied| proxied.source),
        local: found.proxied.map_or(local, |proxied| proxied.destination),
        server_name: found.server_name.clone(),
        tls: found.tls,
        application_protocols: found.application_protocols.clone(),
        ..ConnectionFacts::between(remote, local, worker.shared.connection_id())
    }
}

/// Why TLS with a client came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum TlsFailure {
    /// The handshake took too long.
    #[error("TLS handshake timeout")]
    Timeout,
    /// The client broke it, or refused us.
    #[error("TLS handshake: {0}")]
    Handshake(#[from] io::Error),
    /// There is no configuration (secrets missing or wrong).
    #[error("no TLS configuration: {0}")]
    Configuration(#[from] Problem),
    /// The client's certificate is not acceptable.
    #[error("client certificate: {0}")]
    Peer(identity::tls::Refusal),
    /// The chain insists on a server name and there is none.
    #[error("no server name (SNI), which the filter chain requires")]
    NoServerName,
}

async fn accept_tls(
    worker: &Worker,
    context: &Arc<engine::tls::DownstreamTls>,
    raw: Raw,
) -> Result<(Stream, Option<Arc<str>>), TlsFailure> {
    let settings = worker.shared.tls.server(context)?;
    let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), raw).await?;
    let hello = start.client_hello();
    if context.require_sni && hello.server_name().is_none() {
        return Err(TlsFailure::NoServerName);
    }
    let shared = hello
        .alpn()
        .is_none_or(|mut offered| offered.any(|protocol| settings.alpn.iter().any(|ours| ours.as_bytes() == protocol)));
    let own_uri = settings.own_uri();
    let config = if shared { settings.with_alpn } else { settings.without_alpn };
    let stream = start.into_stream(config).await?;
    Ok((Stream::Tls(Box::new(stream.into())), own_uri))
}

/// Adds what the handshake told; `keep`: with the client's certificate itself.
fn tls_facts(stream: &Stream, keep: bool, facts: &mut ConnectionFacts) -> Result<(), identity::tls::Refusal> {
    let Some(state) = stream.tls() else { return Ok(()) };
    facts.tls = true;
    facts.negotiated_protocol = state.alpn_protocol().map(|protocol| Arc::from(String::from_utf8_lossy(protocol)));
    facts.tls_version = match state.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_3) => Some("TLSv1.3"),
        Some(rustls::ProtocolVersion::TLSv1_2) => Some("TLSv1.2"),
        _ => None,
    };
    facts.tls_cipher = state.negotiated_cipher_suite().and_then(|suite| cipher_name(suite.suite()));
    if let Stream::Tls(tls) = stream
        && let tokio_rustls::TlsStream::Server(server) = tls.as_ref()
        && facts.server_name.is_none()
    {
        facts.server_name = server.get_ref().1.server_name().map(Arc::from);
    }
    if let Some(chain) = state.peer_certificates().filter(|chain| !chain.is_empty()) {
        let known = peers::of(state, SystemTime::now())?;
        facts.peer = known.map(|known| if keep { known.whole(chain) } else { known.peer() });
    }
    Ok(())
}

/// OpenSSL's names, as Envoy prints them.
fn cipher_name(suite: rustls::CipherSuite) -> Option<&'static str> {
    use rustls::CipherSuite as C;
    Some(match suite {
        C::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        C::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        C::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        C::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 => "ECDHE-ECDSA-AES128-GCM-SHA256",
        C::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 => "ECDHE-ECDSA-AES256-GCM-SHA384",
        C::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-ECDSA-CHACHA20-POLY1305",
        C::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => "ECDHE-RSA-AES128-GCM-SHA256",
        C::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => "ECDHE-RSA-AES256-GCM-SHA384",
        C::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-RSA-CHACHA20-POLY1305",
        _ => return None,
    })
}

/// The network filters in order, then the protocol that ends the chain; `None`: a filter ended the connection.
async fn hand_over(worker: &Rc<Worker>, connection: Connection, stream: Stream) -> Option<Service<'_>> {
    let chain = Arc::clone(&connection.chain);
    let mut cluster = None;
    let mut said = Vec::new();
    let mut counted = Vec::new();
    for filter in &chain.filters {
        match filter {
            NetworkFilter::Rbac(rbac) => {
                let verdict = rbac.judge(&connection.downstream.facts);
                said.push(verdict.report);
                if !verdict.allowed {
                    denied(worker, &connection, said, verdict.details);
                    if let Some(delay) = rbac.delay_deny {
                        Box::pin(limited::hold(stream, delay)).await;
                    }
                    return None;
                }
            }
            NetworkFilter::RateLimit(limit) => {
                if !limit.admits(worker.shared.at(tokio::time::Instant::now())) {
                    too_fast(worker, &connection, said, &limit.stat_prefix);
                    return None;
                }
            }
            NetworkFilter::ConnectionLimit(limit) => {
                let (one, within) = Counted::begin(limit);
                if !within {
                    if let Some(delay) = limit.delay {
                        Box::pin(limited::hold(stream, delay)).await;
                    }
                    return None;
                }
                counted.push(one);
            }
            NetworkFilter::SniCluster => cluster = connection.downstream.facts.server_name.clone(),
            NetworkFilter::Extension(_) => {}
            NetworkFilter::Http(manager) => {
                let service = http::serve::begin(worker, connection, Arc::clone(manager), stream).await?;
                return Some(holding(counted, service));
            }
            NetworkFilter::Tcp(tcp) => {
                let service = tcp::proxy(worker, connection, Arc::clone(tcp), cluster, said, stream);
                return Some(holding(counted, Box::pin(service)));
            }
            NetworkFilter::DirectResponse(bytes) => {
                let bytes = bytes.clone();
                let service = async move { tcp::respond(&bytes, stream).await };
                return Some(holding(counted, Box::pin(service)));
            }
        }
    }
    None
}

/// A service during which a connection is counted in limits.
fn holding(counted: Vec<Counted>, service: Service<'_>) -> Service<'_> {
    if counted.is_empty() {
        return service;
    }
    Box::pin(async move {
        let _counted = counted;
        service.await;
    })
}

/// A connection that did not get as far as a chain.
fn refused(worker: &Worker, listener: &Listener, remote: SocketAddr, refusal: &detect::Refusal) {
    match refusal {
        // Nobody is refused: port scanners and health checks come and go like this.
        detect::Refusal::Closed => {
            return tracing::debug!(listener = %listener.name, %remote, %refusal, "closed before its chain was known");
        }
        detect::Refusal::Timeout => worker.tally.detection_timed_out(listener),
        detect::Refusal::ProxyProtocol(_) | detect::Refusal::Io(_) => worker.tally.detection_failed(listener),
    }
    tracing::info!(event = "connection-refused", listener = %listener.name, %remote, reason = %refusal);
}

/// A connection that no chain took is logged with `NR`.
fn no_chain(worker: &Worker, listener: &Arc<Listener>, facts: ConnectionFacts, timed_out: bool) {
    let sealed = listener.chains.iter().all(|chain| chain.tls.is_some());
    let reason = match (timed_out, facts.tls, sealed) {
        (true, ..) => "nothing that tells its protocol came within listener_filters_timeout",
        (_, false, true) => "it is no TLS, and TLS is required here (strict mTLS)",
        (_, true, _) => "no filter chain takes its server name or protocols (ALPN)",
        _ => "no filter chain takes it",
    };
    let remote = facts.remote;
    tracing::info!(event = "connection-refused", listener = %listener.name, %remote, reason);
    let downstream = Arc::new(Downstream { facts, listener: Arc::clone(listener), chain: None, own_uri: None });
    let mut record = Record::begin(Kind::Tcp, &downstream, SystemTime::now(), std::time::Instant::now());
    record.flags = Flags::NO_ROUTE_FOUND;
    record.details = Some(Arc::from("filter_chain_not_found"));
    worker.tally.no_chain(&record);
}

fn tls_failed(
    worker: &Worker,
    listener: &Listener,
    chain: &FilterChain,
    facts: &ConnectionFacts,
    failure: &TlsFailure,
) {
    let cause = match failure {
        TlsFailure::Timeout => "timeout",
        TlsFailure::Handshake(error) => identity::tls::Cause::of_io(error).as_str(),
        TlsFailure::Configuration(_) => "configuration",
        TlsFailure::Peer(refusal) => refusal.cause.as_str(),
        TlsFailure::NoServerName => "no_server_name",
    };
    worker.tally.handshake_failed(listener, cause);
    let remote = facts.remote;
    tracing::info!(event = "tls-refused", listener = %listener.name, chain = %chain.name, %remote, cause, %failure);
}

/// A connection that a limit of connections refused.
fn too_fast(worker: &Worker, connection: &Connection, said: Vec<RbacReport>, stat_prefix: &str) {
    worker.tally.connection_limited(stat_prefix);
    // A chain that ends in HTTP writes its log for requests, and none has come.
    if connection.chain.tcp().is_none() {
        return;
    }
    let now = std::time::Instant::now();
    let mut record = Record::begin(Kind::Tcp, &connection.downstream, SystemTime::now(), now);
    record.rbac = said;
    record.flags = Flags::UPSTREAM_RETRY_LIMIT_EXCEEDED;
    record.complete = true;
    worker.tally.finish(&worker.shared.plan.load(), &record);
}

/// A connection that a network authorization filter refused.
fn denied(worker: &Worker, connection: &Connection, said: Vec<RbacReport>, details: Option<String>) {
    let now = std::time::Instant::now();
    let mut record = Record::begin(Kind::Tcp, &connection.downstream, SystemTime::now(), now);
    record.rbac = said;
    record.termination = details.map(Arc::from);
    record.complete = true;
    worker.tally.finish(&worker.shared.plan.load(), &record);
}
