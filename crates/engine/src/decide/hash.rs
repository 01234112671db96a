//! The hash of a request, by the route's policies, with Envoy's function: so that a mixed mesh agrees on endpoints.

use std::fmt::Write as _;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use xxhash_rust::xxh64::{Xxh64, xxh64};

use crate::facts::Facts;
use crate::matcher::{HeaderKey, Substitution};
use crate::routes::{HashPolicy, HashSource, cookie, parameter};

/// The hash, and a cookie to set if one had to be made.
pub(super) fn of(policies: &[HashPolicy], facts: &Facts<'_>) -> (Option<u64>, Option<HeaderValue>) {
    let mut hash: Option<u64> = None;
    let mut set_cookie = None;
    for policy in policies {
        let (new, made) = one(&policy.source, facts);
        set_cookie = set_cookie.or(made);
        if let Some(new) = new {
            // Rotated so that two equal parts do not cancel out, as in Envoy.
            hash = Some(hash.map_or(new, |old| old.rotate_left(1) ^ new));
        }
        if policy.terminal && hash.is_some() {
            break;
        }
    }
    (hash, set_cookie)
}

fn one(source: &HashSource, facts: &Facts<'_>) -> (Option<u64>, Option<HeaderValue>) {
    match source {
        HashSource::Header(key, change) => (header(key, change.as_ref(), facts), None),
        // No filter that is implemented leaves a state that could be hashed.
        HashSource::FilterState => (None, None),
        HashSource::SourceIp => (Some(xxh64(facts.remote.to_canonical().to_string().as_bytes(), 0)), None),
        HashSource::Query(name) => {
            (facts.query().and_then(|query| parameter(query, name)).map(|value| xxh64(value.as_bytes(), 0)), None)
        }
        HashSource::Cookie { name, ttl, path, attributes } => match (cookie(facts, name), ttl) {
            (Some(value), _) if !value.is_empty() => (Some(xxh64(value.as_bytes(), 0)), None),
            (_, None) => (None, None),
            (_, Some(ttl)) => {
                let value = cookie_value(facts);
                let header = set_cookie(name, &value, *ttl, path, attributes);
                (Some(xxh64(value.as_bytes(), 0)), header)
            }
        },
    }
}

fn header(key: &HeaderKey, change: Option<&Substitution>, facts: &Facts<'_>) -> Option<u64> {
    let HeaderKey::Name(name) = key else {
        return key.value(facts).map(|value| hash_value(&value, change));
    };
    let mut values: Vec<&[u8]> = facts.headers.get_all(name as &HeaderName).iter().map(HeaderValue::as_bytes).collect();
    match values.as_slice() {
        [] => None,
        [one] => Some(hash_value(one, change)),
        _ => {
            // The order of several values does not matter.
            values.sort_unstable();
            let mut hasher = Xxh64::new(0);
            values.iter().for_each(|value| hasher.update(value));
            Some(hasher.digest())
        }
    }
}

fn hash_value(value: &[u8], change: Option<&Substitution>) -> u64 {
    let changed = change.and_then(|change| change.apply(std::str::from_utf8(value).ok()?));
    xxh64(changed.as_ref().map_or(value, |text| text.as_bytes()), 0)
}

/// A value that is the same for all requests of one connection.
fn cookie_value(facts: &Facts<'_>) -> String {
    let ends = format!("{}{}", facts.connection.remote, facts.connection.local);
    format!("{:016x}", xxh64(ends.as_bytes(), 0))
}

fn set_cookie(
    name: &str,
    value: &str,
    ttl: Duration,
    path: &str,
    attributes: &[(std::sync::Arc<str>, std::sync::Arc<str>)],
) -> Option<HeaderValue> {
    let mut text = format!("{name}=\"{value}\"");
    if !ttl.is_zero() {
        let _ = write!(text, "; Max-Age={}", ttl.as_secs());
    }
    if !path.is_empty() {
        let _ = write!(text, "; Path={path}");
    }
    for (key, value) in attributes {
        let _ = if value.is_empty() { write!(text, "; {key}") } else { write!(text, "; {key}={value}") };
    }
    text.push_str("; HttpOnly");
    HeaderValue::from_str(&text).ok()
}
