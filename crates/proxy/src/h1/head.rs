//! Heads of messages: found, checked and read by `httparse`.

use std::mem::MaybeUninit;

use bytes::Bytes;
use engine::framing::{self, Fault, Length};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Uri, Version};
use memchr::memchr;

use super::decode::Decoder;

/// Most header lines that are read without memory from the heap.
const FEW: usize = 100;

/// What a head may have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Bytes.
    pub(super) bytes: usize,
    /// Header lines.
    pub(super) lines: usize,
    /// Whether a request may have a method that is not widely known.
    pub(super) any_method: bool,
    /// Whether trailers are handed on; else they are read and forgotten.
    pub(super) trailers: bool,
}

/// Looks for the end of a head as its bytes come, each byte once.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Scan {
    /// What was looked at.
    at: usize,
    /// Where the line under way begins.
    line: usize,
}

impl Scan {
    /// The length of the head, with its empty line; `None`: not all of it is there.
    ///
    /// # Errors
    /// A line that ends in a line feed alone; a head that is too large.
    pub(super) fn find(&mut self, bytes: &[u8], limits: Limits) -> Result<Option<usize>, Fault> {
        while let Some(found) = bytes.get(self.at..).and_then(|rest| memchr(b'\n', rest)) {
            let feed = self.at + found;
            let Some(end) = feed.checked_sub(1).filter(|end| bytes.get(*end) == Some(&b'\r')) else {
                return Err(Fault::Grammar);
            };
            let empty = end == self.line;
            self.at = feed + 1;
            self.line = self.at;
            if empty {
                return if self.at > limits.bytes { Err(Fault::TooLarge) } else { Ok(Some(self.at)) };
            }
        }
        self.at = bytes.len();
        if self.at > limits.bytes { Err(Fault::TooLarge) } else { Ok(None) }
    }
}

/// A request's head.
#[derive(Debug)]
pub(super) struct RequestHead {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) version: Version,
    pub(super) headers: HeaderMap,
    pub(super) length: Length,
    /// The client would send another request on this connection.
    pub(super) keep: bool,
    /// The client waits for `100 Continue` before it sends its body.
    pub(super) expects: bool,
}

/// A response's head.
#[derive(Debug)]
pub(super) struct ResponseHead {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Decoder,
    /// The server would take another request on this connection.
    pub(super) keep: bool,
    /// The connection is a tunnel from here on.
    pub(super) tunnels: bool,
}

type Lines<'h, 'b> = &'h [httparse::Header<'b>];

/// Reads a request's head; `head` reaches to its empty line.
///
/// # Errors
/// What is not HTTP/1, and what would leave the end of the message to taste.
pub(super) fn request(head: &Bytes, limits: Limits, headers: HeaderMap) -> Result<RequestHead, Fault> {
    with_space(limits.lines, |space| {
        let mut read = httparse::Request::new(&mut []);
        let parsed = read.parse_with_uninit_headers(head, space);
        whole(parsed, head)?;
        let (Some(method), Some(target), Some(minor)) = (read.method, read.path, read.version) else {
            return Err(Fault::Grammar);
        };
        if !limits.any_method && !framing::is_known_method(method) {
            return Err(Fault::Grammar);
        }
        let method = Method::from_bytes(method.as_bytes()).map_err(|_| Fault::Grammar)?;
        let target = head.slice_ref(target.as_bytes());
        let uri = Uri::from_maybe_shared(target).map_err(|_| Fault::Grammar)?;
        let version = version(minor);
        let (headers, seen) = fields(head, read.headers, headers)?;
        let length = length(version, &headers, seen)?;
        let keep = keeps(version, &headers, seen);
        let expects = version == Version::HTTP_11
            && length != Length::Exact(0)
            && headers.get(header::EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        Ok(RequestHead { method, uri, version, headers, length, keep, expects })
    })
}

/// Reads a response's head; `method` is the request's.
///
/// # Errors
/// As [`request`].
pub(super) fn response(
    head: &Bytes,
    limits: Limits,
    headers: HeaderMap,
    method: &Method,
) -> Result<ResponseHead, Fault> {
    with_space(limits.lines, |space| {
        let mut read = httparse::Response::new(&mut []);
        let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut read, head, space);
        whole(parsed, head)?;
        let (Some(code), Some(minor)) = (read.code, read.version) else { return Err(Fault::Grammar) };
        let status = StatusCode::from_u16(code).map_err(|_| Fault::Grammar)?;
        let version = version(minor);
        let (headers, seen) = fields(head, read.headers, headers)?;
        let said = length(version, &headers, seen)?;
        // What follows is no body but raw bytes (RFC 9110 sections 7.8 and 9.3.6).
        let tunnels = status == StatusCode::SWITCHING_PROTOCOLS || (*method == Method::CONNECT && status.is_success());
        let bare = tunnels
            || status.is_informational()
            || status == StatusCode::NO_CONTENT
            || status == StatusCode::NOT_MODIFIED
            || *method == Method::HEAD;
        let until_close = said == Length::Exact(0) && !seen.length;
        let body = match said {
            _ if bare => Decoder::Done,
            Length::Chunked => Decoder::chunked(limits),
            Length::Exact(_) if until_close => Decoder::UntilClose,
            Length::Exact(0) => Decoder::Done,
            Length::Exact(length) => Decoder::Length(length),
        };
        let keep = !tunnels && keeps(version, &headers, seen) && !matches!(body, Decoder::UntilClose);
        Ok(ResponseHead { status, headers, body, keep, tunnels })
    })
}

/// Reads trailers; `lines` reaches to the empty line.
///
/// # Errors
/// What are no header lines.
pub(super) fn trailers(lines: &Bytes, limits: Limits) -> Result<HeaderMap, Fault> {
    let mut space = vec![httparse::EMPTY_HEADER; limits.lines.min(FEW)];
    match httparse::parse_headers(lines, &mut space) {
        Ok(httparse::Status::Complete((end, read))) if end == lines.len() => {
            fields(lines, read, HeaderMap::new()).map(|(headers, _)| headers)
        }
        Err(httparse::Error::TooManyHeaders) => Err(Fault::TooManyHeaders),
        _ => Err(Fault::Grammar),
    }
}

fn with_space<'b, T>(lines: usize, read: impl FnOnce(&mut [MaybeUninit<httparse::Header<'b>>]) -> T) -> T {
    if lines <= FEW {
        let mut space = [const { MaybeUninit::uninit() }; FEW];
        return read(space.get_mut(..lines).unwrap_or_default());
    }
    read(&mut vec![MaybeUninit::uninit(); lines])
}

fn whole(parsed: httparse::Result<usize>, head: &[u8]) -> Result<(), Fault> {
    match parsed {
        Ok(httparse::Status::Complete(end)) if end == head.len() => Ok(()),
        Err(httparse::Error::TooManyHeaders) => Err(Fault::TooManyHeaders),
        _ => Err(framing::lines(head).err().unwrap_or(Fault::Grammar)),
    }
}

const fn version(minor: u8) -> Version {
    if minor == 0 { Version::HTTP_10 } else { Version::HTTP_11 }
}

/// Which headers that concern the connection are there: one look at each name instead of a look-up for each question.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    length: bool,
    coding: bool,
    connection: bool,
}

/// The header lines as a map; values stay where they were read to.
fn fields(head: &Bytes, lines: Lines<'_, '_>, mut headers: HeaderMap) -> Result<(HeaderMap, Seen), Fault> {
    let mut seen = Seen::default();
    headers.try_reserve(lines.len()).map_err(|_| Fault::TooManyHeaders)?;
    for line in lines {
        let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|_| Fault::Grammar)?;
        let value = HeaderValue::from_maybe_shared(head.slice_ref(line.value)).map_err(|_| Fault::Characters)?;
        seen.length |= name == header::CONTENT_LENGTH;
        seen.coding |= name == header::TRANSFER_ENCODING;
        seen.connection |= name == header::CONNECTION;
        headers.try_append(name, value).map_err(|_| Fault::TooManyHeaders)?;
    }
    Ok((headers, seen))
}

fn length(version: Version, headers: &HeaderMap, seen: Seen) -> Result<Length, Fault> {
    if !seen.length && !seen.coding {
        return Ok(Length::Exact(0));
    }
    let values = |name: HeaderName| headers.get_all(name).into_iter().map(HeaderValue::as_bytes);
    let (codings, lengths) = (values(header::TRANSFER_ENCODING), values(header::CONTENT_LENGTH));
    framing::request_length(version == Version::HTTP_11, codings, lengths)
}

/// Whether a message lets its connection live on.
fn keeps(version: Version, headers: &HeaderMap, seen: Seen) -> bool {
    if !seen.connection {
        return version == Version::HTTP_11;
    }
    let names = |word: &[u8]| {
        let values = headers.get_all(header::CONNECTION).into_iter();
        values
            .flat_map(|value| value.as_bytes().split(|b| *b == b','))
            .any(|w| w.trim_ascii().eq_ignore_ascii_case(word))
    };
    if version == Version::HTTP_11 { !names(b"close") } else { names(b"keep-alive") }
}
