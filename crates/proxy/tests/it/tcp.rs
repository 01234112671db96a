//! Raw connections.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};

use crate::world::{World, cluster, connect};

fn tcp(filters: &str, clusters: &str, listener: &str) -> String {
    format!(
        r#"
static_resources:
  listeners:
  - name: in
    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
    {listener}
    filter_chains:
    - filters: [{filters} {{name: tcp, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: c}}}}]
  clusters: [{clusters}]
"#
    )
}

#[test]
fn half_close_is_kept_apart() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let backend = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut question = String::new();
        stream.read_to_string(&mut question).unwrap();
        stream.write_all(question.to_uppercase().repeat(1000).as_bytes()).unwrap();
    });
    let world = World::start(&tcp("", &cluster("c", &[backend], ""), ""));
    let mut client = connect(world.address("in"));
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "QUESTION".repeat(1000));
    server.join().unwrap();
}

#[test]
fn a_server_that_speaks_first_is_heard_despite_inspectors() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let backend = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"220 ready\r\n").unwrap();
        let mut line = [0; 4];
        stream.read_exact(&mut line).unwrap();
        stream.write_all(&line).unwrap();
    });
    let inspectors = "listener_filters: [{name: tls, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}, \
        {name: http, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector}}]\n    \
        listener_filters_timeout: 0.1s\n    continue_on_listener_filters_timeout: true";
    let world = World::start(&tcp("", &cluster("c", &[backend], ""), inspectors));
    let mut client = connect(world.address("in"));
    let mut greeting = [0; 11];
    client.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"220 ready\r\n");
    client.write_all(b"QUIT").unwrap();
    let mut echo = [0; 4];
    client.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"QUIT");
}

#[test]
fn network_rules_close_what_they_deny() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let rbac = "{name: rbac, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC, stat_prefix: r, \
        rules: {action: DENY, policies: {all: {permissions: [{any: true}], principals: [{any: true}]}}}}},";
    let world = World::start(&tcp(rbac, &cluster("c", &[listener.local_addr().unwrap()], ""), ""));
    let mut client = connect(world.address("in"));
    client.write_all(b"hello").unwrap();
    let mut answer = Vec::new();
    let _ = client.read_to_end(&mut answer);
    assert!(answer.is_empty());
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "a denied connection reached the backend");
}

#[test]
fn a_proxy_header_names_the_client() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let backend = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = [0; 5];
        stream.read_exact(&mut bytes).unwrap();
        stream.write_all(&bytes).unwrap();
    });
    let rbac = "{name: rbac, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC, stat_prefix: r, \
        rules: {action: ALLOW, policies: {one: {permissions: [{any: true}], principals: [{remote_ip: {address_prefix: 192.0.2.7, prefix_len: 32}}]}}}}},";
    let filter = "listener_filters: [{name: pp, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol}}]";
    let world = World::start(&tcp(rbac, &cluster("c", &[backend], ""), filter));
    let mut client = connect(world.address("in"));
    client.write_all(b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 80\r\nhello").unwrap();
    let mut echo = [0; 5];
    client.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"hello");
    let mut stranger = connect(world.address("in"));
    stranger.write_all(b"PROXY TCP4 192.0.2.8 198.51.100.1 4711 80\r\nhello").unwrap();
    let mut answer = Vec::new();
    let _ = stranger.read_to_end(&mut answer);
    assert!(answer.is_empty());
}
