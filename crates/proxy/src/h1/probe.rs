//! All messages in some bytes: the readers of a connection in the same order, without a connection. For fuzzing.

use bytes::{Bytes, BytesMut};
use engine::framing::{Fault, Length};
use http::{HeaderMap, Method, Request, Response};

use super::decode::{Decoder, Part};
use super::head::{self, Limits, Scan};

/// As the defaults of a connection manager.
const LIMITS: Limits = Limits { bytes: 60 * 1024, lines: 100 };

/// Every whole request in `bytes`, and what was wrong with the next one.
pub fn requests(bytes: &[u8]) -> (Vec<Request<Bytes>>, Option<Fault>) {
    let mut input = BytesMut::from(bytes);
    all(|| request(&mut input))
}

/// Every whole answer to requests of this method in `bytes`, and what was wrong with the next one.
pub fn responses(bytes: &[u8], method: &Method) -> (Vec<Response<Bytes>>, Option<Fault>) {
    let mut input = BytesMut::from(bytes);
    all(|| response(&mut input, method))
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

fn head(input: &mut BytesMut, blanks: bool) -> Result<Option<Bytes>, Fault> {
    let mut scan = Scan::default();
    match scan.find(input, LIMITS)? {
        Some(2) if blanks => {
            let _ = input.split_to(2);
            head(input, false)
        }
        Some(end) => Ok(Some(input.split_to(end).freeze())),
        None => Ok(None),
    }
}

fn request(input: &mut BytesMut) -> Result<Option<Request<Bytes>>, Fault> {
    let Some(bytes) = head(input, true)? else { return Ok(None) };
    let head = head::request(&bytes, LIMITS, HeaderMap::new())?;
    let decoder = match head.length {
        Length::Exact(0) => Decoder::Done,
        Length::Exact(length) => Decoder::Length(length),
        Length::Chunked => Decoder::chunked(LIMITS),
    };
    let Some(body) = body(input, decoder)? else { return Ok(None) };
    let mut request = Request::new(body);
    *request.method_mut() = head.method;
    *request.uri_mut() = head.uri;
    *request.version_mut() = head.version;
    *request.headers_mut() = head.headers;
    Ok(Some(request))
}

fn response(input: &mut BytesMut, method: &Method) -> Result<Option<Response<Bytes>>, Fault> {
    let Some(bytes) = head(input, false)? else { return Ok(None) };
    let head = head::response(&bytes, LIMITS, HeaderMap::new(), method)?;
    let Some(body) = body(input, head.body)? else { return Ok(None) };
    let mut response = Response::new(body);
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    Ok(Some(response))
}

/// `None`: not all of it is there.
fn body(input: &mut BytesMut, mut decoder: Decoder) -> Result<Option<Bytes>, Fault> {
    let mut body = BytesMut::new();
    loop {
        match decoder.next(input)? {
            Part::Data(data) => body.extend_from_slice(&data),
            Part::Trailers(_) => {}
            Part::End => return Ok(Some(body.freeze())),
            Part::More => return Ok(None),
        }
    }
}
