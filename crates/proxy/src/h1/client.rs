//! The upstream side: one request and its answer at a time on a kept connection, driven by who asks.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use engine::framing;
use engine::http_manager::Http1Options;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, Version};
use http_body::{Body as _, Frame, SizeHint};

use super::Fault;
use super::decode::{Decoder, Part};
use super::encode::{self, Encoder, Stopped, poll_pump};
use super::head::{self, Limits, ResponseHead, Scan};
use super::wire::{self, Wire};
use crate::http::body::UpBody;
use crate::http::interim::Interim;
use crate::net::stream::Stream;
use crate::upstream::reach::{MAX_RESPONSE_HEAD, Open};

/// What an upstream's head may have; beyond it the answer is a protocol error (Envoy's default of 100 header lines).
const LIMITS: Limits = Limits { bytes: MAX_RESPONSE_HEAD, lines: 100, any_method: true, trailers: false };

/// A connection to an endpoint.
#[derive(Debug)]
pub struct Client {
    wire: RefCell<Wire>,
    /// The answer's body.
    decoder: RefCell<Decoder>,
    /// The request's body, while it is being sent.
    upload: RefCell<Option<Upload>>,
    state: Cell<State>,
    /// The server would take another request.
    keep: Cell<bool>,
    proper_case: bool,
    /// Trailers pass, in both directions.
    trailers: bool,
    /// Counts the connection as open.
    _open: Open,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Busy,
    /// No further request can be sent.
    Dead,
}

/// How far the head of an answer was looked for.
#[derive(Debug, Default)]
struct Look {
    scan: Scan,
    /// Bytes of interim answers so far; a server that sends nothing else is not waited for.
    interim: usize,
}

#[derive(Debug)]
struct Upload {
    body: UpBody,
    encoder: Encoder,
}

/// A request's head as it goes out.
#[derive(Debug)]
pub struct Outgoing<'a> {
    /// The method.
    pub method: &'a Method,
    /// Path and query.
    pub target: &'a str,
    /// The `host` header.
    pub host: &'a str,
    /// All other headers; framing is left to the connection.
    pub headers: &'a HeaderMap,
    /// Headers in place of those of the same name.
    pub more: &'a [(HeaderName, HeaderValue)],
    /// The upgrade that is asked for.
    pub upgrade: Option<&'a str>,
    /// Where interim answers go; `None`: they end here.
    pub interim: Option<&'a Interim>,
}

/// Why a request has no answer.
#[derive(Debug, Clone, Copy)]
pub struct Unanswered {
    /// What happened.
    pub fault: Fault,
    /// Not a byte of the request went out.
    pub unsent: bool,
}

impl Client {
    /// A fresh connection.
    pub fn new(stream: Stream, options: &Http1Options, open: Open) -> Rc<Self> {
        Rc::new(Self {
            wire: RefCell::new(Wire::new(stream, BytesMut::new())),
            decoder: RefCell::new(Decoder::Done),
            upload: RefCell::default(),
            state: Cell::new(State::Idle),
            keep: Cell::new(true),
            proper_case: options.proper_case,
            trailers: options.trailers,
            _open: open,
        })
    }

    /// Whether the exchange before has ended and left the connection fit for another.
    pub fn is_idle(&self) -> bool {
        self.state.get() == State::Idle
    }

    /// Whether a request can be sent now: also looks whether the server has ended the connection meanwhile.
    pub fn is_ready(&self) -> bool {
        if !self.is_idle() {
            return false;
        }
        let mut wire = self.wire.borrow_mut();
        if wire.is_quiet() {
            return true;
        }
        // What came may be nothing that ends the connection: TLS has messages of its own.
        let quiet = wire.input.is_empty() && wire.poll_fill(&mut Context::from_waker(Waker::noop())).is_pending();
        wire.rest();
        if !quiet {
            self.state.set(State::Dead);
        }
        quiet
    }

    /// Sends a request and waits for the head of its answer. The request's body goes on while the answer's body is read.
    ///
    /// # Errors
    /// [`Unanswered`]; the connection is of no further use then.
    pub async fn send(self: &Rc<Self>, head: Outgoing<'_>, body: UpBody) -> Result<Response<Body>, Unanswered> {
        let before = self.wire.borrow().sent;
        self.begin(&head, body);
        let mut look = Look::default();
        let answered = poll_fn(|cx| self.poll_answer(cx, &head, &mut look)).await;
        let read = answered.map_err(|fault| {
            self.state.set(State::Dead);
            Unanswered { fault, unsent: self.wire.borrow().sent == before }
        })?;
        Ok(self.answer(read))
    }

    /// The stream of a connection that was upgraded, with what was read of it already.
    pub fn take_stream(&self) -> Option<(Stream, BytesMut)> {
        self.state.set(State::Dead);
        self.wire.borrow_mut().take()
    }

    fn begin(&self, head: &Outgoing<'_>, body: UpBody) {
        self.state.set(State::Busy);
        let mut wire = self.wire.borrow_mut();
        let output = wire.output();
        for part in [head.method.as_str(), " ", head.target, " HTTP/1.1\r\n"] {
            output.extend_from_slice(part.as_bytes());
        }
        let case = self.proper_case;
        encode::line(output, &header::HOST, head.host.as_bytes(), case);
        let replaced = |name: &HeaderName| head.more.iter().any(|(other, _)| other == name);
        encode::headers(output, head.headers, case, replaced);
        for (name, value) in head.more {
            encode::line(output, name, value.as_bytes(), case);
        }
        if let Some(upgrade) = head.upgrade {
            encode::line(output, &header::CONNECTION, b"upgrade", case);
            encode::line(output, &header::UPGRADE, upgrade.as_bytes(), case);
        }
        let encoder = frame(output, head, &body, case, self.trailers);
        output.extend_from_slice(b"\r\n");
        drop(wire);
        *self.upload.borrow_mut() = Some(Upload { body, encoder });
    }

    fn poll_answer(
        &self,
        cx: &mut Context<'_>,
        asked: &Outgoing<'_>,
        look: &mut Look,
    ) -> Poll<Result<ResponseHead, Fault>> {
        if let Poll::Ready(Err(Stopped::Source)) = self.poll_upload(cx) {
            return Poll::Ready(Err(Fault::Over));
        }
        let limits = Limits { trailers: self.trailers, ..LIMITS };
        let mut wire = self.wire.borrow_mut();
        loop {
            if let Some(end) = look.scan.find(&wire.input, limits)? {
                let bytes = wire.input.split_to(end).freeze();
                look.scan = Scan::default();
                let read = head::response(&bytes, limits, wire::map(), asked.method)?;
                if !read.status.is_informational() || read.tunnels {
                    return Poll::Ready(Ok(read));
                }
                look.interim += end;
                if look.interim > MAX_RESPONSE_HEAD {
                    return Poll::Ready(Err(framing::Fault::TooLarge.into()));
                }
                if let Some(interim) = asked.interim {
                    interim.push(read.status, read.headers);
                }
                continue;
            }
            if ready!(wire.poll_fill(cx))? == 0 {
                return Poll::Ready(Err(Fault::Ended));
            }
        }
    }

    /// Sends what there is of the request's body. A server that takes no more may have answered all the same.
    fn poll_upload(&self, cx: &mut Context<'_>) -> Poll<Result<(), Stopped>> {
        let mut upload = self.upload.borrow_mut();
        let Some(Upload { body, encoder }) = upload.as_mut() else { return Poll::Ready(Ok(())) };
        let result = ready!(poll_pump(body, encoder, &self.wire, cx));
        *upload = None;
        if result.is_err() {
            self.keep.set(false);
        }
        Poll::Ready(result)
    }

    fn answer(self: &Rc<Self>, read: ResponseHead) -> Response<Body> {
        let ResponseHead { status, headers, body, keep, tunnels } = read;
        let over = body.is_done();
        *self.decoder.borrow_mut() = body;
        if !keep {
            self.keep.set(false);
        }
        if over && !tunnels {
            self.finish();
        }
        let mut response = Response::new(Body { client: Rc::clone(self), over });
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        *response.version_mut() = Version::HTTP_11;
        response
    }

    fn poll_body(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let _ = self.poll_upload(cx);
        let mut wire = self.wire.borrow_mut();
        let mut decoder = self.decoder.borrow_mut();
        loop {
            match decoder.next(&mut wire.input)? {
                Part::Data(data) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Part::Trailers(trailers) => return Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                Part::End => return Poll::Ready(None),
                Part::More => {
                    if ready!(wire.poll_fill(cx))? == 0 && !decoder.ends_here() {
                        return Poll::Ready(Some(Err(Fault::Ended)));
                    }
                }
            }
        }
    }

    /// The answer is whole.
    fn finish(&self) {
        let mut wire = self.wire.borrow_mut();
        // Bytes behind the answer belong to no request: who sent them cannot be trusted with another.
        let fit = self.keep.get() && self.upload.borrow().is_none() && wire.input.is_empty();
        self.state.set(if fit { State::Idle } else { State::Dead });
        wire.rest();
    }
}

/// How the body is framed; writes the header that says so.
fn frame(output: &mut Vec<u8>, head: &Outgoing<'_>, body: &UpBody, case: bool, trailers: bool) -> Encoder {
    if head.upgrade.is_some() {
        return Encoder::Ended;
    }
    match body.size_hint().exact() {
        Some(0) if body.is_end_stream() => {
            let expected = matches!(*head.method, Method::POST | Method::PUT | Method::PATCH);
            if expected || head.headers.contains_key(header::CONTENT_LENGTH) {
                encode::content_length(output, 0, case);
            }
            Encoder::Ended
        }
        Some(length) => {
            encode::content_length(output, length, case);
            Encoder::Length(length)
        }
        None => {
            encode::line(output, &header::TRANSFER_ENCODING, b"chunked", case);
            Encoder::Chunked { trailers }
        }
    }
}

/// An answer's body.
#[derive(Debug)]
pub struct Body {
    client: Rc<Client>,
    /// It has come to its end, or broke.
    over: bool,
}

impl Body {
    /// Goes on sending the request's body, where the answer's cannot be passed on at the moment.
    pub fn drive_upload(&self, cx: &mut Context<'_>) {
        if !self.over && self.client.upload.borrow().is_some() {
            let _ = self.client.poll_upload(cx);
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let this = self.get_mut();
        if this.over {
            return Poll::Ready(None);
        }
        let frame = ready!(this.client.poll_body(cx));
        if let Some(Err(_)) = &frame {
            this.over = true;
            this.client.state.set(State::Dead);
        } else if this.client.decoder.borrow().is_done() {
            this.over = true;
            this.client.finish();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.over
    }

    fn size_hint(&self) -> SizeHint {
        match &*self.client.decoder.borrow() {
            _ if self.over => SizeHint::with_exact(0),
            Decoder::Length(length) => SizeHint::with_exact(*length),
            _ => SizeHint::default(),
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if !self.over {
            self.client.state.set(State::Dead);
        }
    }
}
