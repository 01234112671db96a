//! Raw bytes both ways, with half-close kept apart: when one side has said all, the other may still speak.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep_until};

/// Bytes buffered per direction.
const BUFFER: usize = 16 * 1024;

/// How much went each way; readable while the relay runs.
#[derive(Debug, Default)]
pub struct Moved {
    /// Bytes from the client.
    pub received: Cell<u64>,
    /// Bytes to the client.
    pub sent: Cell<u64>,
}

/// Why a relay ended.
#[derive(Debug)]
pub enum End {
    /// Both sides said all they had to say.
    Clean,
    /// Nothing moved for the idle timeout.
    Idle,
    /// The client's side broke.
    Client(io::Error),
    /// The server's side broke.
    Server(io::Error),
}

/// Copies until both sides have ended, one breaks, or nothing moves for `idle`.
pub async fn relay<C, S>(client: &mut C, server: &mut S, idle: Option<Duration>, moved: &Moved) -> End
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut up = Half::default();
    let mut down = Half::default();
    let mut last = Instant::now();
    let mut timer = pin!(idle.map(|idle| sleep_until(last + idle)));
    poll_fn(|cx| {
        let before = moved.received.get() + moved.sent.get();
        let up_end = up.poll(cx, client, server, &moved.received);
        let down_end = down.poll(cx, server, client, &moved.sent);
        match (up_end, down_end) {
            (Poll::Ready(Err(Broken::Reading(error))), _) | (_, Poll::Ready(Err(Broken::Writing(error)))) => {
                return Poll::Ready(End::Client(error));
            }
            (Poll::Ready(Err(Broken::Writing(error))), _) | (_, Poll::Ready(Err(Broken::Reading(error)))) => {
                return Poll::Ready(End::Server(error));
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(End::Clean),
            _ => {}
        }
        let (Some(mut timer), Some(idle)) = (timer.as_mut().as_pin_mut(), idle) else { return Poll::Pending };
        if moved.received.get() + moved.sent.get() != before {
            last = Instant::now();
        }
        // The timer is moved only when it fires, not at every byte.
        while timer.as_mut().poll(cx).is_ready() {
            if last + idle <= Instant::now() {
                return Poll::Ready(End::Idle);
            }
            timer.as_mut().reset(last + idle);
        }
        Poll::Pending
    })
    .await
}

enum Broken {
    Reading(io::Error),
    Writing(io::Error),
}

thread_local! {
    /// Where bytes pass through on their way; only what the other side does not take at once is kept per connection,
    /// so that an idle connection holds no buffer.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER]);
}

#[derive(Default)]
struct Half {
    /// Bytes read but not yet taken by the other side.
    kept: BytesMut,
    eof: bool,
    unflushed: bool,
    done: bool,
}

impl Half {
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        count: &Cell<u64>,
    ) -> Poll<Result<(), Broken>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            if self.done {
                return Poll::Ready(Ok(()));
            }
            while !self.kept.is_empty() {
                let Poll::Ready(written) = write(cx, to, &self.kept, count)? else { return Poll::Pending };
                self.unflushed = true;
                self.kept.advance(written);
            }
            if self.eof {
                ready!(Pin::new(&mut *to).poll_shutdown(cx)).or_else(not_connected).map_err(Broken::Writing)?;
                self.done = true;
                continue;
            }
            let moved = SCRATCH.with_borrow_mut(|scratch| self.pass(cx, from, to, count, scratch))?;
            if moved.is_pending() {
                if self.unflushed {
                    ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(Broken::Writing)?;
                    self.unflushed = false;
                }
                return Poll::Pending;
            }
        }
    }

    /// One read, and at once as much of it written as the other side takes.
    fn pass<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        count: &Cell<u64>,
        scratch: &mut [u8],
    ) -> Result<Poll<()>, Broken>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut space = ReadBuf::new(scratch);
        match Pin::new(from).poll_read(cx, &mut space) {
            Poll::Pending => return Ok(Poll::Pending),
            Poll::Ready(result) => result.map_err(Broken::Reading)?,
        }
        let mut rest = space.filled();
        self.eof = rest.is_empty();
        while !rest.is_empty() {
            match write(cx, to, rest, count)? {
                Poll::Ready(written) => {
                    self.unflushed = true;
                    rest = rest.get(written..).unwrap_or_default();
                }
                Poll::Pending => {
                    self.kept.extend_from_slice(rest);
                    break;
                }
            }
        }
        Ok(Poll::Ready(()))
    }
}

fn write<W: AsyncWrite + Unpin>(
    cx: &mut Context<'_>,
    to: &mut W,
    bytes: &[u8],
    count: &Cell<u64>,
) -> Result<Poll<usize>, Broken> {
    match Pin::new(to).poll_write(cx, bytes) {
        Poll::Pending => Ok(Poll::Pending),
        Poll::Ready(Ok(0)) => Err(Broken::Writing(io::ErrorKind::WriteZero.into())),
        Poll::Ready(Ok(written)) => {
            count.set(count.get() + written as u64);
            Ok(Poll::Ready(written))
        }
        Poll::Ready(Err(error)) => Err(Broken::Writing(error)),
    }
}

/// A side that is gone already needs no shutdown.
fn not_connected(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotConnected { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test]
    async fn half_close_lets_the_other_side_finish() {
        let (mut client, mut inner_client) = duplex(64);
        let (mut server, mut inner_server) = duplex(64);
        let ends = async {
            client.write_all(b"question").await.unwrap();
            client.shutdown().await.unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            answer
        };
        let answers = async {
            let mut question = Vec::new();
            server.read_to_end(&mut question).await.unwrap();
            server.write_all(&question.repeat(100)).await.unwrap();
            server.shutdown().await.unwrap();
        };
        let moved = Moved::default();
        let (end, answer, ()) = tokio::join!(relay(&mut inner_client, &mut inner_server, None, &moved), ends, answers);
        assert!(matches!(end, End::Clean));
        assert_eq!(answer, b"question".repeat(100));
        assert_eq!((moved.received.get(), moved.sent.get()), (8, 800));
    }

    #[tokio::test]
    async fn idle_ends_it_but_traffic_prolongs() {
        let (mut client, mut inner_client) = duplex(64);
        let (_server, mut inner_server) = duplex(64);
        let moved = Moved::default();
        let begun = Instant::now();
        let talk = async {
            tokio::time::sleep(Duration::from_millis(150)).await;
            client.write_all(b"x").await.unwrap();
            std::future::pending::<()>().await;
        };
        let end = tokio::select! {
            end = relay(&mut inner_client, &mut inner_server, Some(Duration::from_millis(250)), &moved) => end,
            () = talk => unreachable!(),
        };
        assert!(matches!(end, End::Idle));
        assert!(begun.elapsed() >= Duration::from_millis(400), "{:?}", begun.elapsed());
    }
}
