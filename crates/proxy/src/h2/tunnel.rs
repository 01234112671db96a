//! A stream of raw bytes in place of bodies: what follows a CONNECT that was agreed to (RFC 9113 section 8.5, RFC 8441).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Both directions of one stream. Dropped before its end, the stream is reset.
pub struct Tunnel {
    send: SendStream<Bytes>,
    recv: RecvStream,
    /// What came and was not read yet.
    ahead: Bytes,
    ended: bool,
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tunnel").field("ahead", &self.ahead.len()).field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl Tunnel {
    pub(super) fn new(send: SendStream<Bytes>, recv: RecvStream) -> Self {
        Self { send, recv, ahead: Bytes::new(), ended: false }
    }

    /// What a reset or a lost connection means to who writes.
    fn gone(&mut self, cx: &mut Context<'_>) -> io::Error {
        match self.send.poll_reset(cx) {
            Poll::Ready(Ok(Reason::NO_ERROR | Reason::CANCEL | Reason::STREAM_CLOSED)) => {
                io::ErrorKind::BrokenPipe.into()
            }
            Poll::Ready(Ok(reason)) => broken(reason.into()),
            Poll::Ready(Err(error)) => broken(error),
            Poll::Pending => io::ErrorKind::BrokenPipe.into(),
        }
    }
}

fn broken(error: h2::Error) -> io::Error {
    if error.is_io() {
        return error.into_io().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into());
    }
    io::Error::other(error)
}

impl AsyncRead for Tunnel {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.ahead.is_empty() {
            match ready!(this.recv.poll_data(cx)) {
                // An empty read would be the end.
                Some(Ok(data)) => this.ahead = data,
                Some(Err(error)) => match error.reason() {
                    Some(Reason::NO_ERROR | Reason::CANCEL) => return Poll::Ready(Ok(())),
                    _ => return Poll::Ready(Err(broken(error))),
                },
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = this.ahead.len().min(buf.remaining());
        buf.put_slice(this.ahead.get(..count).unwrap_or_default());
        this.ahead.advance(count);
        let _ = this.recv.flow_control().release_capacity(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        this.send.reserve_capacity(bytes.len());
        while this.send.capacity() == 0 {
            match ready!(this.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Poll::Ready(Err(this.gone(cx))),
            }
        }
        let part = bytes.get(..this.send.capacity().min(bytes.len())).unwrap_or_default();
        if this.send.send_data(Bytes::copy_from_slice(part), false).is_err() {
            return Poll::Ready(Err(this.gone(cx)));
        }
        Poll::Ready(Ok(part.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection's task writes what there is.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !std::mem::replace(&mut this.ended, true) && this.send.send_data(Bytes::new(), true).is_err() {
            return Poll::Ready(Err(this.gone(cx)));
        }
        Poll::Ready(Ok(()))
    }
}
