//! Bodies on their way: from the client with a bounded memory for retries, and to the client with what ends an exchange.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use engine::mutation::TrailerChanges;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use super::queue::Queue;
use crate::report::messages::Messages;
use crate::{h1, h2};

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The peer broke off, over HTTP/2.
    #[error("{0}")]
    Http2(#[from] ::h2::Error),
    /// The peer broke off, over HTTP/1.
    #[error("{0}")]
    Http1(#[from] h1::Fault),
    /// A newer attempt took the body over.
    #[error("superseded by a newer attempt")]
    Superseded,
    /// The client broke off before an attempt had sent what came of it.
    #[error("the client broke off")]
    Broken,
    /// What an attempt needs again is no longer remembered.
    #[error("the body is larger than the retry buffer")]
    Forgotten,
    /// The time for the whole exchange is over.
    #[error("timeout")]
    Timeout,
    /// The exchange lived longer than it may.
    #[error("duration timeout")]
    Duration,
    /// The attempt lived longer than it may.
    #[error("upstream duration timeout")]
    TryDuration,
    /// The attempt brought nothing for too long.
    #[error("upstream idle for too long")]
    TryIdle,
    /// Nothing moved for too long.
    #[error("idle for too long")]
    Idle,
}

/// A body as it comes from a peer.
#[derive(Debug)]
pub enum Incoming {
    /// Over HTTP/2.
    Http2(h2::body::Body),
    /// A request's, over HTTP/1.
    Request(h1::server::Body),
    /// An answer's, over HTTP/1.
    Response(h1::client::Body),
}

impl Incoming {
    /// The stream of an answered CONNECT over HTTP/2 as bytes; nothing comes as a body then.
    pub fn take_tunnel(&mut self) -> Option<h2::tunnel::Tunnel> {
        match self {
            Self::Http2(body) => body.take_tunnel(),
            Self::Request(_) | Self::Response(_) => None,
        }
    }

    /// Goes on sending the request's body, where this answer's cannot be passed on at the moment.
    pub fn drive_upload(&self, cx: &mut Context<'_>) {
        match self {
            Self::Http2(body) => body.drive_upload(cx),
            Self::Response(body) => body.drive_upload(cx),
            Self::Request(_) => {}
        }
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Http2(body) => Pin::new(body).poll_frame(cx).map_err(BodyError::from),
            Self::Request(body) => Pin::new(body).poll_frame(cx).map_err(BodyError::from),
            Self::Response(body) => Pin::new(body).poll_frame(cx).map_err(BodyError::from),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http2(body) => body.is_end_stream(),
            Self::Request(body) => body.is_end_stream(),
            Self::Response(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http2(body) => body.size_hint(),
            Self::Request(body) => body.size_hint(),
            Self::Response(body) => body.size_hint(),
        }
    }
}

/// A request's body, shared by the attempts that send it: what was read is remembered up to a limit, so that another
/// attempt can begin anew.
#[derive(Debug)]
pub struct Source {
    incoming: Option<Incoming>,
    remembered: Vec<Bytes>,
    remembered_bytes: usize,
    limit: usize,
    forgotten: bool,
    trailers: Option<HeaderMap>,
    /// What filters change of its trailers.
    changes: Option<Box<TrailerChanges>>,
    ended: Option<Instant>,
    /// Who waits for its end: the exchange's clock.
    end_wakers: Vec<Waker>,
    /// What copies still have to send.
    copies: Vec<Rc<RefCell<Queue>>>,
    /// When something of it came last.
    moved: Option<Instant>,
    received: u64,
    /// Of gRPC: the messages that came.
    messages: Option<Messages>,
    /// The attempt that may read; only the newest.
    attempt: u32,
    /// How many remembered chunks it has sent again.
    next: usize,
    trailers_sent: bool,
    broken: Option<Broken>,
    size: SizeHint,
}

/// How a client broke off while sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// It went away or reset its stream.
    Gone,
    /// What it sent is no body.
    Malformed,
}

impl Broken {
    const fn of(error: &BodyError) -> Self {
        match error {
            BodyError::Http1(h1::Fault::Malformed(_)) => Self::Malformed,
            _ => Self::Gone,
        }
    }
}

/// A handle of a [`Source`].
pub type SharedSource = Rc<RefCell<Source>>;

impl Source {
    /// A body that remembers at most `limit` bytes; 0: nothing can be sent twice. Of gRPC, messages are counted.
    pub fn new(incoming: Incoming, limit: usize, grpc: bool) -> SharedSource {
        let size = incoming.size_hint();
        Rc::new(RefCell::new(Self {
            incoming: Some(incoming),
            remembered: Vec::new(),
            remembered_bytes: 0,
            limit,
            forgotten: limit == 0,
            trailers: None,
            changes: None,
            ended: None,
            end_wakers: Vec::new(),
            copies: Vec::new(),
            moved: None,
            received: 0,
            messages: grpc.then(Messages::default),
            attempt: 0,
            next: 0,
            trailers_sent: false,
            broken: None,
            size,
        }))
    }

    /// Body bytes received from the client so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// gRPC messages that came from the client so far.
    pub fn messages(&self) -> Messages {
        self.messages.unwrap_or_default()
    }

    /// When the whole request had arrived.
    pub fn ended(&self) -> Option<Instant> {
        self.ended
    }

    /// Whether and how the client broke off while sending.
    pub fn broken(&self) -> Option<Broken> {
        self.broken
    }

    /// Whether another attempt can send it from its start.
    pub fn replayable(&self) -> bool {
        self.broken.is_none() && (!self.forgotten || self.received == 0)
    }

    /// When something of it came last; `None`: nothing has come.
    pub fn moved(&self) -> Option<Instant> {
        self.moved
    }

    /// From now on at most so many bytes are remembered; what was not sent yet stays.
    pub fn remember_at_most(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Filters change its trailers, those that came already and those to come.
    pub fn change_trailers(&mut self, changes: TrailerChanges) {
        if let Some(trailers) = &mut self.trailers {
            changes.apply(trailers);
        }
        self.changes = Some(Box::new(changes));
    }

    /// A copy of it from its start, sent while it comes. A copy that falls more than `most` bytes behind is given up, so that it
    /// is never in the way. To be asked for before anything but what is remembered was sent.
    pub fn copy(&mut self, most: usize) -> UpBody {
        let queue = Queue::begin(self.remembered.iter().cloned().collect(), most, self.size);
        let queue = Rc::new(RefCell::new(queue));
        if self.incoming.is_some() {
            self.copies.push(Rc::clone(&queue));
        } else {
            queue.borrow_mut().end(self.trailers.clone(), self.broken.is_none());
        }
        UpBody::Copy(queue)
    }

    /// No attempt will be made again: forgets what it remembered.
    pub fn forget(&mut self) {
        self.forgotten = self.received > 0;
        self.limit = 0;
        if self.next >= self.remembered.len() {
            self.remembered = Vec::new();
        }
    }

    /// Ready when the whole request has arrived (or broke off).
    pub fn poll_ended(&mut self, cx: &Context<'_>) -> Poll<()> {
        if self.ended.is_some() || self.broken.is_some() {
            return Poll::Ready(());
        }
        if !self.end_wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
            self.end_wakers.push(cx.waker().clone());
        }
        Poll::Pending
    }

    fn finish(&mut self) {
        self.ended.get_or_insert_with(Instant::now);
        self.leave(true);
    }

    /// Nothing more comes.
    fn leave(&mut self, whole: bool) {
        self.incoming = None;
        self.end_wakers.drain(..).for_each(Waker::wake);
        for copy in self.copies.drain(..) {
            copy.borrow_mut().end(self.trailers.clone(), whole);
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(incoming) = &mut self.incoming else { return Poll::Ready(None) };
        match ready!(Pin::new(incoming).poll_frame(cx)) {
            None => {
                self.finish();
                Poll::Ready(None)
            }
            Some(Err(error)) => {
                self.broken = Some(Broken::of(&error));
                self.leave(false);
                Poll::Ready(Some(Err(error)))
            }
            Some(Ok(mut frame)) => {
                if let (Some(changes), Some(trailers)) = (&self.changes, frame.trailers_mut()) {
                    changes.apply(trailers);
                }
                self.remember(&frame);
                if self.incoming.as_ref().is_some_and(Body::is_end_stream) {
                    self.finish();
                }
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn poll_prefetch(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<()> {
        while self.incoming.is_some() && self.remembered_bytes <= most {
            if ready!(self.poll_next(cx)).is_none() {
                break;
            }
        }
        if self.ended.is_some() && self.trailers.is_none() {
            self.size = SizeHint::with_exact(self.received);
        }
        Poll::Ready(())
    }

    fn remember(&mut self, frame: &Frame<Bytes>) {
        self.moved = Some(Instant::now());
        if let Some(data) = frame.data_ref() {
            self.copies.iter().for_each(|copy| copy.borrow_mut().push(data));
            self.received += data.len() as u64;
            if let Some(messages) = &mut self.messages {
                messages.pass(data);
            }
            if self.forgotten {
                return;
            }
            self.remembered_bytes += data.len();
            if self.remembered_bytes > self.limit {
                self.forgotten = true;
                self.remembered = Vec::new();
            } else {
                self.remembered.push(data.clone());
            }
        } else if let Some(trailers) = frame.trailers_ref() {
            self.trailers = Some(trailers.clone());
        }
    }
}

/// A body that nobody reads any more comes to no end.
impl Drop for Source {
    fn drop(&mut self) {
        self.leave(false);
    }
}

/// Waits until more than `most` bytes of a body have come, or all of it: its first `most` bytes, and whether there is
/// more. A body that breaks off counts as ended here; whoever sends it on finds out.
pub async fn prefetch(source: &SharedSource, most: usize) -> (Bytes, bool) {
    let more = arrive(source, most).await;
    let source = source.borrow();
    let mut bytes = BytesMut::with_capacity(source.remembered_bytes.min(most));
    for chunk in &source.remembered {
        let room = most.saturating_sub(bytes.len());
        bytes.extend_from_slice(chunk.get(..room.min(chunk.len())).unwrap_or_default());
    }
    (bytes.freeze(), more)
}

/// Waits as [`prefetch`] does; whether there is more.
pub async fn arrive(source: &SharedSource, most: usize) -> bool {
    poll_fn(|cx| source.borrow_mut().poll_prefetch(cx, most)).await;
    source.borrow().remembered_bytes > most
}

/// A request's body as one attempt sends it.
#[derive(Debug)]
pub enum UpBody {
    /// None.
    Empty,
    /// What comes from the client, a second time (mirrors); or is at hand already.
    Copy(Rc<RefCell<Queue>>),
    /// The client's body.
    Shared(Attempt),
}

/// One attempt's view of a [`Source`].
#[derive(Debug)]
pub struct Attempt {
    source: SharedSource,
    number: u32,
}

impl UpBody {
    /// A body of chunks that are at hand.
    pub fn ready(chunks: Vec<Bytes>) -> Self {
        let length = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        let mut queue = Queue::begin(chunks.into(), usize::MAX, SizeHint::with_exact(length));
        queue.end(None, true);
        Self::Copy(Rc::new(RefCell::new(queue)))
    }

    /// The body for a new attempt, which supersedes the ones before.
    pub fn attempt(source: &SharedSource) -> Self {
        let number = {
            let mut inner = source.borrow_mut();
            inner.attempt += 1;
            inner.next = 0;
            inner.trailers_sent = false;
            inner.attempt
        };
        Self::Shared(Attempt { source: Rc::clone(source), number })
    }
}

impl Attempt {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut source = self.source.borrow_mut();
        if source.attempt != self.number {
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        if let Some(chunk) = source.remembered.get(source.next).cloned() {
            source.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        if source.forgotten && source.next == 0 && source.received > 0 && self.number > 1 {
            return Poll::Ready(Some(Err(BodyError::Forgotten)));
        }
        if source.incoming.is_none() {
            if source.broken.is_some() {
                // Never as if it were whole.
                return Poll::Ready(Some(Err(BodyError::Broken)));
            }
            let trailers = if source.trailers_sent { None } else { source.trailers.clone() };
            source.trailers_sent = true;
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let frame = ready!(source.poll_next(cx));
        if let Some(Ok(frame)) = &frame {
            source.next += usize::from(frame.is_data());
            source.trailers_sent |= frame.is_trailers();
        }
        Poll::Ready(frame)
    }
}

impl Body for UpBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Copy(queue) => queue.borrow_mut().poll(cx),
            Self::Shared(attempt) => attempt.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Copy(queue) => queue.borrow().is_sent(),
            Self::Shared(attempt) => {
                let source = attempt.source.borrow();
                source.incoming.is_none()
                    && source.broken.is_none()
                    && source.next >= source.remembered.len()
                    && (source.trailers.is_none() || source.trailers_sent)
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Copy(queue) => queue.borrow().size(),
            Self::Shared(attempt) => {
                let source = attempt.source.borrow();
                if source.next == 0 { source.size } else { SizeHint::default() }
            }
        }
    }
}
