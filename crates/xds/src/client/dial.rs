//! How the stream reaches its server: each connection is dialled anew, so that addresses and certificates may change.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};

/// A connection of whatever kind.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// A connection being made.
pub type Dialing = Pin<Box<dyn Future<Output = std::io::Result<Box<dyn Io>>> + Send>>;

/// Makes one connection per call; TLS, if any, is done when it resolves.
pub type Dial = Arc<dyn Fn() -> Dialing + Send + Sync>;

/// A dialler from an async function.
pub fn from_fn<F, R, T>(dial: F) -> Dial
where
    F: Fn() -> R + Send + Sync + 'static,
    R: Future<Output = std::io::Result<T>> + Send + 'static,
    T: Io,
{
    Arc::new(move || {
        let connecting = dial();
        Box::pin(async move { Ok(Box::new(connecting.await?) as Box<dyn Io>) })
    })
}

/// A Unix stream socket by path.
pub fn unix(path: impl Into<PathBuf>) -> Dial {
    let path = path.into();
    from_fn(move || tokio::net::UnixStream::connect(path.clone()))
}

/// Plain TCP. Only for a server on the same machine: nothing is encrypted.
pub fn tcp(address: SocketAddr) -> Dial {
    from_fn(move || async move {
        let stream = tokio::net::TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    })
}
