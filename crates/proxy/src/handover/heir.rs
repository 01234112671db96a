//! The side that comes: gets the sockets of the proxy that runs, and tells it when to go.

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use engine::Address;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use super::FILE;
use super::office::connected;
use super::packet::{self, Packet};
use crate::net::listen::Bound;

/// How long the other one may take for each socket.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the proxy that runs has given away.
#[derive(Debug)]
pub struct Inheritance {
    sockets: Vec<Inherited>,
    admin: Option<OwnedFd>,
    /// Closed without a word, the other one stays.
    word: Option<OwnedFd>,
}

#[derive(Debug)]
struct Inherited {
    address: String,
    namespace: Option<PathBuf>,
    socket: OwnedFd,
}

/// Takes over from the proxy that runs in this directory; `None`: there is none.
///
/// # Errors
/// There is one, but it does not hand over.
pub fn take(run_dir: &Path) -> io::Result<Option<Inheritance>> {
    let Ok(office) = called(&run_dir.join(FILE)) else { return Ok(None) };
    set_socket_timeout(&office, Timeout::Recv, Some(PATIENCE))?;
    packet::send(&office, &Packet::Take, None)?;
    let mut found = Inheritance { sockets: Vec::new(), admin: None, word: None };
    loop {
        match packet::receive(&office)? {
            (Packet::Listener { address, namespace }, Some(socket)) => {
                found.sockets.push(Inherited { address, namespace, socket });
            }
            (Packet::Admin, Some(socket)) => found.admin = Some(socket),
            (Packet::Complete { sockets }, _) if sockets == found.count() => break,
            (other, _) => return Err(io::Error::other(format!("{other:?} after {} sockets", found.count()))),
        }
    }
    found.word = Some(office);
    Ok(Some(found))
}

/// A connection to the office, if somebody is there.
pub(super) fn called(path: &Path) -> io::Result<OwnedFd> {
    connected(path)
}

impl Inheritance {
    fn count(&self) -> usize {
        self.sockets.len() + usize::from(self.admin.is_some())
    }

    /// The sockets of an address in a network namespace, each once.
    pub fn claim(&mut self, address: &Address, namespace: Option<&Path>) -> Vec<Bound> {
        let text = address.to_string();
        let is_unix = matches!(address, Address::Unix(_));
        let wanted = |one: &mut Inherited| one.address == text && one.namespace.as_deref() == namespace;
        let claimed = self.sockets.extract_if(.., wanted).map(|one| one.socket);
        let bound = |socket: OwnedFd| match is_unix {
            true => Bound::Unix(UnixListener::from(socket)),
            false => Bound::Tcp(TcpListener::from(socket)),
        };
        claimed.map(bound).collect()
    }

    /// The administration's socket.
    pub fn claim_admin(&mut self) -> Option<OwnedFd> {
        self.admin.take()
    }

    /// What tells the other one that it may go.
    pub fn word(&mut self) -> Option<Word> {
        self.word.take().map(Word)
    }
}

/// The last word of a take-over.
#[derive(Debug)]
pub struct Word(OwnedFd);

impl Word {
    /// This process serves. Sockets that nobody claimed are closed with what is left of the inheritance.
    ///
    /// # Errors
    /// The other one is gone already.
    pub fn serving(self) -> io::Result<()> {
        packet::send(&self.0, &Packet::Serving, None)
    }
}
