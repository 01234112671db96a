//! `%START_TIME%`: wall-clock time in Envoy's formats, UTC.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// A time format: `%Y-%m-%dT%H:%M:%S.%3fZ` when nothing else is said.
#[derive(Debug, Clone, PartialEq)]
pub enum TimeFormat {
    /// Envoy's default, written without any table look-up.
    Default,
    /// A format of the user's.
    Custom(Vec<Part>),
}

/// A piece of a custom time format.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// For strftime.
    Calendar(String),
    /// `%s`: seconds since 1970.
    Epoch,
    /// `%f` (nine digits), `%3f` (three): the fraction of the second.
    Fraction(usize),
    /// `%E3S`: seconds with three digits of fraction.
    Seconds(usize),
}

impl TimeFormat {
    /// Reads a format; the empty text is the default.
    ///
    /// # Errors
    /// Says which part is no time format.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self::Default);
        }
        let mut parts = Vec::new();
        let mut calendar = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('%') {
            calendar.push_str(before);
            let (part, length) = special(after);
            if let Some(part) = part {
                if !calendar.is_empty() {
                    parts.push(Part::Calendar(std::mem::take(&mut calendar)));
                }
                parts.push(part);
            } else {
                calendar.push('%');
                calendar.push_str(after.get(..length).unwrap_or_default());
            }
            rest = after.get(length..).unwrap_or_default();
        }
        calendar.push_str(rest);
        if !calendar.is_empty() {
            parts.push(Part::Calendar(calendar));
        }
        for part in &parts {
            if let Part::Calendar(text) = part {
                let epoch = Timestamp::UNIX_EPOCH.to_zoned(TimeZone::UTC);
                jiff::fmt::strtime::format(text, &epoch).map_err(|error| format!("time format `{text}`: {error}"))?;
            }
        }
        Ok(Self::Custom(parts))
    }

    /// Writes a time.
    pub fn write(&self, time: SystemTime, out: &mut Vec<u8>) {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (seconds, nanos) = (since.as_secs(), since.subsec_nanos());
        match self {
            Self::Default => write_default(seconds, nanos, out),
            Self::Custom(parts) => {
                // Envoy's clock has microseconds.
                let nanos = nanos / 1_000 * 1_000;
                for part in parts {
                    part.write(seconds, nanos, out);
                }
            }
        }
    }
}

/// The special part at the beginning of `after` (what follows a `%`), and how many bytes belong to it.
fn special(after: &str) -> (Option<Part>, usize) {
    let mut bytes = after.bytes();
    match (bytes.next(), bytes.next(), bytes.next()) {
        (Some(b's'), ..) => (Some(Part::Epoch), 1),
        (Some(b'f'), ..) => (Some(Part::Fraction(9)), 1),
        (Some(digit @ b'1'..=b'9'), Some(b'f'), _) => (Some(Part::Fraction(usize::from(digit - b'0'))), 2),
        (Some(b'E'), Some(digit @ b'0'..=b'9'), Some(b'S')) => (Some(Part::Seconds(usize::from(digit - b'0'))), 3),
        (Some(_), ..) => (None, after.chars().next().map_or(0, char::len_utf8)),
        (None, ..) => (None, 0),
    }
}

impl Part {
    fn write(&self, seconds: u64, nanos: u32, out: &mut Vec<u8>) {
        let fraction = |digits: usize, out: &mut Vec<u8>| {
            let text = format!("{nanos:09}");
            out.extend_from_slice(text.as_bytes().get(..digits.min(9)).unwrap_or_default());
        };
        match self {
            Self::Epoch => {
                // Writing to a Vec cannot fail.
                let _ = write!(out, "{seconds}");
            }
            Self::Fraction(digits) => fraction(*digits, out),
            Self::Seconds(digits) => {
                let _ = write!(out, "{:02}", seconds % 60);
                if *digits > 0 {
                    out.push(b'.');
                    fraction(*digits, out);
                }
            }
            Self::Calendar(text) => {
                let zoned = i64::try_from(seconds)
                    .ok()
                    .and_then(|seconds| Timestamp::new(seconds, 0).ok())
                    .map(|time| time.to_zoned(TimeZone::UTC));
                if let Some(formatted) = zoned.and_then(|zoned| jiff::fmt::strtime::format(text, &zoned).ok()) {
                    out.extend_from_slice(formatted.as_bytes());
                }
            }
        }
    }
}

/// Appends `2026-11-21T10:32:50.313Z`.
pub fn write_default(seconds: u64, nanos: u32, out: &mut Vec<u8>) {
    out.extend_from_slice(DefaultText::of(seconds, nanos).as_str().as_bytes());
}

/// `2026-11-21T10:32:50.313Z` on the stack.
#[derive(Debug, Clone, Copy)]
pub struct DefaultText([u8; 24]);

impl DefaultText {
    /// The text of a time since 1970.
    pub fn of(seconds: u64, nanos: u32) -> Self {
        let (year, month, day) = civil(seconds / 86_400);
        let second = seconds % 86_400;
        let mut text = *b"0000-00-00T00:00:00.000Z";
        let [a, b, c, d, _, e, f, _, g, h, _, i, j, _, k, l, _, m, n, _, o, p, q, _] = &mut text;
        digits([a, b, c, d], year);
        digits([e, f], month);
        digits([g, h], day);
        digits([i, j], second / 3_600);
        digits([k, l], second / 60 % 60);
        digits([m, n], second % 60);
        digits([o, p, q], u64::from(nanos / 1_000_000));
        Self(text)
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

fn digits<const N: usize>(places: [&mut u8; N], mut value: u64) {
    for place in places.into_iter().rev() {
        *place = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

/// Year, month and day of a count of days since 1970-01-01 (Gregorian calendar; eras of 400 years).
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn written(format: &str, time: SystemTime) -> String {
        let mut out = Vec::new();
        TimeFormat::parse(format).unwrap().write(time, &mut out);
        String::from_utf8(out).unwrap()
    }

    /// What Envoy 1.40 wrote for this very moment.
    #[test]
    fn as_envoy_writes_it() {
        let time = UNIX_EPOCH + Duration::new(1_795_257_170, 313_813_402);
        assert_eq!(written("", time), "2026-11-21T10:32:50.313Z");
        assert_eq!(written("%s.%3f", time), "1795257170.313");
        assert_eq!(written("%Y/%m/%dT%H:%M:%S.%6f%z %s", time), "2026/11/21T10:32:50.313813+0000 1795257170");
        assert_eq!(written("%s %f %1f %9f %E3S", time), "1795257170 313813000 3 313813000 50.313");
    }

    #[test]
    fn the_quick_calendar_agrees_with_the_slow_one() {
        for seconds in (0..5_000_000_000_u64).step_by(3_333_337) {
            let time = UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(written("", time), written("%Y-%m-%dT%H:%M:%S.%3fZ", time));
        }
    }

    #[test]
    fn what_is_no_format_is_refused() {
        assert!(TimeFormat::parse("%!").is_err());
    }
}
