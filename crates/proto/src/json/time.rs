//! Durations and timestamps in their JSON forms.

use crate::google::protobuf::{Duration, Timestamp};

/// The most a Duration may hold, in seconds: 10,000 years.
const MAX_SECONDS: i64 = 315_576_000_000;

/// `"1.5s"`; at most nine digits of fraction.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    let number = text.strip_suffix('s')?;
    let (sign, number) = number.strip_prefix('-').map_or((1, number), |number| (-1, number));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !digits(whole) || !digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let seconds: i64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let nanos: i32 = if fraction.is_empty() { 0 } else { format!("{fraction:0<9}").parse().ok()? };
    (seconds <= MAX_SECONDS).then_some(Duration { seconds: sign * seconds, nanos: sign as i32 * nanos })
}

/// With as many groups of three digits as needed: `"1s"`, `"0.250s"`.
pub(super) fn print_duration(duration: Duration) -> String {
    let sign = if duration.seconds < 0 || duration.nanos < 0 { "-" } else { "" };
    format!("{sign}{}{}s", duration.seconds.unsigned_abs(), fraction(duration.nanos.unsigned_abs()))
}

fn fraction(nanos: u32) -> String {
    match nanos {
        0 => String::new(),
        nanos if nanos % 1_000_000 == 0 => format!(".{:03}", nanos / 1_000_000),
        nanos if nanos % 1_000 == 0 => format!(".{:06}", nanos / 1_000),
        nanos => format!(".{nanos:09}"),
    }
}

/// RFC 3339.
pub(super) fn parse_timestamp(text: &str) -> Option<Timestamp> {
    let time: jiff::Timestamp = text.parse().ok()?;
    let nanos = time.as_nanosecond();
    let seconds = i64::try_from(nanos.div_euclid(1_000_000_000)).ok()?;
    let nanos = i32::try_from(nanos.rem_euclid(1_000_000_000)).ok()?;
    Some(Timestamp { seconds, nanos })
}

/// RFC 3339 in UTC; `None` when out of the calendar.
pub(super) fn print_timestamp(time: Timestamp) -> Option<String> {
    let whole = jiff::Timestamp::new(time.seconds, 0).ok()?;
    let nanos = u32::try_from(time.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    let text = whole.to_string();
    Some(format!("{}{}Z", text.trim_end_matches('Z'), fraction(nanos)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_round_trip() {
        for text in ["0s", "1s", "0.250s", "-1.500s", "3.000001s", "0.000000001s", "-0.001s"] {
            assert_eq!(parse_duration(text).map(print_duration).as_deref(), Some(text));
        }
        assert_eq!(parse_duration("0.25s"), Some(Duration { seconds: 0, nanos: 250_000_000 }));
        for wrong in ["", "s", "1", "1m", "1.5", "250ms", ".s", "1.0000000001s", "999999999999999s", "1e3s", "--1s"] {
            assert_eq!(parse_duration(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn timestamps_round_trip() {
        for text in ["2026-11-21T10:00:00Z", "1969-12-31T23:59:59.250Z"] {
            assert_eq!(parse_timestamp(text).and_then(print_timestamp).as_deref(), Some(text));
        }
        assert_eq!(parse_timestamp("yesterday"), None);
        assert_eq!(print_timestamp(Timestamp { seconds: i64::MAX, nanos: 0 }), None);
    }
}
