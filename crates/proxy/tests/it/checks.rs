//! Those who check the workload's health through a filter are told what the process was told to say.

use std::net::SocketAddr;

use crate::backend::Backend;
use crate::world::{World, ask, cluster, get, http_with};

const CLUSTER: &str = "x-envoy-upstream-healthchecked-cluster";
const FAIL: &str = "x-envoy-immediate-health-check-fail";

#[test]
fn a_process_that_fails_its_checks_says_so_and_ends_connections() {
    let backend = Backend::start();
    let filter = "{name: checks, typed_config: {\"@type\": \
        type.googleapis.com/envoy.extensions.filters.http.health_check.v3.HealthCheck, pass_through_mode: true, \
        headers: [{name: \":path\", string_match: {exact: /healthz}}]}},";
    let yaml =
        http_with(filter, "", "{match: {prefix: /}, route: {cluster: c}}", &cluster("c", &[backend.address], ""));
    let admin = "admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}";
    let world = World::start(&format!("node: {{id: one, cluster: web.shop}}\n{admin}\n{yaml}"));
    let at = world.address("in");
    let tell = |path: &str| {
        let admin = SocketAddr::from(([127, 0, 0, 1], world.proxy().admin_port().unwrap()));
        assert_eq!(ask(admin, &format!("POST {path} HTTP/1.1\r\nhost: localhost\r\n\r\n")).status, 200);
    };
    let asked = |path: &str| {
        let reply = get(at, path, "");
        let has = |name: &str| reply.header(name).map(str::to_owned);
        (reply.status, has(CLUSTER), has(FAIL), has("connection"))
    };
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(asked("/healthz"), (200, text("web.shop"), None, None));
    assert_eq!(asked("/other"), (200, None, None, None));
    tell("/healthcheck/fail");
    assert_eq!(asked("/healthz"), (503, text("web.shop"), None, text("close")));
    assert_eq!(asked("/other"), (200, None, text("true"), text("close")));
    tell("/healthcheck/ok");
    assert_eq!(asked("/healthz"), (200, text("web.shop"), None, None));
    assert_eq!(backend.requests(), 4, "a check that fails is not the workload's");
}
