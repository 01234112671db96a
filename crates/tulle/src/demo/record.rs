//! What the programs that make traffic saw.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

use super::app::traffic::{Begun, Seen};
use super::cast::Part;

/// At most this many requests are remembered; the totals go on.
const REMEMBERED: usize = 400_000;

/// One request: when it was told, and by whom.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) at: Instant,
    pub(crate) who: &'static str,
    pub(crate) seen: Seen,
}

impl Entry {
    /// When the request began.
    pub(crate) fn began(&self) -> Instant {
        let took = Duration::from_secs_f64(self.seen.ms.clamp(0.0, 3_600_000.0) / 1000.0);
        self.at.checked_sub(took).unwrap_or(self.at)
    }
}

/// All requests, in order of their ends.
#[derive(Debug, Default)]
pub(crate) struct Record {
    entries: RefCell<VecDeque<Entry>>,
    totals: RefCell<Totals>,
    /// Requests that began and did not end yet.
    pending: RefCell<HashMap<(&'static str, u64), Instant>>,
}

/// The visitor's requests since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) requests: u64,
    pub(crate) failed: u64,
}

impl Record {
    /// Follows what a program prints until it ends.
    pub(crate) async fn follow(self: Rc<Self>, who: &'static str, output: impl AsyncRead + Unpin) {
        let mut lines = BufReader::new(output).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if let Ok(seen) = serde_json::from_str::<Seen>(&line) {
                self.pending.borrow_mut().remove(&(who, seen.turn));
                self.add(Entry { at: Instant::now(), who, seen });
            } else if let Ok(Begun { begun }) = serde_json::from_str(&line) {
                self.pending.borrow_mut().insert((who, begun), Instant::now());
            }
        }
    }

    fn add(&self, entry: Entry) {
        if entry.who == VISITOR {
            let mut totals = self.totals.borrow_mut();
            totals.requests += 1;
            totals.failed += u64::from(!entry.seen.is_success());
        }
        let mut entries = self.entries.borrow_mut();
        if entries.len() >= REMEMBERED {
            entries.pop_front();
        }
        entries.push_back(entry);
    }

    pub(crate) fn totals(&self) -> Totals {
        *self.totals.borrow()
    }

    /// How many requests that began before an instant have no answer yet.
    pub(crate) fn pending(&self, who: &str, before: Instant) -> usize {
        let pending = self.pending.borrow();
        pending.iter().filter(|((name, _), began)| *name == who && **began < before).count()
    }

    /// Waits until everything that a program began before an instant has ended, well or not, but not for ever.
    pub(crate) async fn answered(&self, who: &str, before: Instant, patience: Duration) {
        while self.pending(who, before) > 0 && before.elapsed() < patience {
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    /// Everything that one program asked, in order of the ends.
    pub(crate) fn of(&self, who: &str) -> Vec<Entry> {
        self.entries.borrow().iter().filter(|entry| entry.who == who).cloned().collect()
    }

    /// What one program asked since an instant: requests that began then or later.
    pub(crate) fn since(&self, who: &str, start: Instant) -> Vec<Entry> {
        let entries = self.entries.borrow();
        entries.iter().filter(|entry| entry.who == who && entry.began() >= start).cloned().collect()
    }
}

/// The parts that make traffic.
pub(crate) const VISITOR: &str = "visitor-1";
pub(crate) const INTRUDER: &str = "intruder-1";
pub(crate) const LEGACY: &str = "legacy-1";
/// Not a part: the client for statistics.
pub(crate) const BURST: &str = "burst";

/// Whether a part tells of its requests on standard output.
pub(crate) fn is_traffic_maker(part: &Part) -> bool {
    [VISITOR, INTRUDER, LEGACY].contains(&part.name)
}

/// How many of some entries succeeded, and what those asked that did not.
pub(crate) struct Tally {
    pub(crate) all: usize,
    pub(crate) failed: usize,
    pub(crate) example: String,
}

impl Tally {
    pub(crate) fn of<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Self {
        let mut tally = Self { all: 0, failed: 0, example: String::new() };
        let mut kinds: BTreeMap<(&str, u16), usize> = BTreeMap::new();
        let mut error = "";
        for entry in entries {
            tally.all += 1;
            if !entry.seen.is_success() {
                tally.failed += 1;
                *kinds.entry((entry.seen.kind.as_str(), entry.seen.status)).or_insert(0) += 1;
                error = &entry.seen.error;
            }
        }
        let kinds: Vec<String> = kinds.iter().map(|((kind, status), n)| format!("{n} {kind} {status}")).collect();
        tally.example = format!("{}; the last: {error}", kinds.join(", "));
        tally
    }

    /// Share of success, 0 to 1; nothing asked is no success.
    pub(crate) fn success(&self) -> f64 {
        if self.all == 0 { 0.0 } else { (self.all - self.failed) as f64 / self.all as f64 }
    }
}
