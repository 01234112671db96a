//! Whether the peer is still there: a PING each so often, and its answer in time (Envoy's `connection_keepalive`).

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep};

/// Asks one connection.
pub(super) struct Alive {
    pings: PingPong,
    interval: Duration,
    limit: Duration,
    /// An answer is waited for.
    asked: bool,
    /// Until the next question, or until the answer is late.
    until: Pin<Box<Sleep>>,
}

impl Alive {
    /// `interval`: from an answer to the next question; `limit`: for an answer.
    pub(super) fn new(pings: PingPong, (interval, limit): (Duration, Duration)) -> Self {
        Self { pings, interval, limit, asked: false, until: Box::pin(sleep(interval)) }
    }

    /// Ready when the peer has not answered in time. A connection that ends says so itself.
    pub(super) fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.asked && self.pings.poll_pong(cx).is_ready() {
                self.asked = false;
                self.until.as_mut().reset(Instant::now() + self.interval);
            }
            ready!(self.until.as_mut().poll(cx));
            if self.asked {
                return Poll::Ready(());
            }
            self.asked = self.pings.send_ping(Ping::opaque()).is_ok();
            self.until.as_mut().reset(Instant::now() + self.limit);
        }
    }
}
