//! Accepting connections, on the worker that will serve them or for all workers.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;

use crate::net::dial::is_exhaustion;
use crate::net::listen::Bound;
use crate::net::option;
use crate::net::stream::Socket;
use crate::worker::Worker;

/// How long accepting pauses when the process has no descriptors left: what is open must end first.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// What may wait unsent for a client, bytes: enough to keep a fast one busy while the worker does other things.
const UNSENT: i32 = 256 << 10;

/// Accepts until told to stop.
pub async fn run(
    worker: Rc<Worker>,
    listener: Arc<str>,
    open: Rc<Open>,
    spread: bool,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        // One, and then all that is ready and all sockets: who connects again and again must not delay who is connected.
        tokio::task::yield_now().await;
        let bypass = worker.shared.plan.load().listener(&listener).is_some_and(|listener| listener.bypasses_overload);
        // Who cannot be served waits in the system's queue, where waiting costs nothing.
        let accepting = async {
            worker.shared.overload.accepting(bypass).await;
            open.accept().await
        };
        let accepted = tokio::select! {
            accepted = accepting => accepted,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        match accepted {
            Ok(Socket::Tcp(stream)) if spread => worker.spread(&listener, stream),
            Ok(socket) => worker.serve(&listener, socket),
            Err(error) if is_exhaustion(&error) => {
                tracing::warn!(%listener, %error, "cannot accept: out of resources");
                tokio::time::sleep(EXHAUSTED_PAUSE).await;
            }
            Err(error) => tracing::debug!(%listener, %error, "a connection ended before it was accepted"),
        }
    }
}

/// A listening socket of this worker.
#[derive(Debug)]
pub enum Open {
    /// TCP.
    Tcp(TcpListener),
    /// A Unix stream socket.
    Unix(UnixListener),
}

impl Open {
    /// Gives the socket to this worker's runtime.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn new(bound: Bound) -> io::Result<Self> {
        match bound {
            Bound::Tcp(tcp) => TcpListener::from_std(tcp).map(Self::Tcp),
            Bound::Unix(unix) => UnixListener::from_std(unix).map(Self::Unix),
        }
    }

    /// Another descriptor of the same socket.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn copy(&self) -> io::Result<OwnedFd> {
        match self {
            Self::Tcp(tcp) => tcp.as_fd().try_clone_to_owned(),
            Self::Unix(unix) => unix.as_fd().try_clone_to_owned(),
        }
    }

    async fn accept(&self) -> io::Result<Socket> {
        match self {
            Self::Tcp(tcp) => {
                let (stream, _) = tcp.accept().await?;
                stream.set_nodelay(true)?;
                option::unsent_low_water(&stream, UNSENT)?;
                Ok(Socket::Tcp(stream))
            }
            Self::Unix(unix) => unix.accept().await.map(|(stream, _)| Socket::Unix(stream)),
        }
    }
}
