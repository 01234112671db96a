//! The gRPC shell: one task that keeps a [`Session`] alive, reconnecting for ever.

use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use proto::envoy::config::core::v3::Node;
use proto::envoy::service::discovery::v3 as discovery;
use proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::metadata::{Ascii, MetadataKey, MetadataValue};
use tonic::transport::{Channel, Endpoint};

use super::dial::Dial;
use super::session::{Request, Session};
use super::{Backoff, Rejection, Ticket, Update};
use crate::kind::Flavor;

/// Largest message accepted from a server, in bytes: a state-of-the-world list of 10,000 clusters is about 20 MB.
const LARGEST_RESPONSE: usize = 64 << 20;
/// Updates that may wait for the application; the stream is not read beyond that.
const WAITING_UPDATES: usize = 16;
/// How long one connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// HTTP/2 pings on an idle connection, and how long their answer may take: a dead server is noticed in 40 s.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// How to reach a server and who is asking.
#[derive(Clone)]
pub struct Config {
    /// Sent with the first request of each stream.
    pub node: Node,
    /// Which protocol; delta by default.
    pub flavor: Flavor,
    /// How to connect.
    pub dial: Dial,
    /// The `:authority` of the requests; `xds` by default.
    pub authority: String,
    /// Metadata of the stream, for servers that want a token: lower-case names.
    pub metadata: Vec<(String, String)>,
    /// Waits between tries; 250 ms to 3 s by default.
    pub backoff: Backoff,
}

impl Config {
    /// Delta, with default waits.
    pub fn new(node: Node, dial: Dial) -> Self {
        Self {
            node,
            flavor: Flavor::Delta,
            dial,
            authority: "xds".to_owned(),
            metadata: Vec::new(),
            backoff: Backoff::default(),
        }
    }
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Metadata may hold a token.
        let Self { node, flavor, authority, .. } = self;
        f.debug_struct("Config").field("node", &node.id).field("flavor", flavor).field("authority", authority).finish()
    }
}

/// What the stream tells the application.
#[derive(Debug)]
pub enum Event {
    /// A stream is open.
    Connected,
    /// There is no stream; the next try comes by itself after `retry_in`.
    Disconnected {
        /// Why, in one line.
        reason: String,
        /// When the next try comes.
        retry_in: Duration,
    },
    /// Resources came or went. Must be answered with [`Handle::answer`].
    Update(Update),
}

/// Tells a running client what is wanted. Cheap to clone; the client ends when the event receiver is dropped.
#[derive(Debug, Clone)]
pub struct Handle {
    commands: mpsc::UnboundedSender<Command>,
}

enum Command {
    All(String),
    Add(String, Vec<String>),
    Set(String, Vec<String>),
    Remove(String, Vec<String>),
    Answer(Ticket, Vec<Rejection>),
}

impl Handle {
    /// Wants everything of a type.
    pub fn subscribe_all(&self, type_url: &str) {
        self.send(Command::All(type_url.to_owned()));
    }

    /// Wants these names too.
    pub fn subscribe(&self, type_url: &str, names: impl IntoIterator<Item = String>) {
        self.send(Command::Add(type_url.to_owned(), names.into_iter().collect()));
    }

    /// Wants exactly these names, besides the wildcard if that was asked for.
    pub fn set_names(&self, type_url: &str, names: impl IntoIterator<Item = String>) {
        self.send(Command::Set(type_url.to_owned(), names.into_iter().collect()));
    }

    /// Does not want these names any more.
    pub fn unsubscribe(&self, type_url: &str, names: impl IntoIterator<Item = String>) {
        self.send(Command::Remove(type_url.to_owned(), names.into_iter().collect()));
    }

    /// Answers an update: no rejection is an ACK, any is a NACK that names them.
    pub fn answer(&self, ticket: Ticket, rejections: Vec<Rejection>) {
        self.send(Command::Answer(ticket, rejections));
    }

    fn send(&self, command: Command) {
        // The task is gone only when the application dropped the events: nobody is left to care.
        let _ = self.commands.send(command);
    }
}

/// Starts a client on the present tokio runtime. It reconnects for ever; it ends when the receiver is dropped.
pub fn start(config: Config) -> (Handle, mpsc::Receiver<Event>) {
    let (commands, commands_rx) = mpsc::unbounded_channel();
    let (events, events_rx) = mpsc::channel(WAITING_UPDATES);
    tokio::spawn(run(config, commands_rx, events));
    (Handle { commands }, events_rx)
}

async fn run(config: Config, commands: mpsc::UnboundedReceiver<Command>, events: mpsc::Sender<Event>) {
    let session = Session::new(config.flavor, config.node.clone());
    let mut driver = Driver { session, commands, events, backoff: config.backoff.clone() };
    loop {
        let reason = match driver.one_stream(&config).await {
            Ok(()) => return,
            Err(reason) => reason,
        };
        driver.session.disconnected();
        let retry_in = driver.backoff.next(rand::random());
        tracing::debug!(event = "xds_disconnected", %reason, retry_ms = retry_in.as_millis());
        if driver.events.send(Event::Disconnected { reason, retry_in }).await.is_err() {
            return;
        }
        if driver.pause(retry_in).await.is_none() {
            return;
        }
    }
}

struct Driver {
    session: Session,
    commands: mpsc::UnboundedReceiver<Command>,
    events: mpsc::Sender<Event>,
    backoff: Backoff,
}

/// What a stream brought, whichever protocol it speaks.
enum Response {
    Delta(discovery::DeltaDiscoveryResponse),
    Sotw(discovery::DiscoveryResponse),
}

enum Incoming {
    Delta(tonic::Streaming<discovery::DeltaDiscoveryResponse>),
    Sotw(tonic::Streaming<discovery::DiscoveryResponse>),
}

impl Incoming {
    async fn next(&mut self) -> Result<Option<Response>, tonic::Status> {
        Ok(match self {
            Self::Delta(stream) => stream.message().await?.map(Response::Delta),
            Self::Sotw(stream) => stream.message().await?.map(Response::Sotw),
        })
    }
}

enum Outgoing {
    Delta(mpsc::UnboundedSender<discovery::DeltaDiscoveryRequest>),
    Sotw(mpsc::UnboundedSender<discovery::DiscoveryRequest>),
}

impl Outgoing {
    fn send(&self, request: Request) -> Result<(), String> {
        let sent = match (self, request) {
            (Self::Delta(sender), Request::Delta(request)) => sender.send(request).is_ok(),
            (Self::Sotw(sender), Request::Sotw(request)) => sender.send(request).is_ok(),
            _ => false,
        };
        if sent { Ok(()) } else { Err("the stream was closed".to_owned()) }
    }
}

impl Driver {
    /// Runs one stream to its end. `Ok` = the application is gone.
    async fn one_stream(&mut self, config: &Config) -> Result<(), String> {
        let channel = connect(config).await?;
        let client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(LARGEST_RESPONSE);
        let (outgoing, opening) = open(client, config)?;
        let opening = tokio::time::timeout(CONNECT_TIMEOUT, opening);
        tokio::pin!(opening);
        // The server may answer the headers only after the first request.
        let mut incoming = loop {
            self.say(&outgoing)?;
            tokio::select! {
                opened = &mut opening => break opened.map_err(|_| "the server did not open the stream".to_owned())??,
                command = self.commands.recv() => match command {
                    Some(command) => self.obey(command),
                    None => return Ok(()),
                },
            }
        };
        if self.events.send(Event::Connected).await.is_err() {
            return Ok(());
        }
        loop {
            self.say(&outgoing)?;
            let expiry = self.session.next_expiry();
            tokio::select! {
                response = incoming.next() => match response {
                    Ok(Some(response)) => {
                        self.backoff.reset();
                        let update = self.receive(response)?;
                        if self.events.send(Event::Update(update)).await.is_err() {
                            return Ok(());
                        }
                    }
                    Ok(None) => return Err("the server closed the stream".to_owned()),
                    Err(status) => return Err(describe(&status)),
                },
                command = self.commands.recv() => match command {
                    Some(command) => self.obey(command),
                    None => return Ok(()),
                },
                () = self.events.closed() => return Ok(()),
                () = sleep_until(expiry), if expiry.is_some() => {
                    if !self.expire().await {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Obeys while waiting for the next try. `None` = the application is gone.
    async fn pause(&mut self, wait: Duration) -> Option<()> {
        let wait = tokio::time::sleep(wait);
        tokio::pin!(wait);
        loop {
            tokio::select! {
                () = &mut wait => return Some(()),
                command = self.commands.recv() => self.obey(command?),
                () = self.events.closed() => return None,
            }
        }
    }

    fn say(&mut self, outgoing: &Outgoing) -> Result<(), String> {
        while let Ok(command) = self.commands.try_recv() {
            self.obey(command);
        }
        while let Some(request) = self.session.poll() {
            outgoing.send(request)?;
        }
        Ok(())
    }

    fn receive(&mut self, response: Response) -> Result<Update, String> {
        let update = match response {
            Response::Delta(response) => self.session.receive_delta(response, Instant::now()),
            Response::Sotw(response) => self.session.receive_sotw(response, Instant::now()),
        };
        update.map_err(|error| error.to_string())
    }

    async fn expire(&mut self) -> bool {
        for update in self.session.expire(Instant::now()) {
            if self.events.send(Event::Update(update)).await.is_err() {
                return false;
            }
        }
        true
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::All(type_url) => self.session.subscribe_all(&type_url),
            Command::Add(type_url, names) => self.session.subscribe(&type_url, names),
            Command::Set(type_url, names) => self.session.set_names(&type_url, names),
            Command::Remove(type_url, names) => {
                self.session.unsubscribe(&type_url, names.iter().map(String::as_str));
            }
            Command::Answer(ticket, rejections) => self.session.answer(ticket, rejections),
        }
    }
}

type Opening = std::pin::Pin<Box<dyn Future<Output = Result<Incoming, String>> + Send>>;

/// Begins the call; the future resolves when the server sent its headers.
fn open(mut client: AggregatedDiscoveryServiceClient<Channel>, config: &Config) -> Result<(Outgoing, Opening), String> {
    let metadata = metadata(&config.metadata)?;
    Ok(match config.flavor {
        Flavor::Delta => {
            let (sender, receiver) = mpsc::unbounded_channel();
            let mut request = tonic::Request::new(UnboundedReceiverStream::new(receiver));
            extend(request.metadata_mut(), metadata);
            let opening = async move {
                let response = client.delta_aggregated_resources(request).await;
                response.map(|response| Incoming::Delta(response.into_inner())).map_err(|status| describe(&status))
            };
            (Outgoing::Delta(sender), Box::pin(opening))
        }
        Flavor::StateOfTheWorld => {
            let (sender, receiver) = mpsc::unbounded_channel();
            let mut request = tonic::Request::new(UnboundedReceiverStream::new(receiver));
            extend(request.metadata_mut(), metadata);
            let opening = async move {
                let response = client.stream_aggregated_resources(request).await;
                response.map(|response| Incoming::Sotw(response.into_inner())).map_err(|status| describe(&status))
            };
            (Outgoing::Sotw(sender), Box::pin(opening))
        }
    })
}

async fn connect(config: &Config) -> Result<Channel, String> {
    let origin = format!("http://{}", config.authority);
    let endpoint = Endpoint::from_shared(origin)
        .map_err(|_| format!("`{}` is no authority of a gRPC server", config.authority))?
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .http2_max_header_list_size(16 << 10);
    let dial = config.dial.clone();
    let connector = tower::service_fn(move |_: http::Uri| {
        let dialing = dial();
        async move {
            match tokio::time::timeout(CONNECT_TIMEOUT, dialing).await {
                Ok(connected) => connected.map(TokioIo::new),
                Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut)),
            }
        }
    });
    endpoint.connect_with_connector(connector).await.map_err(|error| chain(&error))
}

type Metadata = Vec<(MetadataKey<Ascii>, MetadataValue<Ascii>)>;

fn metadata(pairs: &[(String, String)]) -> Result<Metadata, String> {
    let parse = |(name, value): &(String, String)| {
        let key: MetadataKey<Ascii> = name.parse().map_err(|_| format!("`{name}` is no gRPC metadata name"))?;
        // The value may be a token: it is not repeated.
        let mut value: MetadataValue<Ascii> =
            value.parse().map_err(|_| format!("the value of the gRPC metadata `{name}` is not printable ASCII"))?;
        value.set_sensitive(true);
        Ok((key, value))
    };
    pairs.iter().map(parse).collect()
}

fn extend(map: &mut tonic::metadata::MetadataMap, metadata: Metadata) {
    for (key, value) in metadata {
        map.append(key, value);
    }
}

fn describe(status: &tonic::Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

/// An error with its causes: tonic's own text is only "transport error".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

async fn sleep_until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at.into()).await;
    }
}
