//! The side that runs: gives copies of its sockets to whoever comes to take over.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, socket_with,
};
use rustix::process::geteuid;
use tokio::sync::watch;

use super::FILE;
use super::packet::{self, Packet};
use crate::door::listeners::Listening;
use crate::worker::{Handle, Order};

/// How long a worker may take to give a copy of a socket.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long whoever comes may take to say what it wants.
const FIRST_WORD: Duration = Duration::from_secs(2);

/// What can be handed over.
pub struct Estate {
    /// The open sockets.
    pub listening: watch::Receiver<Vec<Listening>>,
    /// Who accepts on them.
    pub workers: Arc<Vec<Handle>>,
    /// The administration's socket.
    pub admin: Option<OwnedFd>,
}

/// The Unix socket in the run directory.
#[derive(Debug)]
pub struct Office {
    socket: OwnedFd,
}

/// Why there is no office.
#[derive(Debug, thiserror::Error)]
pub enum OfficeError {
    /// A proxy runs there.
    #[error("another proxy runs in {0}: take over from it with --take-over")]
    Occupied(PathBuf),
    /// The system refused.
    #[error("{path}: {reason}")]
    System {
        /// The socket's file.
        path: PathBuf,
        /// What it said.
        reason: io::Error,
    },
}

impl Office {
    /// Opens it. The file of a predecessor is replaced in one step if that one is about to go (`taken_over`), or is dead.
    ///
    /// # Errors
    /// Somebody else is in office, or the system refuses.
    pub fn open(run_dir: &Path, taken_over: bool) -> Result<Self, OfficeError> {
        let path = run_dir.join(FILE);
        if !taken_over && is_alive(&path) {
            return Err(OfficeError::Occupied(run_dir.to_owned()));
        }
        let opened = bound(run_dir, &path);
        opened.map(|socket| Self { socket }).map_err(|reason| OfficeError::System { path, reason })
    }

    /// Serves whoever comes, one after the other, in a thread of its own; calls `replaced` once, when one of them serves.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn serve(self, estate: Estate, replaced: impl FnOnce() + Send + 'static) -> io::Result<()> {
        std::thread::Builder::new().name("handover".to_owned()).spawn(move || {
            loop {
                match accept_with(&self.socket, SocketFlags::CLOEXEC).map_err(io::Error::from).and_then(|heir| hand_over(&heir, &estate)) {
                    Ok(()) => return replaced(),
                    Err(error) => {
                        tracing::warn!(event = "handover-failed", %error, "whoever came to take over is gone; this proxy stays");
                        // Errors of accepting itself must not turn in circles.
                        std::thread::sleep(Duration::from_millis(50));
                    }
                }
            }
        })?;
        Ok(())
    }
}

/// Whether somebody listens there.
fn is_alive(path: &Path) -> bool {
    super::heir::called(path).is_ok()
}

fn bound(run_dir: &Path, path: &Path) -> io::Result<OwnedFd> {
    if !run_dir.exists() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(run_dir)?;
    }
    let fresh = path.with_extension("new");
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    bind(&socket, &SocketAddrUnix::new(&fresh)?)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
    listen(&socket, 4)?;
    std::fs::rename(&fresh, path)?;
    Ok(socket)
}

/// The whole conversation; `Ok` only when the other one serves.
fn hand_over(heir: &OwnedFd, estate: &Estate) -> io::Result<()> {
    let peer = socket_peercred(heir)?;
    if peer.uid != geteuid() && !peer.uid.is_root() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("user {} came", peer.uid.as_raw())));
    }
    set_socket_timeout(heir, Timeout::Recv, Some(FIRST_WORD))?;
    match packet::receive(heir)? {
        (Packet::Take, _) => {}
        (other, _) => return Err(io::Error::other(format!("{other:?} came first"))),
    }
    tracing::info!(event = "handover", pid = peer.pid.as_raw_nonzero().get(), "another process comes to take over");
    let sockets = copies(estate);
    for (word, socket) in &sockets {
        packet::send(heir, word, Some(socket.as_fd()))?;
    }
    packet::send(heir, &Packet::Complete { sockets: sockets.len() }, None)?;
    drop(sockets);
    // It may wait long for its configuration; meanwhile everything goes on here.
    set_socket_timeout(heir, Timeout::Recv, None)?;
    match packet::receive(heir)? {
        (Packet::Serving, _) => Ok(()),
        (other, _) => Err(io::Error::other(format!("{other:?} came last"))),
    }
}

/// A copy of every socket, with its word.
fn copies(estate: &Estate) -> Vec<(Packet, OwnedFd)> {
    let mut all = Vec::new();
    for open in &*estate.listening.borrow() {
        for (socket, worker) in &open.sockets {
            let (answer, answered) = mpsc::sync_channel(1);
            if let Some(worker) = estate.workers.get(*worker) {
                worker.order(Order::Copy { socket: *socket, answer });
            }
            let Ok(copy) = answered.recv_timeout(PATIENCE) else { continue };
            let namespace = open.namespace.as_deref().map(Path::to_owned);
            all.push((Packet::Listener { address: open.address.to_string(), namespace }, copy));
        }
    }
    let admin = estate.admin.as_ref().and_then(|admin| admin.try_clone().ok());
    all.extend(admin.map(|admin| (Packet::Admin, admin)));
    all
}

/// For [`super::heir`]: a connection to an office.
pub(super) fn connected(path: &Path) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}
