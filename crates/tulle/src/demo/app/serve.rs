//! A small HTTP server: accept, one task for each connection, one function for each request.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

/// A response's body.
pub(super) type Body = BoxBody<Bytes, Infallible>;

/// Where a service listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Listen {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some(path) => Ok(Self::Unix(path.into())),
            None => text.parse().map(Self::Tcp).map_err(|_| format!("`{text}` is neither IP:PORT nor unix:PATH")),
        }
    }
}

/// A listening socket of either kind.
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A connection of either kind.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

impl Listener {
    pub(super) async fn bind(listen: &Listen) -> io::Result<Self> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{listen:?}: {error}"));
        match listen {
            Listen::Tcp(address) => TcpListener::bind(address).await.map(Self::Tcp).map_err(named),
            Listen::Unix(path) => {
                use std::os::unix::fs::PermissionsExt;
                let listener = UnixListener::bind(path).map_err(named)?;
                // Only the proxy of the same user gets in.
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(named)?;
                Ok(Self::Unix(listener))
            }
        }
    }

    /// Takes over a listening TCP socket that the parent opened.
    pub(super) fn inherited(fd: i32) -> io::Result<Self> {
        TcpListener::from_std(node::inherited::listener(fd)?).map(Self::Tcp)
    }

    pub(super) async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                let _ = stream.set_nodelay(true);
                Ok(Box::new(stream))
            }
            Self::Unix(listener) => Ok(Box::new(listener.accept().await?.0)),
        }
    }
}

/// Serves HTTP/1.1 or HTTP/2 (with prior knowledge) for ever.
pub(super) async fn http<F, R>(listener: Listener, http2: bool, answer: F) -> anyhow::Result<()>
where
    F: Fn(Request<Incoming>) -> R + Clone + 'static,
    R: Future<Output = Response<Body>> + 'static,
{
    loop {
        let stream = match listener.accept().await {
            Ok(stream) => TokioIo::new(stream),
            Err(_) => {
                // Out of file descriptors or so: others must end first.
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                continue;
            }
        };
        let answer = answer.clone();
        let service = service_fn(move |request| {
            let response = answer(request);
            async move { Ok::<_, Infallible>(response.await) }
        });
        tokio::task::spawn_local(async move {
            // A connection that breaks is the caller's concern.
            if http2 {
                let _ = hyper::server::conn::http2::Builder::new(LocalExecutor)
                    .timer(TokioTimer::new())
                    .serve_connection(stream, service)
                    .await;
            } else {
                let _ = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .serve_connection(stream, service)
                    .await;
            }
        });
    }
}

/// Runs hyper's tasks on this thread.
#[derive(Debug, Clone, Copy)]
pub(super) struct LocalExecutor;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}
