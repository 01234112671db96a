//! Both shells over a real Unix socket: updates, refusals, a server that dies and comes back, a client that talks rubbish.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proto::envoy::config::core::v3::Node;
use proto::envoy::service::discovery::v3 as discovery;
use proto::google::protobuf::Any;
use proto::type_url::{CLUSTER, LISTENER};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::Status;
use xds::client::{self, Config, Event, Rejection, Update, dial};
use xds::server::{self, Ads, Observer, Opened, Response, Session, Source};
use xds::{Flavor, Resource, ResourceSet, Snapshot};

struct OneNode {
    snapshots: watch::Sender<Arc<Snapshot>>,
    log: Arc<Mutex<Vec<String>>>,
}

struct Log(Arc<Mutex<Vec<String>>>);

impl Source for OneNode {
    fn open(&self, node: &Node, _: Flavor, _: &http::Extensions) -> Result<Opened, Status> {
        if node.id != "me" {
            return Err(Status::permission_denied("not you"));
        }
        Ok(Opened { snapshots: self.snapshots.subscribe(), observer: Box::new(Log(self.log.clone())) })
    }
}

impl Observer for Log {
    fn event(&mut self, event: server::Event) {
        if let server::Event::Rejected(refused) = event {
            for one in refused {
                self.0.lock().unwrap().push(format!("refused {}: {}", one.name, one.message));
            }
        }
    }

    fn sent(&mut self, response: &Response) {
        let names: Vec<&str> = response.resources.iter().map(|resource| &**resource.name()).collect();
        if !names.is_empty() {
            self.0.lock().unwrap().push(format!("sent {}", names.join(",")));
        }
    }

    fn state(&mut self, _: &Session) {}
}

fn named(type_url: &str, name: &str, version: &str) -> Arc<Resource> {
    // Field 1 is the name; field 15 makes each version's bytes its own.
    let mut value = vec![0x0a, u8::try_from(name.len()).unwrap()];
    value.extend_from_slice(name.as_bytes());
    value.extend_from_slice(&[0x7a, u8::try_from(version.len()).unwrap()]);
    value.extend_from_slice(version.as_bytes());
    Arc::new(Resource::new(name, version, &Any { type_url: type_url.to_owned(), value }))
}

fn world(revision: u64, clusters: &[(&str, &str)], listeners: &[(&str, &str)]) -> Arc<Snapshot> {
    let set = |of: &'static str, all: &[(&str, &str)]| {
        (of, Arc::new(ResourceSet::new(all.iter().map(|(name, version)| named(of, name, version)))))
    };
    Arc::new(Snapshot { revision, sets: vec![set(CLUSTER, clusters), set(LISTENER, listeners)] })
}

/// A server on a runtime of its own, so that it can die with all its connections.
struct Running {
    snapshots: watch::Sender<Arc<Snapshot>>,
    log: Arc<Mutex<Vec<String>>>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn serve(path: &Path, first: Arc<Snapshot>) -> Running {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (snapshots, _) = watch::channel(first);
    let log = Arc::new(Mutex::new(Vec::new()));
    let ads = Ads::new(Arc::new(OneNode { snapshots: snapshots.clone(), log: log.clone() }));
    let listener = {
        let _inside = runtime.enter();
        UnixListener::bind(path).unwrap()
    };
    let incoming = UnixListenerStream::new(listener);
    runtime.spawn(tonic::transport::Server::builder().add_service(ads).serve_with_incoming(incoming));
    Running { snapshots, log, runtime: Some(runtime) }
}

fn node(id: &str) -> Node {
    Node { id: id.to_owned(), ..Default::default() }
}

async fn next(events: &mut tokio::sync::mpsc::Receiver<Event>) -> Event {
    tokio::time::timeout(Duration::from_secs(10), events.recv())
        .await
        .expect("an event in time")
        .expect("a live client")
}

async fn update(events: &mut tokio::sync::mpsc::Receiver<Event>) -> Update {
    loop {
        if let Event::Update(update) = next(events).await {
            return update;
        }
    }
}

fn names(update: &Update) -> Vec<&str> {
    let mut names: Vec<&str> = update.resources.iter().map(|one| one.name.as_str()).collect();
    names.sort_unstable();
    names
}

async fn a_life(flavor: Flavor) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("xds.sock");
    let server = serve(&path, world(1, &[("a", "1"), ("b", "1")], &[]));
    let (handle, mut events) = client::start(Config { flavor, ..Config::new(node("me"), dial::unix(&path)) });
    handle.subscribe_all(CLUSTER);

    let first = update(&mut events).await;
    assert_eq!(names(&first), ["a", "b"]);
    handle.answer(first.ticket, Vec::new());

    // Only what changed; a refusal reaches the server with its words.
    server.snapshots.send_replace(world(2, &[("a", "1"), ("b", "2")], &[]));
    let second = update(&mut events).await;
    assert_eq!(names(&second), ["b"]);
    handle.answer(
        second.ticket,
        vec![Rejection { name: "b".to_owned(), message: "lb_policy: not supported".to_owned() }],
    );

    server.snapshots.send_replace(world(3, &[("a", "3")], &[]));
    let mut seen = Vec::new();
    while !(seen.contains(&"+a".to_owned()) && seen.contains(&"-b".to_owned())) {
        let update = update(&mut events).await;
        seen.extend(update.resources.iter().map(|one| format!("+{}", one.name)));
        seen.extend(update.removed.iter().map(|name| format!("-{name}")));
        handle.answer(update.ticket, Vec::new());
    }
    assert!(server.log.lock().unwrap().iter().any(|line| line == "refused b: b: lb_policy: not supported"));

    // The server dies and comes back with more; what is held is not built again.
    drop(server);
    std::fs::remove_file(&path).unwrap();
    loop {
        if matches!(next(&mut events).await, Event::Disconnected { .. }) {
            break;
        }
    }
    let server = serve(&path, world(1, &[("a", "3"), ("c", "1")], &[]));
    let again = update(&mut events).await;
    assert_eq!(names(&again), ["c"]);
    handle.answer(again.ticket, Vec::new());
    if flavor == Flavor::Delta {
        assert_eq!(*server.log.lock().unwrap(), ["sent c"], "initial_resource_versions are honoured");
    }
}

#[tokio::test]
async fn a_life_in_delta() {
    a_life(Flavor::Delta).await;
}

#[tokio::test]
async fn a_life_in_state_of_the_world() {
    a_life(Flavor::StateOfTheWorld).await;
}

#[tokio::test]
async fn who_is_not_known_gets_nothing_and_keeps_trying() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("xds.sock");
    let _server = serve(&path, world(1, &[("a", "1")], &[]));
    let (handle, mut events) = client::start(Config::new(node("somebody-else"), dial::unix(&path)));
    handle.subscribe_all(CLUSTER);
    let mut refusals = 0;
    while refusals < 2 {
        match next(&mut events).await {
            Event::Disconnected { reason, .. } => {
                assert!(reason.contains("not you"), "{reason}");
                refusals += 1;
            }
            Event::Update(update) => panic!("{update:?}"),
            Event::Connected => {}
        }
    }
}

#[tokio::test]
async fn rubbish_ends_its_own_stream_only() {
    use discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("xds.sock");
    let _server = serve(&path, world(1, &[("a", "1")], &[]));
    let dialled = path.clone();
    let channel = tonic::transport::Endpoint::from_static("http://x")
        .connect_with_connector(tower::service_fn(move |_: http::Uri| {
            let path = dialled.clone();
            async move { tokio::net::UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
        }))
        .await
        .unwrap();
    let mut raw = AggregatedDiscoveryServiceClient::new(channel);
    let request = |node: Option<Node>, type_url: &str, names: Vec<String>| discovery::DeltaDiscoveryRequest {
        node,
        type_url: type_url.to_owned(),
        resource_names_subscribe: names,
        response_nonce: "never given".to_owned(),
        ..Default::default()
    };
    let cases = [
        (request(None, CLUSTER, Vec::new()), "must carry the node"),
        (request(Some(node("me")), "", Vec::new()), "no type_url"),
        (request(Some(node("me")), CLUSTER, vec!["x".repeat(5000)]), "longer than 2048"),
        (request(Some(node("me")), CLUSTER, vec!["x".to_owned(); 200_001]), "more than 200000 names"),
    ];
    for (rubbish, why) in cases {
        let mut stream = raw.delta_aggregated_resources(tokio_stream::iter([rubbish])).await.unwrap().into_inner();
        let status = loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("accepted what `{why}` is about"),
                Err(status) => break status,
            }
        };
        assert!(status.message().contains(why), "{status:?}");
    }
    let (handle, mut events) = client::start(Config::new(node("me"), dial::unix(&path)));
    handle.subscribe_all(CLUSTER);
    assert_eq!(names(&update(&mut events).await), ["a"]);
}
