//! A body on its way out: frame by frame, as the peer's window allows.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body;

/// Why a body was not sent to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stopped {
    /// The body broke; the stream was reset.
    Source,
    /// The peer reset the stream, or the connection ended.
    Peer,
}

/// Sends one body.
pub(super) struct Pump<B> {
    body: B,
    send: SendStream<Bytes>,
    /// What the body gave and the window does not take, and whether it is the last.
    held: Option<(Bytes, bool)>,
    /// Chunks that were taken so far.
    taken: u64,
    /// What a peer is told where the body breaks.
    broken: Reason,
}

impl<B: Body<Data = Bytes> + Unpin> Pump<B> {
    /// `broken`: the peer is told so where the body breaks.
    pub(super) fn new(body: B, send: SendStream<Bytes>, broken: Reason) -> Self {
        Self { body, send, held: None, taken: 0, broken }
    }

    /// The body.
    pub(super) fn body(&self) -> &B {
        &self.body
    }

    /// While the peer takes nothing: how many chunks it has taken before.
    pub(super) fn blocked_at(&self) -> Option<u64> {
        self.held.as_ref().map(|_| self.taken)
    }

    /// Ready when all is sent, or cannot be.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stopped>> {
        match self.poll_send(cx) {
            // Whoever sends nothing at the moment hears of a reset no other way.
            Poll::Pending => self.send.poll_reset(cx).map(|_| Err(Stopped::Peer)),
            ready => ready,
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stopped>> {
        loop {
            if self.held.is_some() {
                ready!(self.poll_window(cx))?;
            }
            if let Some((chunk, last)) = self.held.take() {
                self.taken += 1;
                self.send_data(chunk, last)?;
                if last {
                    return Poll::Ready(Ok(()));
                }
            }
            let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)) else {
                return Poll::Ready(self.send_data(Bytes::new(), true));
            };
            let Ok(frame) = frame else {
                self.send.send_reset(self.broken);
                return Poll::Ready(Err(Stopped::Source));
            };
            match frame.into_data() {
                Ok(chunk) => {
                    let last = self.body.is_end_stream();
                    if !chunk.is_empty() {
                        // As little as makes h2 ask for the rest itself: what is reserved and not used, others lack.
                        self.send.reserve_capacity(1);
                        self.held = Some((chunk, last));
                    } else if last {
                        return Poll::Ready(self.send_data(chunk, true));
                    }
                }
                Err(frame) => {
                    let Ok(trailers) = frame.into_trailers() else { continue };
                    self.send.reserve_capacity(0);
                    return Poll::Ready(self.send.send_trailers(trailers).map_err(|_| Stopped::Peer));
                }
            }
        }
    }

    /// Ready when the window takes something.
    fn poll_window(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stopped>> {
        while self.send.capacity() == 0 {
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Poll::Ready(Err(Stopped::Peer)),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn send_data(&mut self, chunk: Bytes, last: bool) -> Result<(), Stopped> {
        self.send.send_data(chunk, last).map_err(|_| Stopped::Peer)
    }
}
