//! The way from a workload to the control plane: an address, and a TLS connection over TCP or a Unix socket.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How long connecting and the handshake may take together.
const CONNECT: Duration = Duration::from_secs(5);

/// The name that is given to the TLS layer where the address has none (it is not what is verified: the control plane's
/// SPIFFE id is).
const NAME_WITHOUT_HOST: &str = "control.tulle";

/// Where the control plane is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Server {
    /// `HOST:PORT`.
    Tcp {
        /// A DNS name or an IP address.
        host: String,
        /// The port, usually 15012.
        port: u16,
    },
    /// `unix:PATH`.
    Unix(PathBuf),
}

/// A text is not an address of a control plane.
#[derive(Debug, Clone, thiserror::Error)]
#[error("`{0}` is not an address of a control plane: write HOST:PORT or unix:/PATH")]
pub struct NoServer(String);

impl FromStr for Server {
    type Err = NoServer;

    fn from_str(text: &str) -> Result<Self, NoServer> {
        let bad = || NoServer(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.is_empty() { Err(bad()) } else { Ok(Self::Unix(path.into())) };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        ServerName::try_from(host).map_err(|_| bad())?;
        match port.parse() {
            Ok(port) if port > 0 => Ok(Self::Tcp { host: host.to_owned(), port }),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A TLS connection to the control plane.
pub struct Line(Io);

enum Io {
    Tcp(Box<TlsStream<TcpStream>>),
    Unix(Box<TlsStream<UnixStream>>),
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Io::Tcp(_) => "Line(tcp)",
            Io::Unix(_) => "Line(unix)",
        })
    }
}

/// Connects and shakes hands, within five seconds. The configuration must offer ALPN `h2` for gRPC.
///
/// # Errors
/// Nobody listens, the time is over, or the server is not who it should be ([`crate::tls::Cause::of_io`]).
pub async fn connect(server: &Server, tls: Arc<ClientConfig>) -> io::Result<Line> {
    let connecting = async {
        let connector = TlsConnector::from(tls);
        match server {
            Server::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                let stream = connector.connect(name(host)?, stream).await?;
                Ok(Line(Io::Tcp(Box::new(stream))))
            }
            Server::Unix(path) => {
                let stream = UnixStream::connect(path).await?;
                let stream = connector.connect(name(NAME_WITHOUT_HOST)?, stream).await?;
                Ok(Line(Io::Unix(Box::new(stream))))
            }
        }
    };
    match tokio::time::timeout(CONNECT, connecting).await {
        Ok(done) => done,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {CONNECT:?}"))),
    }
}

fn name(host: &str) -> io::Result<ServerName<'static>> {
    ServerName::try_from(host.to_owned()).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))
}

macro_rules! each {
    ($self:ident, $io:ident => $call:expr) => {
        match &mut $self.get_mut().0 {
            Io::Tcp($io) => $call,
            Io::Unix($io) => $call,
        }
    };
}

impl AsyncRead for Line {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_read(cx, buf))
    }
}

impl AsyncWrite for Line {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for good in ["127.0.0.1:15012", "control.mesh:15012", "[::1]:15012", "unix:/run/tulle/xds.sock"] {
            assert_eq!(good.parse::<Server>().unwrap().to_string(), good);
        }
        for bad in ["", "host", ":1", "host:0", "host:99999", "unix:", "a b:1", "::1"] {
            assert!(bad.parse::<Server>().is_err(), "{bad}");
        }
    }
}
