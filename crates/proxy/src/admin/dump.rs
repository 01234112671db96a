//! `/config_dump`: the configuration as it was received, in Envoy's shape. Keys never appear in it.

use http::StatusCode;
use proto::type_url;
use serde_json::{Map, Value, json};

use super::Held;
use super::pages::{Desk, Page, Query, json, text};

const PREFIX: &str = "type.googleapis.com/envoy.admin.v3.";

/// `/config_dump`.
pub(super) fn config_dump(desk: &Desk, query: &Query) -> Page {
    if query.value("mask").is_some() {
        return text(StatusCode::BAD_REQUEST, "mask is not supported\n");
    }
    let names = match query.pattern("name_regex") {
        Ok(names) => names,
        Err(refusal) => return *refusal,
    };
    let held = |type_url: &str| {
        let mut held = desk.house.held(type_url);
        let known = |held: &[Held], name: &str| held.iter().any(|one| one.name == name && one.is_static);
        for one in of_bootstrap(desk, type_url) {
            if !known(&held, &one.name) {
                held.push(one);
            }
        }
        held.retain(|held| names.as_ref().is_none_or(|names| names.matches(held.name.as_bytes())));
        held.sort_by(|a, b| a.name.cmp(&b.name));
        held
    };
    let mut sections = Vec::new();
    if names.is_none() {
        sections.push(section("BootstrapConfigDump", [("bootstrap", bootstrap(desk))]));
    }
    sections.push(clusters(&held(type_url::CLUSTER)));
    let filters = held(type_url::EXTENSION);
    if !filters.is_empty() {
        sections.push(section("EcdsConfigDump", [("ecds_filters", entries(&filters, false, "ecds_filter"))]));
    }
    if query.has("include_eds") {
        sections.push(endpoints(&held(type_url::ENDPOINTS)));
    }
    sections.push(listeners(&held(type_url::LISTENER)));
    sections.push(routes(&held(type_url::ROUTE), &held(type_url::LISTENER)));
    sections.push(secrets(&held(type_url::SECRET)));
    match query.value("resource").filter(|resource| !resource.is_empty()) {
        None => json(&json!({ "configs": sections })),
        Some(resource) => one_kind(sections, resource),
    }
}

/// `?resource=dynamic_active_clusters`: the members of that field alone.
fn one_kind(sections: Vec<Value>, resource: &str) -> Page {
    for mut section in sections {
        let found = section.get_mut(resource).map(Value::take);
        let Some(found) = found else { continue };
        let kind = kind_of(resource);
        let tagged = |value: Value| {
            let mut object = Map::new();
            if let Some(kind) = kind {
                object.insert("@type".to_owned(), format!("{PREFIX}{kind}").into());
            }
            if let Value::Object(members) = value {
                object.extend(members);
            }
            Value::Object(object)
        };
        let configs: Vec<Value> = match found {
            Value::Array(items) => items.into_iter().map(tagged).collect(),
            other => vec![other],
        };
        return json(&json!({ "configs": configs }));
    }
    let known = KINDS.iter().any(|(field, _)| *field == resource);
    if known { json(&json!({})) } else { text(StatusCode::NOT_FOUND, format!("{resource} not found in config dump")) }
}

const KINDS: [(&str, &str); 11] = [
    ("static_clusters", "ClustersConfigDump.StaticCluster"),
    ("dynamic_active_clusters", "ClustersConfigDump.DynamicCluster"),
    ("ecds_filters", "EcdsConfigDump.EcdsFilterConfig"),
    ("static_listeners", "ListenersConfigDump.StaticListener"),
    ("dynamic_listeners", "ListenersConfigDump.DynamicListener"),
    ("static_route_configs", "RoutesConfigDump.StaticRouteConfig"),
    ("dynamic_route_configs", "RoutesConfigDump.DynamicRouteConfig"),
    ("static_endpoint_configs", "EndpointsConfigDump.StaticEndpointConfig"),
    ("dynamic_endpoint_configs", "EndpointsConfigDump.DynamicEndpointConfig"),
    ("static_secrets", "SecretsConfigDump.StaticSecret"),
    ("dynamic_active_secrets", "SecretsConfigDump.DynamicSecret"),
];

fn kind_of(resource: &str) -> Option<&'static str> {
    KINDS.iter().find(|(field, _)| *field == resource).map(|(_, kind)| *kind)
}

fn section<const N: usize>(kind: &str, members: [(&str, Value); N]) -> Value {
    let mut object = Map::new();
    object.insert("@type".to_owned(), format!("{PREFIX}{kind}").into());
    for (key, value) in members {
        let empty = value.as_array().is_some_and(Vec::is_empty) || value.as_str().is_some_and(str::is_empty);
        if !empty {
            object.insert(key.to_owned(), value);
        }
    }
    object.into()
}

fn bootstrap(desk: &Desk) -> Value {
    proto::json::to_json_redacted(&*desk.house.bootstrap())
}

fn time(at: std::time::SystemTime) -> Value {
    let since = at.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let mut out = Vec::with_capacity(24);
    telemetry::accesslog::clock::write_default(since.as_secs(), since.subsec_nanos(), &mut out);
    String::from_utf8(out).unwrap_or_default().into()
}

/// One resource: `{version_info, KEY, last_updated}`, the version only for those from a server.
fn entry(held: &Held, key: &str) -> Map<String, Value> {
    let mut object = Map::new();
    if !held.version.is_empty() {
        object.insert("version_info".to_owned(), held.version.as_str().into());
    }
    object.insert(key.to_owned(), proto::json::any_to_json_redacted(&held.body));
    object.insert("last_updated".to_owned(), time(held.updated));
    object
}

fn entries(held: &[Held], is_static: bool, key: &str) -> Value {
    let chosen = held.iter().filter(|held| held.is_static == is_static);
    chosen.map(|held| Value::Object(with_error(entry(held, key), held))).collect()
}

/// Adds what was refused since, as Envoy's `error_state`.
fn with_error(mut object: Map<String, Value>, held: &Held) -> Map<String, Value> {
    if let Some((at, why)) = &held.refused {
        object.insert("error_state".to_owned(), json!({"last_update_attempt": time(*at), "details": why}));
    }
    object
}

fn clusters(held: &[Held]) -> Value {
    section(
        "ClustersConfigDump",
        [
            ("static_clusters", entries(held, true, "cluster")),
            ("dynamic_active_clusters", entries(held, false, "cluster")),
        ],
    )
}

fn endpoints(held: &[Held]) -> Value {
    section(
        "EndpointsConfigDump",
        [
            ("static_endpoint_configs", entries(held, true, "endpoint_config")),
            ("dynamic_endpoint_configs", entries(held, false, "endpoint_config")),
        ],
    )
}

fn listeners(held: &[Held]) -> Value {
    let dynamic: Value = held
        .iter()
        .filter(|held| !held.is_static)
        .map(|held| {
            let mut object = Map::new();
            object.insert("name".to_owned(), held.name.as_str().into());
            object.insert("active_state".to_owned(), entry(held, "listener").into());
            Value::Object(with_error(object, held))
        })
        .collect();
    section(
        "ListenersConfigDump",
        [("static_listeners", entries(held, true, "listener")), ("dynamic_listeners", dynamic)],
    )
}

fn routes(held: &[Held], listeners: &[Held]) -> Value {
    let mut fixed = match entries(held, true, "route_config") {
        Value::Array(items) => items,
        _ => Vec::new(),
    };
    for listener in listeners {
        let body = proto::json::any_to_json_redacted(&listener.body);
        let mut tables = Vec::new();
        inline_routes(&body, &mut tables);
        fixed.extend(tables.into_iter().map(|table| {
            let mut tagged = Map::new();
            tagged.insert("@type".to_owned(), type_url::ROUTE.into());
            tagged.extend(table);
            json!({"route_config": tagged, "last_updated": time(listener.updated)})
        }));
    }
    section(
        "RoutesConfigDump",
        [("static_route_configs", fixed.into()), ("dynamic_route_configs", entries(held, false, "route_config"))],
    )
}

/// The route tables that stand in listeners themselves, which Envoy lists as static.
fn inline_routes(value: &Value, tables: &mut Vec<Map<String, Value>>) {
    match value {
        Value::Object(members) => {
            for (key, member) in members {
                match (key.as_str(), member) {
                    ("route_config", Value::Object(table)) => tables.push(table.clone()),
                    _ => inline_routes(member, tables),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| inline_routes(item, tables)),
        _ => {}
    }
}

/// The static resources of a type, in force since the start.
fn of_bootstrap(desk: &Desk, type_url: &str) -> Vec<Held> {
    let bootstrap = desk.house.bootstrap();
    let Some(resources) = &bootstrap.static_resources else { return Vec::new() };
    let updated = std::time::SystemTime::now().checked_sub(desk.tower.registry.age());
    let held = |name: &str, body| Held {
        name: name.to_owned(),
        body,
        version: String::new(),
        updated: updated.unwrap_or(std::time::UNIX_EPOCH),
        is_static: true,
        refused: None,
    };
    match type_url {
        type_url::CLUSTER => {
            resources.clusters.iter().map(|one| held(&one.name, proto::pack_any(one.clone()))).collect()
        }
        type_url::LISTENER => {
            resources.listeners.iter().map(|one| held(&one.name, proto::pack_any(one.clone()))).collect()
        }
        type_url::SECRET => resources.secrets.iter().map(|one| held(&one.name, proto::pack_any(one.clone()))).collect(),
        _ => Vec::new(),
    }
}

fn secrets(held: &[Held]) -> Value {
    let named = |is_static: bool| -> Value {
        held.iter()
            .filter(|held| held.is_static == is_static)
            .map(|held| {
                let mut object = Map::new();
                object.insert("name".to_owned(), held.name.as_str().into());
                object.extend(entry(held, "secret"));
                Value::Object(object)
            })
            .collect()
    };
    section("SecretsConfigDump", [("static_secrets", named(true)), ("dynamic_active_secrets", named(false))])
}
