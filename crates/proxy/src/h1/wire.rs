//! A connection with its buffers: what was read and not yet understood, what is to be written.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;
use tokio::io::AsyncWrite;
use tokio_util::io::poll_read_buf;

use crate::net::stream::Stream;

/// Size of a fresh buffer for reading.
const READ: usize = 8 * 1024;
/// Most that is read at once; bodies that fill the buffer get there.
const MOST_READ: usize = 64 * 1024;
/// Below this much space it is not worth a system call.
const LEAST_SPACE: usize = 2 * 1024;
/// Pieces up to this size are copied behind the head, so that one write takes them all.
const SMALL: usize = 4 * 1024;
/// Beyond this much nothing is added before something was written.
const FULL: usize = 16 * 1024;
/// Most buffers of a kind that a worker keeps for connections that wake up.
const MOST_SPARE: usize = 64;

/// Largest map that is kept.
const MOST_FIELDS: usize = 64;

/// Buffers that no connection needs at the moment.
struct Spare {
    inputs: Vec<BytesMut>,
    outputs: Vec<Vec<u8>>,
    maps: Vec<HeaderMap>,
}

thread_local! {
    static SPARE: RefCell<Spare> =
        const { RefCell::new(Spare { inputs: Vec::new(), outputs: Vec::new(), maps: Vec::new() }) };
}

/// An empty map for headers, used before or not.
pub(super) fn map() -> HeaderMap {
    SPARE.with_borrow_mut(|spare| spare.maps.pop()).unwrap_or_default()
}

/// Keeps a map that nobody reads any more for the next message.
pub(super) fn keep_map(mut map: HeaderMap) {
    if map.capacity() == 0 || map.capacity() > MOST_FIELDS {
        return;
    }
    map.clear();
    SPARE.with_borrow_mut(|spare| {
        if spare.maps.len() < MOST_SPARE {
            spare.maps.push(map);
        }
    });
}

/// See the module.
#[derive(Debug)]
pub(super) struct Wire {
    stream: Option<Stream>,
    /// What was read and not yet understood.
    pub(super) input: BytesMut,
    /// How much to ask for.
    want: usize,
    /// Heads, frames of chunks, small pieces.
    output: Vec<u8>,
    /// How much of `output` is written.
    written: usize,
    /// A large piece behind `output`, and what follows it.
    piece: Bytes,
    tail: &'static [u8],
    /// TLS may hold back what was written.
    unflushed: bool,
    /// Bytes written so far.
    pub(super) sent: u64,
}

impl Wire {
    pub(super) fn new(stream: Stream, input: BytesMut) -> Self {
        Self {
            stream: Some(stream),
            input,
            want: READ,
            output: Vec::new(),
            written: 0,
            piece: Bytes::new(),
            tail: b"",
            unflushed: false,
            sent: 0,
        }
    }

    /// Reads once; 0 is the end.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Some(stream) = &mut self.stream else { return Poll::Ready(Ok(0)) };
        // What was read before is mostly written by now: its memory is used again.
        if self.input.capacity() - self.input.len() < LEAST_SPACE && !self.input.try_reclaim(self.want) {
            let fresh = self.input.is_empty() && self.want == READ;
            match SPARE.with_borrow_mut(|spare| if fresh { spare.inputs.pop() } else { None }) {
                Some(input) => self.input = input,
                None => self.input.reserve(self.want),
            }
        }
        let read = ready!(poll_read_buf(Pin::new(stream), cx, &mut self.input))?;
        if self.input.len() == self.input.capacity() {
            self.want = (self.want * 2).min(MOST_READ);
        }
        Poll::Ready(Ok(read))
    }

    /// Whether nothing came that is not understood yet, and nothing is known to be there to read.
    pub(super) fn is_quiet(&self) -> bool {
        self.input.is_empty() && self.stream.as_ref().is_some_and(Stream::is_quiet)
    }

    /// Nothing is under way: buffers that hold nothing go to who needs them.
    pub(super) fn rest(&mut self) {
        self.want = READ;
        SPARE.with_borrow_mut(|spare| {
            if self.input.is_empty() {
                let mut input = std::mem::take(&mut self.input);
                // Parts of what was read may still be in use; what is left of its memory serves until they are not.
                let some = input.capacity() >= LEAST_SPACE || input.try_reclaim(READ);
                if some && input.capacity() <= 2 * READ && spare.inputs.len() < MOST_SPARE {
                    spare.inputs.push(input);
                }
            }
            if self.output.is_empty() && self.output.capacity() > 0 {
                let output = std::mem::take(&mut self.output);
                if spare.outputs.len() < MOST_SPARE && output.capacity() <= 2 * READ {
                    spare.outputs.push(output);
                }
            }
        });
    }

    /// Where heads are written to.
    pub(super) fn output(&mut self) -> &mut Vec<u8> {
        if self.output.capacity() == 0 {
            self.output =
                SPARE.with_borrow_mut(|spare| spare.outputs.pop()).unwrap_or_else(|| Vec::with_capacity(READ / 4));
        }
        &mut self.output
    }

    /// Adds a piece of a body, and what follows it. There must be room.
    pub(super) fn push(&mut self, piece: Bytes, tail: &'static [u8]) {
        if piece.len() <= SMALL {
            let output = self.output();
            output.extend_from_slice(&piece);
            output.extend_from_slice(tail);
        } else {
            self.piece = piece;
            self.tail = tail;
        }
    }

    /// Whether more may be added before something was written.
    pub(super) fn has_room(&self) -> bool {
        self.piece.is_empty() && self.tail.is_empty() && self.output.len() - self.written < FULL
    }

    /// Whether something waits to be written.
    pub(super) fn holds_output(&self) -> bool {
        !self.output.is_empty() || !self.piece.is_empty() || !self.tail.is_empty() || self.unflushed
    }

    /// Writes all that waits.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(stream) = &mut self.stream else { return Poll::Ready(Err(io::ErrorKind::NotConnected.into())) };
        loop {
            let head = self.output.get(self.written..).unwrap_or_default();
            let mut stream = Pin::new(&mut *stream);
            let count = if self.piece.is_empty() && self.tail.is_empty() {
                if head.is_empty() {
                    break;
                }
                ready!(stream.as_mut().poll_write(cx, head))?
            } else {
                let parts = [IoSlice::new(head), IoSlice::new(&self.piece), IoSlice::new(self.tail)];
                ready!(stream.as_mut().poll_write_vectored(cx, &parts))?
            };
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += count as u64;
            self.unflushed = true;
            let head = count.min(head.len());
            let piece = (count - head).min(self.piece.len());
            self.written += head;
            self.piece.advance(piece);
            self.tail = self.tail.get(count - head - piece..).unwrap_or_default();
        }
        self.output.clear();
        self.written = 0;
        // Even an empty piece holds the memory that it was a part of, which is to be read into again.
        self.piece = Bytes::new();
        if self.unflushed {
            ready!(Pin::new(stream).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Ends this side.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Some(stream) => Pin::new(stream).poll_shutdown(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    /// The stream, with what was read of it already; nothing can be read or written here any more.
    pub(super) fn take(&mut self) -> Option<(Stream, BytesMut)> {
        Some((self.stream.take()?, std::mem::take(&mut self.input)))
    }
}
