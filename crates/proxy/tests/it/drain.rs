//! Draining: who is asked to go, how, and who is left alone.

use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::backend::Backend;
use crate::world::{LIMIT, Reply, World, cluster, read_reply};

/// A listener with a chain for each of two clients, told apart by where they come from.
fn listener(first: u16, second: u16) -> String {
    let chain = |name: &str, source: &str, status: u16| {
        format!(
            r#"
  - name: {name}
    filter_chain_match: {{direct_source_prefix_ranges: [{{address_prefix: {source}, prefix_len: 32}}]}}
    filters:
    - name: hcm
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: in
        drain_timeout: 0.3s
        route_config:
          name: r
          virtual_hosts:
          - name: all
            domains: ["*"]
            routes:
            - {{match: {{prefix: /c}}, route: {{cluster: c}}}}
            - {{match: {{prefix: /}}, direct_response: {{status: {status}}}}}
        http_filters:
        - {{name: router, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}"#
        )
    };
    format!(
        "resources:\n- \"@type\": type.googleapis.com/envoy.config.listener.v3.Listener\n  name: in\n  address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}\n  filter_chains:{}{}\n",
        chain("first", "127.0.0.1", first),
        chain("second", "127.0.0.2", second)
    )
}

fn write(path: &Path, text: &str) {
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, text).unwrap();
    std::fs::rename(fresh, path).unwrap();
}

fn start(path: &Path, backend: SocketAddr) -> World {
    let (path, clusters) = (path.display(), cluster("c", &[backend], ""));
    let world = World::start(&format!(
        "node: {{id: proxy-1, cluster: web}}\ndynamic_resources: {{lds_config: {{path_config_source: {{path: {path}}}}}}}\nstatic_resources: {{clusters: [{clusters}]}}\n"
    ));
    until("the listener opens", || !world.proxy().listening().is_empty());
    world
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn connect_from(source: [u8; 4], at: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(IpAddr::from(source), 0).into()).unwrap();
    socket.connect(&at.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

fn ask(stream: &mut TcpStream) -> Reply {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    read_reply(stream)
}

#[test]
fn only_the_connections_of_a_chain_that_changed_are_asked_to_go() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lds.yaml");
    write(&path, &listener(200, 201));
    let world = start(&path, Backend::start().address);
    let at = world.address("in");
    let (mut first, mut second) = (connect_from([127, 0, 0, 1], at), connect_from([127, 0, 0, 2], at));
    assert_eq!((ask(&mut first).status, ask(&mut second).status), (200, 201));

    write(&path, &listener(200, 202));
    until("the change comes into force", || ask(&mut connect_from([127, 0, 0, 2], at)).status == 202);
    let last = ask(&mut second);
    assert_eq!((last.status, last.header("connection")), (201, Some("close")), "the changed chain's own");
    for _ in 0..3 {
        let next = ask(&mut first);
        assert_eq!((next.status, next.header("connection")), (200, None), "the other one's is as before");
        // Longer than the drain timeout.
        std::thread::sleep(Duration::from_millis(150));
    }
}

#[test]
fn an_http2_connection_gets_goaway_and_ends_its_streams() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lds.yaml");
    write(&path, &listener(200, 201));
    let backend = Backend::start();
    let world = start(&path, backend.address);
    let at = world.address("in");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let change = || write(&path, &listener(203, 201));
    runtime
        .block_on(async { tokio::time::timeout(2 * LIMIT, goes_away(at, &backend, change)).await.expect("in time") });
}

/// Opens a stream, has the listener changed, and ends the stream after GOAWAY.
async fn goes_away(at: SocketAddr, backend: &Backend, change: impl FnOnce()) {
    let stream = tokio::net::TcpStream::connect(at).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    let ended = tokio::spawn(connection);
    let request = || http::Request::post(format!("http://a:{}/c", at.port())).body(()).unwrap();
    let mut client = client.ready().await.unwrap();
    let (answer, mut body) = client.send_request(request(), false).unwrap();
    body.send_data("ab".into(), false).unwrap();
    while backend.connections() == 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    change();
    // GOAWAY comes while the stream is open: no other is taken, and this one goes on.
    while let Ok(mut ready) = client.clone().ready().await {
        if ready.send_request(request(), true).is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    body.send_data("cd".into(), true).unwrap();
    let answer = answer.await.expect("the stream goes on");
    assert_eq!(answer.status(), 200);
    let (mut text, mut body) = (Vec::new(), answer.into_body());
    while let Some(part) = body.data().await {
        text.extend_from_slice(&part.unwrap());
    }
    assert_eq!(text, b"abcd");
    drop((client, body));
    ended.await.unwrap().expect("the connection ends in order");
}
