//! Copies of requests to other clusters: sent and forgotten, never in the way of the request itself.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use engine::decide::Mirror;
use engine::routes::Priority;
use engine::{Cluster, Forward, balance};
use http::HeaderMap;
use http_body::Body as _;
use http_body_util::BodyExt;
use tokio::time::timeout;

use super::attempt::{Letter, More, Sent};
use super::body::UpBody;
use super::exchange::Exchange;
use crate::upstream::reach::{Want, reach};
use crate::worker::Worker;

/// The limit of a copy whose route sets none.
const LIMIT: Duration = Duration::from_secs(15);

impl Exchange {
    /// Starts the copies that were decided.
    pub(super) fn mirror(&self, forward: &Forward, letter: &Letter) {
        for Mirror { cluster, keep_host } in &forward.mirrors {
            let mut letter = letter.again();
            if !keep_host {
                letter.authority = shadow(&letter.authority).into();
            }
            let copy = Copy {
                worker: Rc::clone(&self.shared.worker),
                headers: self.record.request_headers.clone(),
                cluster: Arc::clone(cluster),
                letter,
                hash: forward.hash,
                body: self
                    .source
                    .as_ref()
                    .map_or(UpBody::Empty, |source| source.borrow_mut().copy(self.buffer_limit())),
                h2: self.shared.h2,
            };
            let limit = forward.timeout.unwrap_or(LIMIT);
            tokio::task::spawn_local(async move {
                let _ = timeout(limit, copy.send()).await;
            });
        }
    }
}

/// `host-shadow`, before the port where there is one.
fn shadow(authority: &str) -> String {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => format!("{host}-shadow:{port}"),
        _ => format!("{authority}-shadow"),
    }
}

struct Copy {
    worker: Rc<Worker>,
    cluster: Arc<Cluster>,
    letter: Letter,
    headers: HeaderMap,
    hash: Option<u64>,
    body: UpBody,
    h2: bool,
}

impl Copy {
    async fn send(self) {
        let request = balance::Request { hash: self.hash, ..balance::Request::default() };
        let now = self.worker.shared.now();
        let picked = self.cluster.balancer.pick(request, now, &mut self.worker.dice.borrow_mut());
        let Some(endpoint) = picked else { return };
        let want = Want {
            cluster: &self.cluster,
            endpoint: &endpoint,
            priority: Priority::Default,
            downstream_h2: self.h2,
            authority: &self.letter.authority,
            fresh: false,
            upgrade: false,
            alpn: None,
        };
        let Ok(way) = reach(&self.worker, want).await else { return };
        let sending = self.letter.send(&self.headers, &way, More::default(), self.body);
        let Some(Sent::Answered(response)) = sending.await else { return };
        let mut body = response.into_body();
        while let Some(Ok(_)) = body.frame().await {}
        if body.is_end_stream() {
            way.give_back();
        }
    }
}
