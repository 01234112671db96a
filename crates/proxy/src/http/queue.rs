//! A second reader of a request's body: what has come and was not sent yet.

use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};

use super::body::BodyError;

/// See the module.
#[derive(Debug)]
pub struct Queue {
    waiting: VecDeque<Bytes>,
    bytes: usize,
    /// It is given up where more bytes than this wait.
    most: usize,
    trailers: Option<HeaderMap>,
    state: State,
    /// Who sends and has nothing to send.
    waker: Option<Waker>,
    size: SizeHint,
    begun: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// More may come.
    Open,
    /// All of it has come.
    Whole,
    /// It will never be whole.
    Lost,
}

impl Queue {
    /// With what came already.
    pub(super) fn begin(waiting: VecDeque<Bytes>, most: usize, size: SizeHint) -> Self {
        let bytes = waiting.iter().map(Bytes::len).sum();
        let (trailers, state, waker) = (None, State::Open, None);
        Self { waiting, bytes, most, trailers, state, waker, size, begun: false }
    }

    pub(super) fn push(&mut self, data: &Bytes) {
        self.bytes += data.len();
        if self.bytes > self.most || self.state == State::Lost {
            self.state = State::Lost;
            self.waiting = VecDeque::new();
        } else {
            self.waiting.push_back(data.clone());
        }
        self.wake();
    }

    /// Nothing more comes.
    pub(super) fn end(&mut self, trailers: Option<HeaderMap>, whole: bool) {
        if self.state == State::Open {
            self.state = if whole { State::Whole } else { State::Lost };
            self.trailers = trailers;
        }
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    pub(super) fn poll(&mut self, cx: &Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.state == State::Lost {
            return Poll::Ready(Some(Err(BodyError::Forgotten)));
        }
        if let Some(data) = self.waiting.pop_front() {
            self.begun = true;
            self.bytes -= data.len();
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if self.state == State::Whole {
            return Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))));
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// All of it was sent.
    pub(super) fn is_sent(&self) -> bool {
        self.state == State::Whole && self.waiting.is_empty() && self.trailers.is_none()
    }

    pub(super) fn size(&self) -> SizeHint {
        if self.begun { SizeHint::default() } else { self.size }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use http_body_util::BodyExt;

    use super::super::body::UpBody;
    use super::*;

    fn copy(most: usize) -> (Rc<RefCell<Queue>>, UpBody) {
        let queue = Queue::begin([Bytes::from_static(b"ab")].into(), most, SizeHint::with_exact(5));
        let queue = Rc::new(RefCell::new(queue));
        (Rc::clone(&queue), UpBody::Copy(queue))
    }

    #[tokio::test]
    async fn a_copy_has_what_came_before_and_after() {
        let (queue, body) = copy(5);
        queue.borrow_mut().push(&Bytes::from_static(b"cde"));
        queue.borrow_mut().end(None, true);
        assert_eq!(body.collect().await.unwrap().to_bytes(), "abcde");
    }

    #[tokio::test]
    async fn a_copy_that_lags_or_whose_source_breaks_is_given_up() {
        let (queue, body) = copy(4);
        queue.borrow_mut().push(&Bytes::from_static(b"cde"));
        queue.borrow_mut().end(None, true);
        assert!(body.collect().await.is_err());
        let (queue, body) = copy(4);
        queue.borrow_mut().end(None, false);
        assert!(body.collect().await.is_err());
    }
}
