//! Where requests end: a plain server that answers `ok`, or without end.

use std::thread::spawn;

use anyhow::Result;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::sync::mpsc;

use super::cores;

/// Its address.
pub(super) const AT: &str = "127.0.0.1:9101";

/// Serves until the program ends.
pub(super) fn start() -> Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let listener = runtime.block_on(TcpListener::bind(AT))?;
    let endless = endless()?;
    // On a thread of its own, so that attackers do not delay it.
    spawn(move || {
        cores::goes_first();
        runtime.block_on(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, endless.clone()));
            }
        });
    });
    Ok(())
}

/// What has no end is served as the attackers run: it must not delay what the good client asks for.
fn endless() -> Result<mpsc::UnboundedSender<std::net::TcpStream>> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let (sender, mut streams) = mpsc::unbounded_channel::<std::net::TcpStream>();
    spawn(move || {
        cores::gives_way(rustix::thread::gettid().as_raw_nonzero().get());
        runtime.block_on(async move {
            while let Some(stream) = streams.recv().await {
                tokio::spawn(pour(stream));
            }
        });
    });
    Ok(sender)
}

async fn pour(stream: std::net::TcpStream) -> std::io::Result<()> {
    let mut stream = TcpStream::from_std(stream)?;
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n").await?;
    let block = vec![b'x'; 16 << 10];
    loop {
        stream.write_all(&block).await?;
    }
}

async fn serve(stream: TcpStream, without_end: mpsc::UnboundedSender<std::net::TcpStream>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    loop {
        let mut endless = false;
        let mut length = 0_u64;
        let mut first = true;
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            endless |= first && line.contains(" /endless");
            first = false;
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
            if line == "\r\n" {
                break;
            }
        }
        if endless {
            let _ = without_end.send(stream.into_inner().into_std()?);
            return Ok(());
        }
        let mut body = (&mut stream).take(length);
        tokio::io::copy(&mut body, &mut tokio::io::sink()).await?;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await?;
    }
}
