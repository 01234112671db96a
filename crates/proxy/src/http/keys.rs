//! Fetching key sets: one fetch at a time for each, shared by all that wait for it.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use engine::jwt::{KeySet, MAX_KEY_SET, RemoteKeys};
use hashbrown::HashMap;
use http::{HeaderMap, Method, StatusCode};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::errand::{self, Errand};
use crate::worker::Worker;

/// Between two tries of one fetch.
const PAUSE: Duration = Duration::from_millis(200);

/// The fetches under way in this process, by the address of what they fetch.
#[derive(Debug, Default)]
pub struct Flights(Mutex<HashMap<usize, watch::Receiver<()>>>);

/// Fetches a key set, or waits for the fetch that is under way.
pub(super) async fn fetch(worker: &Rc<Worker>, keys: &Arc<RemoteKeys>) {
    let mut done = begin(worker, keys);
    // The sender is dropped at the end.
    let _ = done.changed().await;
}

/// Begins to fetch a key set if nobody does.
pub fn begin(worker: &Rc<Worker>, keys: &Arc<RemoteKeys>) -> watch::Receiver<()> {
    let id = Arc::as_ptr(keys) as usize;
    let mut flights = worker.shared.flights.0.lock();
    if let Some(known) = flights.get(&id) {
        return known.clone();
    }
    let (landed, waiting) = watch::channel(());
    flights.insert(id, waiting.clone());
    drop(flights);
    let flight = Flight { worker: Rc::clone(worker), id, _landed: landed };
    let keys = Arc::clone(keys);
    tokio::task::spawn_local(async move {
        let worker = &flight.worker;
        match tries(worker, &keys).await {
            Ok(set) => {
                tracing::debug!(cluster = %keys.source.cluster, keys = set.len(), "key set fetched");
                worker.tally.keys_fetched(true);
                keys.put(set, worker.shared.now());
            }
            Err(why) => {
                let (cluster, path) = (&keys.source.cluster, &keys.source.path);
                tracing::warn!(event = "keys-not-fetched", %cluster, %path, why, "key set not fetched");
                worker.tally.keys_fetched(false);
                keys.fail(worker.shared.now());
            }
        }
        drop(flight);
    });
    waiting
}

/// A fetch under way; however it ends, others may begin a new one.
struct Flight {
    worker: Rc<Worker>,
    id: usize,
    _landed: watch::Sender<()>,
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.worker.shared.flights.0.lock().remove(&self.id);
    }
}

async fn tries(worker: &Rc<Worker>, keys: &Arc<RemoteKeys>) -> Result<KeySet, String> {
    let mut left = keys.source.retries;
    loop {
        match once(worker, keys).await {
            Err(why) if left > 0 => {
                tracing::debug!(cluster = %keys.source.cluster, why, "key set not fetched, trying again");
                left -= 1;
                tokio::time::sleep(PAUSE).await;
            }
            done => return done,
        }
    }
}

async fn once(worker: &Rc<Worker>, keys: &Arc<RemoteKeys>) -> Result<KeySet, String> {
    let source = &keys.source;
    let errand = Errand {
        cluster: Arc::clone(&source.cluster),
        authority: source.authority.to_string(),
        method: Method::GET,
        path: source.path.to_string(),
        headers: HeaderMap::new(),
        body: bytes::Bytes::new(),
        timeout: Some(source.timeout),
        h2: false,
        most: MAX_KEY_SET,
    };
    let back = errand::run(worker, &errand).await?;
    if back.status != StatusCode::OK {
        return Err(format!("answered {}", back.status.as_u16()));
    }
    KeySet::parse(&back.body).map_err(str::to_owned)
}
