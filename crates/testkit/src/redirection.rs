//! What the kernel does with the connections of a workload whose traffic is redirected to its proxy, without privileges:
//! a connection goes to the proxy's port, and a PROXY header tells the address that was meant.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

/// From here a sidecar calls its own program; such connections are not redirected.
const FROM_SIDECAR: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 6));

/// Where connections go.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Redirection {
    /// The proxy's port.
    pub to: SocketAddr,
    /// The program that stands at the address, for connections from the sidecar itself.
    pub own: Option<SocketAddr>,
}

impl Redirection {
    /// Redirects what comes to an address; it stops when the task is aborted.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn start(self, at: SocketAddr) -> Result<tokio::task::JoinHandle<()>> {
        let listener = TcpListener::bind(at).await.with_context(|| format!("a redirected address {at}"))?;
        Ok(tokio::spawn(async move {
            while let Ok((stream, from)) = listener.accept().await {
                tokio::spawn(self.pass(stream, from, at));
            }
        }))
    }

    async fn pass(self, mut stream: TcpStream, from: SocketAddr, at: SocketAddr) {
        let own = self.own.filter(|_| from.ip() == FROM_SIDECAR);
        let Ok(mut onward) = TcpStream::connect(own.unwrap_or(self.to)).await else { return };
        let _ = (stream.set_nodelay(true), onward.set_nodelay(true));
        let header = format!("PROXY TCP4 {} {} {} {}\r\n", from.ip(), at.ip(), from.port(), at.port());
        if own.is_none() && onward.write_all(header.as_bytes()).await.is_err() {
            return;
        }
        let _ = tokio::io::copy_bidirectional(&mut stream, &mut onward).await;
    }
}
