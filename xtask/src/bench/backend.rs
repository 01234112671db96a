//! What stands behind every proxy: nginx in one process, beside the client.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{peers, pinned};
use crate::setup;

/// The body of small answers, in bytes.
const SMALL: usize = 1024;

/// A running backend; it ends when dropped.
#[derive(Debug)]
pub(crate) struct Backend {
    child: Child,
    /// Where it listens.
    pub(crate) port: u16,
    /// What it answers for every path but those under `/files/`.
    pub(crate) body: Arc<[u8]>,
    /// What it answers for `/files/large`: 1 MiB.
    pub(crate) large: Arc<[u8]>,
}

impl Backend {
    /// Starts it with its files in `work`.
    pub(crate) fn start(work: &Path) -> Result<Self> {
        let work = work.join("backend");
        std::fs::create_dir_all(&work)?;
        let large: Vec<u8> = (0..1 << 20).map(|n: u32| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
        std::fs::create_dir_all(work.join("files"))?;
        std::fs::write(work.join("files/large"), &large)?;
        let (port, body) = (peers::free_port()?, "x".repeat(SMALL));
        let text = std::fs::read_to_string("bench/backend.conf").context("bench/backend.conf")?;
        let text = text
            .replace("@PORT@", &port.to_string())
            .replace("@WORK@", &work.display().to_string())
            .replace("@LOG@", &work.join("log").display().to_string())
            .replace("@BODY@", &body);
        let file = work.join("backend.conf");
        std::fs::write(&file, text)?;
        let nginx = setup::locate("nginx").context("nginx is not there")?;
        let mut command = pinned::beside_client(&nginx);
        command.arg("-p").arg(&work).arg("-c").arg(&file).arg("-e").arg(work.join("log"));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let mut backend = Self { child, port, body: body.into_bytes().into(), large: large.into() };
        backend.listens(&work)?;
        Ok(backend)
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn listens(&mut self, work: &Path) -> Result<()> {
        let patience = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], self.port))).is_err() {
            if self.child.try_wait()?.is_some() || Instant::now() > patience {
                bail!("the backend does not listen: {}", std::fs::read_to_string(work.join("log")).unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
