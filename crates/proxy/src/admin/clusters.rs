//! `/clusters` and `/listeners`, as text and JSON.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;

use engine::endpoint::HealthStatus;
use engine::{Address, Cluster, Endpoint};
use http::StatusCode;
use serde_json::{Value, json};

use super::pages::{Desk, Page, Query, json, text};

/// `/clusters`.
pub(super) fn clusters(desk: &Desk, query: &Query) -> Page {
    let pattern = match query.pattern("filter") {
        Ok(pattern) => pattern,
        Err(refusal) => return *refusal,
    };
    let plan = desk.house.plan();
    let mut clusters: Vec<_> = plan
        .clusters()
        .filter(|cluster| pattern.as_ref().is_none_or(|pattern| pattern.matches(cluster.name().as_bytes())))
        .collect();
    clusters.sort_by_key(|cluster| cluster.name());
    if query.value("format") == Some("json") {
        let statuses: Vec<Value> = clusters.iter().map(|cluster| cluster_json(desk, cluster)).collect();
        return json(&json!({ "cluster_statuses": statuses }));
    }
    let mut out = String::new();
    for cluster in clusters {
        cluster_text(desk, cluster, &mut out);
    }
    text(StatusCode::OK, out)
}

/// `/listeners`.
pub(super) fn listeners(desk: &Desk, query: &Query) -> Page {
    let plan = desk.house.plan();
    let mut listeners: Vec<_> = plan.listeners().filter(|listener| listener.bind).collect();
    listeners.sort_by_key(|listener| &listener.name);
    if query.value("format") == Some("json") {
        let statuses: Vec<Value> = listeners
            .iter()
            .map(|listener| {
                let place = listener.namespace.as_deref();
                let address = |address| placed_json(address, place);
                let mut status = json!({"name": &*listener.name, "local_address": address(&listener.address)});
                let more: Vec<Value> = listener.additional_addresses.iter().map(address).collect();
                if !more.is_empty()
                    && let Some(object) = status.as_object_mut()
                {
                    object.insert("additional_local_addresses".to_owned(), more.into());
                }
                status
            })
            .collect();
        return json(&json!({ "listener_statuses": statuses }));
    }
    let mut out = String::new();
    for listener in listeners {
        for address in std::iter::once(&listener.address).chain(&listener.additional_addresses) {
            let _ = writeln!(out, "{}::{address}", listener.name);
        }
    }
    text(StatusCode::OK, out)
}

fn is_dynamic(desk: &Desk, cluster: &Cluster) -> bool {
    let held = desk.house.held(proto::type_url::CLUSTER);
    held.iter().any(|held| held.name == **cluster.name() && !held.is_static)
}

/// Counters of an endpoint under Envoy's names.
fn counters(endpoint: &Endpoint) -> [(&'static str, u64); 9] {
    let state = &endpoint.state;
    let (requests, errors) = (state.requests.load(Relaxed), state.errors.load(Relaxed));
    [
        ("cx_active", u64::from(state.connections.load(Relaxed))),
        ("cx_connect_fail", state.connect_failures.load(Relaxed)),
        ("cx_total", state.connections_total.load(Relaxed)),
        ("rq_active", u64::from(state.active.load(Relaxed))),
        ("rq_error", errors),
        ("rq_pending_active", 0),
        ("rq_success", requests.saturating_sub(errors)),
        ("rq_timeout", 0),
        ("rq_total", requests),
    ]
}

/// Envoy's health flags; `healthy` for none.
fn health_flags(endpoint: &Endpoint) -> String {
    let checks = &endpoint.state.health;
    let flags: String = [
        (checks.is_failed(), "/failed_active_hc"),
        (endpoint.state.outlier.is_ejected(), "/failed_outlier_check"),
        (endpoint.state.outlier.is_degraded(), "/degraded_outlier_detection"),
        (endpoint.health == HealthStatus::Unhealthy, "/failed_eds_health"),
        (checks.is_degraded(), "/degraded_active_hc"),
        (endpoint.health == HealthStatus::Degraded, "/degraded_eds_health"),
        (checks.is_pending(), "/pending_active_hc"),
        (checks.is_timed_out(), "/active_hc_timeout"),
        (endpoint.health == HealthStatus::Draining, "/eds_status_draining"),
    ]
    .into_iter()
    .filter_map(|(set, word)| set.then_some(word))
    .collect();
    if flags.is_empty() { "healthy".to_owned() } else { flags }
}

fn cluster_text(desk: &Desk, cluster: &Cluster, out: &mut String) {
    let (name, config) = (cluster.name(), &cluster.config);
    let observed = config.alt_stat_name.as_ref().unwrap_or(name);
    let _ = writeln!(out, "{name}::observability_name::{observed}");
    for (priority, limits) in [("default_priority", &config.limits), ("high_priority", &config.limits_high)] {
        for (what, limit) in [
            ("max_connections", limits.connections),
            ("max_pending_requests", limits.pending),
            ("max_requests", limits.requests),
            ("max_retries", limits.retries),
        ] {
            let _ = writeln!(out, "{name}::{priority}::{what}::{limit}");
        }
    }
    let _ = writeln!(out, "{name}::added_via_api::{}", is_dynamic(desk, cluster));
    if let engine::Discovery::Eds(service) = &config.discovery {
        let _ = writeln!(out, "{name}::eds_service_name::{service}");
    }
    for endpoint in cluster.endpoints.iter() {
        let address = &endpoint.address;
        for (what, count) in counters(endpoint) {
            let _ = writeln!(out, "{name}::{address}::{what}::{count}");
        }
        let locality = &endpoint.locality;
        let (weight, priority) = (endpoint.weight.to_string(), endpoint.priority.to_string());
        let flags = health_flags(endpoint);
        for (what, value) in [
            ("hostname", &*endpoint.hostname),
            ("health_flags", &flags),
            ("weight", &weight),
            ("region", &*locality.region),
            ("zone", &*locality.zone),
            ("sub_zone", &*locality.sub_zone),
            ("canary", "false"),
            ("priority", &priority),
            ("success_rate", "-1"),
            ("local_origin_success_rate", "-1"),
        ] {
            let _ = writeln!(out, "{name}::{address}::{what}::{value}");
        }
    }
}

fn cluster_json(desk: &Desk, cluster: &Cluster) -> Value {
    let config = &cluster.config;
    let hosts: Vec<Value> = cluster.endpoints.iter().map(|endpoint| host_json(endpoint)).collect();
    let thresholds = |limits: &engine::circuit::Limits| {
        json!({
            "max_connections": limits.connections,
            "max_pending_requests": limits.pending,
            "max_requests": limits.requests,
            "max_retries": limits.retries,
        })
    };
    let mut high = json!({"priority": "HIGH"});
    if let (Some(high), Some(limits)) = (high.as_object_mut(), thresholds(&config.limits_high).as_object()) {
        high.extend(limits.clone());
    }
    let mut status = json!({ "name": &**cluster.name() });
    let Some(object) = status.as_object_mut() else { return status };
    if is_dynamic(desk, cluster) {
        object.insert("added_via_api".to_owned(), true.into());
    }
    object.insert("host_statuses".to_owned(), hosts.into());
    object.insert("circuit_breakers".to_owned(), json!({"thresholds": [thresholds(&config.limits), high]}));
    let observed = config.alt_stat_name.as_ref().unwrap_or_else(|| cluster.name());
    object.insert("observability_name".to_owned(), (**observed).into());
    if let engine::Discovery::Eds(service) = &config.discovery {
        object.insert("eds_service_name".to_owned(), (**service).into());
    }
    status
}

fn host_json(endpoint: &Endpoint) -> Value {
    // Envoy lists counters, then gauges; zero is left out, as protobuf's JSON does.
    let gauge = |name: &str| name.ends_with("_active");
    let mut counters = counters(endpoint).to_vec();
    counters.sort_by_key(|(name, _)| gauge(name));
    let stats: Vec<Value> = counters
        .into_iter()
        .map(|(name, count)| {
            let mut stat = serde_json::Map::new();
            if gauge(name) {
                stat.insert("type".to_owned(), "GAUGE".into());
            }
            if count > 0 {
                stat.insert("value".to_owned(), count.to_string().into());
            }
            stat.insert("name".to_owned(), name.into());
            stat.into()
        })
        .collect();
    let checks = &endpoint.state.health;
    let mut health: serde_json::Map<String, Value> = [
        (checks.is_failed(), "failed_active_health_check"),
        (endpoint.state.outlier.is_ejected(), "failed_outlier_check"),
        (endpoint.state.outlier.is_degraded(), "failed_degraded_outlier_detection"),
        (checks.is_degraded(), "failed_active_degraded_check"),
        (checks.is_pending(), "pending_active_hc"),
        (checks.is_timed_out(), "active_hc_timeout"),
    ]
    .into_iter()
    .filter(|(set, _)| *set)
    .map(|(_, word)| (word.to_owned(), true.into()))
    .collect();
    let status = match endpoint.health {
        HealthStatus::Healthy => "HEALTHY",
        HealthStatus::Unhealthy => "UNHEALTHY",
        HealthStatus::Draining => "DRAINING",
        HealthStatus::Degraded => "DEGRADED",
    };
    health.insert("eds_health_status".to_owned(), status.into());
    let locality: serde_json::Map<String, Value> = [
        ("region", &endpoint.locality.region),
        ("zone", &endpoint.locality.zone),
        ("sub_zone", &endpoint.locality.sub_zone),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_empty())
    .map(|(key, value)| (key.to_owned(), Value::from(&**value)))
    .collect();
    let mut host = json!({
        "address": address_json(&endpoint.address),
        "stats": stats,
        "health_status": health,
        "weight": endpoint.weight,
        "locality": locality,
    });
    if let Some(host) = host.as_object_mut() {
        if !endpoint.hostname.is_empty() {
            host.insert("hostname".to_owned(), (*endpoint.hostname).into());
        }
        if endpoint.priority > 0 {
            host.insert("priority".to_owned(), endpoint.priority.into());
        }
    }
    host
}

/// The address with the file of its network namespace.
fn placed_json(address: &Address, namespace: Option<&Path>) -> Value {
    let mut json = address_json(address);
    if let (Some(path), Some(Value::Object(socket))) = (namespace, json.get_mut("socket_address")) {
        socket.insert("network_namespace_filepath".to_owned(), path.display().to_string().into());
    }
    json
}

fn address_json(address: &Address) -> Value {
    match address {
        Address::Socket(socket) => {
            json!({"socket_address": {"address": socket.ip().to_string(), "port_value": socket.port()}})
        }
        Address::Unix(path) => json!({"pipe": {"path": path.display().to_string()}}),
        Address::Name { host, port } => json!({"socket_address": {"address": &**host, "port_value": port}}),
    }
}
