//! Streams of a client's HTTP/2 connection whose answer the client does not take: hyper does not ask a body for more
//! while the window is shut, so the body's own limits never come due. The executor that runs the streams watches.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

thread_local! {
    /// Said by the stream that is being polled: how long its answer may stand still.
    static SAID: Cell<Option<Option<Duration>>> = const { Cell::new(None) };
    /// Its body was asked for more.
    static MOVED: Cell<bool> = const { Cell::new(false) };
}

/// The answer of the stream that is being polled is on its way; where it stands still for so long, it is reset.
pub(super) fn limit(limit: Option<Duration>) {
    SAID.set(Some(limit));
}

/// The body of the answer was asked for more: the client has taken what went before. Other things wake a stream too, its
/// body's own clock among them, and say nothing about the client.
pub(super) fn moved() {
    MOVED.set(true);
}

/// hyper's executor for streams of clients: tasks of the worker that asks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Streams;

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future + 'static,
{
    fn execute(&self, future: F) {
        // On the heap: the runtime moves what it is given several times.
        let watched = Watched { stream: future, limit: None, last: Instant::now(), timer: None };
        tokio::task::spawn_local(Box::pin(watched));
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
        MOVED.set(false);
        if this.stream.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let said = SAID.take();
        if said.is_some() || MOVED.get() {
            *this.last = Instant::now();
        }
        if let Some(said) = said {
            *this.limit = said;
        }
        let Some(limit) = *this.limit else { return Poll::Pending };
        let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(*this.last + limit)));
        loop {
            ready!(timer.as_mut().poll(cx));
            let at = *this.last + limit;
            if at <= Instant::now() {
                // Dropped, the stream is reset.
                return Poll::Ready(());
            }
            timer.as_mut().reset(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{sleep, timeout};

    use super::*;

    const LIMIT: Duration = Duration::from_millis(300);

    /// When a stream ends that is woken every 100 ms, and whose body is asked for more the first few times.
    async fn ended(moves: u32) -> Duration {
        let begun = Instant::now();
        let stream = async {
            limit(Some(LIMIT));
            for n in 0.. {
                if n < moves {
                    moved();
                }
                sleep(Duration::from_millis(100)).await;
            }
        };
        let watched = Watched { stream, limit: None, last: begun, timer: None };
        timeout(Duration::from_secs(30), watched).await.unwrap();
        begun.elapsed()
    }

    #[tokio::test]
    async fn what_moves_lives_and_what_is_only_woken_ends() {
        let (moving, standing) = tokio::join!(ended(6), ended(0));
        assert!(moving >= Duration::from_millis(750), "{moving:?}");
        assert!(standing >= Duration::from_millis(250), "{standing:?}");
    }
}
