//! Where attackers run: on threads of their own. In the world they are other machines; here they share a few cores with the
//! proxy, its server and the good client, and what these feel of that is not the proxy's doing.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

use super::attacks::{self, Attack};
use super::cores;

/// As many as the machine has cores that matter here.
const THREADS: usize = 2;

/// The attackers' threads.
pub(super) struct Attackers {
    runtime: Runtime,
    /// Their numbers.
    threads: Arc<Mutex<Vec<i32>>>,
}

impl Attackers {
    /// `give_way`: they have the processor only while nobody else wants it, which on a machine that is busy with other
    /// things may be never.
    pub(super) fn new(give_way: bool) -> Result<Self> {
        let threads = Arc::<Mutex<Vec<i32>>>::default();
        let known = Arc::clone(&threads);
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .enable_all()
            .on_thread_start(move || {
                let thread = rustix::thread::gettid().as_raw_nonzero().get();
                if give_way {
                    cores::gives_way(thread);
                }
                known.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
            })
            .build()?;
        Ok(Self { runtime, threads })
    }

    /// Attacks again and again until `end`; how long each attacker stayed.
    pub(super) fn attack(&self, attack: &Attack, end: Instant) -> Vec<JoinHandle<Vec<Duration>>> {
        (0..attack.connections).map(|_| self.runtime.spawn(attacks::repeat(attack.run, end))).collect()
    }

    /// Attacks from each place until it was cut off once.
    pub(super) fn once(&self, attack: &Attack, end: Instant) -> Vec<JoinHandle<Option<Duration>>> {
        let run = attack.run;
        let once = move || async move {
            while Instant::now() < end {
                if let Some(stay) = run(end).await {
                    return Some(stay);
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            None
        };
        (0..attack.connections).map(|_| self.runtime.spawn(once())).collect()
    }

    /// Uses all the time that attackers could use, for nothing.
    pub(super) fn spin(&self, end: Instant) -> Vec<JoinHandle<()>> {
        let spin = move || async move {
            while Instant::now() < end {
                (0..1000).for_each(|_| std::hint::spin_loop());
                tokio::task::yield_now().await;
            }
        };
        (0..THREADS).map(|_| self.runtime.spawn(spin())).collect()
    }

    /// Processor time of all threads so far; the system counts in hundredths of a second.
    pub(super) fn cpu(&self) -> Duration {
        let threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let stat = |thread: i32| std::fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap_or_default();
        Duration::from_millis(threads.into_iter().map(|thread| ticks(&stat(thread)) * 10).sum())
    }

    pub(super) fn end(self) {
        self.runtime.shutdown_background();
    }
}

/// Clock ticks in user and kernel mode, of a line of `/proc/*/stat`.
pub(super) fn ticks(stat: &str) -> u64 {
    let rest = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    rest.split_whitespace().skip(11).take(2).map(|word| word.parse::<u64>().unwrap_or(0)).sum()
}
