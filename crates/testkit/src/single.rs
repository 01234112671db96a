//! A world of one proxy that runs a given bootstrap.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::process::Child;
use tokio::task::JoinHandle;

use crate::ads::Server;
use crate::client::{Ask, Http1};
use crate::issue::Authority;
use crate::names;
use crate::recorder::{Behaviour, Log, Recorder, Spoken};
use crate::world::{ProxyProgram, tail};
use crate::xds::{self, Table};

/// One proxy and the recorders of a table. The process ends with it.
#[derive(Debug)]
pub struct Single {
    directory: tempfile::TempDir,
    log: Arc<Log>,
    _recorders: Vec<Recorder>,
    tasks: Vec<JoinHandle<()>>,
    server: Option<Server>,
    _elsewhere: Option<Child>,
    child: Child,
}

impl Drop for Single {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Single {
    /// The proxy's admin address.
    pub const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15000);

    /// Starts recorders and the proxy, and waits until it is ready.
    ///
    /// # Errors
    /// When the configuration is refused, or something does not come up.
    pub async fn start(table: &Table, id: &str, program: &ProxyProgram) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let authority = Authority::new("Tulle scenarios")?;
        for name in ["one", "two"] {
            let spiffe = format!("spiffe://cluster.local/ns/shop/sa/{name}");
            authority.write(&directory.path().join("certs").join(name), &spiffe)?;
        }
        let named = directory.path().join("certs/named");
        authority.write_named(&named, "spiffe://cluster.local/ns/shop/sa/named", "named", "named.test")?;
        authority.write_revoked(&directory.path().join("certs/revoked"), "spiffe://cluster.local/ns/shop/sa/one")?;
        let stranger = Authority::new("Somebody else")?;
        stranger.write(&directory.path().join("certs/stranger"), "spiffe://else.where/ns/shop/sa/one")?;
        for (name, content) in table.files(id, directory.path()) {
            std::fs::write(directory.path().join(name), content)?;
        }
        let log = Arc::<Log>::default();
        let recorders = recorders(table, &log).await?;
        let tasks = tasks(table, id).await?;
        let at = directory.path().join("ads.sock");
        let (mut bootstrap, mut served) = (table.envoy(id, directory.path())?, table.served(id, directory.path()));
        if matches!(program, ProxyProgram::Envoy(_)) {
            xds::without_istio(&mut bootstrap);
            served.as_mut().into_iter().for_each(xds::without_istio);
        }
        let server = served.map(|served| Server::start(&at, &served.to_string())).transpose()?;
        let mut bootstrap = bootstrap.to_string();
        let elsewhere = if bootstrap.contains("$net") { Some(elsewhere().await?) } else { None };
        if let Some(number) = elsewhere.as_ref().and_then(Child::id) {
            bootstrap = bootstrap.replace("$net", &format!("/proc/{number}/ns/net"));
        }
        let environment = table.bootstraps.get(id).map(|own| own.environment.clone()).unwrap_or_default();
        let child = launch(directory.path(), &bootstrap, &environment, program)?;
        let mut single = Self { directory, log, _recorders: recorders, tasks, server, _elsewhere: elsewhere, child };
        single.await_ready().await?;
        single.log.clear();
        Ok(single)
    }

    /// What the recorders saw.
    pub fn log(&self) -> &Arc<Log> {
        &self.log
    }

    /// A file in the proxy's working directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Lets the server give other resources, and waits until the proxy has answered.
    ///
    /// # Errors
    /// There is no server, or no answer.
    pub async fn change(&self, gives: &[serde_json::Value], takes: &[String]) -> Result<()> {
        let server = self.server.as_ref().context("a server that gives resources (`ads`)")?;
        server.change(&xds::response(gives, self.directory.path()).to_string(), takes).await
    }

    /// The last lines that the proxy wrote, and what it refused.
    pub fn said(&self) -> String {
        let refusals = self.server.as_ref().map(Server::refusals).unwrap_or_default();
        let refusals = refusals.iter().map(|refusal| format!("\nrefused {refusal}"));
        tail(&std::fs::read(self.file("proxy.log")).unwrap_or_default()) + &refusals.collect::<String>()
    }

    async fn await_ready(&mut self) -> Result<()> {
        let ask = Ask {
            method: "GET".to_owned(),
            path: "/ready".to_owned(),
            authority: "127.0.0.1:15000".to_owned(),
            headers: Vec::new(),
            body: Vec::new(),
        };
        let patience = Instant::now() + Duration::from_secs(20);
        loop {
            if let Ok(Some(reply)) = Http1::new(Self::ADMIN).send(&ask).await
                && reply.status == 200
            {
                return Ok(());
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                bail!("the proxy ended ({status}): {}", self.said());
            }
            if Instant::now() > patience {
                bail!("the proxy was not ready within 20 s: {}", self.said());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Ends the proxy and waits until its addresses are free.
    pub async fn end(mut self) {
        let _ = self.child.kill().await;
    }
}

async fn recorders(table: &Table, log: &Arc<Log>) -> Result<Vec<Recorder>> {
    let mut recorders = Vec::new();
    for (name, wanted) in table.recorders.iter().filter(|(_, wanted)| wanted.records()) {
        let spoken = if wanted.tcp { Spoken::Tcp } else { Spoken::Http };
        let behaviour = Behaviour {
            always: wanted.always,
            pattern: wanted.pattern.clone(),
            delay: Duration::from_millis(wanted.delay_ms),
            checked: wanted.checked.clone(),
        };
        let start = || Recorder::start(name, wanted.at, spoken, behaviour.clone(), log.clone());
        recorders.push(again(start).await?);
    }
    Ok(recorders)
}

/// Those whom the proxy asks: oracles, and the name server.
async fn tasks(table: &Table, id: &str) -> Result<Vec<JoinHandle<()>>> {
    let mut tasks = Vec::new();
    let oracles = table.recorders.values().filter_map(|recorded| Some((recorded.oracle?, recorded.at)));
    for (oracle, at) in oracles {
        tasks.push(again(|| oracle.start(at)).await?);
    }
    for (at, redirection) in table.recorders.values().filter_map(|recorded| Some((recorded.at, recorded.redirected?))) {
        tasks.push(again(|| redirection.start(at)).await?);
    }
    let names = table.bootstraps.get(id).map(|own| &own.names).filter(|names| !names.is_empty());
    if let Some(names) = names {
        tasks.push(again(|| names::serve(names.clone())).await?);
    }
    Ok(tasks)
}

/// The one that stood at an address before may not be gone yet.
async fn again<T, F: Future<Output = Result<T>>>(mut start: impl FnMut() -> F) -> Result<T> {
    let patience = Instant::now() + Duration::from_secs(2);
    loop {
        match start().await {
            Err(_) if Instant::now() < patience => tokio::time::sleep(Duration::from_millis(5)).await,
            result => return result,
        }
    }
}

/// A process that only holds another network namespace.
async fn elsewhere() -> Result<Child> {
    let mut command = tokio::process::Command::new("unshare");
    command.args(["--net", "sleep", "600"]).stdin(Stdio::null()).kill_on_drop(true);
    let child = command.spawn().context("`unshare` (package util-linux)")?;
    let number = child.id().context("a process that runs")?;
    let own = std::fs::read_link("/proc/self/ns/net")?;
    let patience = Instant::now() + Duration::from_secs(5);
    while std::fs::read_link(format!("/proc/{number}/ns/net"))? == own {
        if Instant::now() > patience {
            bail!("`unshare --net` made no other network namespace");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(child)
}

fn launch(
    directory: &Path,
    bootstrap: &str,
    environment: &BTreeMap<String, String>,
    program: &ProxyProgram,
) -> Result<Child> {
    let file = directory.join("bootstrap.json");
    std::fs::write(&file, bootstrap)?;
    let log = std::fs::File::create(directory.join("proxy.log"))?;
    let mut command = program.command();
    if matches!(program, ProxyProgram::Envoy(_)) {
        command.args(["--file-flush-interval-msec", "50"]);
    }
    for (name, value) in environment {
        match value.strip_prefix('<') {
            Some(file) => command.env(name, std::fs::read_to_string(directory.join(file))?),
            None => command.env(name, value),
        };
    }
    command.arg("-c").arg(&file).args(["--concurrency", "1"]).current_dir(directory);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
    command.spawn().context("start the proxy")
}
