//! A world of one proxy that runs a given bootstrap.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::process::Child;

use crate::client::{Ask, Http1};
use crate::issue::Authority;
use crate::recorder::{Behaviour, Log, Recorder, Spoken};
use crate::world::{ProxyProgram, tail};
use crate::xds::Table;

/// One proxy and the recorders of a table. The process ends with it.
#[derive(Debug)]
pub struct Single {
    directory: tempfile::TempDir,
    log: Arc<Log>,
    _recorders: Vec<Recorder>,
    child: Child,
}

impl Single {
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
        let stranger = Authority::new("Somebody else")?;
        stranger.write(&directory.path().join("certs/stranger"), "spiffe://else.where/ns/shop/sa/one")?;
        for (name, content) in table.files(id, directory.path()) {
            std::fs::write(directory.path().join(name), content)?;
        }
        let log = Arc::<Log>::default();
        let recorders = recorders(table, &log).await?;
        let child = launch(directory.path(), &table.envoy(id, directory.path())?, program)?;
        let mut single = Self { directory, log, _recorders: recorders, child };
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

    /// The last lines that the proxy wrote.
    pub fn said(&self) -> String {
        tail(&std::fs::read(self.file("proxy.log")).unwrap_or_default())
    }

    async fn await_ready(&mut self) -> Result<()> {
        let admin = ([127, 0, 0, 1], 15000).into();
        let ask = Ask {
            method: "GET".to_owned(),
            path: "/ready".to_owned(),
            authority: "127.0.0.1:15000".to_owned(),
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
    for (name, wanted) in table.recorders.iter().filter(|(_, wanted)| !wanted.down) {
        let spoken = if wanted.tcp { Spoken::Tcp } else { Spoken::Http };
        let behaviour = Behaviour {
            always: wanted.always,
            pattern: wanted.pattern.clone(),
            delay: Duration::from_millis(wanted.delay_ms),
        };
        let patience = Instant::now() + Duration::from_secs(2);
        loop {
            match Recorder::start(name, wanted.at, spoken, behaviour.clone(), log.clone()).await {
                Ok(recorder) => break recorders.push(recorder),
                // The one that stood here before may not be gone yet.
                Err(_) if Instant::now() < patience => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(error) => return Err(error),
            }
        }
    }
    Ok(recorders)
}

fn launch(directory: &Path, bootstrap: &serde_json::Value, program: &ProxyProgram) -> Result<Child> {
    let file = directory.join("bootstrap.json");
    std::fs::write(&file, bootstrap.to_string())?;
    let log = std::fs::File::create(directory.join("proxy.log"))?;
    let mut command = program.command();
    if matches!(program, ProxyProgram::Envoy(_)) {
        command.args(["--file-flush-interval-msec", "50"]);
    }
    command.arg("-c").arg(&file).args(["--concurrency", "1"]).current_dir(directory);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
    command.spawn().context("start the proxy")
}
