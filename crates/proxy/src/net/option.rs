//! Raw socket options: the one place where a number from the configuration becomes a system call.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Sets an option whose value is an `int`, by its numbers (`SO_MARK` is level 1, name 36 on Linux).
///
/// # Errors
/// What the system says: `EPERM` for options that need a capability, `ENOPROTOOPT` for unknown numbers.
#[allow(unsafe_code, reason = "no safe crate sets an option whose level and name come from the configuration")]
pub fn set_int(socket: impl AsFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<i32>()).unwrap_or(4);
    // SAFETY: the descriptor is open while `socket` is borrowed, and the pointer and length describe `value`, which
    // lives until the call returns; the kernel copies it.
    let result =
        unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, std::ptr::from_ref(&value).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The same for a value of raw bytes.
///
/// # Errors
/// As [`set_int`].
#[allow(unsafe_code, reason = "no safe crate sets an option whose level and name come from the configuration")]
pub fn set_bytes(socket: impl AsFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let length = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: as above; `value` is borrowed for the whole call and `length` is its length.
    let result = unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, value.as_ptr().cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Chooses the local port at connect time by the whole four-tuple instead of at bind time, so that many connections from
/// one source address do not use the ports up.
///
/// # Errors
/// As [`set_int`].
pub fn bind_address_no_port(socket: impl AsFd) -> io::Result<()> {
    set_int(socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)
}

/// How much may wait in the system that was not sent yet, bytes: a peer that takes nothing makes this end hold no more.
///
/// # Errors
/// As [`set_int`].
pub fn unsent_low_water(socket: impl AsFd, bytes: i32) -> io::Result<()> {
    set_int(socket, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, bytes)
}
