//! A server of resources that do not change, for proxies that ask for them by gRPC: all types on one stream, or a stream
//! for each; the state of the world, or deltas.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, anyhow};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderValue, Request, Response};
use prost::Message;
use proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use proto::google::protobuf::Any;
use proto::json::{self, Format};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

const VERSION: &str = "1";

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

/// Resources by type and name, and what proxies did not like.
#[derive(Debug, Default)]
struct Given {
    resources: BTreeMap<String, BTreeMap<String, Any>>,
    refusals: Mutex<Vec<String>>,
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
        self.given.refusals.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Given {
    fn read(text: &str) -> Result<Self> {
        let response: DiscoveryResponse = json::parse(text, Format::Json).map_err(|faults| {
            let faults: Vec<_> = faults.iter().map(ToString::to_string).collect();
            anyhow!("resources of the server: {}", faults.join("; "))
        })?;
        let mut given = Self::default();
        for any in response.resources {
            given.resources.entry(any.type_url.clone()).or_default().insert(name_of(&any), any);
        }
        Ok(given)
    }

    /// Those of a type that are asked for; without names all.
    fn wanted(&self, type_url: &str, names: &BTreeSet<String>) -> Vec<(&String, &Any)> {
        let all = names.is_empty() || names.contains("*");
        let of_type = self.resources.get(type_url).into_iter().flatten();
        of_type.filter(|(name, _)| all || names.contains(*name)).collect()
    }

    fn note(&self, type_url: &str, problem: Option<&proto::google::rpc::Status>) {
        if let Some(problem) = problem {
            let text = format!("{type_url}: {}", problem.message);
            self.refusals.lock().unwrap_or_else(PoisonError::into_inner).push(text);
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
    let mut said = BytesMut::new();
    let mut asked: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    while let Some(Ok(chunk)) = incoming.data().await {
        let _ = incoming.flow_control().release_capacity(chunk.len());
        said.extend_from_slice(&chunk);
        while let Some(message) = take(&mut said) {
            let answer = if delta {
                DeltaDiscoveryRequest::decode(message).ok().and_then(|request| given.changes(&request, &mut asked))
            } else {
                DiscoveryRequest::decode(message).ok().and_then(|request| given.state(&request, &mut asked))
            };
            if let Some(answer) = answer
                && outgoing.send_data(framed(&answer), false).is_err()
            {
                return;
            }
        }
    }
}

impl Given {
    /// The answer to a request of a stream of the state of the world; none to an acknowledgement.
    fn state(&self, request: &DiscoveryRequest, asked: &mut BTreeMap<String, BTreeSet<String>>) -> Option<Vec<u8>> {
        self.note(&request.type_url, request.error_detail.as_ref());
        let names: BTreeSet<String> = request.resource_names.iter().cloned().collect();
        let before = asked.insert(request.type_url.clone(), names.clone());
        if before.as_ref() == Some(&names) {
            return None;
        }
        let resources = self.wanted(&request.type_url, &names).into_iter().map(|(_, any)| any.clone()).collect();
        let response = DiscoveryResponse {
            version_info: VERSION.to_owned(),
            resources,
            type_url: request.type_url.clone(),
            nonce: format!("{}", asked.values().map(BTreeSet::len).sum::<usize>()),
            ..DiscoveryResponse::default()
        };
        Some(response.encode_to_vec())
    }

    /// The answer to a request of a stream of deltas; none to an acknowledgement.
    fn changes(
        &self,
        request: &DeltaDiscoveryRequest,
        asked: &mut BTreeMap<String, BTreeSet<String>>,
    ) -> Option<Vec<u8>> {
        self.note(&request.type_url, request.error_detail.as_ref());
        let first = !asked.contains_key(&request.type_url);
        let known = asked.entry(request.type_url.clone()).or_default();
        let names: BTreeSet<String> = request.resource_names_subscribe.iter().cloned().collect();
        if !first && names.is_empty() {
            return None;
        }
        known.extend(names.iter().cloned());
        let found = self.wanted(&request.type_url, &names);
        let removed = names.iter().filter(|name| *name != "*" && !found.iter().any(|(known, _)| known == name));
        let response = DeltaDiscoveryResponse {
            system_version_info: VERSION.to_owned(),
            removed_resources: removed.cloned().collect(),
            resources: found
                .into_iter()
                .map(|(name, any)| Resource {
                    name: name.clone(),
                    version: VERSION.to_owned(),
                    resource: Some(any.clone()),
                    ..Resource::default()
                })
                .collect(),
            type_url: request.type_url.clone(),
            nonce: format!("{}", known.len()),
            ..DeltaDiscoveryResponse::default()
        };
        Some(response.encode_to_vec())
    }
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
