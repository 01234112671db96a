//! The one stream type of both sides: TCP or Unix, plain or TLS, with bytes that were read ahead while detecting.

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Sleep;

use super::frames::{Frames, LONG_HEAD, PIECE};
use super::turns::Turns;
use crate::overload;

/// Bytes that are read ahead at once: most greetings of TLS fit.
const AHEAD: usize = 4096;

/// A connected socket.
#[derive(Debug)]
pub enum Socket {
    /// TCP.
    Tcp(TcpStream),
    /// A Unix stream socket.
    Unix(UnixStream),
}

impl Socket {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Unix(unix) => Pin::new(unix).poll_read(cx, buf),
        }
    }

    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(tcp) => tcp.poll_read_ready(cx),
            Self::Unix(unix) => unix.poll_read_ready(cx),
        }
    }
}

/// A socket whose first bytes may have been read already: they come out first.
#[derive(Debug)]
pub struct Raw {
    ahead: BytesMut,
    socket: Socket,
    /// Nothing has come of a client yet: what comes first is read in a turn.
    fresh: Option<Box<Turns>>,
    _counted: overload::Socket,
}

impl Raw {
    /// A socket of which nothing has been read.
    pub fn new(socket: Socket) -> Self {
        Self { ahead: BytesMut::new(), socket, fresh: None, _counted: overload::Socket::open() }
    }

    /// The socket of a client that was accepted. Those who connect and leave again, or say nothing of use, have their turns one after
    /// the other.
    pub fn accepted(socket: Socket) -> Self {
        Self { fresh: Some(Box::default()), ..Self::new(socket) }
    }

    /// What has been read ahead.
    pub fn ahead(&self) -> &[u8] {
        &self.ahead
    }

    /// Drops the first `count` bytes of what was read ahead (a PROXY protocol header).
    pub fn discard(&mut self, count: usize) {
        self.ahead.advance(count.min(self.ahead.len()));
    }

    /// Reads more of the stream ahead; 0 means that the peer will send no more. Cancel safe.
    ///
    /// # Errors
    /// What the socket says.
    pub async fn read_ahead(&mut self) -> io::Result<usize> {
        let read = poll_fn(|cx| {
            let mut piece = [0; AHEAD];
            let mut piece = ReadBuf::new(&mut piece);
            ready!(self.poll_socket(cx, &mut piece))?;
            self.ahead.extend_from_slice(piece.filled());
            Poll::Ready(Ok(piece.filled().len()))
        });
        read.await
    }

    /// Reads from the socket; the first that comes of a client, in a turn.
    fn poll_socket(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(turns) = &mut self.fresh else { return self.socket.poll_read(cx, buf) };
        ready!(self.socket.poll_read_ready(cx))?;
        ready!(turns.poll_take(cx));
        let read = self.socket.poll_read(cx, buf);
        if read.is_ready() {
            self.fresh = None;
        }
        read
    }

    /// The socket below.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Whether the system said that something came, and it was not read since.
    fn is_readable(&self) -> bool {
        let nothing = || Ok(());
        let asked = match &self.socket {
            Socket::Tcp(tcp) => tcp.try_io(Interest::READABLE, nothing),
            Socket::Unix(unix) => unix.try_io(Interest::READABLE, nothing),
        };
        asked.is_ok()
    }

    /// This end's address, for TCP.
    pub fn local(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socket::Tcp(tcp) => tcp.local_addr().ok().map(super::canonical),
            Socket::Unix(_) => None,
        }
    }
}

impl AsyncRead for Raw {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.ahead.is_empty() {
            let count = this.ahead.len().min(buf.remaining());
            buf.put_slice(&this.ahead.split_to(count));
            if this.ahead.is_empty() {
                this.ahead = BytesMut::new();
            }
            return Poll::Ready(Ok(()));
        }
        this.poll_socket(cx, buf)
    }
}

impl AsyncWrite for Raw {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().socket {
            Socket::Tcp(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Socket::Unix(unix) => Pin::new(unix).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // A TLS record comes alone nearly always, and to write one piece costs the kernel less.
        if let [one] = bufs {
            return self.poll_write(cx, one);
        }
        match &mut self.get_mut().socket {
            Socket::Tcp(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Socket::Unix(unix) => Pin::new(unix).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().socket {
            Socket::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Socket::Unix(unix) => Pin::new(unix).poll_shutdown(cx),
        }
    }
}

/// A connection as the protocols above see it.
#[derive(Debug)]
pub enum Stream {
    /// Without TLS.
    Plain(Raw),
    /// With TLS, as client or as server.
    Tls(Box<tokio_rustls::TlsStream<Raw>>),
}

impl Stream {
    /// The socket below TLS.
    pub fn raw(&self) -> &Raw {
        match self {
            Self::Plain(raw) => raw,
            Self::Tls(tls) => tls.get_ref().0,
        }
    }

    /// Whether nothing is known to have come that was not read yet. No system call: the system tells the runtime when
    /// something comes.
    pub fn is_quiet(&self) -> bool {
        let read_all = match self {
            Self::Plain(raw) => raw.ahead.is_empty(),
            Self::Tls(tls) => tls.get_ref().1.wants_read(),
        };
        read_all && !self.raw().is_readable()
    }

    /// What TLS knows about the connection.
    pub fn tls(&self) -> Option<&rustls::CommonState> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(tls) => Some(tls.get_ref().1),
        }
    }

    /// The first bytes inside TLS, or on the socket: up to `limit`, until `enough` says so or the peer ends its side.
    /// They are given back by later reads.
    ///
    /// # Errors
    /// What the socket or TLS says.
    pub async fn first_bytes(self, mut enough: impl FnMut(&[u8]) -> bool, limit: usize) -> io::Result<Ahead> {
        let mut ahead = Ahead { bytes: BytesMut::with_capacity(1024), ..Ahead::none(self) };
        while !enough(&ahead.bytes) && ahead.bytes.len() < limit {
            if ahead.stream.read_buf(&mut ahead.bytes).await? == 0 {
                break;
            }
        }
        Ok(ahead)
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(raw) => Pin::new(raw).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(tls.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(raw) => Pin::new(raw).poll_write(cx, buf),
            Self::Tls(tls) => Pin::new(tls.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(raw) => Pin::new(raw).poll_write_vectored(cx, bufs),
            Self::Tls(tls) => Pin::new(tls.as_mut()).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(_) => true,
            Self::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(raw) => Pin::new(raw).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(raw) => Pin::new(raw).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls.as_mut()).poll_shutdown(cx),
        }
    }
}

/// A stream of which some bytes were read to tell its protocol.
#[derive(Debug)]
pub struct Ahead {
    bytes: BytesMut,
    stream: Stream,
    traffic: Arc<Traffic>,
    watch: Option<Box<Watch>>,
}

/// What is held of an HTTP/2 peer beside its bytes.
#[derive(Debug)]
struct Watch {
    frames: Frames,
    turns: Turns,
    /// Until when it is not read.
    pause: Option<Pin<Box<Sleep>>>,
    /// What was read and is to be looked at after the pause.
    held: BytesMut,
}

impl Watch {
    /// Gives what is held when the pause is over.
    fn poll_held(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(until) = &mut self.pause {
            ready!(until.as_mut().poll(cx));
            self.pause = None;
        }
        let count = self.held.len().min(buf.remaining());
        buf.put_slice(&self.held.split_to(count));
        if self.held.is_empty() {
            self.held = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

/// What goes to a peer and comes from it, readable while the stream is in use elsewhere, and what is known there of what was read.
#[derive(Debug, Default)]
pub struct Traffic {
    written: AtomicU64,
    blocked: AtomicBool,
    /// Bytes read, of peers that are guarded.
    read: AtomicU64,
    /// Bytes of long heads that became requests, as far as they were not told yet.
    long_heads: AtomicUsize,
}

impl Traffic {
    /// Bytes written so far, while the peer takes no more; `None`: it takes what there is.
    pub fn blocked_at(&self) -> Option<u64> {
        self.blocked.load(Ordering::Relaxed).then(|| self.written.load(Ordering::Relaxed))
    }

    /// Bytes read so far, of a peer that is guarded (see [`Ahead::guarding`]).
    pub fn bytes_read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// How far a connection that is written to by itself has come.
    pub fn stand(&self, written: u64, blocked: bool) {
        self.written.store(written, Ordering::Relaxed);
        self.blocked.store(blocked, Ordering::Relaxed);
    }

    /// A head of so many bytes became a request.
    pub fn head_served(&self, bytes: usize) {
        if bytes > LONG_HEAD {
            self.long_heads.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    fn settle(&self, frames: &mut Frames) {
        if self.long_heads.load(Ordering::Relaxed) > 0 {
            frames.served(self.long_heads.swap(0, Ordering::Relaxed));
        }
    }

    fn note(&self, result: &Poll<io::Result<usize>>) {
        match result {
            Poll::Ready(Ok(count)) => {
                self.written.fetch_add(*count as u64, Ordering::Relaxed);
                self.blocked.store(false, Ordering::Relaxed);
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.blocked.store(true, Ordering::Relaxed),
        }
    }
}

impl Ahead {
    /// A stream of which nothing was read.
    pub fn none(stream: Stream) -> Self {
        Self { bytes: BytesMut::new(), stream, traffic: Arc::default(), watch: None }
    }

    /// The stream below, and what was read of it.
    pub fn into_parts(self) -> (Stream, BytesMut) {
        (self.stream, self.bytes)
    }

    /// A stream of which `bytes` were read.
    pub fn of(stream: Stream, bytes: BytesMut) -> Self {
        Self { bytes, ..Self::none(stream) }
    }

    /// What goes and comes.
    pub fn traffic(&self) -> Arc<Traffic> {
        Arc::clone(&self.traffic)
    }

    /// Ends the connection of an HTTP/2 peer that floods it.
    #[must_use]
    pub fn guarding(mut self, frames: Frames) -> Self {
        self.watch = Some(Box::new(Watch { frames, turns: Turns::default(), pause: None, held: BytesMut::new() }));
        self
    }

    /// Bytes came, the last of `buf`. Those of a peer that spends its allowance are held back for a while.
    fn came(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>, before: usize) -> Poll<io::Result<()>> {
        let Some(watch) = &mut self.watch else { return Poll::Ready(Ok(())) };
        let bytes = buf.filled().get(before..).unwrap_or_default();
        // Only its reader adds to it.
        self.traffic.read.store(self.traffic.bytes_read() + bytes.len() as u64, Ordering::Relaxed);
        let borne = watch.frames.came(bytes);
        borne.map_err(|flood| io::Error::new(io::ErrorKind::ConnectionAborted, flood))?;
        if let Some(time) = watch.frames.rest_first() {
            watch.held.extend_from_slice(bytes);
            buf.set_filled(before);
            watch.pause = Some(Box::pin(tokio::time::sleep(time)));
            return watch.poll_held(cx, buf);
        }
        Poll::Ready(Ok(()))
    }

    /// Reads from the stream below. A peer that sends many frames lets others have their turn, and one that has spent much
    /// of its allowance is read in small pieces with rests in between: what one connection says must not delay the others of its
    /// worker, nor send its servers more than they can bear.
    fn poll_turn(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(watch) = &mut self.watch else { return Pin::new(&mut self.stream).poll_read(cx, buf) };
        let Watch { frames, turns, pause, .. } = &mut **watch;
        self.traffic.settle(frames);
        if let Some(until) = pause {
            ready!(until.as_mut().poll(cx));
            *pause = None;
        }
        if let Some(time) = frames.rest() {
            ready!(pause.insert(Box::pin(tokio::time::sleep(time))).as_mut().poll(cx));
        }
        let read = if frames.in_pieces() {
            // The first that comes is read in a turn of its own; who took two would wait for itself.
            if self.stream.raw().fresh.is_none() {
                ready!(turns.poll_take(cx));
            }
            let mut piece = [0; PIECE];
            let mut piece = ReadBuf::new(piece.get_mut(..buf.remaining().min(PIECE)).unwrap_or_default());
            let read = Pin::new(&mut self.stream).poll_read(cx, &mut piece);
            buf.put_slice(piece.filled());
            read
        } else {
            if frames.passes_turn() {
                // Back behind all that is ready, and behind what the sockets have for others by now.
                let _ = pin!(tokio::task::yield_now()).poll(cx);
                return Poll::Pending;
            }
            Pin::new(&mut self.stream).poll_read(cx, buf)
        };
        if read.is_pending() {
            frames.rests();
        }
        read
    }

    fn went(&mut self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.traffic.note(&result);
        if let (Some(watch), Poll::Ready(Ok(count))) = (&mut self.watch, &result) {
            watch.frames.went(*count);
        }
        result
    }

    /// What was read.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The stream below.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }
}

impl AsyncRead for Ahead {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(watch) = this.watch.as_mut().filter(|watch| !watch.held.is_empty()) {
            // It was counted when it came.
            return watch.poll_held(cx, buf);
        }
        let before = buf.filled().len();
        if this.bytes.is_empty() {
            ready!(this.poll_turn(cx, buf))?;
        } else {
            let count = this.bytes.len().min(buf.remaining());
            buf.put_slice(&this.bytes.split_to(count));
            if this.bytes.is_empty() {
                this.bytes = BytesMut::new();
            }
        }
        this.came(cx, buf, before)
    }
}

impl AsyncWrite for Ahead {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.went(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.went(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// Frames that nobody needs, each of a stream of its own: they are held back, and come out as they came, whatever was
    /// read ahead of them and however little is taken at once.
    #[tokio::test(flavor = "current_thread")]
    async fn what_is_held_back_keeps_its_order() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let frame = |stream: u8| [0, 0, 0, 0, 0, 0, 0, 0, stream];
        let bytes: Vec<u8> = (0..100).flat_map(frame).collect();
        let (ahead, rest) = bytes.split_at(40 * 9);
        far.write_all(rest).await.unwrap();
        far.shutdown().await.unwrap();
        let tasks = tokio::task::LocalSet::new();
        let (ahead, expected) = (BytesMut::from(ahead), bytes.clone());
        let read = tasks.run_until(async move {
            let stream = Stream::Plain(Raw::new(Socket::Unix(near)));
            let mut stream = Ahead::of(stream, ahead).guarding(Frames::of_server());
            let (mut all, mut piece) = (Vec::new(), [0; 20 * 9 + 4]);
            let begun = tokio::time::Instant::now();
            while let Ok(count @ 1..) = stream.read(&mut piece).await {
                all.extend_from_slice(&piece[..count]);
            }
            (all, begun.elapsed())
        });
        let (all, time) = read.await;
        assert_eq!(all, expected);
        assert!(time > Duration::from_millis(200), "{time:?}");
    }
}
