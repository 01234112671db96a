//! How long an exchange may take.

use std::time::Duration;

use http::HeaderName;

use crate::facts::Facts;
use crate::http_manager::HttpManager;
use crate::routes::ForwardAction;

/// Limits of one exchange; `None`: none.
pub(super) struct Timeouts {
    pub(super) request: Option<Duration>,
    pub(super) idle: Option<Duration>,
    pub(super) stream: Option<Duration>,
}

pub(super) fn of(manager: &HttpManager, action: &ForwardAction, facts: &Facts<'_>) -> Timeouts {
    let asked = header_timeout(manager, facts);
    let stream = action.max_stream_duration.unwrap_or(manager.max_stream_duration);
    Timeouts {
        request: asked.unwrap_or(action.timeout),
        idle: action.idle_timeout.unwrap_or(manager.stream_idle_timeout),
        stream: grpc_deadline(action, facts).map_or(stream, |deadline| shorter(stream, Some(deadline))),
    }
}

fn shorter(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

const TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-upstream-rq-timeout-ms");

/// `x-envoy-upstream-rq-timeout-ms`, believed from inside only. Inner `None`: no limit.
fn header_timeout(manager: &HttpManager, facts: &Facts<'_>) -> Option<Option<Duration>> {
    let value = facts.headers.get(TIMEOUT)?;
    if manager.use_remote_address && !manager.is_internal(facts.remote) {
        return None;
    }
    let millis: u64 = value.to_str().ok()?.trim().parse().ok()?;
    Some((millis > 0).then(|| Duration::from_millis(millis)))
}

fn grpc_deadline(action: &ForwardAction, facts: &Facts<'_>) -> Option<Duration> {
    let max = action.grpc_timeout_max?;
    let asked = parse_grpc_timeout(facts.headers.get("grpc-timeout")?.to_str().ok()?)?;
    let limited = if max.is_zero() { asked } else { asked.min(max) };
    // An offset that would use up the whole deadline is not applied.
    let offset = action.grpc_timeout_offset.filter(|offset| *offset < limited).unwrap_or_default();
    Some(limited - offset)
}

/// At most eight digits and a unit, as in `100m`.
fn parse_grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts() {
        assert_eq!(parse_grpc_timeout("100m"), Some(Duration::from_millis(100)));
        assert_eq!(parse_grpc_timeout("2S"), Some(Duration::from_secs(2)));
        for bad in ["", "m", "1", "1x", "-1S", "123456789S", "1é"] {
            assert_eq!(parse_grpc_timeout(bad), None, "{bad}");
        }
    }
}
