//! A whole control plane in this process: a store that remembers, proxies that are plain xDS clients, and the API.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use control::api::{ApplyRequest, DeleteRequest, ObjectName};
use control::client::{Client, ClientError};
use control::inputs::{Batch, Change, Store, StoreError, Write, stored_name};
use control::{Running, Settings};
use model::ObjectKey;
use proto::envoy::config::core::v3::Node;
use proto::google::protobuf::{Struct, Value, value::Kind};
use proto::type_url::{CLUSTER, ENDPOINTS, LISTENER, ROUTE};
use tokio::sync::mpsc;
use xds::client::{Config, Event, Rejection, dial};

/// A store in memory with the rules of the real one.
struct Memory {
    inner: Mutex<(u64, BTreeMap<ObjectKey, u64>)>,
    out: mpsc::Sender<Batch>,
}

impl Store for Memory {
    fn commit(&self, writes: &[Write]) -> Result<u64, StoreError> {
        let mut inner = self.inner.lock().unwrap();
        for write in writes {
            let (Write::Put { expected, .. } | Write::Delete { expected, .. }) = write;
            let found = inner.1.get(write.key()).copied();
            if let Some(expected) = expected.filter(|expected| Some(*expected) != found) {
                return Err(StoreError::Conflict { key: Box::new(write.key().clone()), expected, found });
            }
        }
        inner.0 += 1;
        let revision = inner.0;
        let mut changes = Vec::new();
        for write in writes {
            let text = match write {
                Write::Put { key, text, .. } => {
                    inner.1.insert(key.clone(), revision);
                    Some(text.clone())
                }
                Write::Delete { key, .. } => inner.1.remove(key).and(None),
            };
            changes.push(Change { file: stored_name(write.key()), text, revision: Some(revision) });
        }
        drop(inner);
        self.out.try_send(Batch { changes, revision: Some(revision) }).unwrap();
        Ok(revision)
    }

    fn name(&self) -> &str {
        "memory"
    }
}

const MESH: &str = "
apiVersion: v1
kind: Service
metadata: {name: catalog, namespace: shop}
spec:
  selector: {app: catalog}
  ports: [{name: http, port: 8080}]
---
apiVersion: tulle.dev/v1alpha1
kind: Workload
metadata: {name: catalog-1, namespace: shop, labels: {app: catalog}}
spec: {serviceAccount: catalog, addresses: [10.0.0.2], meshed: true, ports: [{name: http, number: 8080}]}
---
apiVersion: tulle.dev/v1alpha1
kind: Workload
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec: {serviceAccount: web, addresses: [10.0.0.1], meshed: true}
";

const ROUTE_TO_CATALOG: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: catalog, namespace: shop}
spec:
  hosts: [catalog]
  http: [{route: [{destination: {host: catalog}}], timeout: 2s}]
";

const BROKEN: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: broken, namespace: shop}
spec:
  hosts: [catalog]
  http: [{route: [{destination: {host: catalog}, weight: lots}]}]
";

/// The route configuration of the port 8080.
const ROUTES: &str = "0.0.0.0_8080";

struct Plane {
    running: Running,
    client: Client,
    files: mpsc::Sender<Batch>,
    directory: tempfile::TempDir,
}

async fn plane(with_store: bool) -> Plane {
    let directory = tempfile::tempdir().unwrap();
    let (files, inputs) = mpsc::channel(64);
    files.try_send(file("mesh.yaml", Some(MESH))).unwrap();
    let memory = Memory { inner: Mutex::default(), out: files.clone() };
    let store = with_store.then(|| Arc::new(memory) as Arc<dyn Store>);
    let run_dir = directory.path().join("run");
    let settings =
        Settings { xds: None, api: None, metrics: None, ..Settings::new(run_dir.clone(), directory.path().join("ca")) };
    let running = control::start(settings, inputs, store).await.unwrap();
    Plane { running, client: Client::in_run_dir(&run_dir), files, directory }
}

fn file(name: &str, text: Option<&str>) -> Batch {
    let change = Change { file: name.into(), text: text.map(Into::into), revision: None };
    Batch { changes: vec![change], revision: None }
}

/// What a simulated proxy does with what it gets.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Accepts,
    /// Refuses every route configuration that comes after the first answer.
    RefusesRoutes,
    /// Goes silent when told to.
    Silent,
}

struct Sidecar {
    silent: Arc<std::sync::atomic::AtomicBool>,
    held: Arc<Mutex<BTreeMap<(String, String), String>>>,
    _task: tokio::task::JoinHandle<()>,
}

fn node(workload: &str) -> Node {
    let text = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
    let fields = [("TULLE_ADMIN".to_owned(), text("unix:/run/web/admin.sock"))].into();
    Node {
        id: format!("sidecar~10.0.0.1~{workload}~shop.svc.cluster.local"),
        metadata: Some(Struct { fields }),
        user_agent_name: "test".to_owned(),
        ..Node::default()
    }
}

/// A proxy that follows what it is told: endpoints of its clusters, routes by the port names of its listeners.
fn sidecar(run_dir: &Path, workload: &str, manner: Manner) -> Sidecar {
    let silent = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let held: Arc<Mutex<BTreeMap<(String, String), String>>> = Arc::default();
    let (quiet, map) = (silent.clone(), held.clone());
    let (handle, mut events) = xds::client::start(Config::new(node(workload), dial::unix(run_dir.join("xds.sock"))));
    handle.subscribe_all(CLUSTER);
    handle.subscribe_all(LISTENER);
    handle.set_names(ROUTE, [ROUTES.to_owned()]);
    let task = tokio::spawn(async move {
        let mut routes = 0;
        while let Some(event) = events.recv().await {
            let Event::Update(update) = event else { continue };
            if manner == Manner::Silent && quiet.load(std::sync::atomic::Ordering::Relaxed) {
                continue;
            }
            let mut rejections = Vec::new();
            for one in &update.resources {
                if update.type_url == ROUTE {
                    routes += 1;
                    if manner == Manner::RefusesRoutes && routes > 1 {
                        let message = "virtual_hosts[0].routes[0].route.timeout: not today".to_owned();
                        rejections.push(Rejection { name: one.name.clone(), message });
                        continue;
                    }
                }
                map.lock().unwrap().insert((update.type_url.clone(), one.name.clone()), one.version.clone());
            }
            for name in &update.removed {
                map.lock().unwrap().remove(&(update.type_url.clone(), name.clone()));
            }
            if update.type_url == CLUSTER {
                let held = map.lock().unwrap();
                let names = held.keys().filter(|(of, name)| of == CLUSTER && name.starts_with("outbound|"));
                handle.set_names(ENDPOINTS, names.map(|(_, name)| name.clone()));
            }
            handle.answer(update.ticket, rejections);
        }
    });
    Sidecar { silent, held, _task: task }
}

impl Plane {
    fn run_dir(&self) -> std::path::PathBuf {
        self.directory.path().join("run")
    }

    async fn synced(&self, workload: &str) {
        for _ in 0..500 {
            let proxies = self.client.proxies().await.unwrap();
            if proxies.iter().any(|proxy| proxy.workload == workload && proxy.acknowledged > 0 && proxy.is_synced()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{workload} is not synced: {:?}", self.client.proxies().await);
    }

    async fn apply(&self, manifest: &str, wait_ms: Option<u64>) -> Result<control::api::ChangeAnswer, ClientError> {
        let request = ApplyRequest { manifest: manifest.to_owned(), wait_ms, ..ApplyRequest::default() };
        self.client.apply(&request).await
    }
}

fn problem(error: ClientError) -> Box<control::api::Problem> {
    match error {
        ClientError::Refused(problem) => problem,
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_waits_for_the_proxies_it_concerns() {
    let plane = plane(true).await;
    let web = sidecar(&plane.run_dir(), "web-1.shop", Manner::Accepts);
    plane.synced("web-1.shop").await;
    let before = web.held.lock().unwrap().get(&(ROUTE.to_owned(), ROUTES.to_owned())).cloned().unwrap();

    let answer = plane.apply(ROUTE_TO_CATALOG, Some(5000)).await.unwrap();
    assert_eq!((answer.revision, answer.changes[0].action.as_str()), (1, "created"));
    let wait = answer.wait.unwrap();
    assert_eq!((wait.acknowledged, wait.missing.len()), (1, 0));
    assert!(wait.p99_ms.unwrap() < 4000.0);
    let after = web.held.lock().unwrap().get(&(ROUTE.to_owned(), ROUTES.to_owned())).cloned().unwrap();
    assert_ne!(before, after, "what was acknowledged is there");

    let again = plane.apply(ROUTE_TO_CATALOG, None).await.unwrap();
    assert_eq!((again.revision, again.changes[0].action.as_str()), (1, "unchanged"));
    let objects = plane.client.objects(Some("vs"), Some("shop"), Some("catalog")).await.unwrap();
    let programmed = objects[0].programmed.clone().unwrap();
    assert_eq!((programmed.acknowledged, programmed.proxies), (1, 1));
    assert_eq!(objects[0].object["status"]["conditions"][1]["status"], "True");
    let proxies = plane.client.proxies().await.unwrap();
    assert_eq!(proxies[0].admin.as_deref(), Some("unix:/run/web/admin.sock"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_refuses_or_is_silent_is_named() {
    let plane = plane(true).await;
    let silent = sidecar(&plane.run_dir(), "web-1.shop", Manner::Silent);
    let _refusing = sidecar(&plane.run_dir(), "catalog-1.shop", Manner::RefusesRoutes);
    plane.synced("web-1.shop").await;
    plane.synced("catalog-1.shop").await;
    silent.silent.store(true, std::sync::atomic::Ordering::Relaxed);

    // A silent proxy is held back for a second before its routes are sent all the same; wait for longer than that.
    let wait = plane.apply(ROUTE_TO_CATALOG, Some(3000)).await.unwrap().wait.unwrap();
    assert_eq!(wait.acknowledged, 0);
    let reason = |name: &str| wait.missing.iter().find(|one| one.proxy.contains(name)).unwrap().reason.clone();
    assert_eq!(reason("web-1.shop"), "it did not answer yet");
    assert_eq!(
        reason("catalog-1.shop"),
        "it refused 0.0.0.0_8080: virtual_hosts[0].routes[0].route.timeout: not today"
    );
    let objects = plane.client.objects(Some("vs"), None, None).await.unwrap();
    assert_eq!(objects[0].programmed.as_ref().unwrap().missing.len(), 2);
    assert_eq!(objects[0].object["status"]["conditions"][1]["reason"], "Pending");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_object_among_good_ones_is_named_and_hurts_nobody() {
    let plane = plane(false).await;
    let web = sidecar(&plane.run_dir(), "web-1.shop", Manner::Accepts);
    plane.synced("web-1.shop").await;
    let both = format!("{ROUTE_TO_CATALOG}---{BROKEN}");
    plane.files.send(file("routes.yaml", Some(&both))).await.unwrap();
    for _ in 0..500 {
        if plane.running.world.read().revision >= 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    plane.synced("web-1.shop").await;
    let objects = plane.client.objects(Some("vs"), Some("shop"), None).await.unwrap();
    let by = |name: &str| objects.iter().find(|object| object.name == name).unwrap();
    assert!(by("catalog").accepted && !by("broken").accepted);
    let finding = by("broken").findings.iter().find(|finding| finding.severity == "error").unwrap();
    assert_eq!((finding.file.as_deref(), finding.line), (Some("routes.yaml"), Some(14)));
    assert!(plane.client.findings().await.unwrap().iter().any(|one| one.message == finding.message));
    assert!(web.held.lock().unwrap().contains_key(&(ROUTE.to_owned(), ROUTES.to_owned())));
    let refused = problem(plane.apply(ROUTE_TO_CATALOG, None).await.unwrap_err());
    assert_eq!(refused.kind, "read-only");
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_are_checked_locked_and_undone() {
    let plane = plane(true).await;
    let invalid = problem(plane.apply(&format!("{ROUTE_TO_CATALOG}---{BROKEN}"), None).await.unwrap_err());
    assert_eq!(invalid.kind, "invalid");
    assert!(invalid.findings.iter().any(|finding| finding.line == Some(14)), "{:?}", invalid.findings);
    assert!(plane.client.objects(Some("vs"), None, None).await.unwrap().is_empty(), "all or nothing");

    let dry = ApplyRequest { manifest: ROUTE_TO_CATALOG.to_owned(), dry_run: true, ..ApplyRequest::default() };
    assert_eq!(plane.client.apply(&dry).await.unwrap().changes[0].action, "created");
    assert!(plane.client.objects(Some("vs"), None, None).await.unwrap().is_empty());

    plane.apply(ROUTE_TO_CATALOG, None).await.unwrap();
    let locked = ROUTE_TO_CATALOG.replace("namespace: shop}", "namespace: shop, resourceVersion: \"1\"}");
    assert_eq!(plane.apply(&locked.replace("2s", "3s"), None).await.unwrap().revision, 2);
    let conflict = problem(plane.apply(&locked.replace("2s", "4s"), None).await.unwrap_err());
    assert_eq!(conflict.kind, "conflict");
    assert!(conflict.message.contains("is at revision 2, not 1"), "{}", conflict.message);
    let objects = plane.client.objects(Some("vs"), None, None).await.unwrap();
    assert_eq!(objects[0].object["spec"]["http"][0]["timeout"], "3s");
    assert_eq!(objects[0].object["metadata"]["resourceVersion"], "2");

    let name = |kind: &str, name: &str| ObjectName {
        kind: kind.to_owned(),
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        resource_version: None,
    };
    let delete = |object| DeleteRequest { objects: vec![object], wait_ms: None };
    let file = problem(plane.client.delete(&delete(name("svc", "catalog"))).await.unwrap_err());
    assert_eq!(file.kind, "read-only", "{}", file.message);
    assert_eq!(problem(plane.client.delete(&delete(name("vs", "nobody"))).await.unwrap_err()).kind, "not-found");
    plane.client.delete(&delete(name("virtualservices", "catalog"))).await.unwrap();
    assert!(plane.client.objects(Some("vs"), None, None).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_concern_a_proxy_is_not_sent_to_it() {
    let plane = plane(true).await;
    let _web = sidecar(&plane.run_dir(), "web-1.shop", Manner::Accepts);
    plane.synced("web-1.shop").await;
    let elsewhere = "
apiVersion: tulle.dev/v1alpha1
kind: Workload
metadata: {name: lonely, namespace: far, labels: {app: lonely}}
spec: {serviceAccount: lonely, addresses: [10.9.0.1], meshed: true}
";
    let wait = plane.apply(elsewhere, Some(3000)).await.unwrap().wait.unwrap();
    assert_eq!((wait.acknowledged, wait.missing.len()), (0, 0));
    assert_eq!(plane.client.proxies().await.unwrap()[0].wanted, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_changes_is_few_pushes() {
    let plane = plane(true).await;
    let _web = sidecar(&plane.run_dir(), "web-1.shop", Manner::Accepts);
    plane.synced("web-1.shop").await;
    let begin = plane.running.world.read().revision;
    for step in 0..250_u32 {
        let text = ROUTE_TO_CATALOG.replace("2s", &format!("{}ms", 1000 + step));
        plane.files.send(file("route.yaml", Some(&text))).await.unwrap();
        tokio::time::sleep(Duration::from_millis(4)).await;
    }
    for _ in 0..500 {
        let objects = plane.client.objects(Some("vs"), None, None).await.unwrap();
        if objects[0].object["spec"]["http"][0]["timeout"] == "1249ms" {
            let pushes = plane.running.world.read().revision - begin;
            assert!((2..=40).contains(&pushes), "{pushes} pushes for 250 changes");
            plane.synced("web-1.shop").await;
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the last change is not in force");
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_and_rubbish_at_the_socket() {
    let plane = plane(false).await;
    for id in ["", "web", "sidecar~10.0.0.1~web-1~x", "a~b~c~d~e"] {
        let bad = Node { id: id.to_owned(), ..Node::default() };
        let (handle, mut events) = xds::client::start(Config::new(bad, dial::unix(plane.run_dir().join("xds.sock"))));
        handle.subscribe_all(CLUSTER);
        let reason = loop {
            match events.recv().await.unwrap() {
                Event::Disconnected { reason, .. } => break reason,
                Event::Update(update) => panic!("{id} got {update:?}"),
                Event::Connected => {}
            }
        };
        assert!(reason.contains("sidecar~IP~NAME.NAMESPACE"), "{reason}");
    }
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    for rubbish in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 64], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff"] {
        for socket in ["xds.sock", "api.sock"] {
            let mut stream = tokio::net::UnixStream::connect(plane.run_dir().join(socket)).await.unwrap();
            stream.write_all(rubbish).await.unwrap();
            let _ = stream.shutdown().await;
            let mut out = Vec::new();
            let _ =
                tokio::time::timeout(Duration::from_secs(8), stream.read_to_end(&mut out)).await.expect("it is closed");
        }
    }
    let _web = sidecar(&plane.run_dir(), "web-1.shop", Manner::Accepts);
    plane.synced("web-1.shop").await;
}
