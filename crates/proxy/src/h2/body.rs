//! A body on its way in. That of an answer goes on sending its request's while it is read.

use std::cell::RefCell;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, header};
use http_body::{Frame, SizeHint};

use super::pump::Pump;
use super::tunnel::Tunnel;
use crate::http::body::UpBody;

/// What comes on one stream.
pub struct Body {
    /// Nothing comes any more without it.
    recv: Option<RecvStream>,
    /// What was announced and has not come yet.
    left: Option<u64>,
    /// Only trailers can follow.
    data_over: bool,
    upload: RefCell<Upload>,
}

/// The other direction of the same stream.
pub(super) enum Upload {
    /// Nothing is to be sent any more, or somebody else sends it.
    Over,
    /// The request's body.
    Under(Box<Pump<UpBody>>),
    /// What follows a CONNECT, should there be a tunnel.
    Tunnel(SendStream<Bytes>),
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Body").field("left", &self.left).field("data_over", &self.data_over).finish_non_exhaustive()
    }
}

impl Body {
    /// None: what follows the head is a tunnel's.
    pub(super) fn none() -> Self {
        Self { recv: None, left: Some(0), data_over: true, upload: RefCell::new(Upload::Over) }
    }

    /// What follows a head with these headers.
    pub(super) fn of(recv: RecvStream, headers: &HeaderMap, upload: Upload) -> Self {
        let announced = || headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok();
        let left = if recv.is_end_stream() { Some(0) } else { announced() };
        Self { recv: Some(recv), left, data_over: false, upload: RefCell::new(upload) }
    }

    /// The stream of an answered CONNECT as bytes; nothing comes as a body then.
    pub fn take_tunnel(&mut self) -> Option<Tunnel> {
        let Upload::Tunnel(send) = self.upload.replace(Upload::Over) else { return None };
        Some(Tunnel::new(send, self.recv.take()?))
    }

    /// Goes on sending the request's body, where the answer's cannot be passed on at the moment.
    pub fn drive_upload(&self, cx: &mut Context<'_>) {
        let mut upload = self.upload.borrow_mut();
        // However it ends: a server that takes no more may have answered all the same.
        if let Upload::Under(pump) = &mut *upload
            && pump.poll(cx).is_ready()
        {
            *upload = Upload::Over;
        }
    }

    /// What an error of the stream means to who reads: one that says nothing is wrong ends the body (RFC 9113 section 8.1).
    fn broke(&mut self, error: h2::Error) -> Option<Result<Frame<Bytes>, h2::Error>> {
        self.recv = None;
        (error.reason() != Some(Reason::NO_ERROR)).then_some(Err(error))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let this = self.get_mut();
        this.drive_upload(cx);
        let Some(recv) = &mut this.recv else { return Poll::Ready(None) };
        if !this.data_over {
            match ready!(recv.poll_data(cx)) {
                Some(Ok(data)) => {
                    this.left = this.left.map(|left| left.saturating_sub(data.len() as u64));
                    // It goes on at its reader's pace: what is read may come anew.
                    let _ = recv.flow_control().release_capacity(data.len());
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(this.broke(error)),
                None => this.data_over = true,
            }
        }
        Poll::Ready(match ready!(recv.poll_trailers(cx)) {
            Ok(trailers) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
            Err(error) => this.broke(error),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.recv.as_ref().is_none_or(RecvStream::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
