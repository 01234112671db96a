//! The pages over real sockets, with a house that holds little.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, UNIX_EPOCH};

use proto::envoy::config::core::v3::{Node, TypedExtensionConfig};
use proto::type_url;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::*;
use crate::report::Watchtower;

#[derive(Default)]
struct Small {
    failing: AtomicBool,
    drained: AtomicBool,
    gone: AtomicBool,
}

impl House for Small {
    fn plan(&self) -> Arc<Plan> {
        Arc::default()
    }

    fn bootstrap(&self) -> Arc<Bootstrap> {
        Arc::new(Bootstrap { node: Some(Node { id: "n".to_owned(), ..Node::default() }), ..Bootstrap::default() })
    }

    fn held(&self, type_url: &str) -> Vec<Held> {
        let updated = UNIX_EPOCH + Duration::from_millis(1_795_257_170_346);
        if type_url == type_url::EXTENSION {
            let cors = proto::pack_any(proto::envoy::extensions::filters::http::cors::v3::Cors {});
            let filter = TypedExtensionConfig { name: "named".to_owned(), typed_config: Some(cors) };
            return vec![Held {
                name: "named".to_owned(),
                body: proto::pack_any(filter),
                version: "v8".to_owned(),
                updated,
                is_static: false,
                refused: None,
            }];
        }
        if type_url != type_url::CLUSTER {
            return Vec::new();
        }
        let cluster = proto::envoy::config::cluster::v3::Cluster { name: "web".to_owned(), ..Default::default() };
        vec![Held {
            name: "web".to_owned(),
            body: proto::pack_any(cluster),
            version: "v7".to_owned(),
            updated,
            is_static: false,
            refused: Some((updated, "lb_policy: MAGLEV is not supported".to_owned())),
        }]
    }

    fn certificates(&self) -> Vec<(String, Arc<Credentials>)> {
        Vec::new()
    }

    fn state(&self) -> State {
        if self.failing.load(Relaxed) { State::Draining } else { State::Live }
    }

    fn workers(&self) -> usize {
        2
    }

    fn drain(&self, what: Drain) {
        assert!(what.inbound_only && what.graceful);
        self.drained.store(true, Relaxed);
    }

    fn fail_health_checks(&self, fail: bool) {
        self.failing.store(fail, Relaxed);
    }

    fn quit(&self) {
        self.gone.store(true, Relaxed);
    }
}

struct Running {
    house: Arc<Small>,
    tower: Arc<Watchtower>,
    port: u16,
}

async fn running(scope: Scope) -> Running {
    let tower = Watchtower::new(&Node::default(), 1).unwrap();
    let house = Arc::<Small>::default();
    let address = engine::Address::Socket("127.0.0.1:0".parse().unwrap());
    let door = bind(&address, scope, false).await.unwrap();
    let port = door.port().unwrap();
    tokio::spawn(serve(door, scope, Arc::clone(&house) as Arc<dyn House>, Arc::clone(&tower)));
    Running { house, tower, port }
}

impl Running {
    async fn ask(&self, method: &str, path: &str, more: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let host = if more.contains("host:") { "" } else { "host: localhost\r\n" };
        let request = format!("{method} {path} HTTP/1.1\r\n{host}{more}connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        (status, body.to_owned())
    }

    async fn get(&self, path: &str) -> (u16, String) {
        self.ask("GET", path, "").await
    }
}

#[tokio::test]
async fn pages_answer_as_envoys() {
    let admin = running(Scope::Admin).await;
    assert_eq!(admin.get("/ready").await, (200, "LIVE\n".to_owned()));
    let (status, text) = admin.get("/nosuch").await;
    assert!(status == 404 && text.starts_with("invalid path. admin commands are:\n  /: "), "{text}");
    let (status, text) = admin.get("/logging").await;
    assert_eq!((status, text.as_str()), (405, "Method GET not allowed, POST required."));
    let (status, text) = admin.get("/stats?filter=%5B").await;
    assert!(status == 400 && text.starts_with("Invalid re2 regex"), "{text}");
    assert_eq!(admin.get("/stats?format=nope").await.0, 400);
    assert_eq!(admin.get("/stats?filter=^server.live$").await, (200, "server.live: 1\n".to_owned()));
    let (_, page) = admin.get("/stats/prometheus?filter=istio_build").await;
    let build = concat!("istio_build{component=\"proxy\",tag=\"", env!("CARGO_PKG_VERSION"), "\"} 1\n");
    assert!(page.ends_with(build), "{page}");
    let (_, info) = admin.get("/server_info").await;
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!((info["state"].as_str(), info["node"]["id"].as_str()), (Some("LIVE"), Some("n")));
    assert_eq!(admin.get("/certs").await.1, "{\n \"certificates\": []\n}\n");
    assert_eq!(admin.get("/listeners?format=json").await.1, "{\n \"listener_statuses\": []\n}\n");
    assert_eq!(admin.get("/tulle/edges?window=x").await.0, 400);
}

#[tokio::test]
async fn the_dump_has_envoys_shape() {
    let admin = running(Scope::Admin).await;
    insta::assert_snapshot!(admin.get("/config_dump").await.1);
    let (_, one) = admin.get("/config_dump?resource=dynamic_active_clusters&name_regex=we.").await;
    let one: serde_json::Value = serde_json::from_str(&one).unwrap();
    assert_eq!(one["configs"][0]["cluster"]["name"], "web");
    let (_, one) = admin.get("/config_dump?resource=ecds_filters").await;
    let one: serde_json::Value = serde_json::from_str(&one).unwrap();
    assert_eq!(one["configs"][0]["ecds_filter"]["name"], "named");
    let (status, text) = admin.get("/config_dump?resource=nope").await;
    assert_eq!((status, text.as_str()), (404, "nope not found in config dump"));
}

#[tokio::test]
async fn what_changes_something_is_guarded() {
    let admin = running(Scope::Admin).await;
    let foreign = "host: evil.example\r\n";
    assert_eq!(admin.ask("POST", "/quitquitquit", foreign).await.0, 403);
    assert_eq!(admin.ask("GET", "/config_dump", foreign).await.0, 403);
    assert_eq!(admin.ask("POST", "/quitquitquit", "origin: http://evil.example\r\n").await.0, 403);
    assert_eq!(admin.get("/quitquitquit").await.0, 405);
    assert!(!admin.house.gone.load(Relaxed));
    assert_eq!(admin.ask("POST", "/healthcheck/fail", "").await, (200, "OK\n".to_owned()));
    assert_eq!(admin.get("/ready").await, (503, "DRAINING\n".to_owned()));
    assert_eq!(admin.ask("POST", "/healthcheck/ok", "").await.0, 200);
    assert_eq!(admin.ask("POST", "/drain_listeners?graceful&inboundonly", "").await.0, 200);
    assert!(admin.house.drained.load(Relaxed));
    assert_eq!(admin.ask("POST", "/quitquitquit", "").await.0, 200);
    assert!(admin.house.gone.load(Relaxed));
}

#[tokio::test]
async fn health_and_metrics_have_one_page() {
    let health = running(Scope::Health).await;
    assert_eq!(health.ask("GET", "/healthz/ready", "host: 10.0.0.1:15021\r\n").await.0, 200);
    health.house.failing.store(true, Relaxed);
    assert_eq!(health.get("/healthz/ready").await.0, 503);
    assert_eq!(health.get("/config_dump").await.0, 404);
    let metrics = running(Scope::Metrics).await;
    assert_eq!(metrics.get("/stats/prometheus").await.0, 200);
    assert_eq!(metrics.ask("POST", "/quitquitquit", "").await.0, 404);
    let (_, page) = metrics.ask("GET", "/stats/prometheus", "accept: application/openmetrics-text\r\n").await;
    assert!(page.ends_with("# EOF\n"), "{page}");
}

#[tokio::test]
async fn tap_streams_until_the_client_goes() {
    let admin = running(Scope::Admin).await;
    assert_eq!(admin.get("/tulle/tap?status=6xx").await.0, 400);
    let mut stream = TcpStream::connect(("127.0.0.1", admin.port)).await.unwrap();
    stream.write_all(b"GET /tulle/tap?status=5xx HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    while !admin.tower.tap.is_watched() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for status in [200, 503] {
        let method = "GET".to_owned();
        admin.tower.tap.publish(telemetry::tap::Event { status, method, ..Default::default() });
    }
    let mut seen = Vec::new();
    while !seen.windows(13).any(|window| window == b"\"status\":503,") {
        let read = stream.read_buf(&mut seen).await.unwrap();
        assert!(read > 0, "{}", String::from_utf8_lossy(&seen));
    }
    assert!(!seen.windows(13).any(|window| window == b"\"status\":200,"));
    drop(stream);
    // The next beats find the client gone.
    tokio::time::timeout(Duration::from_secs(10), async {
        while admin.tower.tap.is_watched() {
            tokio::time::sleep(Duration::from_millis(50)).await;
            admin.tower.tap.publish(telemetry::tap::Event::default());
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_unix_socket_needs_no_host() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    let door = bind(&engine::Address::Unix(path.clone().into()), Scope::Admin, false).await.unwrap();
    let tower = Watchtower::new(&Node::default(), 1).unwrap();
    tokio::spawn(serve(door, Scope::Admin, Arc::<Small>::default(), tower));
    let mut stream = UnixStream::connect(path).await.unwrap();
    stream.write_all(b"GET /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("LIVE\n"), "{answer}");
}
