//! Configuration by file: changes come into force, bad ones do not, connections drain without a lost request.

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::backend::Backend;
use crate::world::{LIMIT, World, cluster, connect, get, read_reply};

fn listener(status: u16, more: &str) -> String {
    format!(
        r#"resources:
- "@type": type.googleapis.com/envoy.config.listener.v3.Listener
  name: in
  address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
  filter_chains:
  - filters:
    - name: hcm
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: in
        drain_timeout: 0.3s
        {more}
        route_config:
          name: r
          virtual_hosts:
          - name: all
            domains: ["*"]
            routes:
            - {{match: {{prefix: /c}}, route: {{cluster: c}}}}
            - {{match: {{prefix: /}}, direct_response: {{status: {status}}}}}
        http_filters:
        - {{name: router, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}
"#
    )
}

fn start(path: &Path, backend: SocketAddr) -> World {
    let path = path.display();
    let clusters = cluster("c", &[backend], "");
    World::start(&format!(
        "node: {{id: proxy-1, cluster: web}}\ndynamic_resources: {{lds_config: {{path_config_source: {{path: {path}}}}}}}\nstatic_resources: {{clusters: [{clusters}]}}\n"
    ))
}

/// A whole file at once, as writers of configuration do.
fn write(path: &Path, text: &str) {
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, text).unwrap();
    std::fs::rename(fresh, path).unwrap();
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_change_comes_into_force_without_a_lost_request() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lds.yaml");
    write(&path, &listener(200, ""));
    let backend = Backend::start();
    let world = start(&path, backend.address);
    until("the listener opens", || !world.proxy().listening().is_empty());
    let at = world.address("in");
    let mut kept = connect(at);
    let ask = |stream: &mut std::net::TcpStream| {
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
        read_reply(stream)
    };
    assert_eq!(ask(&mut kept).status, 200);

    write(&path, &listener(201, ""));
    until("the change comes into force", || get(at, "/", "").status == 201);
    // The old connection still gets its answer, and is told to go.
    let last = ask(&mut kept);
    assert_eq!((last.status, last.header("connection")), (200, Some("close")));

    write(&path, &listener(202, "no_such_field: 1"));
    std::thread::sleep(Duration::from_millis(1200));
    assert_eq!(get(at, "/", "").status, 201, "a wrong file must not replace a right one");
    assert_eq!(world.address("in"), at, "the socket stays open through changes");
}

#[test]
fn a_request_under_way_outlives_the_end_of_the_process() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lds.yaml");
    write(&path, &listener(200, ""));
    let backend = Backend::start();
    let world = start(&path, backend.address);
    until("the listener opens", || !world.proxy().listening().is_empty());
    let at = world.address("in");
    let mut client = connect(at);
    client.write_all(b"POST /c HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nab").unwrap();
    until("the request arrives", || world.proxy().shared().plan.load().generation > 0 && backend.connections() > 0);
    world.proxy().stop();
    std::thread::sleep(Duration::from_millis(100));
    client.write_all(b"cd").unwrap();
    let reply = read_reply(&mut client);
    assert_eq!((reply.status, reply.body.as_str()), (200, "abcd"));
}
