//! gRPC calls over HTTP/2: `nghttpd` answers them, `h2load` makes a fixed number of them.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::load::Work;
use super::{peers, pinned};
use crate::setup;

/// The message of a call: a frame of 32 bytes.
const ASKED: usize = 32;
/// The message of an answer: a frame of 64 bytes.
const ANSWERED: usize = 64;
/// What stands before each message.
const PREFIX: usize = 5;

/// A running backend; it ends when dropped.
#[derive(Debug)]
pub(crate) struct Backend {
    child: Child,
    /// Where it listens.
    pub(crate) port: u16,
    message: PathBuf,
}

impl Backend {
    /// Starts it with its files in `work`.
    pub(crate) fn start(work: &Path) -> Result<Self> {
        let files = work.join("grpc").join("bench.Echo");
        std::fs::create_dir_all(&files)?;
        std::fs::write(files.join("Unary"), framed(b'y', ANSWERED))?;
        let message = work.join("grpc-message");
        std::fs::write(&message, framed(b'x', ASKED))?;
        let port = peers::free_port()?;
        let mut command = pinned::beside_client(&setup::locate("nghttpd").context("nghttpd is not there")?);
        command.args(["--no-tls", "-n1", "-a", "127.0.0.1", "--trailer=grpc-status: 0", "-d"]).arg(work.join("grpc"));
        command.args(["--max-concurrent-streams=1000", &port.to_string()]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let backend = Self { child, port, message };
        let patience = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).is_err() {
            if Instant::now() > patience {
                bail!("nghttpd does not listen");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(backend)
    }

    /// So many calls to a proxy.
    pub(crate) fn calls(&self, to: SocketAddr, count: usize) -> Calls {
        Calls { to, count, backend: self.child.id(), message: self.message.clone() }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn framed(letter: u8, length: usize) -> Vec<u8> {
    let length_byte = u8::try_from(length).unwrap_or(0);
    [&[0, 0, 0, 0, length_byte][..], &vec![letter; length]].concat()
}

/// Calls to make: over 8 connections, 16 at a time on each.
#[derive(Debug)]
pub(crate) struct Calls {
    to: SocketAddr,
    count: usize,
    backend: u32,
    message: PathBuf,
}

impl Work for Calls {
    fn run(&self) -> Result<()> {
        self.make(self.count, 8)
    }

    fn once(&self) -> Result<()> {
        self.make(1, 1)
    }

    #[allow(clippy::cast_precision_loss, reason = "a count of calls")]
    fn amount(&self) -> f64 {
        self.count as f64
    }

    fn backend(&self) -> u32 {
        self.backend
    }
}

impl Calls {
    fn make(&self, count: usize, connections: usize) -> Result<()> {
        let mut command: Command = pinned::beside_client(&setup::locate("h2load").context("h2load is not there")?);
        command
            .args(["-t1", "-m16", "-c", &connections.to_string(), "-n", &count.to_string(), "-d"])
            .arg(&self.message);
        command.args(["-H", "content-type: application/grpc", "-H", "te: trailers"]);
        let output = command.arg(format!("http://{}/bench.Echo/Unary", self.to)).stdin(Stdio::null()).output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        // A call that fails is a 200 without a message: the bytes of the answers tell.
        let due = count * (ANSWERED + PREFIX);
        if done(&said) != Some((count, due)) {
            bail!("h2load did not get {count} answers of {due} bytes in all: {said}");
        }
        Ok(())
    }
}

/// Requests that succeeded and bytes of their bodies, as h2load says at its end.
fn done(said: &str) -> Option<(usize, usize)> {
    let word_before = |line: &str, word: &str| {
        let (before, _) = line.split_once(word)?;
        before.trim_end().rsplit([' ', '(']).next()?.trim_end_matches(')').parse::<usize>().ok()
    };
    let line = |start: &str| said.lines().find(|line| line.starts_with(start));
    Some((word_before(line("requests:")?, " succeeded")?, word_before(line("traffic:")?, " data")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_h2load_is_read() {
        let said = "finished in 1.2s, 8 req/s\nrequests: 10 total, 10 started, 10 done, 9 succeeded, 1 failed, 0 errored\n\
                    traffic: 28.42MB (29796424) total, 1.26MB (1319400) headers (space savings 95.67%), 690B (690) data\n";
        assert_eq!(done(said), Some((9, 690)));
        assert_eq!(done("nothing"), None);
    }
}
