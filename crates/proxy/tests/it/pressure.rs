//! Under pressure the proxy does what its overload manager says, and its administration goes on.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use crate::backend::Backend;
use crate::world::{World, cluster, connect, get, http};

fn bootstrap(backend: &Backend, manager: &str) -> String {
    let plain = http("{match: {prefix: /}, route: {cluster: c}}", &cluster("c", &[backend.address], ""));
    format!("admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}\n{plain}\n{manager}")
}

/// Waits until it holds.
fn soon(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn pressure_stops_requests_then_connections_and_passes() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pressure");
    let press = |pressure: &str| std::fs::write(&file, pressure).unwrap();
    press("0");
    let trigger = |at: &str| format!("triggers: [{{name: file, threshold: {{value: {at}}}}}]");
    let manager = format!(
        r#"
overload_manager:
  refresh_interval: 0.02s
  resource_monitors:
  - {{name: file, typed_config: {{"@type": type.googleapis.com/envoy.extensions.resource_monitors.injected_resource.v3.InjectedResourceConfig, filename: {}}}}}
  actions:
  - {{name: envoy.overload_actions.disable_http_keepalive, {}}}
  - {{name: envoy.overload_actions.stop_accepting_requests, {}}}
  - {{name: envoy.overload_actions.stop_accepting_connections, {}}}
"#,
        file.display(),
        trigger("0.5"),
        trigger("0.8"),
        trigger("0.9"),
    );
    let backend = Backend::start();
    let world = World::start(&bootstrap(&backend, &manager));
    let at = world.address("in");
    assert_eq!(get(at, "/", "").header("connection"), None);
    press("0.6");
    soon("connections end", || get(at, "/", "").header("connection") == Some("close"));
    press("0.85");
    soon("requests are refused", || get(at, "/", "").status == 503);
    let reply = get(at, "/", "");
    assert_eq!((reply.status, reply.body.as_str()), (503, "envoy overloaded"));
    press("0.95");
    soon("connections wait", || {
        let mut waiting = connect(at);
        waiting.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        waiting.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
        waiting.read(&mut [0; 100]).is_err()
    });
    // Who waits in the queue is served when it is over; the administration never waits.
    let mut waiting = connect(at);
    waiting.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    let admin = std::net::SocketAddr::from(([127, 0, 0, 1], world.proxy().admin_port().unwrap()));
    let page = crate::world::ask(admin, "GET /stats/prometheus HTTP/1.1\r\nhost: localhost\r\n\r\n").body;
    assert!(page.contains(r#"tulle_overload_pressure{monitor="file"} 950"#), "{page}");
    press("0");
    assert_eq!(crate::world::read_reply(&mut waiting).status, 200);
}

#[test]
fn one_connection_more_than_allowed_is_closed() {
    let manager = r#"
overload_manager:
  resource_monitors:
  - {name: envoy.resource_monitors.global_downstream_max_connections, typed_config: {"@type": type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig, max_active_downstream_connections: 2}}
"#;
    let backend = Backend::start();
    let world = World::start(&bootstrap(&backend, manager));
    let at = world.address("in");
    let held: Vec<_> = (0..2)
        .map(|_| {
            let mut client = connect(at);
            client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
            assert_eq!(crate::world::read_reply(&mut client).status, 200);
            client
        })
        .collect();
    let mut third = connect(at);
    let _ = third.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    assert!(matches!(third.read(&mut [0; 100]), Ok(0) | Err(_)), "a third one is served");
    drop(held);
    soon("there is room again", || {
        let mut client = connect(at);
        let sent = client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").is_ok();
        sent && matches!(client.read(&mut [0; 100]), Ok(1..))
    });
}
