//! A timer for limits that are nearly never reached.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::{Instant, Sleep, sleep_until};

/// A timer that is asked about one moment after the other, most of them later than the last: it stays set where it was and
/// looks again when it goes off, so that a request costs no setting and no clearing of a timer.
#[derive(Debug, Default)]
pub struct Alarm {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Alarm {
    /// Ready when `at` has come; before that the task is woken then at the latest.
    pub fn poll(&mut self, at: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if sleep.deadline() > at {
            sleep.as_mut().reset(at);
        }
        loop {
            ready!(sleep.as_mut().poll(cx));
            if Instant::now() >= at {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn it_goes_off_when_asked_whatever_was_asked_before() {
        let begun = Instant::now();
        let mut alarm = Alarm::default();
        let at = |tens: u64| begun + Duration::from_millis(10 * tens);
        for tens in [1_000, 2_000, 1_500, 100, 3_000] {
            assert!(poll_fn(|cx| Poll::Ready(alarm.poll(at(tens), cx).is_pending())).await);
        }
        for tens in [2, 7, 12] {
            poll_fn(|cx| alarm.poll(at(tens), cx)).await;
            assert!((at(tens)..at(tens + 80)).contains(&Instant::now()), "{:?}", begun.elapsed());
        }
        assert!(poll_fn(|cx| Poll::Ready(alarm.poll(at(3), cx).is_ready())).await);
    }
}
