//! A record as a tap event.

use std::time::UNIX_EPOCH;

use telemetry::accesslog::clock;
use telemetry::istio::Edge;
use telemetry::tap::Event;

use super::record::{Kind, Record};

/// What watchers see of a finished exchange.
pub fn event(record: &Record, edge: Edge) -> Event {
    let since = record.started_at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut time = Vec::with_capacity(24);
    clock::write_default(since.as_secs(), since.subsec_nanos(), &mut time);
    let upstream = &record.upstream;
    let denied = record.denied_by();
    let tcp = record.kind == Kind::Tcp;
    Event {
        time: String::from_utf8(time).unwrap_or_default(),
        tulle_id: record.id().unwrap_or_default().to_owned(),
        reporter: edge.reporter,
        source: edge.source,
        source_address: record.downstream.facts.remote.to_string(),
        destination: edge.destination,
        service: edge.service,
        upstream: upstream.endpoint.as_ref().map(|endpoint| endpoint.address.to_string()).unwrap_or_default(),
        cluster: record.cluster_name().unwrap_or_default().to_owned(),
        route: record.matched.as_ref().map(|matched| matched.route.name.to_string()).unwrap_or_default(),
        protocol: record.protocol.map_or("tcp", |protocol| protocol.name()).to_owned(),
        method: record.method.as_ref().map(ToString::to_string).unwrap_or_default(),
        path: record.original_path.as_deref().or(record.path.as_deref()).unwrap_or_default().to_owned(),
        authority: record.authority.as_deref().unwrap_or_default().to_owned(),
        status: if tcp { 0 } else { record.status.map_or(0, |status| status.as_u16()) },
        grpc_status: record.grpc_status,
        flags: record.flags.letters().into_owned(),
        details: record.details.as_deref().or(record.termination.as_deref()).unwrap_or_default().to_owned(),
        policy: denied.or(record.origin.as_deref()).unwrap_or_default().to_owned(),
        would_deny: record.would_be_denied_by().map(ToString::to_string).unwrap_or_default(),
        denied: denied.is_some(),
        security: edge.security,
        attempts: upstream.attempts,
        duration_ms: record.duration.as_secs_f64() * 1_000.0,
        received: record.bytes_received,
        sent: record.bytes_sent,
    }
}
