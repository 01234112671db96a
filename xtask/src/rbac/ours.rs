//! What our engine says.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, Result, anyhow};
use engine::facts::Protocol;
use engine::path::Canonical;
use engine::{ConnectionFacts, Dice, Facts, HttpManager, Moment, Peer, Plan, Store, Update};
use http::{HeaderMap, HeaderName, HeaderValue};
use proto::json::Format;
use serde_json::json;

use super::Said;
use super::draw::{Asked, Caller, World};

/// The verdicts of every filter for every request.
pub(super) fn ask(world: &World) -> Result<Vec<Vec<Said>>> {
    let plan = plan(world)?;
    let listener = plan.listener("in").context("listener")?;
    let manager = listener.chains.iter().next().and_then(|chain| chain.http()).context("manager")?;
    let mut said = Vec::new();
    for caller in &world.callers {
        let connection = connection(caller);
        for asked in &caller.requests {
            said.push(judge(&plan, manager, &connection, asked)?);
        }
    }
    Ok(said)
}

fn plan(world: &World) -> Result<Arc<Plan>> {
    let listener = json!({
        "name": "in",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "in",
            "http_filters": world.http_filters(),
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"],
                "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200}}]}]},
        }}]}],
    });
    let message: proto::envoy::config::listener::v3::Listener =
        proto::json::parse(&listener.to_string(), Format::Json).map_err(|faults| anyhow!("{faults:?}"))?;
    let body = Some(prost::Message::encode_to_vec(&message).into());
    let update = Update { type_url: proto::type_url::LISTENER.into(), name: "in".into(), body };
    let mut store = Store::new();
    for outcome in store.apply(&[update]) {
        outcome.map_err(|error| anyhow!("{error}"))?;
    }
    Ok(store.plan())
}

fn connection(caller: &Caller) -> ConnectionFacts {
    let identity = caller.tls.as_ref().map(|(identity, _)| identity);
    ConnectionFacts {
        remote: caller.source,
        server_name: caller.tls.as_ref().map(|(_, name)| Arc::from(name.as_str())),
        tls: caller.tls.is_some(),
        peer: identity.map(|identity| {
            Arc::new(Peer { uri_sans: vec![Arc::from(identity.as_str())], validated: true, ..Peer::default() })
        }),
        ..ConnectionFacts::between(SocketAddr::from(([127, 0, 0, 1], 40_000)), caller.destination, 1)
    }
}

fn judge(plan: &Plan, manager: &HttpManager, connection: &ConnectionFacts, asked: &Asked) -> Result<Vec<Said>> {
    let mut headers = HeaderMap::new();
    for (name, value) in &asked.headers {
        headers.append(HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes())?);
    }
    let path = match engine::path::canonical(&asked.path, &manager.path) {
        Canonical::Same => Cow::Borrowed(asked.path.as_str()),
        Canonical::Changed(path) => Cow::Owned(path),
        other => return Err(anyhow!("{other:?} for {}", asked.path)),
    };
    let facts = Facts {
        connection,
        method: &asked.method,
        path: &path,
        authority: &asked.authority,
        scheme: if connection.tls { "https" } else { "http" },
        headers: &headers,
        protocol: Protocol::Http11,
        remote: connection.remote.ip(),
        started: SystemTime::UNIX_EPOCH,
        metadata: None,
    };
    let decision = engine::decide(plan, manager, &facts, Moment::START, &mut Dice::new(1));
    let verdicts = decision.rbac.iter().filter_map(|report| report.shadow.as_ref());
    Ok(verdicts.map(|v| Said { allowed: v.allowed, policy: v.policy.as_ref().map(ToString::to_string) }).collect())
}
