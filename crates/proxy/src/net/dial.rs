//! Opening upstream connections: source address, mark, keepalive, a time limit, TLS.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use identity::tls::{Place, Sessions};
use rustls::pki_types::ServerName;
use socket2::{Domain, SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, UnixStream};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use engine::listener::{SocketOption, SocketValue, TcpKeepalive as Keepalive};

use super::stream::{Raw, Socket, Stream};
use super::{namespace, option, peers};

/// Where to connect to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix stream socket; a leading `@` means the abstract namespace.
    Unix(Arc<Path>),
}

impl Target {
    /// Tells it from every other target.
    fn place(&self) -> Place {
        match self {
            Self::Tcp(address) => Place::Socket(*address),
            Self::Unix(path) => Place::Path(Arc::clone(path)),
        }
    }
}

/// How to connect.
#[derive(Debug, Clone)]
pub struct DialOptions<'a> {
    /// Address to connect from; port 0: any.
    pub source: Option<SocketAddr>,
    /// The file of the network namespace to connect in; `None`: this process's own.
    pub namespace: Option<&'a Path>,
    /// Raw options set before connecting, such as `SO_MARK`, the guard against being redirected to oneself.
    pub options: &'a [SocketOption],
    /// TCP keepalive; `None`: off.
    pub keepalive: Option<Keepalive>,
    /// How long connecting and the TLS handshake may take together.
    pub timeout: Duration,
    /// TLS; `None`: plain bytes.
    pub tls: Option<Tls>,
}

/// TLS towards a server.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The configuration.
    pub config: Arc<rustls::ClientConfig>,
    /// The name of the server.
    pub name: ServerName<'static>,
    /// The sessions of this configuration that may be resumed.
    pub sessions: Sessions,
}

/// Why no connection came to be.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The socket could not be connected.
    #[error("{0}")]
    Connect(io::Error),
    /// The process has no descriptor left for it.
    #[error("no descriptor left")]
    Exhausted,
    /// `timeout` was over.
    #[error("connection timeout")]
    Timeout,
    /// The TLS handshake failed.
    #[error("TLS error: {0}")]
    Tls(io::Error),
}

/// Connects, and does the TLS handshake where there is one.
///
/// # Errors
/// [`DialError`].
pub async fn dial(target: &Target, options: DialOptions<'_>) -> Result<Stream, DialError> {
    let deadline = Instant::now() + options.timeout;
    let stream = once(target, &options, deadline).await?;
    let (Some(tls), Err(_)) = (&options.tls, lasting(&stream)) else { return Ok(stream) };
    // What a session stands for has ended while it was kept. It is forgotten, and a full handshake judges the server anew.
    drop(stream);
    tls.sessions.clear();
    let stream = once(target, &options, deadline).await?;
    lasting(&stream).map_err(|refusal| DialError::Tls(io::Error::other(rustls::Error::from(refusal))))?;
    Ok(stream)
}

/// Whether a resumed session's certificate is still in its time; a full handshake has looked at it already.
fn lasting(stream: &Stream) -> Result<(), identity::tls::Refusal> {
    match stream.tls() {
        Some(state) if state.handshake_kind() == Some(rustls::HandshakeKind::Resumed) => {
            peers::of(state, SystemTime::now()).map(|_| ())
        }
        _ => Ok(()),
    }
}

async fn once(target: &Target, options: &DialOptions<'_>, deadline: Instant) -> Result<Stream, DialError> {
    let socket = match timeout_at(deadline, connect(target, options)).await {
        Ok(Err(error)) if is_exhaustion(&error) => return Err(DialError::Exhausted),
        Ok(result) => result.map_err(DialError::Connect)?,
        Err(_) => return Err(DialError::Timeout),
    };
    let raw = Raw::new(socket);
    let Some(tls) = &options.tls else { return Ok(Stream::Plain(raw)) };
    let config = tls.sessions.towards(&tls.config, target.place());
    let handshake = TlsConnector::from(config).connect(tls.name.clone(), raw);
    match timeout_at(deadline, handshake).await {
        Ok(Ok(tls)) => Ok(Stream::Tls(Box::new(tls.into()))),
        Ok(Err(error)) => Err(DialError::Tls(error)),
        Err(_) => Err(DialError::Timeout),
    }
}

async fn connect(target: &Target, options: &DialOptions<'_>) -> io::Result<Socket> {
    match target {
        Target::Tcp(address) => connect_tcp(*address, options).await,
        Target::Unix(path) => connect_unix(path).await,
    }
}

async fn connect_tcp(address: SocketAddr, options: &DialOptions<'_>) -> io::Result<Socket> {
    let socket = match options.namespace {
        None if address.is_ipv4() => TcpSocket::new_v4()?,
        None => TcpSocket::new_v6()?,
        Some(path) => {
            let socket = namespace::tcp_socket(path, Domain::for_address(address)).await?;
            socket.set_nonblocking(true)?;
            TcpSocket::from_std_stream(socket.into())
        }
    };
    for SocketOption { level, name, value } in options.options {
        match value {
            SocketValue::Int(value) => option::set_int(&socket, *level, *name, *value)?,
            SocketValue::Bytes(value) => option::set_bytes(&socket, *level, *name, value)?,
        }
    }
    if let Some(keepalive) = options.keepalive {
        SockRef::from(&socket).set_tcp_keepalive(&system_keepalive(keepalive))?;
    }
    if let Some(source) = options.source.filter(|source| source.is_ipv4() == address.is_ipv4()) {
        if source.port() == 0 && source.is_ipv4() {
            // The port is chosen at connect, by the whole four-tuple, so that ports are not used up.
            let _ = option::bind_address_no_port(&socket);
        }
        if !source.ip().is_unspecified() || source.port() != 0 {
            socket.bind(source)?;
        }
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(Socket::Tcp(stream))
}

/// Whether the system has nothing left to make a socket of.
pub fn is_exhaustion(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

fn system_keepalive(keepalive: Keepalive) -> TcpKeepalive {
    let mut system = TcpKeepalive::new();
    if let Some(time) = keepalive.time {
        system = system.with_time(time);
    }
    if let Some(interval) = keepalive.interval {
        system = system.with_interval(interval);
    }
    if let Some(probes) = keepalive.probes {
        system = system.with_retries(probes);
    }
    system
}

async fn connect_unix(path: &Path) -> io::Result<Socket> {
    use std::os::linux::net::SocketAddrExt;
    if let Some(name) = path.to_str().and_then(|path| path.strip_prefix('@')) {
        let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
        let stream = std::os::unix::net::UnixStream::connect_addr(&address)?;
        stream.set_nonblocking(true)?;
        return Ok(Socket::Unix(UnixStream::from_std(stream)?));
    }
    UnixStream::connect(path).await.map(Socket::Unix)
}
