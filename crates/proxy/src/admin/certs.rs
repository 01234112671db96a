//! `/certs`: the certificates in use.

use std::time::{SystemTime, UNIX_EPOCH};

use identity::tls::Credentials;
use serde_json::{Value, json};

use super::pages::{Desk, Page, json};

/// `/certs`.
pub(super) fn certs(desk: &Desk) -> Page {
    let now = SystemTime::now();
    let certificates: Vec<Value> = desk
        .house
        .certificates()
        .iter()
        .map(|(from, credentials)| json!({"ca_cert": [], "cert_chain": [certificate(from, credentials, now)]}))
        .collect();
    json(&json!({ "certificates": certificates }))
}

fn certificate(from: &str, credentials: &Credentials, now: SystemTime) -> Value {
    let facts = credentials.facts();
    let uris = facts.uri_names.iter().map(|uri| json!({ "uri": uri }));
    let names: Vec<Value> = uris.chain(facts.dns_names.iter().map(|dns| json!({ "dns": dns }))).collect();
    let left = facts.not_after.duration_since(now).unwrap_or_default();
    json!({
        "path": from,
        "serial_number": facts.serial,
        "subject_alt_names": names,
        "days_until_expiration": (left.as_secs() / 86_400).to_string(),
        "valid_from": seconds(facts.not_before),
        "expiration_time": seconds(facts.not_after),
    })
}

/// `2026-11-21T10:32:50Z`.
fn seconds(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut out = Vec::with_capacity(24);
    telemetry::accesslog::clock::write_default(since.as_secs(), 0, &mut out);
    String::from_utf8(out).unwrap_or_default().replace(".000Z", "Z")
}
