//! Where lines go: bounded buffers, one per worker, emptied by one thread.
//!
//! A worker appends to its own buffer; the only other hand on it is the writer's, for the moment it takes to swap
//! the buffer for an empty one. A buffer that is full loses the line and counts it: a slow disk never slows traffic.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use std::thread::Thread;
use std::time::Duration;

use parking_lot::Mutex;

/// Most bytes that wait in one worker's buffer.
const MOST_WAITING: usize = 1 << 20;
/// How long the writer lets lines gather before it writes them.
const GATHER: Duration = Duration::from_millis(20);
/// How long the writer sleeps when nothing happens, at most.
const IDLE: Duration = Duration::from_secs(5);

/// Where a log is written.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// A file, appended to.
    File(PathBuf),
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Target {
    /// A path of a file access log; `/dev/stdout` and `/dev/stderr` are the streams themselves.
    pub fn from_path(path: &str) -> Self {
        match path {
            "/dev/stdout" => Self::Stdout,
            "/dev/stderr" => Self::Stderr,
            path => Self::File(PathBuf::from(path)),
        }
    }

    fn open(&self) -> io::Result<Box<dyn Write + Send>> {
        Ok(match self {
            Self::File(path) => Box::new(append(path)?),
            Self::Stdout => Box::new(io::stdout()),
            Self::Stderr => Box::new(io::stderr()),
        })
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// A log that workers write to. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sink {
    log: Arc<Log>,
}

#[derive(Debug)]
struct Log {
    target: Target,
    buffers: Box<[Mutex<Vec<u8>>]>,
    dropped: AtomicU64,
    written: AtomicU64,
    failed: AtomicU64,
    waiting: AtomicBool,
    reopen: AtomicBool,
    writer: Thread,
}

impl Sink {
    /// Appends a line that `write` makes; `worker` chooses the buffer.
    pub fn line(&self, worker: usize, write: impl FnOnce(&mut Vec<u8>)) {
        let Some(buffer) = self.log.buffers.get(worker % self.log.buffers.len().max(1)) else { return };
        {
            let mut buffer = buffer.lock();
            let before = buffer.len();
            if before >= MOST_WAITING {
                self.log.dropped.fetch_add(1, Relaxed);
                return;
            }
            write(&mut buffer);
            if buffer.len() > MOST_WAITING {
                buffer.truncate(before);
                self.log.dropped.fetch_add(1, Relaxed);
                return;
            }
        }
        if !self.log.waiting.swap(true, Release) {
            self.log.writer.unpark();
        }
    }

    /// Lines lost because a buffer was full.
    pub fn dropped(&self) -> u64 {
        self.log.dropped.load(Relaxed)
    }

    /// Bytes written.
    pub fn written(&self) -> u64 {
        self.log.written.load(Relaxed)
    }

    /// Writes that failed (disk full, file gone); their lines are lost.
    pub fn failed(&self) -> u64 {
        self.log.failed.load(Relaxed)
    }

    /// Where it writes.
    pub fn target(&self) -> &Target {
        &self.log.target
    }
}

/// All logs of one proxy and the thread that writes them.
#[derive(Debug)]
pub struct Sinks {
    shared: Arc<Shared>,
    workers: usize,
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
    thread: Thread,
}

#[derive(Debug, Default)]
struct Shared {
    logs: Mutex<Vec<Arc<Log>>>,
    stop: AtomicBool,
}

impl Sinks {
    /// Starts the writing thread; logs have a buffer for each of `workers`.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(workers: usize) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let writer = std::thread::Builder::new().name("access-log".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || write_all(&shared)
        })?;
        let thread = writer.thread().clone();
        Ok(Self { shared, workers: workers.max(1), writer: Mutex::new(Some(writer)), thread })
    }

    /// The log at `target`: the one that exists, or a new one.
    ///
    /// # Errors
    /// When the file cannot be opened for appending.
    pub fn open(&self, target: &Target) -> io::Result<Sink> {
        let mut logs = self.shared.logs.lock();
        if let Some(log) = logs.iter().find(|log| log.target == *target) {
            return Ok(Sink { log: Arc::clone(log) });
        }
        // Opened here only to refuse a path that cannot be written; the writer opens it for itself.
        drop(target.open()?);
        let log = Arc::new(Log {
            target: target.clone(),
            buffers: std::iter::repeat_with(Mutex::default).take(self.workers).collect(),
            dropped: AtomicU64::new(0),
            written: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            waiting: AtomicBool::new(false),
            reopen: AtomicBool::new(false),
            writer: self.thread.clone(),
        });
        logs.push(Arc::clone(&log));
        Ok(Sink { log })
    }

    /// The logs that are open.
    pub fn all(&self) -> Vec<Sink> {
        self.shared.logs.lock().iter().map(|log| Sink { log: Arc::clone(log) }).collect()
    }

    /// Makes the writer close and open its files again (after they were moved away).
    pub fn reopen(&self) {
        for log in self.shared.logs.lock().iter() {
            log.reopen.store(true, Relaxed);
        }
        self.thread.unpark();
    }

    /// Writes what waits and ends the thread. Also done when dropped.
    pub fn finish(&self) {
        self.shared.stop.store(true, Release);
        self.thread.unpark();
        if let Some(writer) = self.writer.lock().take() {
            // A panic of the writer cannot be mended here; its lines are lost.
            let _ = writer.join();
        }
    }
}

impl Drop for Sinks {
    fn drop(&mut self) {
        self.finish();
    }
}

/// The writer's own state of a log.
struct Open {
    log: Arc<Log>,
    file: Option<Box<dyn Write + Send>>,
    spare: Vec<u8>,
}

fn write_all(shared: &Shared) {
    let mut open: Vec<Open> = Vec::new();
    loop {
        let stop = shared.stop.load(Acquire);
        for log in shared.logs.lock().iter() {
            if !open.iter().any(|held| Arc::ptr_eq(&held.log, log)) {
                open.push(Open { log: Arc::clone(log), file: None, spare: Vec::new() });
            }
        }
        let mut wrote = false;
        for open in &mut open {
            wrote |= open.empty();
        }
        if stop {
            return;
        }
        if wrote {
            std::thread::sleep(GATHER);
        } else {
            std::thread::park_timeout(IDLE);
        }
    }
}

impl Open {
    /// Writes what waits; says whether there was anything.
    fn empty(&mut self) -> bool {
        if self.log.reopen.swap(false, Relaxed) {
            self.file = None;
        }
        if !self.log.waiting.swap(false, Acquire) {
            return false;
        }
        let log = Arc::clone(&self.log);
        for buffer in &log.buffers {
            std::mem::swap(&mut *buffer.lock(), &mut self.spare);
            if !self.spare.is_empty() {
                self.write();
            }
            self.spare.clear();
            // A burst must not keep its memory for ever.
            self.spare.shrink_to(64 * 1024);
        }
        true
    }

    fn write(&mut self) {
        if self.file.is_none() {
            self.file = self.log.target.open().ok();
        }
        let result = match &mut self.file {
            Some(file) => file.write_all(&self.spare).and_then(|()| file.flush()),
            None => Err(io::ErrorKind::NotFound.into()),
        };
        match result {
            Ok(()) => {
                self.log.written.fetch_add(self.spare.len() as u64, Relaxed);
            }
            Err(_) => {
                self.file = None;
                self.log.failed.fetch_add(1, Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &Path) -> Vec<String> {
        std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    #[test]
    fn lines_of_all_workers_arrive_and_a_moved_file_is_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (path, moved) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
        let sinks = Sinks::start(2).unwrap();
        let sink = sinks.open(&Target::File(path.clone())).unwrap();
        for worker in 0..2 {
            sink.line(worker, |out| out.extend_from_slice(format!("worker {worker}\n").as_bytes()));
        }
        while sink.written() < 18 {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::fs::rename(&path, &moved).unwrap();
        sinks.reopen();
        sink.line(0, |out| out.extend_from_slice(b"after\n"));
        sinks.finish();
        assert_eq!(lines(&moved), ["worker 0", "worker 1"]);
        assert_eq!(lines(&path), ["after"]);
    }

    #[test]
    fn a_full_buffer_drops_and_counts() {
        let dir = tempfile::tempdir().unwrap();
        let sinks = Sinks::start(1).unwrap();
        let sink = sinks.open(&Target::File(dir.path().join("log"))).unwrap();
        sink.line(0, |out| out.resize(MOST_WAITING + 1, b'x'));
        assert_eq!(sink.dropped(), 1);
        sink.line(0, |out| out.extend_from_slice(b"fits\n"));
        sinks.finish();
        assert_eq!(lines(&dir.path().join("log")), ["fits"]);
    }

    #[test]
    fn a_path_that_cannot_be_opened_is_refused() {
        let sinks = Sinks::start(1).unwrap();
        assert!(sinks.open(&Target::File(PathBuf::from("/nowhere/at/all.log"))).is_err());
    }
}
