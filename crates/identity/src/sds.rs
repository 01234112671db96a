//! Secret discovery for proxies on this machine: `default` (key and chain) and `ROOTCA` (the trusted root), by Envoy's
//! protocol in both forms, and pushed on every renewal.

use std::collections::BTreeSet;
use std::pin::Pin;

use prost::Message;
use proto::envoy::config::core::v3::{DataSource, data_source::Specifier};
use proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate, secret,
};
use proto::envoy::service::discovery::v3 as discovery;
use proto::envoy::service::secret::v3::secret_discovery_service_server::{
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};
use proto::google::protobuf::Any;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status as Answer, Streaming};

use crate::agent::{Material, Status};
use crate::door::{Caller, Incoming};

/// The name of the workload's own key and chain.
pub const KEY_AND_CHAIN: &str = "default";
/// The name of the trusted root.
pub const TRUSTED_ROOT: &str = "ROOTCA";

const SECRET_TYPE: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
/// The largest request: a few names.
const MAX_MESSAGE: usize = 64 * 1024;
/// How many names one stream may ask for.
const MAX_NAMES: usize = 64;

/// Serves until the door closes.
pub(crate) async fn serve(incoming: Incoming, status: watch::Receiver<Status>) {
    let service = SecretDiscoveryServiceServer::new(Sds { status }).max_decoding_message_size(MAX_MESSAGE);
    let server = tonic::transport::Server::builder()
        .max_concurrent_streams(16)
        .add_service(service)
        .serve_with_incoming(incoming);
    if let Err(error) = server.await {
        tracing::error!(%error, "the SDS server ended");
    }
}

struct Sds {
    status: watch::Receiver<Status>,
}

type Stream1<T> = Pin<Box<dyn Stream<Item = Result<T, Answer>> + Send>>;

#[tonic::async_trait]
impl SecretDiscoveryService for Sds {
    type DeltaSecretsStream = Stream1<discovery::DeltaDiscoveryResponse>;
    type StreamSecretsStream = Stream1<discovery::DiscoveryResponse>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<discovery::DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Answer> {
        note_caller(&request);
        let (send, receive) = mpsc::channel(4);
        tokio::spawn(whole_state(request.into_inner(), self.status.clone(), send));
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }

    async fn delta_secrets(
        &self,
        request: Request<Streaming<discovery::DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Answer> {
        note_caller(&request);
        let (send, receive) = mpsc::channel(4);
        tokio::spawn(differences(request.into_inner(), self.status.clone(), send));
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }

    async fn fetch_secrets(
        &self,
        request: Request<discovery::DiscoveryRequest>,
    ) -> Result<Response<discovery::DiscoveryResponse>, Answer> {
        let material =
            self.status.borrow().material.clone().ok_or_else(|| Answer::unavailable("there is no identity yet"))?;
        let names = request.into_inner().resource_names.into_iter().take(MAX_NAMES).collect();
        Ok(Response::new(response(&material, &names, 1)))
    }
}

fn note_caller<T>(request: &Request<T>) {
    if let Some(caller) = request.extensions().get::<Caller>() {
        tracing::debug!(%caller, "a proxy asks for secrets");
    }
}

/// State of the world: every answer holds all secrets that the stream asked for.
async fn whole_state(
    mut requests: Streaming<discovery::DiscoveryRequest>,
    mut status: watch::Receiver<Status>,
    send: mpsc::Sender<Result<discovery::DiscoveryResponse, Answer>>,
) {
    let mut wanted = BTreeSet::new();
    let mut sent = Sent::default();
    loop {
        tokio::select! {
            request = requests.next() => {
                let Some(Ok(request)) = request else { return };
                note_refusal(request.error_detail.as_ref().map(|e| e.message.as_str()));
                let names: BTreeSet<String> = request.resource_names.into_iter().take(MAX_NAMES).collect();
                if names != wanted {
                    wanted = names;
                    sent.version.clear();
                }
            }
            changed = status.changed() => if changed.is_err() { return },
        }
        let Some(material) = status.borrow_and_update().material.clone() else { continue };
        if sent.version == material.version || !wanted.iter().any(|name| secret_named(name, &material).is_some()) {
            continue;
        }
        sent.nonce += 1;
        sent.version.clone_from(&material.version);
        if send.send(Ok(response(&material, &wanted, sent.nonce))).await.is_err() {
            return;
        }
    }
}

/// Differences: every answer holds what the stream does not have yet.
async fn differences(
    mut requests: Streaming<discovery::DeltaDiscoveryRequest>,
    mut status: watch::Receiver<Status>,
    send: mpsc::Sender<Result<discovery::DeltaDiscoveryResponse, Answer>>,
) {
    let mut wanted = BTreeSet::new();
    let mut fresh = BTreeSet::new();
    let mut sent = Sent::default();
    loop {
        tokio::select! {
            request = requests.next() => {
                let Some(Ok(request)) = request else { return };
                note_refusal(request.error_detail.as_ref().map(|e| e.message.as_str()));
                for name in request.resource_names_unsubscribe {
                    wanted.remove(&name);
                    fresh.remove(&name);
                }
                for name in request.resource_names_subscribe {
                    if wanted.len() < MAX_NAMES {
                        wanted.insert(name.clone());
                        fresh.insert(name);
                    }
                }
            }
            changed = status.changed() => if changed.is_err() { return },
        }
        let Some(material) = status.borrow_and_update().material.clone() else { continue };
        let due = if sent.version == material.version { std::mem::take(&mut fresh) } else { wanted.clone() };
        if due.is_empty() {
            continue;
        }
        fresh.clear();
        sent.nonce += 1;
        sent.version.clone_from(&material.version);
        if send.send(Ok(delta_response(&material, &due, sent.nonce))).await.is_err() {
            return;
        }
    }
}

/// What a stream got last.
#[derive(Default)]
struct Sent {
    version: String,
    nonce: u64,
}

fn note_refusal(message: Option<&str>) {
    if let Some(message) = message {
        tracing::warn!(message, "a proxy refused its secrets");
    }
}

fn response(material: &Material, names: &BTreeSet<String>, nonce: u64) -> discovery::DiscoveryResponse {
    discovery::DiscoveryResponse {
        version_info: material.version.clone(),
        resources: names.iter().filter_map(|name| secret_named(name, material)).collect(),
        type_url: SECRET_TYPE.to_owned(),
        nonce: nonce.to_string(),
        ..Default::default()
    }
}

fn delta_response(material: &Material, names: &BTreeSet<String>, nonce: u64) -> discovery::DeltaDiscoveryResponse {
    let resource = |name: &String| {
        secret_named(name, material).map(|any| discovery::Resource {
            name: name.clone(),
            version: material.version.clone(),
            resource: Some(any),
            ..Default::default()
        })
    };
    discovery::DeltaDiscoveryResponse {
        system_version_info: material.version.clone(),
        resources: names.iter().filter_map(resource).collect(),
        removed_resources: names.iter().filter(|name| secret_named(name, material).is_none()).cloned().collect(),
        type_url: SECRET_TYPE.to_owned(),
        nonce: nonce.to_string(),
        ..Default::default()
    }
}

/// One of the two secrets.
fn secret_named(name: &str, material: &Material) -> Option<Any> {
    let inline = |text: &str| {
        Some(DataSource { specifier: Some(Specifier::InlineBytes(text.as_bytes().to_vec())), ..Default::default() })
    };
    let kind = match name {
        KEY_AND_CHAIN => secret::Type::TlsCertificate(TlsCertificate {
            certificate_chain: inline(&material.chain_pem),
            private_key: inline(&material.key_pem),
            ..Default::default()
        }),
        TRUSTED_ROOT => secret::Type::ValidationContext(CertificateValidationContext {
            trusted_ca: inline(&material.root_pem),
            ..Default::default()
        }),
        _ => return None,
    };
    let secret = Secret { name: name.to_owned(), r#type: Some(kind) };
    Some(Any { type_url: SECRET_TYPE.to_owned(), value: secret.encode_to_vec() })
}
