//! Values with a grammar of their own: durations, regular expressions, addresses, percentages.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use model::{Code, StringMatch};

use crate::field::Field;
use crate::node::Value;
use crate::{codes, names};

/// Longest expression that is compiled.
const MAX_PATTERN: usize = 4096;

impl Field<'_> {
    /// A duration as Go writes it: `300ms`, `1.5h`, `2m30s`; at least `least`.
    pub(crate) fn duration(&self, least: Duration) -> Duration {
        let text = match &self.node.value {
            Value::Number(number) => number.clone(),
            _ => self.text(),
        };
        match duration(&text) {
            Some(duration) if duration >= least => duration,
            Some(duration) => {
                self.error(codes::RANGE, format!("`{}` is {text}, but must be at least {least:?}", self.name()));
                duration
            }
            None => {
                let finding = self.error(codes::DURATION, format!("`{text}` is no duration"));
                match text.parse::<f64>() {
                    Ok(_) => finding.help(format!("name the unit: {text}s or {text}ms")),
                    Err(_) => finding.help("write a number with a unit, as 300ms, 2s, 1m30s or 1.5h"),
                };
                least
            }
        }
    }

    /// A duration of at least a millisecond.
    pub(crate) fn positive_duration(&self) -> Duration {
        self.duration(Duration::from_millis(1))
    }

    /// An RE2 expression.
    pub(crate) fn pattern(&self) -> String {
        let text = self.filled();
        if text.len() > MAX_PATTERN {
            self.error(codes::REGEX, format!("a regular expression may have {MAX_PATTERN} characters"));
        } else if let Err(fault) = regex::Regex::new(&text) {
            let reason = reason(&fault);
            let finding = self.error(codes::REGEX, format!("`{text}` is no RE2 expression: {reason}"));
            if reason.contains("look-around") || reason.contains("backreference") {
                finding.help("RE2 runs in linear time and knows no look-around and no back-references: list the wanted texts, or use a second rule");
            }
        }
        text
    }

    /// `{exact}`, `{prefix}` or `{regex}`.
    pub(crate) fn string_match(&self) -> Option<StringMatch> {
        let object = self.object();
        object.at_most_one(&["exact", "prefix", "regex"]);
        if let Some(exact) = object.get("exact") {
            return Some(StringMatch::Exact(exact.text()));
        }
        if let Some(prefix) = object.get("prefix") {
            return Some(StringMatch::Prefix(prefix.text()));
        }
        object.get("regex").map(|regex| StringMatch::Regex(regex.pattern()))
    }

    /// An address or a range; a bare address means exactly it.
    pub(crate) fn ip_range(&self) -> Option<IpNet> {
        let text = self.text();
        let range = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
        if range.is_none() {
            self.error(codes::ADDRESS, format!("`{text}` is no IP address and no range"))
                .help("write 10.1.2.3, 10.0.0.0/8 or 2001:db8::/32");
        }
        range.map(|range| range.trunc())
    }

    /// An IP address.
    pub(crate) fn ip_address(&self) -> Option<IpAddr> {
        let text = self.text();
        let address = text.parse().ok();
        if address.is_none() {
            self.error(codes::ADDRESS, format!("`{text}` is no IP address"));
        }
        address
    }

    /// `{value: 12.5}` in millionths.
    pub(crate) fn percentage(&self) -> u32 {
        let object = self.object();
        object.get("value").map_or(0, |value| millionths(value.decimal(0.0, 100.0)))
    }

    /// A host name, checked by one of the functions of `names`.
    pub(crate) fn host(&self, check: fn(&str) -> Result<(), String>) -> String {
        let text = self.filled();
        if let (false, Err(why)) = (text.is_empty(), check(&text)) {
            self.bad_name(codes::HOST, "host", &text, &why);
        }
        text
    }

    /// Reports a name that breaks its rules. One that a template has still to fill in is only warned about:
    /// such files are checked before they are rendered.
    pub(crate) fn bad_name(&self, code: Code, what: &str, text: &str, why: &str) {
        if names::is_placeholder(text) {
            self.warn(code, format!("{what} `{text}` looks like a placeholder that was not filled in"));
        } else {
            self.error(code, format!("{what} `{text}` {why}"));
        }
    }

    /// `*` or `.` or a namespace, as `exportTo` has them, with `.` replaced; empty for all namespaces.
    pub(crate) fn export_to(&self, own: &str) -> Vec<String> {
        let items = self.items();
        let mut namespaces = Vec::new();
        let mut all = false;
        for item in &items {
            let text = item.text();
            match text.as_str() {
                "*" => all = true,
                "." => namespaces.push(own.to_owned()),
                "~" => {
                    item.error(codes::EXPORT, "`~` (visible to nobody) is not supported").help("leave the object out");
                }
                _ => {
                    if let Err(why) = names::dns_label(&text) {
                        item.error(codes::EXPORT, format!("`{text}` is no namespace: it {why}"))
                            .help("write `*`, `.` or a namespace");
                    }
                    namespaces.push(text);
                }
            }
        }
        if all && items.len() > 1 {
            self.error(codes::EXPORT, "`*` (everybody) and single namespaces exclude each other")
                .help("keep `*` alone, or remove it");
        }
        let mut sorted = namespaces.clone();
        sorted.sort();
        if sorted.windows(2).any(|pair| pair.first() == pair.last()) {
            self.error(codes::EXPORT, "the same namespace stands twice");
        }
        namespaces
    }
}

/// Percent to millionths.
pub(crate) fn millionths(percent: f64) -> u32 {
    // Between 0 and 100 by the caller's bounds; `as` saturates anyway.
    (percent * 10_000.0).round() as u32
}

/// The last line of the regex crate's message, which holds the reason.
fn reason(fault: &regex::Error) -> String {
    let text = fault.to_string();
    let last = text.lines().last().unwrap_or_default();
    last.strip_prefix("error: ").unwrap_or(last).to_owned()
}

/// Go's `time.ParseDuration`, without negative values.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut nanos = 0f64;
    while !rest.is_empty() || nanos == 0.0 {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|end| *end > 0)?;
        let (number, tail) = rest.split_at(digits);
        let (unit, after) = ["ns", "us", "µs", "ms", "s", "m", "h"]
            .iter()
            .find_map(|unit| tail.strip_prefix(unit).map(|after| (*unit, after)))?;
        let scale = match unit {
            "ns" => 1.0,
            "us" | "µs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            _ => 3600e9,
        };
        nanos += number.parse::<f64>().ok()? * scale;
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    // 292 years, Go's own limit.
    (nanos < 9.2e18).then(|| Duration::from_nanos(nanos.round() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        let ms = |n| Some(Duration::from_millis(n));
        for (text, want) in [
            ("2s", ms(2000)),
            ("300ms", ms(300)),
            ("1m30s", ms(90_000)),
            ("1.5h", ms(5_400_000)),
            ("0", ms(0)),
            ("0s", ms(0)),
            ("0.25s", ms(250)),
            ("1h0m1s", ms(3_601_000)),
        ] {
            assert_eq!(duration(text), want, "{text}");
        }
        for text in ["", "soon", "2", "-1s", "s", "1..5s", "1s2", "1d", "99999999999999h", "."] {
            assert_eq!(duration(text), None, "{text}");
        }
    }
}
