//! The rows of `tulle stat`: what the proxies reported, by workload.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use control::api::Workload;
use serde::Serialize;
use telemetry::edges::{EdgeReport, EdgeTotals, Report};
use telemetry::istio::{Reporter, Security};

use super::mesh::Known;

/// What a proxy answered.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The proxy.
    pub(crate) known: Known,
    /// Its report, or why there is none.
    pub(crate) report: Result<Report, String>,
}

/// The numbers of the mesh. Its JSON form is `-o json`.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Stat {
    /// Version of this form.
    pub(crate) version: u32,
    /// Over how many seconds the numbers run, at most.
    pub(crate) window_seconds: f64,
    /// A row for each service.
    pub(crate) rows: Vec<Row>,
    /// Traffic into the mesh without mTLS.
    pub(crate) plaintext: Vec<Plaintext>,
    /// Proxies that answered.
    pub(crate) proxies: usize,
    /// Their memory together: proportional set size.
    pub(crate) memory_bytes: u64,
    /// Admin addresses that did not answer, and why.
    pub(crate) unreachable: Vec<(String, String)>,
}

/// The numbers of one service.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Row {
    namespace: String,
    name: String,
    /// Instances with a proxy, and all.
    meshed: usize,
    instances: usize,
    /// Share of requests that its own proxies saw succeed.
    success: Option<f64>,
    /// Share of requests that succeeded as its callers see it, after retries.
    effective: Option<f64>,
    requests_per_second: f64,
    p50_ms: Option<f64>,
    p95_ms: Option<f64>,
    p99_ms: Option<f64>,
    /// Connections open now, HTTP and raw TCP.
    connections: u64,
    /// Share of requests and connections that came over mutual TLS.
    mtls: Option<f64>,
    denied: u64,
    denied_per_second: f64,
    /// Endpoints held back by outlier detection, as the caller that holds back most sees it.
    ejected: u64,
    /// The configuration in force and whether it is the wanted one.
    config: String,
}

/// A caller that came without mTLS.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Plaintext {
    /// The declared workload with that address; else the address; else `unknown`.
    pub(crate) source: String,
    /// Whom it called.
    pub(crate) destination: String,
    namespace: String,
    requests_per_second: f64,
    connections: u64,
}

type Key = (String, String);

/// A row while its numbers come in.
#[derive(Default)]
struct Sums {
    meshed: usize,
    missing: usize,
    inbound: EdgeTotals,
    secure: u64,
    all: u64,
    effective: EdgeTotals,
    connections: u64,
    ejected: u64,
    window: f64,
    configs: BTreeSet<String>,
}

impl Stat {
    /// Puts the answers together.
    pub(crate) fn of(answers: &[Answer], workloads: &[Workload]) -> Self {
        let mut stat = Self { version: 1, ..Self::default() };
        let mut sums: BTreeMap<Key, Sums> = BTreeMap::new();
        let mut effective: BTreeMap<Key, EdgeTotals> = BTreeMap::new();
        let mut ejected: BTreeMap<Key, u64> = BTreeMap::new();
        let mut pids = BTreeSet::new();
        for answer in answers {
            let report = match &answer.report {
                Ok(report) => report,
                Err(why) => {
                    stat.unreachable.push((answer.known.admin.clone(), why.clone()));
                    continue;
                }
            };
            stat.proxies += 1;
            stat.window_seconds = stat.window_seconds.max(report.window_seconds);
            if pids.insert(report.proxy.pid) {
                stat.memory_bytes += report.proxy.pss_bytes;
            }
            let row = sums.entry(own_key(report)).or_default();
            row.meshed += 1;
            row.connections += report.proxy.connections;
            row.window = row.window.max(report.window_seconds);
            row.configs.insert(config(&answer.known, report));
            for edge in &report.edges {
                take(edge, row, &mut effective);
                if let Some(plaintext) = plaintext(edge, report, workloads) {
                    stat.add_plaintext(plaintext);
                }
            }
            for (key, count) in ejected_of(report) {
                let most = ejected.entry(key).or_default();
                *most = count.max(*most);
            }
        }
        for (key, count) in without_proxy(answers, workloads, &sums) {
            sums.entry(key).or_default().missing = count;
        }
        for (key, row) in &mut sums {
            row.effective = effective.remove(key).unwrap_or_default();
            row.ejected = ejected.remove(key).unwrap_or_default();
        }
        stat.rows = sums.into_iter().map(|(key, sums)| sums.row(key)).collect();
        stat.plaintext.sort_by(|a, b| (&a.source, &a.destination).cmp(&(&b.source, &b.destination)));
        stat
    }

    /// Edges of the same two ends are one.
    fn add_plaintext(&mut self, one: Plaintext) {
        let same = |held: &&mut Plaintext| {
            (&held.source, &held.destination, &held.namespace) == (&one.source, &one.destination, &one.namespace)
        };
        match self.plaintext.iter_mut().find(same) {
            Some(held) => {
                held.requests_per_second += one.requests_per_second;
                held.connections += one.connections;
            }
            None => self.plaintext.push(one),
        }
    }

    /// Only the rows of a namespace, or with a name.
    pub(crate) fn only(mut self, namespace: Option<&str>, name: Option<&str>) -> Self {
        let fits = |of: &str, wanted: Option<&str>| wanted.is_none_or(|wanted| wanted == of);
        self.rows.retain(|row| fits(&row.namespace, namespace) && fits(&row.name, name));
        self.plaintext.retain(|edge| fits(&edge.namespace, namespace) && fits(&edge.destination, name));
        self
    }

    /// As a table, with the plaintext edges and the memory below it.
    pub(crate) fn table(&self, headings: bool, wide: bool) -> String {
        let namespaces: BTreeSet<&str> = self.rows.iter().map(|row| row.namespace.as_str()).collect();
        let named = wide || namespaces.len() > 1;
        let mut lines: Vec<Vec<String>> = Vec::new();
        if headings {
            let mut heads = vec!["NAME", "MESHED", "SUCCESS", "EFFECTIVE", "RPS", "P50", "P95", "P99", "TCP"];
            heads.extend(["mTLS", "DENIED", "EJECTED", "CONFIG"]);
            if named {
                heads.insert(0, "NAMESPACE");
            }
            lines.push(heads.into_iter().map(str::to_owned).collect());
        }
        lines.extend(self.rows.iter().map(|row| row.cells(named)));
        let mut text = aligned(&lines, if named { 2 } else { 1 });
        if !self.plaintext.is_empty() {
            text.push_str("\nplaintext (no mTLS):\n");
            for edge in &self.plaintext {
                let rate = match edge.connections {
                    0 => format!("{:.1} rps", edge.requests_per_second),
                    1 => "1 TCP connection".to_owned(),
                    connections => format!("{connections} TCP connections"),
                };
                text.push_str(&format!("  {} → {}  {rate}\n", edge.source, edge.destination));
            }
        }
        if self.memory_bytes > 0 {
            let mebibytes = self.memory_bytes as f64 / f64::from(1 << 20);
            let plural = if self.proxies == 1 { "proxy" } else { "proxies" };
            text.push_str(&format!("\n{} {plural}, {mebibytes:.1} MiB of memory (PSS)\n", self.proxies));
        }
        text
    }
}

impl Sums {
    fn row(self, (namespace, name): Key) -> Row {
        let share = |part: u64, all: u64| (all > 0).then(|| part as f64 / all as f64);
        let good = |totals: &EdgeTotals| share(totals.requests.saturating_sub(totals.failures), totals.requests);
        let per_second = |count: u64| if self.window > 0.0 { count as f64 / self.window } else { 0.0 };
        let mut config: Vec<String> = self.configs.into_iter().collect();
        config.retain(|config| !config.is_empty());
        Row {
            namespace,
            name,
            meshed: self.meshed,
            instances: self.meshed + self.missing,
            success: good(&self.inbound),
            effective: good(&self.effective),
            requests_per_second: per_second(self.inbound.requests),
            p50_ms: self.inbound.quantile_ms(0.5),
            p95_ms: self.inbound.quantile_ms(0.95),
            p99_ms: self.inbound.quantile_ms(0.99),
            connections: self.connections + self.inbound.open,
            mtls: share(self.secure, self.all),
            denied: self.inbound.denied,
            denied_per_second: per_second(self.inbound.denied),
            ejected: self.ejected,
            config: config.join(", "),
        }
    }
}

impl Row {
    fn cells(&self, namespace: bool) -> Vec<String> {
        let percent = |share: Option<f64>, places: usize| {
            share.map_or_else(|| "-".to_owned(), |share| format!("{:.places$}%", share * 100.0))
        };
        let mut cells = vec![
            self.name.clone(),
            format!("{}/{}", self.meshed, self.instances),
            percent(self.success, 2),
            percent(self.effective, 2),
            format!("{:.1}", self.requests_per_second),
            milliseconds(self.p50_ms),
            milliseconds(self.p95_ms),
            milliseconds(self.p99_ms),
            self.connections.to_string(),
            percent(self.mtls, 0),
            denials(self.denied, self.denied_per_second),
            self.ejected.to_string(),
            if self.config.is_empty() { "-".to_owned() } else { self.config.clone() },
        ];
        if namespace {
            cells.insert(0, self.namespace.clone());
        }
        cells
    }
}

fn own_key(report: &Report) -> Key {
    let proxy = &report.proxy;
    let name = [&proxy.service, &proxy.workload, &proxy.name, &proxy.node].into_iter().find(|name| !name.is_empty());
    (proxy.namespace.clone(), name.cloned().unwrap_or_default())
}

/// Adds an edge to its row, or to what callers saw of another one.
fn take(edge: &EdgeReport, row: &mut Sums, effective: &mut BTreeMap<Key, EdgeTotals>) {
    let totals = &edge.totals;
    match edge.edge.reporter {
        Reporter::Destination => {
            row.inbound.add(totals);
            let count = totals.requests + totals.opened;
            row.all += count;
            if edge.edge.security == Security::MutualTls {
                row.secure += count;
            }
        }
        Reporter::Source => {
            let (destination, service) = (&edge.edge.destination, &edge.edge.service);
            let key = if destination.canonical_service.is_empty() {
                (service.namespace.clone(), service.name.clone())
            } else {
                (destination.namespace.clone(), destination.canonical_service.clone())
            };
            effective.entry(key).or_default().add(totals);
        }
    }
}

/// The configuration in force: as the control plane counts it, else as the proxy names it.
fn config(known: &Known, report: &Report) -> String {
    let away = if report.proxy.connected == Some(false) { " (control plane away)" } else { "" };
    let Some(proxy) = &known.proxy else {
        let version: String = report.proxy.config_version.chars().take(12).collect();
        let refused = if report.proxy.config_rejects > 0 { " ✗" } else { "" };
        return format!("{version}{refused}{away}");
    };
    let held = proxy.acknowledged;
    match proxy.refused.len() {
        _ if held == 0 => format!("none yet{away}"),
        0 if proxy.is_synced() => format!("v{held} ✓{away}"),
        0 => format!("v{held} of v{}{away}", proxy.wanted),
        count => format!("v{held} ✗ {count} refused{away}"),
    }
}

fn plaintext(edge: &EdgeReport, report: &Report, workloads: &[Workload]) -> Option<Plaintext> {
    let plain = edge.edge.reporter == Reporter::Destination && edge.edge.security == Security::None;
    if !plain || edge.totals.requests + edge.totals.opened == 0 {
        return None;
    }
    let (namespace, destination) = own_key(report);
    let seconds = report.window_seconds.max(f64::EPSILON);
    Some(Plaintext {
        source: named(edge.edge.source_ip, workloads),
        destination,
        namespace,
        requests_per_second: edge.totals.requests as f64 / seconds,
        connections: edge.totals.opened,
    })
}

/// The declared workload that has the address.
fn named(address: Option<IpAddr>, workloads: &[Workload]) -> String {
    let Some(address) = address else { return "unknown".to_owned() };
    let text = address.to_string();
    let found = workloads.iter().find(|workload| workload.addresses.contains(&text));
    found.map_or(text, |workload| short(&workload.workload).to_owned())
}

/// `web-1` of `web-1.shop`.
fn short(workload: &str) -> &str {
    workload.rsplit_once('.').map_or(workload, |(name, _)| name)
}

/// Ejected endpoints by the service that has them.
fn ejected_of(report: &Report) -> BTreeMap<Key, u64> {
    let mut ejected = BTreeMap::new();
    for one in &report.ejected {
        let Some(host) = one.cluster.rsplit('|').next().filter(|host| one.cluster != *host) else { continue };
        let mut labels = host.split('.');
        let (name, namespace) = (labels.next().unwrap_or_default(), labels.next().unwrap_or_default());
        *ejected.entry((namespace.to_owned(), name.to_owned())).or_default() += one.endpoints;
    }
    ejected
}

/// Declared workloads of which no proxy answered, counted by the row that they belong to.
fn without_proxy(answers: &[Answer], workloads: &[Workload], rows: &BTreeMap<Key, Sums>) -> BTreeMap<Key, usize> {
    let mut answered = BTreeSet::new();
    for answer in answers.iter().filter(|answer| answer.report.is_ok()) {
        answered.extend(answer.known.proxy.as_ref().map(|proxy| proxy.workload.as_str()));
    }
    let mut missing: BTreeMap<Key, usize> = BTreeMap::new();
    for workload in workloads.iter().filter(|workload| !answered.contains(workload.workload.as_str())) {
        let (name, namespace) = workload.workload.rsplit_once('.').unwrap_or((&workload.workload, ""));
        // `web-2` is an instance of `web` when there is a row of that name.
        let stem = name.rsplit_once('-').filter(|(_, tail)| tail.chars().all(|c| c.is_ascii_digit()));
        let of = stem.map(|(stem, _)| (namespace.to_owned(), stem.to_owned())).filter(|key| rows.contains_key(key));
        *missing.entry(of.unwrap_or_else(|| (namespace.to_owned(), name.to_owned()))).or_default() += 1;
    }
    missing
}

fn milliseconds(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(value) if value < 1.0 => format!("{value:.1}ms"),
        Some(value) if value < 1_000.0 => format!("{value:.0}ms"),
        Some(value) => format!("{:.1}s", value / 1_000.0),
    }
}

fn denials(count: u64, per_second: f64) -> String {
    if per_second >= 0.05 { format!("{per_second:.1}rps") } else { count.to_string() }
}

/// Columns two spaces apart: the first `left` and the last to the left, the others to the right.
fn aligned(lines: &[Vec<String>], left: usize) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for line in lines {
        let mut out = String::new();
        for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
            let space = " ".repeat(width.saturating_sub(cell.chars().count()));
            if column > 0 {
                out.push_str("  ");
            }
            if column < left || column + 1 == columns {
                out.push_str(cell);
                out.push_str(&space);
            } else {
                out.push_str(&space);
                out.push_str(cell);
            }
        }
        text.push_str(out.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use control::api::Proxy;
    use telemetry::edges::{Ejected, ProxyFacts};
    use telemetry::istio::{Edge, Party, ServiceName};

    use super::*;

    fn party(name: &str) -> Arc<Party> {
        let text = |text: &str| text.to_owned();
        Arc::new(Party {
            workload: text(name),
            canonical_service: text(name),
            namespace: text("shop"),
            ..Party::default()
        })
    }

    fn edge(reporter: Reporter, from: &str, to: &str, security: Security, totals: EdgeTotals) -> EdgeReport {
        let service = ServiceName { name: to.to_owned(), namespace: "shop".to_owned(), host: String::new() };
        let source = if from.is_empty() { Arc::default() } else { party(from) };
        let source_ip = from.is_empty().then(|| IpAddr::from([10, 0, 0, 9]));
        let edge = Edge { reporter, source, destination: party(to), service: Arc::new(service), security, source_ip };
        EdgeReport { edge, totals }
    }

    fn answer(name: &str, service: &str, edges: Vec<EdgeReport>, ejected: Vec<Ejected>) -> Answer {
        let proxy = ProxyFacts {
            name: name.to_owned(),
            service: service.to_owned(),
            namespace: "shop".to_owned(),
            pid: name.bytes().map(u32::from).sum(),
            pss_bytes: 9 << 20,
            connections: 3,
            ..ProxyFacts::default()
        };
        let known = Known {
            admin: format!("unix:/run/{name}.sock"),
            proxy: Some(Proxy { workload: format!("{name}.shop"), wanted: 41, acknowledged: 41, ..Proxy::default() }),
        };
        Answer { known, report: Ok(Report { version: 1, window_seconds: 60.0, proxy, edges, ejected }) }
    }

    fn totals(requests: u64, failures: u64, denied: u64) -> EdgeTotals {
        EdgeTotals { requests, failures, denied, latency: vec![(20, 90), (60, 10)], ..EdgeTotals::default() }
    }

    fn shop() -> Stat {
        use Reporter::{Destination, Source};
        let catalog = |name, requests| {
            let mtls = edge(Destination, "web", "catalog", Security::MutualTls, totals(requests, 30, 0));
            let plain = edge(Destination, "", "catalog", Security::None, totals(60, 0, 0));
            answer(name, "catalog", if name == "catalog-1" { vec![mtls, plain] } else { vec![mtls] }, Vec::new())
        };
        let web = vec![edge(Source, "web", "catalog", Security::Unknown, totals(2_000, 2, 0))];
        let cluster = "outbound|8080|v2|catalog.shop.svc.cluster.local".to_owned();
        let denied = edge(Destination, "intruder", "payments", Security::MutualTls, totals(30, 0, 30));
        let ledger = EdgeTotals { opened: 4, closed: 1, open: 3, ..EdgeTotals::default() };
        let answers = [
            answer("web-1", "web", web, vec![Ejected { cluster, endpoints: 1 }]),
            catalog("catalog-1", 1_000),
            catalog("catalog-2", 1_000),
            answer("payments-1", "payments", vec![denied], Vec::new()),
            answer(
                "ledger-1",
                "ledger",
                vec![edge(Destination, "payments", "ledger", Security::MutualTls, ledger)],
                vec![],
            ),
            Answer {
                known: Known { admin: "unix:/run/gone.sock".to_owned(), proxy: None },
                report: Err("Connection refused".to_owned()),
            },
        ];
        let workload = |name: &str, address: &str| Workload {
            workload: format!("{name}.shop"),
            addresses: vec![address.to_owned()],
            ..Workload::default()
        };
        Stat::of(
            &answers,
            &[
                workload("web-1", "10.0.0.1"),
                workload("web-2", "10.0.0.2"),
                workload("catalog-1", "10.0.0.3"),
                workload("legacy", "10.0.0.9"),
            ],
        )
    }

    #[test]
    fn the_whole_table() {
        insta::assert_snapshot!(shop().table(true, false));
    }

    #[test]
    fn the_whole_json() {
        insta::assert_snapshot!(serde_json::to_string_pretty(&shop().only(Some("shop"), Some("catalog"))).unwrap());
    }

    #[test]
    fn nothing_is_nothing() {
        let stat = Stat::of(&[], &[]).only(Some("x"), None);
        assert_eq!(stat.table(false, false), "");
        assert!(stat.table(true, false).starts_with("NAME  MESHED  SUCCESS"));
    }
}
