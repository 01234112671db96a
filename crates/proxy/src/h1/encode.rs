//! Messages as they are written: every head and every body is framed anew.

use std::cell::RefCell;
use std::io::Write;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName};
use http::{StatusCode, Version};
use http_body::Body;

use super::Fault;
use super::wire::Wire;

/// How a body is written.
#[derive(Debug)]
pub(super) enum Encoder {
    /// It has ended.
    Ended,
    /// So many bytes are still to come.
    Length(u64),
    /// In chunks.
    Chunked {
        /// Whether trailers may follow.
        trailers: bool,
    },
    /// As it comes, until the connection ends.
    UntilClose,
    /// There is none on the wire, whatever the body says (HEAD).
    Mute,
}

/// Why a body could not be written whole.
#[derive(Debug)]
pub(super) enum Stopped {
    /// Its own source broke off.
    Source,
    /// It cannot be written.
    Wire(Fault),
}

impl Encoder {
    pub(super) const fn is_ended(&self) -> bool {
        matches!(self, Self::Ended)
    }

    fn data(&mut self, data: Bytes, wire: &mut Wire) -> Result<(), Fault> {
        match self {
            _ if data.is_empty() => {}
            Self::Ended => return Err(Fault::Length),
            Self::Mute => {}
            Self::UntilClose => wire.push(data, b""),
            Self::Length(left) => {
                *left = left.checked_sub(data.len() as u64).ok_or(Fault::Length)?;
                wire.push(data, b"");
                if *left == 0 {
                    *self = Self::Ended;
                }
            }
            Self::Chunked { .. } => {
                // Writing to a Vec cannot fail.
                let _ = write!(wire.output(), "{:x}\r\n", data.len());
                wire.push(data, b"\r\n");
            }
        }
        Ok(())
    }

    fn end(&mut self, trailers: Option<&HeaderMap>, wire: &mut Wire) -> Result<(), Fault> {
        match std::mem::replace(self, Self::Ended) {
            Self::Length(left) if left > 0 => return Err(Fault::Length),
            Self::Chunked { trailers: may } => {
                let output = wire.output();
                output.extend_from_slice(b"0\r\n");
                for (name, value) in trailers.filter(|_| may).into_iter().flatten() {
                    if may_trail(name) {
                        line(output, name, value.as_bytes(), false);
                    }
                }
                output.extend_from_slice(b"\r\n");
            }
            _ => {}
        }
        Ok(())
    }
}

/// Writes what the body has at hand, until it has ended or must be waited for.
pub(super) fn poll_pump<B>(
    body: &mut B,
    encoder: &mut Encoder,
    wire: &RefCell<Wire>,
    cx: &mut Context<'_>,
) -> Poll<Result<(), Stopped>>
where
    B: Body<Data = Bytes> + Unpin,
{
    loop {
        let mut waits = false;
        // The borrow must not last: a body may read from the connection that is written to.
        while !encoder.is_ended() && wire.borrow().has_room() {
            let ended = if body.is_end_stream() {
                encoder.end(None, &mut wire.borrow_mut())
            } else {
                match Pin::new(&mut *body).poll_frame(cx) {
                    Poll::Pending => {
                        waits = true;
                        break;
                    }
                    Poll::Ready(None) => encoder.end(None, &mut wire.borrow_mut()),
                    Poll::Ready(Some(Err(_))) => return Poll::Ready(Err(Stopped::Source)),
                    Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                        Ok(data) => encoder.data(data, &mut wire.borrow_mut()),
                        Err(frame) => encoder.end(frame.trailers_ref(), &mut wire.borrow_mut()),
                    },
                }
            };
            ended.map_err(Stopped::Wire)?;
        }
        ready!(wire.borrow_mut().poll_flush(cx)).map_err(|error| Stopped::Wire(error.into()))?;
        if encoder.is_ended() {
            return Poll::Ready(Ok(()));
        }
        if waits {
            return Poll::Pending;
        }
    }
}

/// Fields that a recipient needs before the body, or that frame it, never trail (RFC 9110 section 6.5.1).
fn may_trail(name: &HeaderName) -> bool {
    static NEVER: [HeaderName; 13] = [
        header::AUTHORIZATION,
        header::CACHE_CONTROL,
        header::CONNECTION,
        header::CONTENT_ENCODING,
        header::CONTENT_LENGTH,
        header::CONTENT_RANGE,
        header::CONTENT_TYPE,
        header::HOST,
        header::MAX_FORWARDS,
        header::SET_COOKIE,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
    ];
    !NEVER.contains(name)
}

/// The first line of a response.
pub(super) fn status_line(output: &mut Vec<u8>, version: Version, status: StatusCode) {
    if status == StatusCode::OK && version != Version::HTTP_10 {
        return output.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
    }
    output.extend_from_slice(if version == Version::HTTP_10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    output.extend_from_slice(status.as_str().as_bytes());
    output.push(b' ');
    output.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    output.extend_from_slice(b"\r\n");
}

/// All headers but those that frame the message.
pub(super) fn headers(
    output: &mut Vec<u8>,
    headers: &HeaderMap,
    proper_case: bool,
    mut but: impl FnMut(&HeaderName) -> bool,
) {
    for (name, value) in headers {
        if *name != header::CONTENT_LENGTH && *name != header::TRANSFER_ENCODING && !but(name) {
            line(output, name, value.as_bytes(), proper_case);
        }
    }
}

/// One header line.
pub(super) fn line(output: &mut Vec<u8>, name: &HeaderName, value: &[u8], proper_case: bool) {
    let name = name.as_str().as_bytes();
    output.reserve(name.len() + value.len() + 4);
    if proper_case {
        let mut begins = true;
        output.extend(name.iter().map(|byte| {
            let upper = std::mem::replace(&mut begins, *byte == b'-');
            if upper { byte.to_ascii_uppercase() } else { *byte }
        }));
    } else {
        output.extend_from_slice(name);
    }
    output.extend_from_slice(b": ");
    output.extend_from_slice(value);
    output.extend_from_slice(b"\r\n");
}

/// `content-length` with its number.
pub(super) fn content_length(output: &mut Vec<u8>, length: u64, proper_case: bool) {
    let mut digits = [0; 20];
    let mut left = length;
    let mut count = 0;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (left % 10) as u8;
        left /= 10;
        count += 1;
        if left == 0 {
            break;
        }
    }
    let digits = digits.get(digits.len() - count..).unwrap_or_default();
    line(output, &header::CONTENT_LENGTH, digits, proper_case);
}
