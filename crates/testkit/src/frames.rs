//! HTTP/2 one frame at a time (RFC 9113), for clients that must be able to say what no library lets them say.
//!
//! Header blocks go out as literals without Huffman coding or indexing, so that every byte of a name or value is the
//! test's own. Of what comes back only the status is read.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The client's first bytes.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Frame types (RFC 9113 section 6).
pub mod kind {
    /// Body bytes.
    pub const DATA: u8 = 0;
    /// A header block.
    pub const HEADERS: u8 = 1;
    /// A priority (deprecated).
    pub const PRIORITY: u8 = 2;
    /// The end of one stream.
    pub const RST_STREAM: u8 = 3;
    /// Settings.
    pub const SETTINGS: u8 = 4;
    /// A promised stream.
    pub const PUSH_PROMISE: u8 = 5;
    /// Are you there?
    pub const PING: u8 = 6;
    /// The end of the connection.
    pub const GOAWAY: u8 = 7;
    /// More window.
    pub const WINDOW_UPDATE: u8 = 8;
    /// The rest of a header block.
    pub const CONTINUATION: u8 = 9;
}

/// Flags (RFC 9113 section 6).
pub mod flag {
    /// SETTINGS and PING: this is the answer.
    pub const ACK: u8 = 1;
    /// DATA and HEADERS: the stream's last.
    pub const END_STREAM: u8 = 1;
    /// HEADERS and CONTINUATION: the block's last.
    pub const END_HEADERS: u8 = 4;
    /// DATA and HEADERS: padded.
    pub const PADDED: u8 = 8;
    /// HEADERS: with a priority.
    pub const PRIORITY: u8 = 32;
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// See [`kind`].
    pub kind: u8,
    /// See [`flag`].
    pub flags: u8,
    /// The stream; 0: the connection.
    pub stream: u32,
    /// What it carries.
    pub payload: Vec<u8>,
}

impl Frame {
    /// A frame.
    pub fn new(kind: u8, flags: u8, stream: u32, payload: impl Into<Vec<u8>>) -> Self {
        Self { kind, flags, stream, payload: payload.into() }
    }

    /// A HEADERS frame with a whole block.
    pub fn headers(stream: u32, end: bool, fields: &[(&[u8], &[u8])]) -> Self {
        let flags = flag::END_HEADERS | if end { flag::END_STREAM } else { 0 };
        Self::new(kind::HEADERS, flags, stream, block(fields))
    }

    /// A SETTINGS frame.
    pub fn settings(settings: &[(u16, u32)]) -> Self {
        let mut payload = Vec::new();
        for (id, value) in settings {
            payload.extend_from_slice(&id.to_be_bytes());
            payload.extend_from_slice(&value.to_be_bytes());
        }
        Self::new(kind::SETTINGS, 0, 0, payload)
    }

    /// The frame as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let length = u32::try_from(self.payload.len()).unwrap_or(u32::MAX);
        let mut out = length.to_be_bytes().get(1..).unwrap_or_default().to_vec();
        out.extend_from_slice(&[self.kind, self.flags]);
        out.extend_from_slice(&self.stream.to_be_bytes());
        out.extend_from_slice(&self.payload);
        out
    }

    /// The error code of a RST_STREAM or GOAWAY.
    pub fn error_code(&self) -> Option<u32> {
        let at = match self.kind {
            kind::RST_STREAM => 0,
            kind::GOAWAY => 4,
            _ => return None,
        };
        let bytes = self.payload.get(at..at + 4)?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    }

    /// The status of a response's header block, which must begin with it.
    pub fn status(&self) -> Option<u16> {
        if self.kind != kind::HEADERS {
            return None;
        }
        let skip = usize::from(self.flags & flag::PADDED != 0) + if self.flags & flag::PRIORITY != 0 { 5 } else { 0 };
        status(self.payload.get(skip..)?)
    }
}

/// A header block of literals that are not indexed (RFC 7541 section 6.2.2).
pub fn block(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        out.push(0);
        for text in [name, value] {
            integer(&mut out, text.len());
            out.extend_from_slice(text);
        }
    }
    out
}

/// An integer with a prefix of 7 bits (RFC 7541 section 5.1).
fn integer(out: &mut Vec<u8>, mut value: usize) {
    if value < 127 {
        out.push(u8::try_from(value).unwrap_or(0));
        return;
    }
    out.push(127);
    value -= 127;
    while value >= 128 {
        out.push(u8::try_from(value % 128).unwrap_or(0) | 128);
        value /= 128;
    }
    out.push(u8::try_from(value).unwrap_or(0));
}

/// `:status` at the head of a block: from the static table, or a literal by its name there, Huffman-coded or not.
fn status(block: &[u8]) -> Option<u16> {
    // Changes of the dynamic table's size may stand first.
    let block = block.get(block.iter().position(|byte| byte & 0xe0 != 0x20)?..)?;
    let first = *block.first()?;
    let from_table = [200, 204, 206, 304, 400, 404, 500];
    if first & 0x80 != 0 {
        return from_table.get(usize::from(first & 0x7f).checked_sub(8)?).copied();
    }
    let index = if first & 0x40 != 0 { first & 0x3f } else { first & 0x0f };
    if !(8..=14).contains(&index) {
        return None;
    }
    let length = *block.get(1)?;
    let text = block.get(2..2 + usize::from(length & 0x7f))?;
    if length & 0x80 == 0 { std::str::from_utf8(text).ok()?.parse().ok() } else { digits(text) }
}

/// Three digits in HPACK's Huffman code (RFC 7541 appendix B: 0-2 have five bits, 3-9 six).
fn digits(coded: &[u8]) -> Option<u16> {
    let mut bits = coded.iter().flat_map(|byte| (0..8).rev().map(move |at| u16::from(byte >> at & 1)));
    let mut number = 0;
    for _ in 0..3 {
        let mut code = 0;
        for _ in 0..5 {
            code = code * 2 + bits.next()?;
        }
        let digit = if code <= 2 { code } else { (code * 2 + bits.next()?).checked_sub(0x19)? + 3 };
        number = number * 10 + digit;
    }
    Some(number)
}

/// A connection of frames.
#[derive(Debug)]
pub struct Frames {
    stream: TcpStream,
    buffer: BytesMut,
}

impl Frames {
    /// Connects and says nothing.
    ///
    /// # Errors
    /// When the connection is refused.
    pub async fn silent(to: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(to).await.with_context(|| format!("connect to {to}"))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: BytesMut::new() })
    }

    /// Connects, with the preface and empty settings said.
    ///
    /// # Errors
    /// When the connection is refused.
    pub async fn open(to: SocketAddr) -> Result<Self> {
        let mut this = Self::silent(to).await?;
        let settings = Frame::settings(&[]);
        this.bytes(&[PREFACE, &settings.encode()].concat()).await;
        Ok(this)
    }

    /// Sends bytes. A peer that has closed already is found out when its answer is read.
    pub async fn bytes(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
    }

    /// Sends a frame.
    pub async fn send(&mut self, frame: &Frame) {
        self.bytes(&frame.encode()).await;
    }

    /// The next frame but acknowledged settings; the peer's own settings and pings are answered. `None`: the peer closed
    /// the connection, or said nothing for `patience`.
    pub async fn next(&mut self, patience: Duration) -> Option<Frame> {
        loop {
            let frame = tokio::time::timeout(patience, self.read()).await.ok()??;
            let ack = frame.flags & flag::ACK != 0;
            match frame.kind {
                kind::SETTINGS if ack => {}
                kind::SETTINGS => self.send(&Frame::new(kind::SETTINGS, flag::ACK, 0, [])).await,
                kind::PING if !ack => self.send(&Frame::new(kind::PING, flag::ACK, 0, frame.payload)).await,
                _ => return Some(frame),
            }
        }
    }

    /// The next frame, whatever it is; `None`: the peer closed the connection.
    pub async fn read(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.parse() {
                return Some(frame);
            }
            if !matches!(self.stream.read_buf(&mut self.buffer).await, Ok(1..)) {
                return None;
            }
        }
    }

    fn parse(&mut self) -> Option<Frame> {
        let head: [u8; 9] = self.buffer.get(..9)?.try_into().ok()?;
        let [a, b, c, kind, flags, rest @ ..] = head;
        let length = usize::try_from(u32::from_be_bytes([0, a, b, c])).ok()?;
        let payload = self.buffer.get(9..9 + length)?.to_vec();
        self.buffer.advance(9 + length);
        Some(Frame { kind, flags, stream: u32::from_be_bytes(rest) & 0x7fff_ffff, payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_read_in_every_form() {
        assert_eq!(status(&[0x88]), Some(200));
        assert_eq!(status(&[0x20, 0x8c]), Some(400));
        assert_eq!(status(&[0x48, 3, b'4', b'0', b'3']), Some(403));
        // RFC 7541 section C.6.1: 302, Huffman-coded.
        assert_eq!(status(&[0x48, 0x82, 0x64, 0x02]), Some(302));
        // Section C.6.2: 307.
        assert_eq!(status(&[0x48, 0x83, 0x64, 0x0e, 0xff]), Some(307));
        assert_eq!(status(&[]), None);
    }

    #[test]
    fn long_texts_have_long_lengths() {
        let value = vec![b'a'; 300];
        let block = block(&[(b"x", &value)]);
        assert_eq!(block.get(..6), Some(&[0, 1, b'x', 127, 0xad, 1][..]));
    }
}
