//! Whose turn it is among the peers of a worker that are new or cost more than they ask for: one after the other, and before the
//! next, all that is ready has its turn and all sockets are asked. However many such peers there are, together they delay the others
//! of the worker by one turn.
//!
//! A turn is taken and over within one look at a peer: nobody can hold it. Who is called and does not come, for it waits for other
//! things, has lost its place.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};

thread_local! {
    /// Of this worker.
    static GATE: RefCell<Gate> = RefCell::default();
}

/// The turns of one worker.
#[derive(Debug, Default)]
struct Gate {
    /// Somebody has had the turn of this round.
    taken: bool,
    /// Whose turn it is, should it come in this round.
    called: Option<u64>,
    waiting: VecDeque<(u64, Waker)>,
    /// The place of who came last.
    last: u64,
    /// The task that ends the rounds runs.
    kept: bool,
}

/// A peer's place among the others.
#[derive(Debug, Default)]
pub struct Turns {
    queued: Option<(u64, Waker)>,
}

impl Turns {
    /// Waits for this peer's turn, which is over when the next round begins.
    pub fn poll_take(&mut self, cx: &Context<'_>) -> Poll<()> {
        GATE.with_borrow_mut(|gate| gate.poll_take(&mut self.queued, cx))
    }
}

impl Gate {
    fn poll_take(&mut self, queued: &mut Option<(u64, Waker)>, cx: &Context<'_>) -> Poll<()> {
        let place = queued.as_ref().map(|(place, _)| *place);
        let mine =
            if place.is_some() { self.called == place } else { self.called.is_none() && self.waiting.is_empty() };
        if mine && !self.taken {
            self.taken = true;
            self.called = None;
            *queued = None;
            self.keep();
            return Poll::Ready(());
        }
        let first = self.waiting.front().map_or(u64::MAX, |(first, _)| *first);
        let waits = queued.as_ref().is_some_and(|(place, waker)| *place >= first && waker.will_wake(cx.waker()));
        if !waits {
            self.last += 1;
            self.waiting.push_back((self.last, cx.waker().clone()));
            *queued = Some((self.last, cx.waker().clone()));
            self.keep();
        }
        Poll::Pending
    }

    /// Rounds end as long as anybody wants a turn.
    fn keep(&mut self) {
        if !std::mem::replace(&mut self.kept, true) {
            tokio::task::spawn_local(keep());
        }
    }

    /// The next round begins; whether anybody wants a turn still.
    fn next(&mut self) -> bool {
        self.taken = false;
        self.called = None;
        let Some((place, waker)) = self.waiting.pop_front() else {
            self.kept = false;
            return false;
        };
        self.called = Some(place);
        waker.wake();
        true
    }
}

/// Ends rounds. Who yields goes on when all that was ready has run and the sockets were asked.
async fn keep() {
    loop {
        tokio::task::yield_now().await;
        if !GATE.with_borrow_mut(Gate::next) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::rc::Rc;

    use super::*;

    type Log = Rc<RefCell<Vec<usize>>>;

    /// Takes turns, and notes each.
    async fn take(turns: usize, watched: bool, log: Log, name: usize) {
        let mut place = Turns::default();
        for _ in 0..turns {
            if watched {
                poll_fn(|cx| place.poll_take(cx)).await;
            } else {
                tokio::task::yield_now().await;
            }
            log.borrow_mut().push(name);
        }
    }

    fn run(tasks: tokio::task::LocalSet) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(tasks);
    }

    #[test]
    fn the_watched_take_turns_and_the_others_do_not_wait() {
        let log = Log::default();
        let tasks = tokio::task::LocalSet::new();
        for (name, watched) in [(0, true), (1, true), (2, true), (9, false)] {
            tasks.spawn_local(take(4, watched, Rc::clone(&log), name));
        }
        run(tasks);
        let log = log.borrow();
        let watched: Vec<usize> = log.iter().copied().filter(|name| *name != 9).collect();
        // The first takes its place for the second turn before the others have come.
        assert_eq!(watched, [0, 0, 1, 2, 0, 1, 2, 0, 1, 2, 1, 2], "one after the other");
        assert_eq!(log.iter().filter(|name| **name == 9).count(), 4);
        let last = log.iter().rposition(|name| *name == 9).unwrap();
        assert!(last < 10, "who is not watched has its turn between any two of theirs: {log:?}");
    }

    #[test]
    fn who_does_not_come_or_is_gone_holds_nobody_up() {
        let log = Log::default();
        let tasks = tokio::task::LocalSet::new();
        let noted = Rc::clone(&log);
        tasks.spawn_local(async move {
            let mut places: Vec<Turns> = (0..5).map(|_| Turns::default()).collect();
            let noop = Context::from_waker(Waker::noop());
            // The first takes a turn and never lets anybody know; the others wait, and are never looked at again, or are dropped.
            let polls: Vec<bool> = places.iter_mut().map(|place| place.poll_take(&noop).is_ready()).collect();
            assert_eq!(polls, [true, false, false, false, false]);
            places.truncate(3);
            take(2, true, noted, 7).await;
            assert!(places.iter_mut().all(|place| place.poll_take(&noop).is_pending()), "their places are lost");
        });
        tasks.spawn_local(take(2, true, Rc::clone(&log), 8));
        run(tasks);
        let mut log = log.borrow().clone();
        log.sort_unstable();
        assert_eq!(log, [7, 7, 8, 8]);
    }
}
