//! Secrets: which ones the plan's TLS contexts name, and the streams and files that deliver them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use engine::tls::{SecretRef, SecretSource};
use engine::{Store, Update};
use hashbrown::HashSet;
use hyper_util::rt::TokioIo;
use prost::Message;
use proto::envoy::config::core::v3::Node;
use proto::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use proto::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use proto::type_url;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

use super::reach;
use crate::shared::Shared;

/// Between two looks at a secret file.
const LOOK: Duration = Duration::from_secs(1);
/// Waits between tries: doubled up to the maximum.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(5);

/// Who is asked for which secrets.
pub struct Secrets {
    shared: Arc<Shared>,
    node: Node,
    asked: HashSet<SecretRef>,
    outbox: mpsc::Sender<super::Message>,
}

impl Secrets {
    /// Nobody is asked yet.
    pub fn new(shared: Arc<Shared>, node: Node, outbox: mpsc::Sender<super::Message>) -> Self {
        Self { shared, node, asked: HashSet::new(), outbox }
    }

    /// Takes what the plan itself delivers and starts asking for what is new; also for what is still warming.
    pub fn follow(&mut self, store: &Store) {
        let plan = store.plan();
        for name in store.secrets() {
            match &name.source {
                SecretSource::Static | SecretSource::Ads => {
                    let Some(secret) = plan.secret(&name.name) else { continue };
                    if let Err(problem) = self.shared.tls.put(&name, (**secret).clone()) {
                        tracing::error!(event = "secret-refused", secret = %name.name, %problem);
                    }
                }
                SecretSource::Grpc { cluster } => {
                    let cluster = Arc::clone(cluster);
                    if self.asked.insert(name.clone()) {
                        let (shared, node, outbox) = (Arc::clone(&self.shared), self.node.clone(), self.outbox.clone());
                        tokio::spawn(Asking { shared, node, name, cluster, outbox }.run());
                    }
                }
                SecretSource::Path(path) => {
                    let path = Arc::clone(path);
                    if self.asked.insert(name.clone()) {
                        tokio::spawn(watch_file(Arc::clone(&self.shared), name, path, self.outbox.clone()));
                    }
                }
            }
        }
    }
}

/// One stream for one secret, as Envoy opens them.
struct Asking {
    shared: Arc<Shared>,
    node: Node,
    name: SecretRef,
    cluster: Arc<str>,
    outbox: mpsc::Sender<super::Message>,
}

impl Asking {
    async fn run(self) {
        let mut wait = FIRST_RETRY;
        loop {
            let mut heard = false;
            if let Err(reason) = self.one_stream(&mut heard).await {
                tracing::debug!(secret = %self.name.name, cluster = %self.cluster, %reason, "the secret's stream ended");
            }
            wait = if heard { FIRST_RETRY } else { (wait * 2).min(LAST_RETRY) };
            tokio::time::sleep(wait).await;
        }
    }

    async fn one_stream(&self, heard: &mut bool) -> Result<(), String> {
        let channel = self.channel().await?;
        let mut client = SecretDiscoveryServiceClient::new(channel);
        let (requests, outgoing) = mpsc::channel(4);
        let first = self.request("", "", None);
        requests.send(first).await.map_err(|_| "closed".to_owned())?;
        let answer = client.stream_secrets(ReceiverStream::new(outgoing)).await.map_err(|s| s.to_string())?;
        let mut responses = answer.into_inner();
        let mut version = String::new();
        while let Some(response) = responses.next().await {
            let response = response.map_err(|status| status.to_string())?;
            *heard = true;
            let verdict = deliver(&self.shared, &self.name, &response);
            if verdict.is_ok() {
                version.clone_from(&response.version_info);
                tell(&self.outbox, &self.shared, &self.name).await;
            }
            let answer = self.request(&version, &response.nonce, verdict.err());
            requests.send(answer).await.map_err(|_| "closed".to_owned())?;
        }
        Ok(())
    }

    async fn channel(&self) -> Result<Channel, String> {
        let (shared, cluster) = (Arc::clone(&self.shared), Arc::clone(&self.cluster));
        let connector = tower::service_fn(move |_: http::Uri| {
            let connecting = reach::stream(Arc::clone(&shared), Arc::clone(&cluster));
            async move { connecting.await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://sds").connect_timeout(Duration::from_secs(5));
        endpoint.connect_with_connector(connector).await.map_err(|error| error.to_string())
    }

    fn request(&self, version: &str, nonce: &str, problem: Option<String>) -> DiscoveryRequest {
        let error_detail = problem.map(|message| proto::google::rpc::Status { code: 3, message, ..Default::default() });
        DiscoveryRequest {
            version_info: version.to_owned(),
            node: nonce.is_empty().then(|| self.node.clone()),
            resource_names: vec![self.name.name.to_string()],
            type_url: type_url::SECRET.to_owned(),
            response_nonce: nonce.to_owned(),
            error_detail,
            ..DiscoveryRequest::default()
        }
    }
}

/// Tells the configuration that a secret is there, so that what waited for it comes into force.
async fn tell(outbox: &mpsc::Sender<super::Message>, shared: &Shared, name: &SecretRef) {
    if shared.tls.has(name) {
        let _ = outbox.send(super::Message::Secret(name.clone())).await;
    }
}

/// Puts the secret of this name into force.
fn deliver(shared: &Shared, name: &SecretRef, response: &DiscoveryResponse) -> Result<(), String> {
    for any in &response.resources {
        let mut store = Store::new();
        let message = proto::envoy::extensions::transport_sockets::tls::v3::Secret::decode(any.value.as_slice());
        let message = message.map_err(|error| error.to_string())?;
        if *message.name != *name.name && !message.name.is_empty() {
            continue;
        }
        let update = Update {
            type_url: Arc::from(type_url::SECRET),
            name: Arc::clone(&name.name),
            body: Some(any.value.clone().into()),
        };
        for result in store.apply(&[update]) {
            result.map_err(|error| error.to_string())?;
        }
        let plan = store.plan();
        let secret = plan.secret(&name.name).ok_or("it is not a secret of a known kind")?;
        shared.tls.put(name, (**secret).clone()).map_err(|problem| {
            tracing::error!(event = "secret-refused", secret = %name.name, %problem, "the last good one stays");
            problem.to_string()
        })?;
        tracing::debug!(secret = %name.name, "secret delivered");
    }
    Ok(())
}

/// A file that holds a DiscoveryResponse, read anew whenever it changes.
async fn watch_file(shared: Arc<Shared>, name: SecretRef, path: Arc<Path>, outbox: mpsc::Sender<super::Message>) {
    let mut last = None;
    loop {
        if let Ok(text) = tokio::fs::read_to_string(&path).await
            && last.as_deref() != Some(text.as_str())
        {
            let parsed = super::files::response(&path, &text);
            let delivered = parsed.and_then(|response| deliver(&shared, &name, &response));
            match delivered {
                Ok(()) => tell(&outbox, &shared, &name).await,
                Err(problem) => tracing::error!(event = "secret-refused", path = %path.display(), %problem),
            }
            last = Some(text);
        }
        tokio::time::sleep(LOOK).await;
    }
}
