//! The server side of one HTTP connection: which version, which limits, when it ends.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use engine::HttpManager;
use engine::http_manager::Codec;
use http::HeaderValue;
use telemetry::registry::HttpCells;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::alarm::Alarm;
use super::arrive::Client;
use super::interim::Interim;
use super::text::Text;
use super::{arrive, malformed};
use crate::door::connection::Connection;
use crate::door::preface;
use crate::net::frames::Frames;
use crate::net::stream::{Ahead, Stream, Traffic};
use crate::report::Site;
use crate::report::record::{Downstream, PeerMetadata, Wants};
use crate::worker::Worker;
use crate::{h1, h2};

/// Between two looks at a connection's own limits.
const LOOK: Duration = Duration::from_secs(5);
/// How long exchanges may go on after their chain or the process began to drain (Envoy: `--drain-time-s`, 600).
const DRAIN_LIMIT: Duration = Duration::from_secs(600);
/// How long a quiet HTTP/1 connection is kept for a last request when the whole process ends.
const LAST_PATIENCE: Duration = Duration::from_millis(300);
/// The shortest time between two looks.
const SHORT_LOOK: Duration = Duration::from_millis(50);

/// What all exchanges of one connection share.
pub struct HttpConnection {
    /// The worker that serves it.
    pub worker: Rc<Worker>,
    /// The HTTP manager of its chain.
    pub manager: Arc<HttpManager>,
    /// What is known about it.
    pub downstream: Arc<Downstream>,
    /// What this hop says of its client's certificate in `x-forwarded-client-cert`.
    pub certificate: Option<HeaderValue>,
    /// The logs and counters of its chain.
    pub site: Option<Rc<Site>>,
    /// The host that was last asked for.
    pub authority: RefCell<Text>,
    /// What the peer said of itself last.
    pub peer: RefCell<PeerMetadata>,
    /// It speaks HTTP/2.
    pub h2: bool,
    /// Exchanges under way.
    pub active: Cell<u32>,
    /// Exchanges so far.
    pub served: Cell<u32>,
    /// When the last exchange ended (or the connection began).
    pub quiet_since: Cell<Instant>,
    /// A head is under way (HTTP/1).
    pub reading: Cell<bool>,
    /// Interim answers that are to be passed on (HTTP/1).
    pub interim: Rc<Interim>,
    /// What goes to the client and comes from it.
    pub traffic: Arc<Traffic>,
    /// The chain drains: answers say so.
    pub draining: Cell<bool>,
    /// For the limits of its exchanges (HTTP/1).
    pub alarm: Rc<RefCell<Alarm>>,
    /// No further request is taken (HTTP/1).
    pub closing: Cell<bool>,
}

/// Finds out the version that a connection speaks, and gives what serves it until it ends; `None`: the client left before.
pub async fn begin(
    worker: &Rc<Worker>,
    connection: Connection,
    manager: Arc<HttpManager>,
    stream: Stream,
) -> Option<Pin<Box<dyn Future<Output = ()>>>> {
    let (h2, stream) = which(&manager, &connection, stream).await?;
    let stream = if h2 { stream.guarding(Frames::of_client()) } else { stream };
    let shared = Rc::new(HttpConnection {
        worker: Rc::clone(worker),
        downstream: Arc::clone(&connection.downstream),
        certificate: arrive::certificate(&manager, &connection.downstream),
        site: worker.tally.site(&connection.downstream),
        authority: RefCell::new(Text::from("")),
        manager,
        peer: RefCell::default(),
        h2,
        active: Cell::new(0),
        served: Cell::new(0),
        quiet_since: Cell::new(Instant::now()),
        reading: Cell::new(false),
        interim: Rc::default(),
        traffic: stream.traffic(),
        draining: Cell::new(false),
        alarm: Rc::default(),
        closing: Cell::new(false),
    });
    // What an `async fn` is given it holds twice, so both get what they serve in one piece.
    Some(if h2 {
        let serving = Box::pin(h2::server::serve(Rc::clone(&shared), stream));
        Box::pin(run_h2(shared, connection.drain, serving))
    } else {
        let (stream, ahead) = stream.into_parts();
        let serving = Box::pin(h1::server::serve(Rc::clone(&shared), stream, ahead));
        Box::pin(run_h1(shared, connection.drain, serving))
    })
}

/// Serves a connection of HTTP/1 under its limits.
pub(crate) async fn run_h1<S>(shared: Rc<HttpConnection>, drain: watch::Receiver<bool>, mut serving: Pin<Box<S>>)
where
    S: Future<Output = Result<(), h1::Fault>>,
{
    let counted = Counted::begin(&shared);
    let guarded = Guarded { shared: &shared, blocked_since: None };
    let ended = guarded.run(serving.as_mut(), drain, |_| shared.closing.set(true)).await;
    counted.end_h1(ended.and_then(Result::err));
}

/// The same of HTTP/2.
async fn run_h2(shared: Rc<HttpConnection>, drain: watch::Receiver<bool>, mut serving: Pin<Box<h2::server::Serving>>) {
    let counted = Counted::begin(&shared);
    let guarded = Guarded { shared: &shared, blocked_since: None };
    let ended = guarded.run(serving.as_mut(), drain, h2::server::Serving::graceful_shutdown).await;
    counted.end_h2(ended.and_then(Result::err).as_ref());
}

impl HttpConnection {
    /// Who sends the heads of its requests.
    pub fn client(&self) -> Client<'_> {
        let (manager, downstream) = (&*self.manager, &*self.downstream);
        Client { manager, downstream, certificate: self.certificate.as_ref(), host: &self.authority }
    }

    /// What the logs of the chain read beyond what every record has.
    pub fn wants(&self) -> Wants {
        self.site.as_ref().map(|site| site.wants()).unwrap_or_default()
    }
}

/// Counts a connection while it is open, also when its task panics.
struct Counted<'a> {
    shared: &'a HttpConnection,
}

impl<'a> Counted<'a> {
    fn begin(shared: &'a HttpConnection) -> Self {
        let this = Self { shared };
        if let Some(site) = &shared.site {
            site.listener.downstream_cx_total.inc();
            site.listener.downstream_cx_active.inc();
        }
        if let Some(cells) = this.cells() {
            cells.downstream_cx_total.inc();
            cells.downstream_cx_active.inc();
            if shared.h2 {
                cells.downstream_cx_http2_total.inc();
                cells.downstream_cx_http2_active.inc();
            } else {
                cells.downstream_cx_http1_total.inc();
                cells.downstream_cx_http1_active.inc();
            }
            if shared.downstream.facts.tls {
                cells.downstream_cx_ssl_total.inc();
                cells.downstream_cx_ssl_active.inc();
            }
        }
        this
    }

    fn cells(&self) -> Option<&HttpCells> {
        self.shared.site.as_ref()?.http.as_deref().map(|cells| &**cells)
    }

    /// The connection ended, with a fault where the client broke the protocol (which was answered and reported) or went away.
    fn end_h1(self, fault: Option<h1::Fault>) {
        let Some(fault) = fault else { return };
        let remote = self.shared.downstream.facts.remote;
        tracing::debug!(%remote, %fault, "HTTP connection ended by a fault");
    }

    /// The same for HTTP/2.
    fn end_h2(self, error: Option<&::h2::Error>) {
        let Some(error) = error else { return };
        malformed::report_h2(self.shared, error);
        let remote = self.shared.downstream.facts.remote;
        tracing::debug!(%remote, %error, "HTTP connection ended by an error");
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if let Some(site) = &self.shared.site {
            site.listener.downstream_cx_active.dec();
            site.listener.downstream_cx_destroy.inc();
        }
        if let Some(cells) = self.cells() {
            cells.downstream_cx_active.dec();
            cells.downstream_cx_destroy.inc();
            if self.shared.h2 {
                cells.downstream_cx_http2_active.dec();
            } else {
                cells.downstream_cx_http1_active.dec();
            }
            if self.shared.downstream.facts.tls {
                cells.downstream_cx_ssl_active.dec();
            }
        }
    }
}

/// HTTP/2 or HTTP/1, by the chain's codec, ALPN, or the first bytes.
async fn which(manager: &HttpManager, connection: &Connection, stream: Stream) -> Option<(bool, Ahead)> {
    match manager.codec {
        Codec::Http1 => return Some((false, Ahead::none(stream))),
        Codec::Http2 => return Some((true, Ahead::none(stream))),
        Codec::Auto => {}
    }
    match connection.downstream.facts.negotiated_protocol.as_deref() {
        Some("h2" | "istio-h2") => return Some((true, Ahead::none(stream))),
        Some("http/1.1" | "http/1.0" | "istio-http/1.1" | "istio-http/1.0") => {
            return Some((false, Ahead::none(stream)));
        }
        _ => {}
    }
    let enough = |bytes: &[u8]| preface::is_h2(bytes).is_some();
    let looking = stream.first_bytes(enough, preface::H2_PREFACE.len());
    let limits = [manager.idle_timeout, manager.request_headers_timeout].into_iter().flatten();
    let limit = limits.min().unwrap_or(Duration::from_secs(3600));
    let ahead = timeout(limit, looking).await.ok()?.ok()?;
    if ahead.bytes().is_empty() {
        return None;
    }
    let h2 = preface::is_h2(ahead.bytes()) == Some(true);
    Some((h2, ahead))
}

/// A connection under its limits: idle time, time for a head, its whole life, drain.
struct Guarded<'a> {
    shared: &'a HttpConnection,
    /// The client takes nothing since then, and what it had taken.
    blocked_since: Option<(u64, Instant)>,
}

/// Why a connection is brought to its end from this side.
enum Stop {
    /// Nothing happens on it any more.
    Now,
    /// What is under way may finish.
    Gracefully,
}

impl Guarded<'_> {
    /// Runs a connection to its end; `None`: it was cut off.
    async fn run<C: Future>(
        mut self,
        mut connection: Pin<&mut C>,
        mut drain: watch::Receiver<bool>,
        shut_down: impl Fn(Pin<&mut C>),
    ) -> Option<C::Output> {
        let began = Instant::now();
        let mut look = pin!(tokio::time::sleep(self.first_look()));
        let mut ending = Ending::No;
        loop {
            tokio::select! {
                biased;
                output = connection.as_mut() => return Some(output),
                _ = drain.wait_for(|drain| *drain), if matches!(ending, Ending::No) => {
                    ending = self.begin_drain(connection.as_mut(), &shut_down);
                    look.as_mut().reset(ending.next(Instant::now(), self.first_look()));
                }
                () = look.as_mut() => {
                    let now = Instant::now();
                    match self.judge(now, began, &ending) {
                        Some(Stop::Now) => return None,
                        Some(Stop::Gracefully) if !matches!(ending, Ending::Shut { .. }) => {
                            self.shared.draining.set(true);
                            shut_down(connection.as_mut());
                            ending = Ending::Shut { at: now + DRAIN_LIMIT };
                        }
                        _ => {}
                    }
                    look.as_mut().reset(ending.next(now, self.first_look()));
                }
            }
        }
    }

    /// HTTP/2 says goodbye with GOAWAY and lets streams end. HTTP/1 has no such word: an idle connection that is closed may
    /// meet a request on its way, so the next answer says `connection: close` and only a long quiet one is closed.
    fn begin_drain<C>(&self, connection: Pin<&mut C>, shut_down: &impl Fn(Pin<&mut C>)) -> Ending {
        self.shared.draining.set(true);
        let now = Instant::now();
        if self.shared.h2 {
            shut_down(connection);
            return Ending::Shut { at: now + DRAIN_LIMIT };
        }
        let patience = if self.shared.worker.is_draining() { LAST_PATIENCE } else { self.shared.manager.drain_timeout };
        Ending::Asked { until: now + patience }
    }

    /// The client has taken nothing of what waits for it, for longer than an exchange may stand still.
    fn is_blocked(&mut self, now: Instant) -> bool {
        let written = self.shared.traffic.blocked_at();
        match (written, self.blocked_since) {
            (Some(written), Some((before, since))) if written == before => {
                self.shared.manager.stream_idle_timeout.is_some_and(|limit| now >= since + limit)
            }
            _ => {
                self.blocked_since = written.map(|written| (written, now));
                false
            }
        }
    }

    fn first_look(&self) -> Duration {
        let manager = &self.shared.manager;
        let limits = [
            manager.idle_timeout,
            manager.request_headers_timeout,
            manager.max_connection_duration,
            manager.stream_idle_timeout,
        ];
        // Several looks within the shortest limit, so that it is kept nearly to the moment.
        limits.into_iter().flatten().min().map_or(LOOK, |least| (least / 4).min(LOOK)).max(SHORT_LOOK)
    }

    fn judge(&mut self, now: Instant, began: Instant, ending: &Ending) -> Option<Stop> {
        let manager = Arc::clone(&self.shared.manager);
        if matches!(ending, Ending::Shut { at } if now >= *at) {
            return Some(Stop::Now);
        }
        if manager.max_connection_duration.is_some_and(|limit| now >= began + limit) {
            return Some(Stop::Gracefully);
        }
        if self.shared.h2 && self.shared.draining.get() && matches!(ending, Ending::No) {
            return Some(Stop::Gracefully);
        }
        if self.is_blocked(now) {
            return Some(Stop::Now);
        }
        if self.shared.active.get() > 0 {
            return None;
        }
        if matches!(ending, Ending::Asked { until } if now >= *until) {
            return Some(Stop::Gracefully);
        }
        if self.shared.reading.get() {
            // A head that drips is answered when it is late.
            return None;
        }
        let quiet = now.duration_since(self.shared.quiet_since.get());
        if self.shared.served.get() == 0 {
            // A client that connected and sent no whole head yet.
            let limit = [manager.request_headers_timeout, manager.idle_timeout].into_iter().flatten().min();
            return limit.is_some_and(|limit| quiet >= limit).then_some(Stop::Now);
        }
        let idle = self.shared.worker.shared.overload.idle(manager.idle_timeout);
        idle.is_some_and(|limit| quiet >= limit).then_some(Stop::Gracefully)
    }
}

/// How far a connection is on its way out.
enum Ending {
    /// It is not.
    No,
    /// The next answer asks the client to close; a quiet connection is closed then.
    Asked {
        /// When.
        until: Instant,
    },
    /// Nothing new is taken; what is under way may finish.
    Shut {
        /// But no longer than this.
        at: Instant,
    },
}

impl Ending {
    /// When to look again.
    fn next(&self, now: Instant, look: Duration) -> Instant {
        let soon = now + look;
        match self {
            Self::No => soon,
            // An exchange under way past that moment is looked at often enough to close right behind it.
            Self::Asked { until } => soon.min((*until).max(now + SHORT_LOOK)),
            Self::Shut { at } => soon.min((*at).max(now + SHORT_LOOK)),
        }
    }
}
