//! The gRPC shell of the server: a tonic service whose responses are bytes encoded long before.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use proto::envoy::config::core::v3::Node;
use proto::envoy::service::discovery::v3 as discovery;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use tonic_prost::ProstCodec;

use super::session::{Event, Request, Response, Session};
use crate::kind::Flavor;
use crate::resource::Snapshot;
use crate::wire::{DeltaResponse, SotwResponse};

/// Largest message accepted from a client, in bytes: the names and versions of some 50,000 resources.
const LARGEST_REQUEST: usize = 8 << 20;
/// Responses that may wait for the connection; the session makes no more until there is room.
const WAITING_RESPONSES: usize = 4;
/// How long listeners and routes wait for a client that does not acknowledge its clusters or ask for their endpoints.
const HOLD: Duration = Duration::from_secs(1);

/// Where a stream's configuration comes from, and who may have one.
pub trait Source: Send + Sync + 'static {
    /// A client sent its first request. `extensions` hold what the connection knows of its peer.
    ///
    /// # Errors
    /// The status that ends the stream: `PERMISSION_DENIED` for somebody else's node.
    #[allow(clippy::result_large_err, reason = "tonic's status is what ends a stream")]
    fn open(&self, node: &Node, flavor: Flavor, extensions: &http::Extensions) -> Result<Opened, Status>;
}

/// A stream that may go on.
pub struct Opened {
    /// What this client may see, now and later. When the sender is dropped, the stream ends.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Told of everything that happens; dropped when the stream ends.
    pub observer: Box<dyn Observer>,
}

/// Watches one stream.
pub trait Observer: Send + 'static {
    /// The client said something.
    fn event(&mut self, event: Event);

    /// A message of changes goes out.
    fn sent(&mut self, response: &Response);

    /// Called after every step: the session tells what is settled and refused.
    fn state(&mut self, session: &Session);
}

/// The aggregated discovery service, to be added to a tonic router or served alone.
pub struct Ads<S> {
    source: Arc<S>,
}

impl<S> Clone for Ads<S> {
    fn clone(&self) -> Self {
        Self { source: self.source.clone() }
    }
}

impl<S> std::fmt::Debug for Ads<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ads")
    }
}

impl<S: Source> Ads<S> {
    /// Serves from a source.
    pub fn new(source: Arc<S>) -> Self {
        Self { source }
    }
}

impl<S> tonic::server::NamedService for Ads<S> {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl<S, B> tower::Service<http::Request<B>> for Ads<S>
where
    S: Source,
    B: http_body::Body + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let source = self.source.clone();
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        Box::pin(async move {
            Ok(match method.as_str() {
                "DeltaAggregatedResources" => {
                    let codec = ProstCodec::<DeltaResponse, discovery::DeltaDiscoveryRequest>::default();
                    let mut grpc = tonic::server::Grpc::new(codec)
                        .max_decoding_message_size(LARGEST_REQUEST)
                        .max_encoding_message_size(usize::MAX);
                    grpc.streaming(Method(source), request).await
                }
                "StreamAggregatedResources" => {
                    let codec = ProstCodec::<SotwResponse, discovery::DiscoveryRequest>::default();
                    let mut grpc = tonic::server::Grpc::new(codec)
                        .max_decoding_message_size(LARGEST_REQUEST)
                        .max_encoding_message_size(usize::MAX);
                    grpc.streaming(Method(source), request).await
                }
                _ => Status::unimplemented("there are only the two methods of aggregated discovery").into_http(),
            })
        })
    }
}

struct Method<S>(Arc<S>);

/// The two protocols, seen by the shell.
trait Message: Send + 'static {
    type Reply: From<Response> + Send + 'static;
    const FLAVOR: Flavor;
    fn take_node(&mut self) -> Option<Node>;
    fn into_request(self) -> Request;
}

impl Message for discovery::DeltaDiscoveryRequest {
    type Reply = DeltaResponse;
    const FLAVOR: Flavor = Flavor::Delta;

    fn take_node(&mut self) -> Option<Node> {
        self.node.take()
    }

    fn into_request(self) -> Request {
        Request::Delta(self)
    }
}

impl Message for discovery::DiscoveryRequest {
    type Reply = SotwResponse;
    const FLAVOR: Flavor = Flavor::StateOfTheWorld;

    fn take_node(&mut self) -> Option<Node> {
        self.node.take()
    }

    fn into_request(self) -> Request {
        Request::Sotw(self)
    }
}

impl<S: Source, M: Message> tonic::server::StreamingService<M> for Method<S> {
    type Response = M::Reply;
    type ResponseStream = ReceiverStream<Result<M::Reply, Status>>;
    type Future = BoxFuture<Result<tonic::Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: tonic::Request<Streaming<M>>) -> Self::Future {
        let source = self.0.clone();
        Box::pin(async move {
            let (_, extensions, inbound) = request.into_parts();
            let (sender, receiver) = mpsc::channel(WAITING_RESPONSES);
            tokio::spawn(async move {
                if let Err(status) = converse::<S, M>(&source, extensions, inbound, &sender).await {
                    // A stream whose connection is gone has nobody to tell.
                    let _ = sender.send(Err(status)).await;
                }
            });
            Ok(tonic::Response::new(ReceiverStream::new(receiver)))
        })
    }
}

/// One stream from its first request to its end.
async fn converse<S: Source, M: Message>(
    source: &Arc<S>,
    extensions: http::Extensions,
    mut inbound: Streaming<M>,
    outbound: &mpsc::Sender<Result<M::Reply, Status>>,
) -> Result<(), Status> {
    let Some(mut first) = inbound.message().await? else { return Ok(()) };
    let node = first.take_node().ok_or_else(|| Status::invalid_argument("the first request must carry the node"))?;
    let Opened { mut snapshots, mut observer } = source.open(&node, M::FLAVOR, &extensions)?;
    drop(extensions);
    let mut session = Session::new(M::FLAVOR);
    session.publish(snapshots.borrow_and_update().clone());
    hear(&mut session, observer.as_mut(), first)?;
    let mut held = None;
    loop {
        while let Some(response) = session.poll() {
            observer.sent(&response);
            if outbound.send(Ok(response.into())).await.is_err() {
                return Ok(());
            }
        }
        observer.state(&session);
        // Counted from the client's last word: our own news that come meanwhile do not prolong the wait.
        held = session.holding().then(|| held.unwrap_or_else(|| Instant::now() + HOLD));
        tokio::select! {
            message = inbound.message() => match message? {
                Some(message) => {
                    hear(&mut session, observer.as_mut(), message)?;
                    held = None;
                }
                None => return Ok(()),
            },
            changed = snapshots.changed() => {
                changed.map_err(|_| Status::unavailable("the control plane stops, or this node's workload is gone"))?;
                session.publish(snapshots.borrow_and_update().clone());
            }
            () = outbound.closed() => return Ok(()),
            () = until(held) => session.release(),
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn hear<M: Message>(session: &mut Session, observer: &mut dyn Observer, message: M) -> Result<(), Status> {
    let events = session.receive(message.into_request());
    let events = events.map_err(|violation| Status::invalid_argument(violation.to_string()))?;
    for event in events {
        observer.event(event);
    }
    Ok(())
}
