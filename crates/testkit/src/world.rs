//! A mesh of real proxies around recording backends, in a network namespace of its own.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::process::{Child, Command};

use crate::client::{Ask, Http1};
use crate::issue::Authority;
use crate::recorder::{Behaviour, Log, Recorder, Spoken};
use crate::topology::{Placed, Topology};

/// Which program runs as the proxy.
#[derive(Debug, Clone)]
pub enum ProxyProgram {
    /// `tulle proxy`.
    Tulle(PathBuf),
    /// The real Envoy.
    Envoy(PathBuf),
}

impl ProxyProgram {
    /// A command that begins to run it.
    pub(crate) fn command(&self) -> Command {
        match self {
            Self::Tulle(program) => {
                let mut command = Command::new(program);
                command.arg("proxy");
                command
            }
            Self::Envoy(program) => {
                let mut command = Command::new(program);
                command.args(["--use-dynamic-base-id", "--log-level", "warning"]);
                command
            }
        }
    }
}

/// Proxies and recorders. Processes end with it.
#[derive(Debug)]
pub struct World {
    program: ProxyProgram,
    tulle: PathBuf,
    directory: tempfile::TempDir,
    authority: Authority,
    log: Arc<Log>,
    addresses: Vec<IpAddr>,
    proxies: BTreeMap<String, Proxy>,
    recorders: BTreeMap<SocketAddr, (String, Recorder)>,
    oracles: BTreeMap<SocketAddr, tokio::task::JoinHandle<()>>,
}

#[derive(Debug)]
struct Proxy {
    bootstrap: String,
    child: Child,
}

impl World {
    /// An empty world; `tulle` translates, `program` proxies.
    ///
    /// # Errors
    /// When no directory or root certificate can be made.
    pub fn new(tulle: PathBuf, program: ProxyProgram) -> Result<Self> {
        Ok(Self {
            program,
            tulle,
            directory: tempfile::tempdir()?,
            authority: Authority::new("Tulle test mesh")?,
            log: Arc::default(),
            addresses: Vec::new(),
            proxies: BTreeMap::new(),
            recorders: BTreeMap::new(),
            oracles: BTreeMap::new(),
        })
    }

    /// What the recorders saw.
    pub fn log(&self) -> &Arc<Log> {
        &self.log
    }

    /// Makes the world look like `topology`, with proxies for the named workloads (`NAME.NAMESPACE`). Proxies whose
    /// configuration stays the same go on running.
    ///
    /// # Errors
    /// When the configuration is refused, or a process or listener does not come up.
    pub async fn arrange(&mut self, topology: &Topology, wanted: &[String]) -> Result<()> {
        self.add_addresses(topology).await?;
        let config = self.directory.path().join("config");
        std::fs::create_dir_all(&config)?;
        let mut file = std::fs::File::create(config.join("mesh.yaml"))?;
        for document in topology.documents() {
            writeln!(file, "---\n{document}")?;
        }
        drop(file);
        let mut bootstraps = BTreeMap::new();
        let proxied = |w: &&Placed| wanted.contains(&w.id()) && w.up() && w.meshed;
        let running: Vec<&Placed> = topology.workloads.iter().filter(proxied).collect();
        for workload in &running {
            let text = match topology.bootstrap() {
                Some(bootstrap) => bootstrap.to_string(),
                None => self.bootstrap(workload, &config).await?,
            };
            bootstraps.insert(workload.id(), text);
        }
        // A program without a proxy stands where its proxy stood before.
        self.stop_changed(&bootstraps).await;
        self.arrange_recorders(topology, wanted).await?;
        let mut starting = Vec::new();
        for workload in running {
            let id = workload.id();
            if let Some(bootstrap) = bootstraps.remove(&id).filter(|_| !self.proxies.contains_key(&id)) {
                self.start_proxy(&id, bootstrap)?;
                starting.push((id, admin(workload)));
            }
        }
        for (id, admin) in starting {
            self.await_ready(&id, admin).await?;
        }
        self.log.clear();
        Ok(())
    }

    /// Ends all proxies: the next arrangement begins with fresh ones.
    pub async fn end_proxies(&mut self) {
        self.stop_changed(&BTreeMap::new()).await;
    }

    /// Makes the programs of these workloads answer well from now on, whatever they did before.
    ///
    /// # Errors
    /// When one of them cannot listen again.
    pub async fn heal(&mut self, topology: &Topology, names: &[String]) -> Result<()> {
        for workload in topology.workloads.iter().filter(|workload| names.contains(&workload.name)) {
            let mut well = workload.clone();
            well.endpoint = None;
            for (port, _, app) in &workload.ports {
                let recorder = match self.recorders.remove(app) {
                    Some((_, recorder)) => {
                        recorder.behave(Behaviour::default());
                        recorder
                    }
                    None => start_recorder(&well, port, *app, self.log.clone()).await?,
                };
                self.recorders.insert(*app, ("healed".to_owned(), recorder));
            }
        }
        Ok(())
    }

    /// Where the proxy of a workload is asked about itself.
    pub fn admin(workload: &Placed) -> SocketAddr {
        admin(workload)
    }

    async fn add_addresses(&mut self, topology: &Topology) -> Result<()> {
        for address in topology.addresses() {
            if !self.addresses.contains(&address) {
                let length = if address.is_ipv6() { 128 } else { 32 };
                let mut command = Command::new("ip");
                command.args(["address", "add", &format!("{address}/{length}"), "dev", "lo"]);
                if address.is_ipv6() {
                    command.arg("nodad");
                }
                let done = command.output().await.context("`ip` (Debian package iproute2)")?;
                if !done.status.success() {
                    bail!("ip address add {address}: {}", String::from_utf8_lossy(&done.stderr).trim());
                }
                self.addresses.push(address);
            }
        }
        Ok(())
    }

    async fn arrange_recorders(&mut self, topology: &Topology, wanted: &[String]) -> Result<()> {
        let mut keep = BTreeMap::new();
        for workload in topology.workloads.iter().filter(|w| wanted.contains(&w.id()) && w.up()) {
            for (port, _, app) in &workload.ports {
                if let Some(oracle) = workload.oracle {
                    // It answers all configurations alike, so it stays.
                    if let Entry::Vacant(place) = self.oracles.entry(*app) {
                        place.insert(oracle.start(*app).await?);
                    }
                    continue;
                }
                let identity = format!("{} {:?}", workload.name, workload.endpoint);
                let recorder = match self.recorders.remove(app) {
                    Some((same, recorder)) if same == identity => recorder,
                    other => {
                        drop(other);
                        tokio::task::yield_now().await;
                        start_recorder(workload, port, *app, self.log.clone()).await?
                    }
                };
                keep.insert(*app, (identity, recorder));
            }
        }
        self.recorders = keep;
        Ok(())
    }

    /// Ends every proxy that is not wanted or whose configuration changes, and waits until its addresses are free.
    async fn stop_changed(&mut self, bootstraps: &BTreeMap<String, String>) {
        let same = |id: &str, proxy: &Proxy| bootstraps.get(id).is_some_and(|wanted| *wanted == proxy.bootstrap);
        let all = std::mem::take(&mut self.proxies);
        for (id, mut proxy) in all {
            if same(&id, &proxy) {
                self.proxies.insert(id, proxy);
            } else {
                let _ = proxy.child.kill().await;
            }
        }
    }

    /// The configuration of a workload's proxy; makes its certificate when it has none.
    async fn bootstrap(&self, workload: &Placed, config: &Path) -> Result<String> {
        let certs = self.directory.path().join(format!("certs-{}-{}", workload.namespace, workload.service_account));
        if !certs.exists() {
            let spiffe = format!("spiffe://cluster.local/ns/{}/sa/{}", workload.namespace, workload.service_account);
            self.authority.write(&certs, &spiffe)?;
        }
        self.translate(workload, config, &certs).await
    }

    fn start_proxy(&mut self, id: &str, bootstrap: String) -> Result<()> {
        let file = self.directory.path().join(format!("{id}.yaml"));
        std::fs::write(&file, &bootstrap)?;
        let child = self.spawn(id, &file)?;
        self.proxies.insert(id.to_owned(), Proxy { bootstrap, child });
        Ok(())
    }

    async fn translate(&self, workload: &Placed, config: &Path, certs: &Path) -> Result<String> {
        let output = Command::new(&self.tulle)
            .args(["translate", "-o", "bootstrap", "--workload", &workload.id(), "--admin"])
            .arg(admin(workload).to_string())
            .arg("--certs")
            .arg(certs)
            .arg("-f")
            .arg(config)
            .output()
            .await
            .context("tulle translate")?;
        if !output.status.success() {
            bail!("translate for {} ({}): {}", workload.id(), output.status, tail(&output.stderr));
        }
        String::from_utf8(output.stdout).context("translate printed no text")
    }

    fn spawn(&self, id: &str, file: &Path) -> Result<Child> {
        let log = std::fs::File::create(self.directory.path().join(format!("{id}.log")))?;
        let mut command = self.program.command();
        command.arg("-c").arg(file).args(["--concurrency", "1"]);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        command.spawn().with_context(|| format!("start the proxy of {id}"))
    }

    async fn await_ready(&mut self, id: &str, admin: SocketAddr) -> Result<()> {
        let ask = Ask {
            method: "GET".to_owned(),
            path: "/ready".to_owned(),
            authority: admin.to_string(),
            headers: Vec::new(),
            body: Vec::new(),
        };
        let patience = Instant::now() + Duration::from_secs(20);
        loop {
            if let Ok(Some(reply)) = Http1::new(admin).send(&ask).await
                && reply.status == 200
            {
                return Ok(());
            }
            let ended = self.proxies.get_mut(id).and_then(|proxy| proxy.child.try_wait().ok().flatten());
            if ended.is_some() || Instant::now() > patience {
                let log = std::fs::read(self.directory.path().join(format!("{id}.log"))).unwrap_or_default();
                self.proxies.remove(id);
                match ended {
                    Some(status) => bail!("the proxy of {id} ended ({status}): {}", tail(&log)),
                    None => bail!("the proxy of {id} was not ready within 20 s: {}", tail(&log)),
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The last lines that a workload's proxy wrote.
    pub fn proxy_log(&self, id: &str) -> String {
        tail(&std::fs::read(self.directory.path().join(format!("{id}.log"))).unwrap_or_default())
    }
}

async fn start_recorder(workload: &Placed, port: &str, app: SocketAddr, log: Arc<Log>) -> Result<Recorder> {
    let endpoint = workload.endpoint.as_ref();
    let pattern = endpoint.and_then(|e| e.pattern.as_deref()).unwrap_or_default();
    // An endpoint that is not healthy fails whatever it is asked, until it is left alone.
    let sick = endpoint.is_some_and(|e| !e.healthy).then_some(503);
    let behaviour = Behaviour {
        always: endpoint.and_then(|e| e.always).or(sick),
        pattern: pattern.split(',').filter_map(|status| status.trim().parse().ok()).collect(),
        delay: Duration::from_millis(endpoint.map_or(0, |e| e.delay_ms)),
        checked: None,
    };
    let spoken = if port.starts_with("tcp") || port == "tls" { Spoken::Tcp } else { Spoken::Http };
    let patience = Instant::now() + Duration::from_secs(2);
    loop {
        match Recorder::start(&workload.name, app, spoken, behaviour.clone(), log.clone()).await {
            Ok(recorder) => return Ok(recorder),
            // The recorder that stood here before may not be gone yet.
            Err(_) if Instant::now() < patience => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(error) => return Err(error),
        }
    }
}

fn admin(workload: &Placed) -> SocketAddr {
    SocketAddr::from(([127, 80, 0, workload.number], 15000))
}

pub(crate) fn tail(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<_> = text.lines().rev().take(12).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n    ")
}
