//! What a hop costs: CPU for each request, beside the real Envoy, and the memory of an idle proxy.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use testkit::client::{Ask, Http1};
use testkit::recorder::{Behaviour, Log, Recorder, Spoken};

use super::{mega, promise, pss};
use crate::setup;

/// Requests of one round.
const REQUESTS: usize = 20_000;
/// Connections of one round.
const LANES: usize = 32;

/// A proxy under measurement; it ends when dropped.
struct Subject {
    child: Child,
    port: u16,
}

impl Drop for Subject {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(super) async fn hop(tulle: &Path, rounds: usize, load: bool) -> Result<Vec<bool>> {
    let work = tempfile::tempdir()?;
    let backend = Recorder::start(
        "backend",
        SocketAddr::from(([127, 0, 0, 1], 0)),
        Spoken::Http,
        Behaviour::default(),
        Arc::new(Log::default()),
    )
    .await?;
    let mut ours = Command::new(tulle);
    ours.arg("proxy");
    let ours = start(ours, work.path(), "tulle", backend.address().port()).await?;
    let mut theirs = Command::new(setup::envoy()?);
    theirs.args(["--use-dynamic-base-id", "--log-level", "error"]);
    let theirs = start(theirs, work.path(), "envoy", backend.address().port()).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let idle = pss(ours.child.id())?;
    let mut held =
        vec![promise("one proxy, idle, PSS", format!("{:.1} MB (at most 14)", mega(idle)), idle <= 14 << 20)];
    if !load {
        return Ok(held);
    }
    let mut ratios = Vec::new();
    let mut cost = (0.0, 0.0);
    for round in 0..rounds {
        let (a, b) = if round % 2 == 0 {
            let a = measure(&ours).await?;
            (a, measure(&theirs).await?)
        } else {
            let b = measure(&theirs).await?;
            (measure(&ours).await?, b)
        };
        if round > 0 {
            ratios.push(a / b);
            cost = (cost.0 + a, cost.1 + b);
        }
    }
    ratios.sort_by(f64::total_cmp);
    let median = ratios.get(ratios.len() / 2).copied().unwrap_or(f64::NAN);
    let (low, high) = (ratios.first().copied().unwrap_or(0.0), ratios.last().copied().unwrap_or(0.0));
    #[allow(clippy::cast_precision_loss, reason = "a handful of rounds")]
    let counted = ratios.len().max(1) as f64;
    let text = format!(
        "{median:.2}x Envoy's CPU per request, rounds {low:.2} to {high:.2} (at most 0.45); {:.1} and {:.1} us",
        cost.0 / counted,
        cost.1 / counted
    );
    held.push(promise("HTTP/1 hop with RBAC, JSON log, retry policy", text, median <= 0.45));
    Ok(held)
}

async fn start(mut command: Command, work: &Path, name: &str, backend: u16) -> Result<Subject> {
    let (port, admin) = (free_port()?, free_port()?);
    let text = std::fs::read_to_string("bench/hop.yaml").context("bench/hop.yaml")?;
    let log = work.join(format!("{name}.access"));
    let text = text
        .replace("@PORT@", &port.to_string())
        .replace("@ADMIN@", &admin.to_string())
        .replace("@BACKEND@", &backend.to_string())
        .replace("@LOG@", &log.display().to_string());
    let file = work.join(format!("{name}.yaml"));
    std::fs::write(&file, text)?;
    let said = std::fs::File::create(work.join(format!("{name}.log")))?;
    command.arg("-c").arg(&file).args(["--concurrency", "1"]);
    let child = command.stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said).spawn().context(name.to_owned())?;
    let subject = Subject { child, port };
    let patience = Instant::now() + Duration::from_secs(20);
    while Http1::new(SocketAddr::from(([127, 0, 0, 1], port))).send(&ask()).await.ok().flatten().is_none() {
        if Instant::now() > patience {
            bail!("{name} does not serve: {}", std::fs::read_to_string(work.join(format!("{name}.log")))?);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(subject)
}

fn ask() -> Ask {
    Ask {
        method: "GET".to_owned(),
        path: "/items/42".to_owned(),
        authority: "shop.example".to_owned(),
        headers: vec![("user-agent".to_owned(), "promises".to_owned())],
        body: Vec::new(),
    }
}

/// CPU microseconds for each request of a round.
async fn measure(subject: &Subject) -> Result<f64> {
    let before = cpu(subject.child.id())?;
    let to = SocketAddr::from(([127, 0, 0, 1], subject.port));
    let lanes = (0..LANES).map(|_| {
        tokio::spawn(async move {
            let mut connection = Http1::new(to);
            for _ in 0..REQUESTS / LANES {
                match connection.send(&ask()).await {
                    Ok(Some(reply)) if reply.status == 200 => {}
                    other => bail!("a request failed: {other:?}"),
                }
            }
            Ok(())
        })
    });
    for lane in futures_util::future::join_all(lanes).await {
        lane??;
    }
    #[allow(clippy::cast_precision_loss, reason = "nanoseconds of one round")]
    let spent = (cpu(subject.child.id())? - before) as f64 / 1000.0;
    #[allow(clippy::cast_precision_loss, reason = "a constant")]
    Ok(spent / REQUESTS as f64)
}

/// Nanoseconds on a processor, of all threads.
fn cpu(pid: u32) -> Result<u64> {
    let mut total = 0;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
        total += text.split_whitespace().next().and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(total)
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
