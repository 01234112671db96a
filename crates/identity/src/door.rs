//! Listeners for gRPC that know who is calling: TLS over TCP, and Unix sockets with peer credentials (plain, or TLS
//! inside). Handshakes run beside each other with a deadline, so that no caller can hold up another, and nothing that a
//! caller sends ends the accept loop.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use model::SpiffeId;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;

use crate::audit::{Audit, Event};
use crate::private::{self, PrivateError};
use crate::tls::{self, Cause, ClientAuth, KeySlot, PeerFacts, ServerSettings, TrustBundle};

/// How long a caller may take to finish its handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How many handshakes run at once; more wait in the kernel's queue.
const HANDSHAKES: usize = 256;
/// How long the loop rests when the system has no descriptors left.
const EXHAUSTED: Duration = Duration::from_millis(50);

/// The longest path a Unix socket can have (`sun_path` without its final NUL).
const MAX_SOCKET_PATH: usize = 107;

/// The process at the other end of a Unix socket, as the kernel says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnixPeer {
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its process, where known.
    pub pid: Option<i32>,
}

/// Who is calling. gRPC handlers find it in `request.extensions()`.
#[derive(Debug, Clone, Default)]
pub struct Caller {
    /// The verified client certificate, if one was presented. It may have ended since: see [`Caller::identity`].
    pub certificate: Option<Arc<PeerFacts>>,
    /// The process, over a Unix socket.
    pub unix: Option<UnixPeer>,
    /// The address, over TCP.
    pub address: Option<SocketAddr>,
    /// Whether the connection is encrypted.
    pub encrypted: bool,
}

impl Caller {
    /// The identity in a certificate that is valid now. A long connection does not outlive its certificate here.
    ///
    /// # Errors
    /// No certificate, no SPIFFE id in it, or it has ended.
    pub fn identity(&self, now: SystemTime) -> Result<&SpiffeId, tls::Refusal> {
        let facts = self
            .certificate
            .as_deref()
            .ok_or_else(|| tls::Refusal::new(Cause::NoCertificate, "no client certificate was presented"))?;
        facts.check_time(now)?;
        facts.identity.as_ref().ok_or_else(|| tls::Refusal::new(Cause::NotSpiffe, "the certificate has no SPIFFE id"))
    }

    /// What rate limits go by when there is no identity: the user, or the address (IPv6: its /64 network).
    pub(crate) fn origin(&self) -> String {
        match (self.unix, self.address.map(|a| a.ip().to_canonical())) {
            (Some(peer), _) => format!("uid {}", peer.uid),
            (None, Some(IpAddr::V6(ip))) => format!("net {:x}", u128::from(ip) >> 64),
            (None, Some(ip)) => format!("ip {ip}"),
            (None, None) => "unknown".to_owned(),
        }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.certificate.as_deref().and_then(|facts| facts.identity.as_ref()) {
            Some(identity) => write!(f, "{identity}")?,
            None => f.write_str("anonymous")?,
        }
        match (self.unix, self.address) {
            (Some(UnixPeer { uid, pid: Some(pid), .. }), _) => write!(f, " (uid {uid}, pid {pid})"),
            (Some(UnixPeer { uid, .. }), _) => write!(f, " (uid {uid})"),
            (None, Some(address)) => write!(f, " ({address})"),
            (None, None) => Ok(()),
        }
    }
}

/// A connection whose handshake is done.
pub struct Connection {
    io: Io,
    caller: Caller,
}

enum Io {
    Unix(UnixStream),
    TlsOverTcp(Box<TlsStream<TcpStream>>),
    TlsOverUnix(Box<TlsStream<UnixStream>>),
}

impl Connection {
    /// Who is at the other end.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("caller", &self.caller).finish_non_exhaustive()
    }
}

impl tonic::transport::server::Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

macro_rules! each {
    ($self:ident, $io:ident => $call:expr) => {
        match &mut $self.get_mut().io {
            Io::Unix($io) => $call,
            Io::TlsOverTcp($io) => $call,
            Io::TlsOverUnix($io) => $call,
        }
    };
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_read(cx, buf))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_shutdown(cx))
    }
}

/// Finished connections, for `tonic`'s `serve_with_incoming`.
pub type Incoming = ReceiverStream<io::Result<Connection>>;

/// The TLS settings of a control plane's door: clients of the trust bundle may present their certificate, newcomers
/// with a token have none; HTTP/2; TLS 1.2 is spoken because Envoy's clients default to it.
///
/// # Errors
/// Never in practice: all inputs were checked before.
pub fn control_tls(keys: Arc<KeySlot>, bundle: TrustBundle) -> Result<Arc<ServerConfig>, tls::BuildError> {
    tls::server_config(&ServerSettings {
        keys,
        client_auth: ClientAuth::Request,
        trust: vec![bundle],
        alpn: vec![b"h2".to_vec()],
        ..ServerSettings::default()
    })
}

/// Accepts TLS over TCP until the returned stream is dropped.
pub fn tcp(listener: TcpListener, tls: Arc<ServerConfig>) -> Incoming {
    let (send, receive) = mpsc::channel(16);
    tokio::spawn(async move {
        let slots = Arc::new(Semaphore::new(HANDSHAKES));
        let acceptor = TlsAcceptor::from(tls);
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = send.closed() => return,
            };
            let Some((stream, address)) = usable(accepted).await else { continue };
            let (send, acceptor) = (send.clone(), acceptor.clone());
            tokio::spawn(async move {
                let _slot = slot;
                let _ = stream.set_nodelay(true);
                let caller = Caller { address: Some(address), encrypted: true, ..Caller::default() };
                if let Some((stream, caller)) = shake(&acceptor, stream, caller).await {
                    let _ = send.send(Ok(Connection { io: Io::TlsOverTcp(Box::new(stream)), caller })).await;
                }
            });
        }
    });
    ReceiverStream::new(receive)
}

/// Which users may connect to a Unix socket, and whether TLS is spoken inside when the caller begins with it.
#[derive(Clone, Default)]
pub struct UnixDoor {
    /// Users besides the one who runs this program and root.
    pub more_uids: Vec<u32>,
    /// TLS for callers that begin with a TLS handshake (agents do, to show their certificate).
    pub tls: Option<Arc<ServerConfig>>,
    /// Where refusals are counted.
    pub audit: Arc<Audit>,
}

/// Makes a Unix socket of mode 0600. A stale socket file of a dead program is replaced; a live one is an error.
///
/// # Errors
/// The path is too long, its directory can be changed by others, or somebody listens there.
pub fn bind_unix(path: &Path) -> Result<UnixListener, PrivateError> {
    let io = |what, source| PrivateError::Io { what, path: path.to_owned(), source };
    if path.as_os_str().len() > MAX_SOCKET_PATH {
        let reason = format!("a socket's path has at most {MAX_SOCKET_PATH} bytes; use a shorter directory");
        return Err(io("listen on", io::Error::new(io::ErrorKind::InvalidInput, reason)));
    }
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).map_or_else(|| PathBuf::from("."), Into::into);
    private::directory(&directory)?;
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => {
            return Err(io("listen on", io::Error::new(io::ErrorKind::AddrInUse, "another program listens there")));
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|e| io("remove the stale", e))?;
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(|e| io("listen on", e))?;
    private::restrict(path, 0o600)?;
    Ok(listener)
}

/// Accepts from a Unix socket until the returned stream is dropped.
pub fn unix(listener: UnixListener, door: UnixDoor) -> Incoming {
    let (send, receive) = mpsc::channel(16);
    tokio::spawn(async move {
        let slots = Arc::new(Semaphore::new(HANDSHAKES));
        let door = Arc::new(door);
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = send.closed() => return,
            };
            let Some((stream, _)) = usable(accepted).await else { continue };
            let (send, door) = (send.clone(), Arc::clone(&door));
            tokio::spawn(async move {
                let _slot = slot;
                if let Some(connection) = greet(stream, &door).await {
                    let _ = send.send(Ok(connection)).await;
                }
            });
        }
    });
    ReceiverStream::new(receive)
}

/// Logs a failed accept and rests when the system has nothing left to give.
async fn usable<S, A>(accepted: io::Result<(S, A)>) -> Option<(S, A)> {
    match accepted {
        Ok(accepted) => Some(accepted),
        Err(error) => {
            tracing::warn!(%error, "accepting a connection");
            if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) {
                tokio::time::sleep(EXHAUSTED).await;
            }
            None
        }
    }
}

async fn greet(stream: UnixStream, door: &UnixDoor) -> Option<Connection> {
    let credentials = stream.peer_cred().ok()?;
    let peer = UnixPeer { uid: credentials.uid(), gid: credentials.gid(), pid: credentials.pid() };
    let own = rustix::process::geteuid().as_raw();
    let mut caller = Caller { unix: Some(peer), ..Caller::default() };
    if peer.uid != own && peer.uid != 0 && !door.more_uids.contains(&peer.uid) {
        door.audit.note(Event::PeerRefused, &caller, &"this user may not connect");
        return None;
    }
    let Some(config) = &door.tls else { return Some(Connection { io: Io::Unix(stream), caller }) };
    match tokio::time::timeout(HANDSHAKE, first_byte(&stream)).await {
        // A TLS record of kind "handshake". HTTP/2 begins with `P`.
        Ok(Ok(22)) => {
            caller.encrypted = true;
            let (stream, caller) = shake(&TlsAcceptor::from(Arc::clone(config)), stream, caller).await?;
            Some(Connection { io: Io::TlsOverUnix(Box::new(stream)), caller })
        }
        Ok(Ok(_)) => Some(Connection { io: Io::Unix(stream), caller }),
        Ok(Err(_)) | Err(_) => None,
    }
}

/// Looks at the first byte without taking it.
async fn first_byte(stream: &UnixStream) -> io::Result<u8> {
    loop {
        stream.readable().await?;
        let peeked = stream.try_io(tokio::io::Interest::READABLE, || {
            let mut byte = [0_u8];
            let (_, length) = rustix::net::recv(stream, &mut byte, rustix::net::RecvFlags::PEEK)?;
            if length == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(byte) }
        });
        match peeked {
            Ok([byte]) => return Ok(byte),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// A server's handshake with its deadline; a failure is logged with its cause.
async fn shake<S>(acceptor: &TlsAcceptor, stream: S, mut caller: Caller) -> Option<(TlsStream<S>, Caller)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::warn!(%caller, cause = Cause::of_io(&error).as_str(), reason = Cause::explain_io(&error), "TLS handshake failed");
            return None;
        }
        Err(_) => {
            tracing::warn!(%caller, cause = "timeout", "TLS handshake took longer than {HANDSHAKE:?}");
            return None;
        }
    };
    match tls::facts(stream.get_ref().1, SystemTime::now()) {
        Ok(facts) => caller.certificate = facts.map(Arc::new),
        Err(refusal) => {
            tracing::warn!(%caller, cause = refusal.cause.as_str(), %refusal, "TLS session refused");
            return None;
        }
    }
    Some((stream, caller))
}
