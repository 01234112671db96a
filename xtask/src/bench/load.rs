//! Load: a fixed number of requests over some connections, each answer checked to the last byte. Any fault ends the run,
//! so that a figure never hides an error.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::pinned;

/// What one reading takes at most.
const CHUNK: usize = 64 * 1024;

/// How long a load may take at most.
const PATIENCE: Duration = Duration::from_secs(300);

/// Something that can be done again and again, and costs the proxies the same each time.
pub(crate) trait Work {
    /// Does it all; any fault is an error.
    fn run(&self) -> Result<()>;
    /// Does the least of it.
    fn once(&self) -> Result<()>;
    /// How much it is: requests, connections, gigabytes.
    fn amount(&self) -> f64;
    /// The process that answers in the end.
    fn backend(&self) -> u32;
}

/// Requests to make.
#[derive(Clone)]
pub(crate) struct Load {
    /// Where.
    pub(crate) to: SocketAddr,
    /// The path.
    pub(crate) path: &'static str,
    /// What every answer must be.
    pub(crate) body: Arc<[u8]>,
    /// Connections at a time.
    pub(crate) lanes: usize,
    /// Requests in all.
    pub(crate) requests: usize,
    /// Speak TLS with this.
    pub(crate) tls: Option<TlsConnector>,
    /// A new connection for each request.
    pub(crate) fresh: bool,
    /// Count gigabytes instead of requests.
    pub(crate) by_bytes: bool,
    /// The process that answers in the end.
    pub(crate) backend: u32,
}

impl Work for Load {
    /// Makes the requests on a thread and a runtime of their own.
    fn run(&self) -> Result<()> {
        self.alone(async |load: &Self| {
            let lanes: Vec<_> = (0..load.lanes).map(|_| tokio::spawn(lane(load.clone()))).collect();
            for lane in lanes {
                lane.await??;
            }
            Ok(())
        })
    }

    fn once(&self) -> Result<()> {
        Self { lanes: 1, requests: 1, ..self.clone() }.run()
    }

    #[allow(clippy::cast_precision_loss, reason = "requests and bytes of one run")]
    fn amount(&self) -> f64 {
        if self.by_bytes { (self.requests * self.body.len()) as f64 / 1e9 } else { self.requests as f64 }
    }

    fn backend(&self) -> u32 {
        self.backend
    }
}

impl Load {
    /// Opens the connections, makes one request on each, and measures while they stay open and idle.
    pub(crate) fn hold<T: Send>(&self, measure: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.alone(async |load: &Self| {
            let mut open = Vec::with_capacity(load.lanes);
            for _ in 0..load.lanes {
                let mut line = Line::open(load).await?;
                line.exchange(&load.head(), &load.body).await?;
                open.push(line);
            }
            let measured = measure();
            drop(open);
            measured
        })
    }

    fn alone<T: Send>(&self, work: impl AsyncFnOnce(&Self) -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| -> Result<T> {
                pinned::client();
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async { tokio::time::timeout(PATIENCE, work(self)).await.context("the load hangs")? })
            });
            thread.join().unwrap_or_else(|_| bail!("the load ended in a panic"))
        })
    }

    fn head(&self) -> Vec<u8> {
        format!("GET {} HTTP/1.1\r\nhost: shop.example\r\nuser-agent: bench\r\naccept: */*\r\n\r\n", self.path)
            .into_bytes()
    }
}

/// One connection at a time, until its share of the requests is made.
async fn lane(load: Load) -> Result<()> {
    let head = load.head();
    let mut kept = None;
    for _ in 0..load.requests / load.lanes {
        let mut line = match kept.take() {
            Some(line) => line,
            None => Line::open(&load).await?,
        };
        line.exchange(&head, &load.body).await?;
        if load.fresh {
            line.close().await;
        } else {
            kept = Some(line);
        }
    }
    Ok(())
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// An open connection.
struct Line {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
}

impl Line {
    async fn open(load: &Load) -> Result<Self> {
        let stream = TcpStream::connect(load.to).await.with_context(|| format!("connect to {}", load.to))?;
        stream.set_nodelay(true)?;
        let stream: Box<dyn Stream> = match &load.tls {
            Some(tls) => Box::new(tls.connect(ServerName::try_from("server.mesh")?, stream).await.context("TLS")?),
            None => Box::new(stream),
        };
        Ok(Self { stream, buffer: Vec::new() })
    }

    /// One request, and its answer held against what it must be.
    async fn exchange(&mut self, head: &[u8], body: &[u8]) -> Result<()> {
        self.stream.write_all(head).await?;
        self.stream.flush().await?;
        self.buffer.resize(if body.len() > CHUNK { CHUNK } else { 8 * 1024 }, 0);
        let mut have = 0;
        let start = loop {
            have += self.read(have).await?;
            if let Some(start) = body_start(self.buffer.get(..have).unwrap_or_default(), body.len())? {
                break start;
            }
        };
        let mut seen = 0;
        let mut piece = start..have;
        loop {
            let got = self.buffer.get(piece.clone()).unwrap_or_default();
            if body.get(seen..seen + got.len()) != Some(got) {
                bail!("the body of an answer is not what the backend sent");
            }
            seen += got.len();
            if seen == body.len() {
                return Ok(());
            }
            piece = 0..self.read(0).await?;
        }
    }

    async fn read(&mut self, from: usize) -> Result<usize> {
        let room = self.buffer.get_mut(from..).filter(|room| !room.is_empty()).context("a head of over 8 KiB")?;
        match self.stream.read(room).await? {
            0 => bail!("the proxy closed the connection in an answer"),
            count => Ok(count),
        }
    }

    async fn close(mut self) {
        let _ = self.stream.shutdown().await;
    }
}

/// Where the body starts, once the head is whole; the answer must be a 200 with the length that is due.
fn body_start(bytes: &[u8], due: usize) -> Result<Option<usize>> {
    let mut storage = [httparse::EMPTY_HEADER; 48];
    let mut answer = httparse::Response::new(&mut storage);
    let httparse::Status::Complete(start) = answer.parse(bytes)? else { return Ok(None) };
    let length = answer.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|header| std::str::from_utf8(header.value).ok()?.parse::<usize>().ok());
    if answer.code != Some(200) || length != Some(due) {
        bail!("an answer is {:?} with a body of {length:?} bytes, not 200 with {due}", answer.code);
    }
    Ok(Some(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_known_by_its_head() {
        let good = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        assert_eq!(body_start(good, 2).unwrap(), Some(good.len() - 2));
        assert_eq!(body_start(&good[..20], 2).unwrap(), None);
        assert!(body_start(good, 3).is_err());
        assert!(body_start(b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nok", 2).is_err());
    }
}
