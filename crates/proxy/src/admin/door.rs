//! Where the administration listens.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use engine::Address;
use tokio::net::{TcpListener, UnixListener};

use super::{BindError, Scope};

/// A listening socket.
#[derive(Debug)]
pub enum Door {
    /// TCP.
    Tcp(TcpListener),
    /// A Unix socket that only this user may open.
    Unix(UnixListener),
}

impl Door {
    /// A listening socket of another process for this address.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn adopt(address: &Address, socket: OwnedFd) -> io::Result<Self> {
        match address {
            Address::Unix(_) => {
                let listener = std::os::unix::net::UnixListener::from(socket);
                listener.set_nonblocking(true)?;
                UnixListener::from_std(listener).map(Self::Unix)
            }
            Address::Socket(_) | Address::Name { .. } => {
                let listener = std::net::TcpListener::from(socket);
                listener.set_nonblocking(true)?;
                TcpListener::from_std(listener).map(Self::Tcp)
            }
        }
    }

    /// Another descriptor of the same socket.
    pub fn copy(&self) -> Option<OwnedFd> {
        match self {
            Self::Tcp(listener) => listener.as_fd().try_clone_to_owned().ok(),
            Self::Unix(listener) => listener.as_fd().try_clone_to_owned().ok(),
        }
    }

    /// The port, for TCP.
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok().map(|address| address.port()),
            Self::Unix(_) => None,
        }
    }
}

/// Listens on an address. The administration itself stays on this machine unless `anywhere`; metrics and health pages
/// change nothing and may be reached from outside.
///
/// # Errors
/// When the address is public and may not be, or the system refuses.
pub async fn bind(address: &Address, scope: Scope, anywhere: bool) -> Result<Door, BindError> {
    let failed = |error| BindError::System { address: address.to_string(), error };
    match address {
        Address::Socket(socket) => {
            if scope == Scope::Admin && !anywhere && !socket.ip().to_canonical().is_loopback() {
                return Err(BindError::Public(*socket));
            }
            TcpListener::bind(socket).await.map(Door::Tcp).map_err(failed)
        }
        Address::Unix(path) => unix(path).map(Door::Unix).map_err(failed),
        Address::Name { .. } => Err(BindError::Name(address.to_string())),
    }
}

/// A Unix socket with mode 0600. One that a dead process left behind is replaced, anything else is not.
fn unix(path: &Path) -> io::Result<UnixListener> {
    if let Ok(metadata) = std::fs::symlink_metadata(path)
        && metadata.file_type().is_socket()
    {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn public_addresses_are_refused() {
        let any = Address::Socket("0.0.0.0:0".parse().unwrap());
        let error = bind(&any, Scope::Admin, false).await.unwrap_err();
        assert!(error.to_string().contains("--admin-anywhere"), "{error}");
        assert!(bind(&any, Scope::Metrics, false).await.is_ok());
        assert!(bind(&Address::Socket("127.0.0.1:0".parse().unwrap()), Scope::Admin, false).await.is_ok());
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let address = Address::Unix(path.clone().into());
        let first = bind(&address, Scope::Admin, false).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(bind(&address, Scope::Admin, false).await.is_err());
        drop(first);
        assert!(bind(&address, Scope::Admin, false).await.is_ok());
    }
}
