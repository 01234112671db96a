//! All messages in some bytes: the readers of a connection in the same order, without a connection. For fuzzing.

use bytes::{Bytes, BytesMut};
use engine::framing::{Fault, Length};
use http::{HeaderMap, Method, Request, Response};

use super::decode::{Decoder, Part};
use super::head::{self, Limits, Scan};

/// As the defaults of a connection manager.
const LIMITS: Limits = Limits { bytes: 60 * 1024, lines: 100, any_method: false, trailers: false };

/// A whole body.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Body {
    /// Without its frames.
    pub data: Bytes,
    /// What stood behind it.
    pub trailers: HeaderMap,
}

/// Every whole request in `bytes`, and what was wrong with the next one. The bytes come in pieces of `size` (0 counts as 1).
pub fn requests(bytes: &[u8], size: usize) -> (Vec<Request<Body>>, Option<Fault>) {
    let mut source = Source::new(bytes, size);
    all(|| request(&mut source))
}

/// Every whole answer to requests of this method in `bytes`, and what was wrong with the next one; in pieces likewise.
pub fn responses(bytes: &[u8], method: &Method, size: usize) -> (Vec<Response<Body>>, Option<Fault>) {
    let mut source = Source::new(bytes, size);
    all(|| response(&mut source, method))
}

fn all<T>(mut next: impl FnMut() -> Result<Option<T>, Fault>) -> (Vec<T>, Option<Fault>) {
    let mut read = Vec::new();
    loop {
        match next() {
            Ok(Some(message)) => read.push(message),
            Ok(None) => return (read, None),
            Err(fault) => return (read, Some(fault)),
        }
    }
}

/// Bytes as a socket would bring them.
struct Source<'a> {
    input: BytesMut,
    rest: &'a [u8],
    size: usize,
}

impl<'a> Source<'a> {
    fn new(rest: &'a [u8], size: usize) -> Self {
        Self { input: BytesMut::new(), rest, size: size.max(1) }
    }

    /// Whether more has come.
    fn more(&mut self) -> bool {
        let (piece, rest) = self.rest.split_at(self.size.min(self.rest.len()));
        self.rest = rest;
        self.input.extend_from_slice(piece);
        !piece.is_empty()
    }
}

fn head(source: &mut Source<'_>, mut blanks: bool) -> Result<Option<Bytes>, Fault> {
    let mut scan = Scan::default();
    loop {
        match scan.find(&source.input, LIMITS)? {
            Some(2) if blanks => {
                let _ = source.input.split_to(2);
                (scan, blanks) = (Scan::default(), false);
            }
            Some(end) => return Ok(Some(source.input.split_to(end).freeze())),
            None if source.more() => {}
            None => return Ok(None),
        }
    }
}

fn request(source: &mut Source<'_>) -> Result<Option<Request<Body>>, Fault> {
    let Some(bytes) = head(source, true)? else { return Ok(None) };
    let head = head::request(&bytes, LIMITS, HeaderMap::new())?;
    let decoder = match head.length {
        Length::Exact(0) => Decoder::Done,
        Length::Exact(length) => Decoder::Length(length),
        Length::Chunked => Decoder::chunked(LIMITS),
    };
    let Some(body) = body(source, decoder)? else { return Ok(None) };
    let mut request = Request::new(body);
    *request.method_mut() = head.method;
    *request.uri_mut() = head.uri;
    *request.version_mut() = head.version;
    *request.headers_mut() = head.headers;
    Ok(Some(request))
}

fn response(source: &mut Source<'_>, method: &Method) -> Result<Option<Response<Body>>, Fault> {
    let Some(bytes) = head(source, false)? else { return Ok(None) };
    let head = head::response(&bytes, LIMITS, HeaderMap::new(), method)?;
    let Some(body) = body(source, head.body)? else { return Ok(None) };
    let mut response = Response::new(body);
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    Ok(Some(response))
}

/// `None`: not all of it is there.
fn body(source: &mut Source<'_>, mut decoder: Decoder) -> Result<Option<Body>, Fault> {
    let (mut data, mut trailers) = (BytesMut::new(), HeaderMap::new());
    loop {
        match decoder.next(&mut source.input)? {
            Part::Data(piece) => data.extend_from_slice(&piece),
            Part::Trailers(map) => trailers = map,
            Part::End => return Ok(Some(Body { data: data.freeze(), trailers })),
            Part::More if source.more() => {}
            Part::More => return Ok(None),
        }
    }
}
