//! Lines about outlier detection, as Envoy writes them (`envoy.data.cluster.v3.OutlierDetectionEvent` in JSON).

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use engine::outlier::{Cause, Event, EventKind, SeenRates};
use telemetry::accesslog::{clock, write_json_text};

const IN_A_ROW: &[u8] = b",\"eject_consecutive_event\":{}";

/// The line of an event; `None`: Envoy writes nothing about it.
pub(super) fn line(cluster: &str, event: &Event, now: SystemTime) -> Option<Vec<u8>> {
    let (kind, action, enforced) = match event.kind {
        EventKind::Ejected { cause, enforced } => (name(cause), "EJECT", enforced),
        // Who comes back has no type, which is written as the first of them.
        EventKind::Returned | EventKind::Restored => (name(Cause::Consecutive5xx), "UNEJECT", false),
        EventKind::Degraded => ("DEGRADED", "EJECT", true),
        EventKind::Overflow { .. } => return None,
    };
    let mut out = Vec::with_capacity(256);
    // Writing to a Vec cannot fail.
    let _ = write!(out, "{{\"type\":\"{kind}\",\"timestamp\":\"");
    timestamp(now, &mut out);
    out.push(b'"');
    if let Some(since) = event.since {
        let _ = write!(out, ",\"secs_since_last_action\":\"{}\"", since.as_secs());
    }
    out.extend_from_slice(b",\"cluster_name\":");
    write_json_text(cluster, &mut out);
    out.extend_from_slice(b",\"upstream_url\":");
    write_json_text(&event.endpoint.address.to_string(), &mut out);
    let _ = write!(out, ",\"action\":\"{action}\",\"num_ejections\":{},\"enforced\":{enforced}", event.ejections);
    match event.kind {
        EventKind::Ejected { cause, .. } => seen(cause, event.rates, &mut out),
        EventKind::Degraded => out.extend_from_slice(IN_A_ROW),
        _ => {}
    }
    out.extend_from_slice(b"}\n");
    Some(out)
}

fn name(cause: Cause) -> &'static str {
    match cause {
        Cause::Consecutive5xx => "CONSECUTIVE_5XX",
        Cause::ConsecutiveGateway => "CONSECUTIVE_GATEWAY_FAILURE",
        Cause::ConsecutiveLocalOrigin => "CONSECUTIVE_LOCAL_ORIGIN_FAILURE",
        Cause::SuccessRate => "SUCCESS_RATE",
        Cause::SuccessRateLocalOrigin => "SUCCESS_RATE_LOCAL_ORIGIN",
        Cause::FailurePercentage => "FAILURE_PERCENTAGE",
        Cause::FailurePercentageLocalOrigin => "FAILURE_PERCENTAGE_LOCAL_ORIGIN",
    }
}

/// What the detector saw, in whole per cents.
fn seen(cause: Cause, rates: Option<SeenRates>, out: &mut Vec<u8>) {
    let rates = rates.unwrap_or(SeenRates { own: 0.0, bounds: None });
    let whole = |rate: f64| rate.clamp(0.0, 100.0) as u32;
    let own = whole(rates.own);
    match cause {
        Cause::Consecutive5xx | Cause::ConsecutiveGateway | Cause::ConsecutiveLocalOrigin => {
            out.extend_from_slice(IN_A_ROW);
        }
        Cause::SuccessRate | Cause::SuccessRateLocalOrigin => {
            let (mean, threshold) = rates.bounds.unwrap_or_default();
            let _ = write!(
                out,
                ",\"eject_success_rate_event\":{{\"host_success_rate\":{own},\"cluster_average_success_rate\":{},\"cluster_success_rate_ejection_threshold\":{}}}",
                whole(mean),
                whole(threshold)
            );
        }
        Cause::FailurePercentage | Cause::FailurePercentageLocalOrigin => {
            let _ = write!(out, ",\"eject_failure_percentage_event\":{{\"host_success_rate\":{own}}}");
        }
    }
}

/// `2026-11-21T10:32:50.313Z`; a whole second has no fraction.
fn timestamp(now: SystemTime, out: &mut Vec<u8>) {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    clock::write_default(since.as_secs(), since.subsec_nanos(), out);
    if since.subsec_millis() == 0 {
        out.truncate(out.len().saturating_sub(".000Z".len()));
        out.push(b'Z');
    }
}
