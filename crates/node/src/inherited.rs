//! Sockets that the parent process opened.

use std::io;
use std::net::TcpListener;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Takes over a listening TCP socket by the number that the parent told. Fails if the number is no such socket.
#[allow(unsafe_code, reason = "a number becomes an owner here, and only here")]
pub fn listener(fd: RawFd) -> io::Result<TcpListener> {
    if fd < 3 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "standard streams are not listening sockets"));
    }
    // SAFETY: the parent opened the descriptor for us, and nothing else in this process knows its number; a number
    // that is not open makes the calls below fail.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let listener = TcpListener::from(fd);
    listener.local_addr()?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Whether children get this descriptor.
#[allow(unsafe_code, reason = "the descriptor is borrowed by its number for one call")]
pub fn hand_down(fd: RawFd, wanted: bool) -> io::Result<()> {
    // SAFETY: a number that is not open makes the call fail; nothing is kept.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    let flags = if wanted { rustix::io::FdFlags::empty() } else { rustix::io::FdFlags::CLOEXEC };
    Ok(rustix::io::fcntl_setfd(fd, flags)?)
}
