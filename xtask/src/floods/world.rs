//! The proxy under attack and the good client beside it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use testkit::issue::Authority;

use super::attackers::ticks;
use super::{backend, cores};

/// Where the proxy takes plaintext HTTP, and TLS.
pub(super) const HTTP: &str = "127.0.0.1:8101";
pub(super) const TLS: &str = "127.0.0.1:8102";
const ADMIN: &str = "127.0.0.1:15000";

/// Limits as an edge sets them; everything else is the proxy's own default.
const LIMITS: &str = "request_headers_timeout: 1s, request_timeout: 1s, stream_idle_timeout: 1s, \
    common_http_protocol_options: {idle_timeout: 60s}";

/// How long the good client waits for an answer before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running proxy.
pub(super) struct Proxy {
    child: Child,
    _directory: tempfile::TempDir,
}

impl Proxy {
    /// Starts it; `descriptors`: as many as it may have open.
    pub(super) async fn start(tulle: &Path, descriptors: Option<u64>) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let certs = directory.path().join("certs");
        Authority::new("Tulle floods")?.write(&certs, "spiffe://cluster.local/ns/shop/sa/web")?;
        let file = directory.path().join("bootstrap.yaml");
        std::fs::write(&file, bootstrap(&certs))?;
        let log = std::fs::File::create(directory.path().join("log"))?;
        let limit = descriptors.map(|most| format!("ulimit -n {most} && ")).unwrap_or_default();
        let core = cores::own().map(|core| format!("taskset -c {core} ")).unwrap_or_default();
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{limit}exec {core}\"$@\""), "sh"]).arg(tulle);
        command.arg("proxy").arg("-c").arg(&file).args(["--concurrency", "1", "--log", "warn"]);
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn().context("tulle proxy")?;
        let proxy = Self { child, _directory: directory };
        let patience = Instant::now() + Duration::from_secs(10);
        while ask(ADMIN, "/ready").is_none_or(|status| status != 200) {
            if Instant::now() > patience {
                bail!("the proxy is not ready within 10 s");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(proxy)
    }

    /// Resident bytes.
    pub(super) fn memory(&self) -> Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
    }

    /// CPU time so far; the system counts in hundredths of a second.
    pub(super) fn cpu(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        Ok(Duration::from_millis(ticks(&stat) * 10))
    }

    /// How it ended, if it did.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Ends it.
    pub(super) async fn end(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn bootstrap(certs: &Path) -> String {
    let (ip, port) = backend::AT.split_once(':').unwrap_or_default();
    let certs = certs.display();
    let manager = |name: &str| {
        format!(
            r#"{{name: http, typed_config: {{
            "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
            stat_prefix: {name}, {LIMITS},
            route_config: {{virtual_hosts: [{{name: all, domains: ["*"], routes: [{{match: {{prefix: /}}, route: {{cluster: web}}}}]}}]}},
            http_filters: [{{name: r, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}}}"#
        )
    };
    let (plain, secured) = (manager("plain"), manager("secured"));
    format!(
        r#"
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 15000}}}}}}
static_resources:
  listeners:
  - name: plain
    address: {{socket_address: {{address: 127.0.0.1, port_value: 8101}}}}
    filter_chains: [{{filters: [{plain}]}}]
  - name: secured
    address: {{socket_address: {{address: 127.0.0.1, port_value: 8102}}}}
    listener_filters_timeout: 1s
    listener_filters: [{{name: t, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}}}]
    filter_chains:
    - filters: [{secured}]
      transport_socket_connect_timeout: 1s
      transport_socket:
        name: tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          common_tls_context: {{alpn_protocols: [h2, http/1.1], tls_certificates: [{{certificate_chain: {{filename: {certs}/cert-chain.pem}}, private_key: {{filename: {certs}/key.pem}}}}]}}
  clusters:
  - {{name: web, connect_timeout: 1s, circuit_breakers: {{thresholds: [{{max_connections: 4000, max_pending_requests: 4000, max_requests: 4000}}]}}, load_assignment: {{cluster_name: web, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {ip}, port_value: {port}}}}}}}}}]}}]}}}}
"#
    )
}

/// One request on a connection of its own; the status.
pub(super) fn ask(at: &str, path: &str) -> Option<u16> {
    let stream = TcpStream::connect(at).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(3))).ok()?;
    Asking(BufReader::new(stream)).ask(path)
}

/// Whether the administration answers all the time.
pub(super) fn admin_answers(end: Instant) -> bool {
    while Instant::now() < end {
        if ask(ADMIN, "/ready") != Some(200) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    true
}

/// How long a new client waits until it is served.
pub(super) fn served_again() -> Duration {
    let begun = Instant::now();
    while ask(HTTP, "/") != Some(200) && begun.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(10));
    }
    begun.elapsed()
}

struct Asking(BufReader<TcpStream>);

impl Asking {
    fn ask(&mut self, path: &str) -> Option<u16> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        self.0.get_mut().write_all(request.as_bytes()).ok()?;
        let (mut status, mut length) = (None, 0);
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if status.is_none() {
                status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).ok()?;
        status
    }
}

/// A client that asks steadily on one kept connection.
pub(super) struct Good {
    seen: Arc<Mutex<(Vec<Duration>, usize)>>,
    stop: Arc<AtomicBool>,
}

/// What it felt.
#[derive(Default)]
pub(super) struct Felt {
    /// How long each answer took.
    times: Vec<Duration>,
    pub(super) failed: usize,
}

impl Felt {
    /// Answers.
    pub(super) fn served(&self) -> usize {
        self.times.len()
    }

    /// The time within which 99 of 100 answers came.
    pub(super) fn p99(&self) -> Duration {
        let mut times = self.times.clone();
        times.sort_unstable();
        times.get(times.len().saturating_sub(1) * 99 / 100).copied().unwrap_or_default()
    }

    /// This and what it felt another time.
    pub(super) fn add(&mut self, other: Self) {
        self.times.extend(other.times);
        self.failed += other.failed;
    }
}

impl Good {
    /// Starts asking; `patient`: a refused connection is tried again instead of counted.
    pub(super) fn start(at: &'static str, patient: bool) -> Self {
        let seen = Arc::<Mutex<(Vec<Duration>, usize)>>::default();
        let stop = Arc::<AtomicBool>::default();
        let (log, end) = (Arc::clone(&seen), Arc::clone(&stop));
        std::thread::spawn(move || {
            cores::goes_first();
            let mut open: Option<Asking> = None;
            while !end.load(Ordering::Relaxed) {
                let begun = Instant::now();
                if open.is_none() {
                    let made = TcpStream::connect(at).and_then(|stream| {
                        stream.set_nodelay(true)?;
                        stream.set_read_timeout(Some(PATIENCE))?;
                        Ok(stream)
                    });
                    open = made.ok().map(|stream| Asking(BufReader::new(stream)));
                }
                let status = open.as_mut().and_then(|asking| asking.ask("/"));
                let took = begun.elapsed();
                let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
                if status == Some(200) {
                    log.0.push(took);
                } else {
                    open = None;
                    log.1 += usize::from(!patient);
                }
                drop(log);
                std::thread::sleep(Duration::from_millis(3));
            }
        });
        Self { seen, stop }
    }

    /// Waits for an answer since the last time, but not for ever.
    pub(super) async fn is_served(&self) {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end && self.seen.lock().unwrap_or_else(PoisonError::into_inner).0.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// What it felt since the last time.
    pub(super) fn take(&self) -> Felt {
        let mut log = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (times, failed) = std::mem::take(&mut *log);
        Felt { times, failed }
    }

    /// Asks no more.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Drop for Good {
    fn drop(&mut self) {
        self.stop();
    }
}
