//! A server of resources, for proxies that ask for them by gRPC: all types on one stream, or a stream for each; the state of
//! the world, or deltas. What it gives can be changed while proxies listen.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderValue, Request, Response};
use prost::Message;
use proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use proto::google::protobuf::Any;
use proto::json::{self, Format};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How long a proxy may take to answer a change.
const PATIENCE: Duration = Duration::from_secs(3);

/// A running server; it stops when dropped.
#[derive(Debug)]
pub struct Server {
    task: JoinHandle<()>,
    given: Arc<Given>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What is given, and what proxies said to it.
#[derive(Debug, Default)]
struct Given {
    state: Mutex<State>,
    /// How often it changed.
    changes: watch::Sender<u64>,
}

/// Names by type.
type Names = BTreeMap<String, BTreeSet<String>>;

#[derive(Debug, Default)]
struct State {
    /// By type and name.
    resources: BTreeMap<String, BTreeMap<String, Any>>,
    /// What the last change was about.
    changed: Names,
    changes: u64,
    /// What proxies did not like.
    refusals: Vec<String>,
    /// Nonces of changes that were sent, and of those the ones that were not answered.
    sent: usize,
    unanswered: BTreeSet<String>,
}

impl Server {
    /// Serves the resources of a DiscoveryResponse in JSON at a Unix socket.
    ///
    /// # Errors
    /// When the text is no such message, or the socket cannot be bound.
    pub fn start(at: &Path, resources: &str) -> Result<Self> {
        let given = Arc::new(Given::read(resources)?);
        let listener = UnixListener::bind(at).with_context(|| at.display().to_string())?;
        let serving = Arc::clone(&given);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let given = Arc::clone(&serving);
                tokio::spawn(async move {
                    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        tokio::spawn(serve(Arc::clone(&given), request, respond));
                    }
                });
            }
        });
        Ok(Self { task, given })
    }

    /// What proxies refused, with their words.
    pub fn refusals(&self) -> Vec<String> {
        self.given.state().refusals.clone()
    }

    /// Gives other resources from now on, and takes some away by their names (which only deltas can tell). Waits until those
    /// who asked for them have answered, well or not.
    ///
    /// # Errors
    /// When the text is no DiscoveryResponse, or nobody answers.
    pub async fn change(&self, resources: &str, gone: &[String]) -> Result<()> {
        let fresh = Given::read(resources)?.state().resources.clone();
        let number = self.given.replace(fresh, gone);
        self.given.changes.send_replace(number);
        let end = Instant::now() + PATIENCE;
        loop {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let (sent, unanswered) = {
                let state = self.given.state();
                (state.sent, state.unanswered.len())
            };
            match (sent, unanswered) {
                (1.., 0) => return Ok(()),
                _ if Instant::now() < end => {}
                (0, _) => bail!("nobody asked for what changed"),
                _ => bail!("no answer to what changed"),
            }
        }
    }
}

impl Given {
    fn read(text: &str) -> Result<Self> {
        let response: DiscoveryResponse = json::parse(text, Format::Json).map_err(|faults| {
            let faults: Vec<_> = faults.iter().map(ToString::to_string).collect();
            anyhow!("resources of the server: {}", faults.join("; "))
        })?;
        let given = Self::default();
        for any in response.resources {
            given.state().resources.entry(any.type_url.clone()).or_default().insert(name_of(&any), any);
        }
        Ok(given)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn replace(&self, fresh: BTreeMap<String, BTreeMap<String, Any>>, gone: &[String]) -> u64 {
        let mut state = self.state();
        let mut changed = Names::new();
        for (type_url, resources) in &mut state.resources {
            let taken = gone.iter().filter(|name| resources.remove(*name).is_some());
            changed.entry(type_url.clone()).or_default().extend(taken.cloned());
        }
        for (type_url, resources) in fresh {
            changed.entry(type_url.clone()).or_default().extend(resources.keys().cloned());
            state.resources.entry(type_url).or_default().extend(resources);
        }
        state.changed = changed;
        state.sent = 0;
        state.unanswered.clear();
        state.changes += 1;
        state.changes
    }
}

impl State {
    /// Those of a type that are asked for; without names all.
    fn wanted(&self, type_url: &str, names: &BTreeSet<String>) -> Vec<(&String, &Any)> {
        let all = names.is_empty() || names.contains("*");
        let of_type = self.resources.get(type_url).into_iter().flatten();
        of_type.filter(|(name, _)| all || names.contains(*name)).collect()
    }

    /// Those of these names that stand for something.
    fn known(&self, type_url: &str, names: BTreeSet<String>) -> BTreeSet<String> {
        let of_type = self.resources.get(type_url);
        names.into_iter().filter(|name| of_type.is_some_and(|known| known.contains_key(name))).collect()
    }

    /// What the last change is to one who asked for these.
    fn concerned(&self, asked: &Names) -> Vec<(String, BTreeSet<String>)> {
        let concerned = asked.iter().filter_map(|(type_url, names)| {
            let all = names.is_empty() || names.contains("*");
            let changed = self.changed.get(type_url)?.iter().filter(|name| all || names.contains(*name));
            let changed: BTreeSet<String> = changed.cloned().collect();
            (!changed.is_empty()).then(|| (type_url.clone(), changed))
        });
        concerned.collect()
    }

    fn version(&self) -> String {
        (self.changes + 1).to_string()
    }

    fn note(&mut self, type_url: &str, nonce: &str, problem: Option<&proto::google::rpc::Status>) {
        self.unanswered.remove(nonce);
        if let Some(problem) = problem {
            self.refusals.push(format!("{type_url}: {}", problem.message));
        }
    }
}

/// Every kind of resource has its name in its first field.
fn name_of(any: &Any) -> String {
    #[derive(Clone, PartialEq, Message)]
    struct Named {
        #[prost(string, tag = "1")]
        name: String,
    }
    Named::decode(any.value.as_slice()).map(|named| named.name).unwrap_or_default()
}

/// One stream.
async fn serve(given: Arc<Given>, request: Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>) {
    let delta = request.uri().path().contains("/Delta");
    let mut incoming = request.into_body();
    let mut head = Response::new(());
    head.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    let Ok(mut outgoing) = respond.send_response(head, false) else { return };
    let mut changes = given.changes.subscribe();
    let mut said = BytesMut::new();
    let mut asked = Names::new();
    loop {
        let answers: Vec<Vec<u8>> = tokio::select! {
            chunk = incoming.data() => {
                let Some(Ok(chunk)) = chunk else { return };
                let _ = incoming.flow_control().release_capacity(chunk.len());
                said.extend_from_slice(&chunk);
                let state = &mut given.state();
                let messages = std::iter::from_fn(|| take(&mut said));
                messages.filter_map(|message| answer(state, delta, message, &mut asked)).collect()
            }
            Ok(()) = changes.changed() => told(&mut given.state(), delta, &asked),
        };
        if answers.iter().any(|answer| outgoing.send_data(framed(answer), false).is_err()) {
            return;
        }
    }
}

fn answer(state: &mut State, delta: bool, message: Bytes, asked: &mut Names) -> Option<Vec<u8>> {
    if delta {
        DeltaDiscoveryRequest::decode(message).ok().and_then(|request| changes(state, &request, asked))
    } else {
        DiscoveryRequest::decode(message).ok().and_then(|request| whole(state, &request, asked))
    }
}

/// The answer to a request of a stream of the state of the world; none to an acknowledgement.
fn whole(state: &mut State, request: &DiscoveryRequest, asked: &mut Names) -> Option<Vec<u8>> {
    state.note(&request.type_url, &request.response_nonce, request.error_detail.as_ref());
    let names: BTreeSet<String> = request.resource_names.iter().cloned().collect();
    let before = asked.insert(request.type_url.clone(), names.clone());
    if before.as_ref() == Some(&names) {
        return None;
    }
    let nonce = format!("{}", asked.values().map(BTreeSet::len).sum::<usize>());
    Some(state_of(state, &request.type_url, &names, nonce))
}

fn state_of(state: &State, type_url: &str, names: &BTreeSet<String>, nonce: String) -> Vec<u8> {
    let resources = state.wanted(type_url, names).into_iter().map(|(_, any)| any.clone()).collect();
    let response = DiscoveryResponse {
        version_info: state.version(),
        resources,
        type_url: type_url.to_owned(),
        nonce,
        ..DiscoveryResponse::default()
    };
    response.encode_to_vec()
}

/// The answer to a request of a stream of deltas; none to an acknowledgement.
fn changes(state: &mut State, request: &DeltaDiscoveryRequest, asked: &mut Names) -> Option<Vec<u8>> {
    state.note(&request.type_url, &request.response_nonce, request.error_detail.as_ref());
    let first = !asked.contains_key(&request.type_url);
    let known = asked.entry(request.type_url.clone()).or_default();
    let names: BTreeSet<String> = request.resource_names_subscribe.iter().cloned().collect();
    if !first && names.is_empty() {
        return None;
    }
    known.extend(names.iter().cloned());
    let nonce = format!("{}", known.len());
    // Envoy waits without end for a filter that it is told does not exist, so it is not told: `initial_fetch_timeout` counts.
    let is_filter = request.type_url == proto::type_url::EXTENSION;
    let names = if is_filter { state.known(&request.type_url, names) } else { names };
    if is_filter && names.is_empty() {
        return None;
    }
    Some(delta_of(state, &request.type_url, &names, nonce))
}

fn delta_of(state: &State, type_url: &str, names: &BTreeSet<String>, nonce: String) -> Vec<u8> {
    let found = state.wanted(type_url, names);
    let removed = names.iter().filter(|name| *name != "*" && !found.iter().any(|(known, _)| known == name));
    let response = DeltaDiscoveryResponse {
        system_version_info: state.version(),
        removed_resources: removed.cloned().collect(),
        resources: found
            .into_iter()
            .map(|(name, any)| Resource {
                name: name.clone(),
                version: state.version(),
                resource: Some(any.clone()),
                ..Resource::default()
            })
            .collect(),
        type_url: type_url.to_owned(),
        nonce,
        ..DeltaDiscoveryResponse::default()
    };
    response.encode_to_vec()
}

/// What a stream is told of the last change.
fn told(state: &mut State, delta: bool, asked: &Names) -> Vec<Vec<u8>> {
    let mut told = Vec::new();
    for (type_url, changed) in state.concerned(asked) {
        state.sent += 1;
        let nonce = format!("change-{}-{}", state.changes, state.sent);
        state.unanswered.insert(nonce.clone());
        told.push(if delta {
            delta_of(state, &type_url, &changed, nonce)
        } else {
            state_of(state, &type_url, &asked[&type_url], nonce)
        });
    }
    told
}

/// The next whole gRPC message.
fn take(said: &mut BytesMut) -> Option<Bytes> {
    let mut head = said.get(..5)?;
    head.advance(1);
    let length = usize::try_from(head.get_u32()).ok()?;
    if said.len() < 5 + length {
        return None;
    }
    said.advance(5);
    Some(said.split_to(length).freeze())
}

fn framed(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(5 + message.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or_default());
    framed.extend_from_slice(message);
    framed.freeze()
}
