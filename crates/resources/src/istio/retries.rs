//! Retries.

use model::route::RetryPolicy;

use crate::codes;
use crate::field::Field;

/// What Envoy's `retry_on` and `retry_grpc_on` know, and Istio accepts.
const CONDITIONS: &[&str] = &[
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "envoy-ratelimited",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

/// Reads `retries`.
pub(super) fn read(field: &Field<'_>) -> RetryPolicy {
    let object = field.object();
    let attempts = object.get("attempts");
    let count = attempts.as_ref().map_or(0, Field::count);
    if count == 0 {
        for other in object.given(&["perTryTimeout", "retryOn", "retryRemoteLocalities", "backoff"]) {
            let finding = other.error_at_key(
                codes::RETRIES,
                format!("`{}` has no effect with `attempts: 0`, which switches retries off", other.name()),
            );
            match &attempts {
                Some(attempts) => drop(finding.also(attempts.span(), "retries are off")),
                None => drop(finding.help("say how often to try again: attempts: 2")),
            }
        }
    }
    RetryPolicy {
        attempts: count,
        per_try_timeout: object.get("perTryTimeout").map(|field| field.positive_duration()),
        retry_on: object.get("retryOn").map(|field| conditions(&field)).unwrap_or_default(),
        retry_remote_localities: object.get("retryRemoteLocalities").map(|field| field.boolean()),
        backoff: object.get("backoff").map(|field| field.positive_duration()),
        ignore_previous_hosts: object.get("retryIgnorePreviousHosts").map(|field| field.boolean()),
    }
}

fn conditions(field: &Field<'_>) -> Vec<String> {
    let text = field.text();
    let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
    let mut all = Vec::new();
    for word in words {
        let status = word.parse::<u16>().is_ok_and(|status| (100..=599).contains(&status));
        if !status && !CONDITIONS.contains(&word) {
            let finding = field.error(codes::RETRIES, format!("`{word}` is no condition for retries"));
            match crate::names::nearest(word, CONDITIONS.iter().copied()) {
                Some(near) => finding.help(format!("did you mean {near}?")),
                None => finding.help(format!("known: a status code, {}", CONDITIONS.join(", "))),
            };
        }
        all.push(word.to_owned());
    }
    all
}
