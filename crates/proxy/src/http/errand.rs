//! Requests of the proxy's own: fetching keys, asking authorizers. Small, bounded, and over the clusters' pools.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use engine::circuit;
use engine::retry::Retries;
use engine::routes::Priority;
use engine::{Cluster, Endpoint, balance};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Response, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt;
use tokio::time::timeout;

use super::attempt::{Letter, More, Sent};
use super::body::{Incoming, UpBody};
use crate::upstream::failure::{Failure, Kind};
use crate::upstream::reach::{Want, Way, reach};
use crate::worker::Worker;

/// One request of the proxy's own.
#[derive(Debug, Clone)]
pub(super) struct Errand {
    /// The cluster's name.
    pub(super) cluster: Arc<str>,
    /// `Host` or `:authority`.
    pub(super) authority: String,
    /// Method.
    pub(super) method: Method,
    /// Path and query.
    pub(super) path: String,
    /// Headers but for the host.
    pub(super) headers: HeaderMap,
    /// Body.
    pub(super) body: Bytes,
    /// Limit for the whole errand; `None`: none.
    pub(super) timeout: Option<Duration>,
    /// Only HTTP/2 will do.
    pub(super) h2: bool,
    /// The largest body that is taken, bytes.
    pub(super) most: usize,
}

/// What came back, whole.
#[derive(Debug)]
pub(super) struct Back {
    /// Status.
    pub(super) status: StatusCode,
    /// Headers, and trailers beside them.
    pub(super) headers: HeaderMap,
    /// Body.
    pub(super) body: Bytes,
}

/// Runs an errand.
///
/// # Errors
/// What went wrong, for the log.
pub(super) async fn run(worker: &Rc<Worker>, errand: &Errand) -> Result<Back, String> {
    let plan = worker.shared.plan.load_full();
    let cluster = plan.cluster(&errand.cluster).ok_or_else(|| format!("no cluster {}", errand.cluster))?;
    let work = once(worker, cluster, errand);
    match errand.timeout {
        None => work.await,
        Some(limit) => timeout(limit, work).await.map_err(|_| format!("no answer within {limit:?}"))?,
    }
}

async fn once(worker: &Rc<Worker>, cluster: &Arc<Cluster>, errand: &Errand) -> Result<Back, String> {
    let limits = cluster.config.limits(Priority::Default);
    let slot = circuit::request(&cluster.state, limits, Priority::Default, worker.shared.now());
    if slot.is_none() {
        return Err("the cluster's request limit is reached".to_owned());
    }
    let request = balance::Request::default();
    let picked = cluster.balancer.pick(request, worker.shared.now(), &mut worker.dice.borrow_mut());
    let endpoint = picked.ok_or_else(|| format!("no healthy endpoint in {}", errand.cluster))?;
    endpoint.state.requests.fetch_add(1, Ordering::Relaxed);
    let (way, response) = ask(worker, cluster, &endpoint, errand).await.map_err(|failure| words(&failure))?;
    receive(way, response, errand.most).await
}

/// Sends it; once more where a kept connection had just been closed.
async fn ask(
    worker: &Rc<Worker>,
    cluster: &Arc<Cluster>,
    endpoint: &Arc<Endpoint>,
    errand: &Errand,
) -> Result<(Way, Response<Incoming>), Failure> {
    let mut want = Want {
        cluster,
        endpoint,
        priority: Priority::Default,
        downstream_h2: errand.h2,
        authority: &errand.authority,
        fresh: false,
        upgrade: false,
        alpn: None,
    };
    let letter = errand.letter().ok_or(Kind::Protocol)?;
    loop {
        let way = reach(worker, want).await?;
        let body = if errand.body.is_empty() { UpBody::Empty } else { UpBody::ready(vec![errand.body.clone()]) };
        let sent = letter.send(&errand.headers, &way, More::default(), body).await.ok_or(Kind::Protocol)?;
        match sent {
            Sent::Answered(response) => return Ok((way, response)),
            Sent::Returned(_) | Sent::Failed(Failure { kind: Kind::Termination | Kind::RefusedStream, .. })
                if way.reused && !want.fresh =>
            {
                want.fresh = true;
            }
            Sent::Returned(_) => return Err(Kind::Termination.into()),
            Sent::Failed(failure) => return Err(failure),
        }
    }
}

impl Errand {
    fn letter(&self) -> Option<Letter> {
        Some(Letter {
            method: self.method.clone(),
            path: PathAndQuery::try_from(self.path.as_str()).ok()?,
            authority: self.authority.as_str().into(),
            scheme: "http",
            upgrade: None,
            retries: Retries::none(),
            server: None,
        })
    }
}

async fn receive(way: Way, response: Response<Incoming>, most: usize) -> Result<Back, String> {
    let (parts, mut incoming) = response.into_parts();
    let mut headers = parts.headers;
    let mut body = BytesMut::new();
    while let Some(frame) = incoming.frame().await {
        let frame = frame.map_err(|error| format!("the answer broke off: {error}"))?;
        match frame.into_data() {
            Ok(data) if body.len() + data.len() > most => return Err(format!("the answer has more than {most} bytes")),
            Ok(data) => body.extend_from_slice(&data),
            Err(frame) => headers.extend(frame.into_trailers().unwrap_or_default()),
        }
    }
    if incoming.is_end_stream() {
        way.give_back();
    }
    Ok(Back { status: parts.status, headers, body: body.freeze() })
}

fn words(failure: &Failure) -> String {
    match &failure.transport {
        Some(transport) => format!("{:?}: {transport}", failure.kind),
        None => format!("{:?}", failure.kind),
    }
}
