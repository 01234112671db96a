//! Streams of a client's HTTP/2 connection whose answer the client does not take: hyper does not ask a body for more
//! while the window is shut, so the body's own limits never come due. The executor that runs the streams watches.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

thread_local! {
    /// Said by the stream that is being polled: how long its answer may stand still.
    static SAID: Cell<Option<Option<Duration>>> = const { Cell::new(None) };
}

/// The answer of the stream that is being polled is on its way; where it stands still for so long, it is reset.
pub(super) fn limit(limit: Option<Duration>) {
    SAID.set(Some(limit));
}

/// hyper's executor for streams of clients: tasks of the worker that asks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Streams;

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future + 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(Watched { stream: future, limit: None, last: Instant::now(), timer: None });
    }
}

pin_project! {
    struct Watched<F> {
        #[pin]
        stream: F,
        limit: Option<Duration>,
        // When it last moved.
        last: Instant,
        timer: Option<Pin<Box<Sleep>>>,
    }
}

impl<F: Future> Future for Watched<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        SAID.set(None);
        if this.stream.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if let Some(said) = SAID.take() {
            *this.limit = said;
        }
        let Some(limit) = *this.limit else { return Poll::Pending };
        let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + limit)));
        let mut due = timer.as_mut().poll(cx).is_ready();
        if !due {
            // Something else than the timer woke it.
            *this.last = Instant::now();
            return Poll::Pending;
        }
        while due {
            let at = *this.last + limit;
            if at <= Instant::now() {
                // Dropped, the stream is reset.
                return Poll::Ready(());
            }
            timer.as_mut().reset(at);
            due = timer.as_mut().poll(cx).is_ready();
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_moves_lives_and_what_stands_still_ends() {
        let begun = Instant::now();
        let moving = async {
            limit(Some(Duration::from_millis(300)));
            for _ in 0..5 {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            std::future::pending::<()>().await;
        };
        Watched { stream: moving, limit: None, last: begun, timer: None }.await;
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(800), "{took:?}");
    }
}
