//! Whether the peer is still there: a PING each so often, and its answer in time (Envoy's `connection_keepalive`).

use std::cell::Cell;
use std::future::Future as _;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use engine::http_manager::Keepalive;
use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep};

use crate::net::stream::Traffic;

/// Asks one connection.
pub(super) struct Alive {
    pings: PingPong,
    times: Keepalive,
    traffic: Arc<Traffic>,
    /// An answer is waited for; bytes that had come when the wait began.
    asked: bool,
    heard: u64,
    /// Until the next question, or until the answer is late; `None`: neither.
    until: Option<Pin<Box<Sleep>>>,
    quiet: Option<Rc<Quiet>>,
}

/// How long a peer has said nothing, for those who are about to ask it something.
#[derive(Debug)]
pub(super) struct Quiet {
    most: Duration,
    traffic: Arc<Traffic>,
    /// Bytes that had come when it was last looked at, and since when there were no more.
    heard: Cell<(u64, Instant)>,
    /// A question is due.
    due: Cell<bool>,
}

impl Quiet {
    /// Listens to a peer which is asked before streams that begin after a long quiet; `None`: it is not.
    pub(super) fn new(times: &Keepalive, traffic: Arc<Traffic>) -> Option<Rc<Self>> {
        let heard = Cell::new((0, Instant::now()));
        times.idle.map(|most| Rc::new(Self { most, traffic, heard, due: Cell::new(false) }))
    }

    /// A stream is about to begin: whoever drives the connection, which the stream wakes, asks first if it is time.
    pub(super) fn stream_begins(&self) {
        self.listen();
        if self.heard.get().1.elapsed() > self.most {
            self.due.set(true);
        }
    }

    /// Notes what has come.
    fn listen(&self) {
        let read = self.traffic.bytes_read();
        if read != self.heard.get().0 {
            self.heard.set((read, Instant::now()));
        }
    }
}

impl Alive {
    /// `quiet`: who tells that a question is due beside those of the interval.
    pub(super) fn new(pings: PingPong, times: Keepalive, traffic: Arc<Traffic>, quiet: Option<Rc<Quiet>>) -> Self {
        let mut alive = Self { pings, times, traffic, asked: false, heard: 0, until: None, quiet };
        alive.rest();
        alive
    }

    /// Waits for the time of the next question.
    fn rest(&mut self) {
        self.until = self.times.interval.map(|interval| {
            let more = interval.mul_f64(self.times.jitter / 100.0).mul_f64(rand::random());
            Box::pin(sleep(interval.saturating_add(more)))
        });
    }

    fn ask(&mut self) {
        self.asked = self.pings.send_ping(Ping::opaque()).is_ok();
        self.wait();
    }

    /// Waits for an answer.
    fn wait(&mut self) {
        self.heard = self.traffic.bytes_read();
        self.until = Some(Box::pin(sleep(self.times.timeout)));
    }

    /// Bytes may have come.
    pub(super) fn listen(&self) {
        if let Some(quiet) = &self.quiet {
            quiet.listen();
        }
    }

    /// Ready when the peer has not answered in time. A connection that ends says so itself.
    pub(super) fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.asked && self.pings.poll_pong(cx).is_ready() {
                self.asked = false;
                self.rest();
            }
            let due = self.quiet.as_ref().is_some_and(|quiet| quiet.due.take());
            if due && !self.asked {
                self.ask();
                continue;
            }
            let Some(until) = &mut self.until else { return Poll::Pending };
            ready!(until.as_mut().poll(cx));
            match self.asked {
                false => self.ask(),
                // The answer may be behind a long body: who sends anything is there (Envoy's `onBeforeFrameReceived`).
                true if self.traffic.bytes_read() != self.heard => self.wait(),
                true => return Poll::Ready(()),
            }
        }
    }
}
