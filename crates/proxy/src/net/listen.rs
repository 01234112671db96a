//! Opening listening sockets, and what an accepted socket tells about where it wanted to go.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use socket2::{Domain, SockRef, Socket as RawSocket, Type};
use tokio::net::TcpStream;

use super::{canonical, namespace};

/// How a listening socket is opened.
#[derive(Debug, Clone)]
pub struct ListenOptions {
    /// One socket per worker on the same port, the kernel spreading connections.
    pub reuse_port: bool,
    /// Accept connections for addresses that are not this machine's (`IP_TRANSPARENT`).
    pub transparent: bool,
    /// Bind an address that does not exist yet (`IP_FREEBIND`).
    pub freebind: bool,
    /// An IPv6 wildcard socket takes IPv4 connections too.
    pub ipv4_compat: bool,
    /// Length of the queue of connections not yet accepted.
    pub backlog: i32,
    /// File mode of a Unix socket.
    pub mode: u32,
    /// The file of the network namespace that a TCP socket is opened in; `None`: this process's own.
    pub namespace: Option<Arc<Path>>,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self {
            reuse_port: false,
            transparent: false,
            freebind: false,
            ipv4_compat: false,
            backlog: 4096,
            mode: 0o600,
            namespace: None,
        }
    }
}

/// A bound, listening, non-blocking socket that no runtime owns yet.
#[derive(Debug)]
pub enum Bound {
    /// TCP.
    Tcp(std::net::TcpListener),
    /// A Unix stream socket.
    Unix(std::os::unix::net::UnixListener),
}

impl Bound {
    /// A second handle of the same socket.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(tcp) => Self::Tcp(tcp.try_clone()?),
            Self::Unix(unix) => Self::Unix(unix.try_clone()?),
        })
    }

    /// The address with the port that the system chose for port 0.
    pub fn local(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(tcp) => tcp.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }
}

/// Binds a TCP address and listens.
///
/// # Errors
/// What the system says, without the address: the caller knows it.
pub fn bind_tcp(address: SocketAddr, options: &ListenOptions) -> io::Result<std::net::TcpListener> {
    let domain = Domain::for_address(address);
    let socket = match &options.namespace {
        None => RawSocket::new(domain, Type::STREAM, None)?,
        Some(path) => namespace::tcp_socket_blocking(path, domain)?,
    };
    socket.set_reuse_address(true)?;
    if options.reuse_port {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(!options.ipv4_compat)?;
    }
    if options.transparent {
        match address {
            SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
            SocketAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
        }
    }
    if options.freebind {
        match address {
            SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
            SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
        }
    }
    socket.bind(&address.into())?;
    socket.listen(options.backlog)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Binds a Unix socket and listens; `@name` is in the abstract namespace. A stale socket file of a dead process is
/// replaced; a live one is an error.
///
/// # Errors
/// What the system says, without the path: the caller knows it.
pub fn bind_unix(path: &Path, options: &ListenOptions) -> io::Result<std::os::unix::net::UnixListener> {
    use std::os::linux::net::SocketAddrExt;
    if let Some(name) = path.to_str().and_then(|path| path.strip_prefix('@')) {
        let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
        let listener = std::os::unix::net::UnixListener::bind_addr(&address)?;
        listener.set_nonblocking(true)?;
        return Ok(listener);
    }
    if path.exists() {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens on this socket"));
        }
        std::fs::remove_file(path)?;
    }
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(options.mode))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Where the client wanted to go before the kernel redirected it here (`SO_ORIGINAL_DST`); `None` when it was not
/// redirected.
pub fn original_destination(stream: &TcpStream) -> Option<SocketAddr> {
    let socket = SockRef::from(stream);
    let local = stream.local_addr().ok()?;
    let found = match canonical(local) {
        SocketAddr::V4(_) => socket.original_dst_v4().ok()?,
        SocketAddr::V6(_) => socket.original_dst_v6().ok()?,
    };
    found.as_socket().map(canonical)
}
