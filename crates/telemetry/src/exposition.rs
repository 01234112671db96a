//! The numbers as text: Prometheus' text format, OpenMetrics, and Envoy's `/stats` in text and JSON.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};

use serde_json::json;

use crate::Registry;
use crate::registry::cells::BOUND_TEXTS;
use crate::registry::{HistogramSnapshot, Stat, Value};

/// An exposition format that Prometheus understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Text format 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl Format {
    /// What the `Accept` header asks for: OpenMetrics when it is named with a greater quality than plain text.
    pub fn negotiate(accept: Option<&str>) -> Self {
        let mut best = (0.0, Self::Prometheus);
        for part in accept.unwrap_or_default().split(',') {
            let mut words = part.split(';').map(str::trim);
            let format = match words.next() {
                Some("application/openmetrics-text") => Self::OpenMetrics,
                Some("text/plain" | "text/*" | "*/*") => Self::Prometheus,
                _ => continue,
            };
            let quality = words.find_map(|word| word.strip_prefix("q=")).and_then(|q| q.parse().ok()).unwrap_or(1.0);
            if quality > best.0 {
                best = (quality, format);
            }
        }
        best.1
    }

    /// The `Content-Type` of the answer.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Writes labels with their values escaped.
#[derive(Debug, Default)]
pub struct LabelWriter(String);

impl LabelWriter {
    /// An empty list with room for `bytes`.
    pub fn with_capacity(bytes: usize) -> Self {
        Self(String::with_capacity(bytes))
    }

    /// Adds a label.
    pub fn label(&mut self, key: &str, value: &str) {
        self.begin(key);
        escape(value, &mut self.0);
        self.0.push('"');
    }

    /// Adds a label whose value needs no escaping (numbers, flags).
    pub fn label_display(&mut self, key: &str, value: impl Display) {
        self.begin(key);
        // Writing to a String cannot fail.
        let _ = write!(self.0, "{value}\"");
    }

    /// The labels, without braces.
    pub fn finish(self) -> String {
        self.0
    }

    fn begin(&mut self, key: &str) {
        if !self.0.is_empty() {
            self.0.push(',');
        }
        self.0.push_str(key);
        self.0.push_str("=\"");
    }
}

/// Labels with their values escaped, without braces.
pub fn labels(labels: &[(&str, &str)]) -> String {
    let mut writer = LabelWriter::default();
    for (key, value) in labels {
        writer.label(key, value);
    }
    writer.finish()
}

/// Escapes a label's value: backslash, double quote, line feed.
fn escape(value: &str, out: &mut String) {
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            _ => out.push(c),
        }
    }
}

/// Which samples a page shows.
#[derive(Default)]
pub struct Selection<'a> {
    /// Only samples whose dotted name this accepts.
    pub accepts: Option<&'a dyn Fn(&str) -> bool>,
    /// Only samples that were ever written.
    pub used_only: bool,
}

impl Selection<'_> {
    fn takes(&self, stat: &Stat) -> bool {
        let used = match &stat.value {
            Value::Counter(value) | Value::Gauge(value) => *value != 0,
            Value::Histogram(snapshot) => snapshot.count() != 0,
        };
        (used || !self.used_only) && self.accepts.is_none_or(|accepts| accepts(&stat.text))
    }
}

struct Family {
    help: &'static str,
    samples: Vec<(String, Value)>,
}

/// All numbers in one of Prometheus' formats.
pub fn prometheus(registry: &Registry, format: Format, selection: &Selection<'_>) -> String {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    registry.visit(&mut |stat| {
        if selection.takes(&stat) {
            let family = families
                .entry(format!("{}{}", stat.family, stat.suffix))
                .or_insert_with(|| Family { help: stat.help, samples: Vec::new() });
            family.samples.push((stat.labels, stat.value));
        }
    });
    let mut out = String::with_capacity(64 * 1024);
    for (name, mut family) in families {
        merge(&mut family.samples);
        write_family(&name, &family, format, &mut out);
    }
    if format == Format::OpenMetrics {
        out.push_str("# EOF\n");
    }
    out
}

/// Sorts by the first part, and makes one of those that are equal in it.
fn merge(samples: &mut Vec<(String, Value)>) {
    samples.sort_by(|a, b| a.0.cmp(&b.0));
    samples.dedup_by(|later, first| {
        let same = later.0 == first.0;
        if same {
            first.1.add(&later.1);
        }
        same
    });
}

fn write_family(name: &str, family: &Family, format: Format, out: &mut String) {
    let kind = match family.samples.first() {
        Some((_, Value::Counter(_))) => "counter",
        Some((_, Value::Gauge(_))) => "gauge",
        Some((_, Value::Histogram(_))) => "histogram",
        None => return,
    };
    let (family_name, kind) = open_metrics_name(name, kind, format);
    if !family.help.is_empty() {
        let _ = writeln!(out, "# HELP {family_name} {}", family.help);
    }
    let _ = writeln!(out, "# TYPE {family_name} {kind}");
    for (labels, value) in &family.samples {
        match value {
            Value::Counter(value) | Value::Gauge(value) => write_sample(out, name, labels, value),
            Value::Histogram(snapshot) => write_histogram(out, name, labels, snapshot, format),
        }
    }
}

/// OpenMetrics wants every counter to end in `_total` and its family not to. Envoy's names cannot follow (there
/// are both `upstream_rq` and `upstream_rq_total`), so that they keep their name as `unknown`.
fn open_metrics_name<'a>(name: &'a str, kind: &'a str, format: Format) -> (&'a str, &'a str) {
    match (format, kind, name.strip_suffix("_total")) {
        (Format::OpenMetrics, "counter", Some(stripped)) if !name.starts_with("envoy_") => (stripped, kind),
        (Format::OpenMetrics, "counter", _) => (name, "unknown"),
        _ => (name, kind),
    }
}

fn write_sample(out: &mut String, name: &str, labels: &str, value: impl Display) {
    let _ =
        if labels.is_empty() { writeln!(out, "{name} {value}") } else { writeln!(out, "{name}{{{labels}}} {value}") };
}

fn write_histogram(out: &mut String, name: &str, labels: &str, snapshot: &HistogramSnapshot, format: Format) {
    let comma = if labels.is_empty() { "" } else { "," };
    let mut below = 0;
    for (count, bound) in snapshot.buckets.iter().zip(BOUND_TEXTS) {
        below += count;
        let canonical = format == Format::OpenMetrics && !bound.contains(['.', 'I']);
        let point = if canonical { ".0" } else { "" };
        let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}{point}\"}} {below}");
    }
    write_sample(out, &format!("{name}_sum"), labels, snapshot.sum as f64 / 1_000.0);
    write_sample(out, &format!("{name}_count"), labels, below);
}

/// Envoy's `/stats`: `name: value` lines, histograms last.
pub fn envoy_text(registry: &Registry, selection: &Selection<'_>) -> String {
    let (plain, histograms) = by_name(registry, selection);
    let mut out = String::with_capacity((plain.len() + histograms.len()) * 48);
    for (name, value) in plain {
        let _ = writeln!(out, "{name}: {value}");
    }
    for (name, snapshot) in histograms {
        let _ = writeln!(out, "{name}: {}", quantiles_text(&snapshot));
    }
    out
}

/// Whole numbers and histograms by their dotted names, sorted.
type ByName = (Vec<(String, u64)>, Vec<(String, HistogramSnapshot)>);

fn by_name(registry: &Registry, selection: &Selection<'_>) -> ByName {
    let mut all = Vec::new();
    registry.visit(&mut |stat| {
        if selection.takes(&stat) {
            all.push((stat.text, stat.value));
        }
    });
    merge(&mut all);
    let (mut plain, mut histograms) = (Vec::new(), Vec::new());
    for (name, value) in all {
        match value {
            Value::Counter(value) | Value::Gauge(value) => plain.push((name, value)),
            Value::Histogram(snapshot) => histograms.push((name, *snapshot)),
        }
    }
    (plain, histograms)
}

/// The quantiles that Envoy prints, in percent.
const QUANTILES: [f64; 10] = [0.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 100.0];

/// `P50(nan,3.1)`: interval values are not kept, the second is the value since start.
fn quantiles_text(snapshot: &HistogramSnapshot) -> String {
    if snapshot.count() == 0 {
        return "No recorded values".to_owned();
    }
    let words: Vec<String> = QUANTILES
        .iter()
        .map(|percent| format!("P{percent}(nan,{})", rounded(snapshot.quantile(percent / 100.0).unwrap_or_default())))
        .collect();
    words.join(" ")
}

fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// Envoy's `/stats?format=json`.
pub fn envoy_json(registry: &Registry, selection: &Selection<'_>) -> serde_json::Value {
    let (plain, histograms) = by_name(registry, selection);
    let mut stats: Vec<serde_json::Value> =
        plain.into_iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
    if !histograms.is_empty() {
        let computed: Vec<_> = histograms.iter().map(|(name, snapshot)| quantiles_json(name, snapshot)).collect();
        stats.push(json!({"histograms": {
            "supported_quantiles": QUANTILES.map(plain_number),
            "computed_quantiles": computed,
        }}));
    }
    json!({ "stats": stats })
}

fn quantiles_json(name: &str, snapshot: &HistogramSnapshot) -> serde_json::Value {
    let values: Vec<_> = QUANTILES
        .iter()
        .map(|percent| {
            let cumulative = snapshot.quantile(percent / 100.0).map(rounded);
            json!({"cumulative": cumulative, "interval": null})
        })
        .collect();
    json!({"name": name, "values": values})
}

/// Whole numbers without a decimal point, as Envoy prints them.
fn plain_number(value: f64) -> serde_json::Value {
    if value.fract() == 0.0 { json!(value as i64) } else { json!(value) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::istio::Sample;
    use crate::istio::tests::{edge, none, ok};
    use crate::registry::Limits;

    fn some_registry() -> Registry {
        let registry = Registry::new(2, Limits::default());
        for worker in 0..2 {
            let mut handle = registry.requests().edge(&edge("web", "cart"), worker);
            let sample = Sample { duration: Duration::from_micros(2_500), request_bytes: 7, ..Sample::default() };
            handle.response(ok(), none, &sample);
        }
        registry
            .counter("tulle_tls_handshake_failures_total", "Failed TLS handshakes.", &[("cause", "a\"b\\c\nd")])
            .inc();
        registry
    }

    fn istio_only(text: &str) -> String {
        text.lines().filter(|line| line.contains("istio_request") || line.contains("tulle_tls")).fold(
            String::new(),
            |mut all, line| {
                all.push_str(line);
                all.push('\n');
                all
            },
        )
    }

    #[test]
    fn whole_prometheus_page() {
        let page = prometheus(&some_registry(), Format::Prometheus, &Selection::default());
        insta::assert_snapshot!(istio_only(&page));
    }

    #[test]
    fn whole_open_metrics_page() {
        let page = prometheus(&some_registry(), Format::OpenMetrics, &Selection::default());
        assert!(page.ends_with("# EOF\n"));
        insta::assert_snapshot!(istio_only(&page));
    }

    /// Callers without an identity are told apart by their address only outside the labels.
    #[test]
    fn edges_with_equal_labels_are_one_series() {
        let registry = Registry::new(1, Limits::default());
        for last in 1..=3 {
            let source_ip = Some(std::net::IpAddr::from([10, 0, 0, last]));
            let edge = crate::istio::Edge { source_ip, ..edge("", "cart") };
            registry.requests().edge(&edge, 0).response(ok(), none, &Sample::default());
        }
        let page = prometheus(&registry, Format::Prometheus, &Selection::default());
        let lines: Vec<&str> = page.lines().filter(|line| line.starts_with("istio_requests_total")).collect();
        assert!(lines.len() == 1 && lines[0].ends_with(" 3"), "{lines:?}");
    }

    /// The encoder of the Prometheus project writes the same sample.
    #[test]
    fn values_are_escaped_as_prometheus_does() {
        use prometheus_client::metrics::{counter::Counter, family::Family};
        for value in ["a\"b\\c\nd", "", "é\u{2028}\t", "\\n", "\"\"", "{}=,"] {
            let registry = Registry::new(1, Limits::default());
            registry.counter("tulle_judged_total", "Judged.", &[("cause", value)]).add(3);
            let family = Family::<Vec<(String, String)>, Counter>::default();
            family.get_or_create(&vec![("cause".to_owned(), value.to_owned())]).inc_by(3);
            let mut theirs = prometheus_client::registry::Registry::default();
            theirs.register("tulle_judged", "Judged", family);
            let mut expected = String::new();
            prometheus_client::encoding::text::encode(&mut expected, &theirs).unwrap();
            let accepts = |name: &str| name.starts_with("tulle_judged");
            let selection = Selection { accepts: Some(&accepts), used_only: false };
            assert_eq!(prometheus(&registry, Format::OpenMetrics, &selection), expected);
        }
    }

    #[test]
    fn accept_decides() {
        let prometheus_2 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                            text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_eq!(Format::negotiate(Some(prometheus_2)), Format::OpenMetrics);
        assert_eq!(Format::negotiate(Some("text/plain, application/openmetrics-text;q=0.5")), Format::Prometheus);
        assert_eq!(Format::negotiate(Some("application/json")), Format::Prometheus);
        assert_eq!(Format::negotiate(None), Format::Prometheus);
    }

    #[test]
    fn envoys_text_and_json() {
        let registry = Registry::new(1, Limits::default());
        let web = registry.cluster("web", 0);
        web.upstream_rq_total.add(4);
        web.upstream_rq_time.observe_duration(Duration::from_millis(3));
        let accepts = |name: &str| name.starts_with("cluster.web.upstream_rq_t") || name.contains("connect_ms");
        let selection = Selection { accepts: Some(&accepts), used_only: false };
        insta::assert_snapshot!(envoy_text(&registry, &selection), @r"
        cluster.web.upstream_rq_timeout: 0
        cluster.web.upstream_rq_total: 4
        cluster.web.upstream_rq_tx_reset: 0
        cluster.web.upstream_cx_connect_ms: No recorded values
        cluster.web.upstream_rq_time: P0(nan,1) P25(nan,2) P50(nan,3) P75(nan,4) P90(nan,4.6) P95(nan,4.8) P99(nan,4.96) P99.5(nan,4.98) P99.9(nan,5) P100(nan,5)
        ");
        let json = envoy_json(&registry, &Selection { accepts: Some(&accepts), used_only: true });
        assert_eq!(json["stats"][0], json!({"name": "cluster.web.upstream_rq_total", "value": 4}));
        assert_eq!(json["stats"][1]["histograms"]["supported_quantiles"][7], json!(99.5));
    }
}
