//! The client's side: requests one after the other, each answered before the next is read.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use engine::framing::Length;
use http::header;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, response};
use http_body::{Body as _, Frame, SizeHint};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::Fault;
use super::decode::{Decoder, Part};
use super::encode::{self, Encoder, Stopped, poll_pump};
use super::head::{self, Limits, RequestHead, Scan};
use super::wire::{self, Wire};
use crate::http::body::Incoming;
use crate::http::date;
use crate::http::exchange::{Channels, exchange};
use crate::http::malformed::Unread;
use crate::http::respond::DownBody;
use crate::http::serve::HttpConnection;
use crate::http::tunnel::Side;
use crate::net::stream::Stream;

/// Empty lines that may stand before a request (RFC 9112 section 2.2 asks for one).
const MOST_BLANKS: u32 = 1;
/// Most of a next request that is read while one is served.
const MOST_AHEAD: usize = 16 * 1024;
/// Most of a request's rest that is read after it was answered, so that the connection can go on.
const MOST_REST: u64 = 256 * 1024;
/// How long a client is waited for that takes nothing of its last answer.
const LINGER: Duration = Duration::from_secs(1);

/// One connection.
#[derive(Debug)]
struct Conn {
    wire: RefCell<Wire>,
    /// The body of the request that is served.
    decoder: RefCell<Decoder>,
    /// The client waits for `100 Continue`.
    expects: Cell<bool>,
    /// Which request is served: bodies of others are over.
    number: Cell<u64>,
    limits: Limits,
    /// How long a client that still sends is read from, so that the connection can go on, or before it is closed; zero: not at all.
    linger: Duration,
}

/// What of a request matters to its answer's form.
struct Asked {
    method: Method,
    version: Version,
    keep: bool,
}

/// Serves requests until the connection ends.
///
/// # Errors
/// What the client did, or the socket.
pub fn serve(shared: Rc<HttpConnection>, stream: Stream, ahead: BytesMut) -> impl Future<Output = Result<(), Fault>> {
    let manager = &shared.manager;
    let limits = Limits {
        bytes: (manager.max_request_headers_bytes as usize).max(1024),
        lines: manager.max_headers_count as usize,
        any_method: manager.http1.any_method,
        trailers: manager.http1.trailers,
    };
    let conn = Rc::new(Conn {
        wire: RefCell::new(Wire::new(stream, ahead)),
        decoder: RefCell::new(Decoder::Done),
        expects: Cell::new(false),
        number: Cell::new(0),
        limits,
        linger: manager.delayed_close,
    });
    run(shared, conn)
}

async fn run(shared: Rc<HttpConnection>, conn: Rc<Conn>) -> Result<(), Fault> {
    loop {
        let mut scan = Scan::default();
        let mut blanks = 0;
        let mut begun = None;
        let step = poll_fn(|cx| match conn.poll_head(cx, &shared, &mut scan, &mut blanks) {
            Poll::Ready(head) => Poll::Ready(conn.step(&shared, head, begun)),
            Poll::Pending => conn.poll_late(cx, &shared, &mut begun).map(|late| conn.late(&shared, late, begun)),
        })
        .await;
        shared.reading.set(false);
        match step.await? {
            Then::Next => {}
            Then::Close { unread } => return Box::pin(conn.close(unread)).await,
            Then::Gone => return Ok(()),
        }
    }
}

/// What is done about a head. On the heap, so that an idle connection does not hold the room of an exchange, nor of its end.
type Step<'a> = Pin<Box<dyn Future<Output = Result<Then, Fault>> + 'a>>;

/// What follows an answer.
enum Then {
    /// The next request.
    Next,
    /// The end; perhaps the client is still sending.
    Close {
        /// See above.
        unread: bool,
    },
    /// Nothing: the connection belongs to a tunnel, or has ended.
    Gone,
}

impl Conn {
    fn poll_head(
        &self,
        cx: &mut Context<'_>,
        shared: &HttpConnection,
        scan: &mut Scan,
        blanks: &mut u32,
    ) -> Poll<Result<Option<RequestHead>, Fault>> {
        let mut wire = self.wire.borrow_mut();
        loop {
            match scan.find(&wire.input, self.limits)? {
                Some(2) if *blanks < MOST_BLANKS => {
                    *blanks += 1;
                    let _ = wire.input.split_to(2);
                    *scan = Scan::default();
                    continue;
                }
                Some(end) => {
                    let bytes = wire.input.split_to(end).freeze();
                    return Poll::Ready(Ok(Some(head::request(&bytes, self.limits, wire::map())?)));
                }
                None => {}
            }
            let begun = !wire.input.is_empty();
            if shared.closing.get() && !begun {
                return Poll::Ready(Ok(None));
            }
            match wire.poll_fill(cx) {
                Poll::Pending => {
                    if !begun {
                        wire.rest();
                    }
                    return Poll::Pending;
                }
                Poll::Ready(Ok(0)) if begun => return Poll::Ready(Err(Fault::Ended)),
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(None)),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    /// Ready when a head that has begun takes longer than it may.
    fn poll_late(&self, cx: &mut Context<'_>, shared: &HttpConnection, begun: &mut Option<Instant>) -> Poll<Unread> {
        if self.wire.borrow().input.is_empty() {
            return Poll::Pending;
        }
        shared.reading.set(true);
        let begun = *begun.get_or_insert_with(Instant::now);
        let manager = &shared.manager;
        let limits = [
            (manager.request_headers_timeout, Unread::LATE_HEAD),
            (manager.request_timeout, Unread::LATE_REQUEST),
            (manager.stream_idle_timeout, Unread::IDLE),
        ];
        let limits = limits.into_iter().filter_map(|(limit, late)| limit.map(|limit| (begun + limit, late)));
        let Some((at, late)) = limits.min_by_key(|(at, _)| *at) else { return Poll::Pending };
        ready!(shared.alarm.borrow_mut().poll(at, cx));
        Poll::Ready(late)
    }

    /// A head came, or none will.
    fn step<'a>(
        self: &'a Rc<Self>,
        shared: &'a Rc<HttpConnection>,
        head: Result<Option<RequestHead>, Fault>,
        begun: Option<Instant>,
    ) -> Step<'a> {
        match head {
            Ok(Some(head)) => {
                // Made where it will stand: as an argument of `Box::pin` its whole room, unused as yet, would be copied.
                let exchange = Box::write(Box::new_uninit(), self.exchange(shared, head));
                Box::into_pin(exchange)
            }
            Ok(None) => Box::pin(std::future::ready(Ok(Then::Close { unread: false }))),
            Err(fault) => Box::pin(async move {
                if let Fault::Malformed(malformed) = fault {
                    self.refuse(shared, malformed.into(), begun).await;
                }
                Err(fault)
            }),
        }
    }

    /// A head came too late.
    fn late<'a>(&'a self, shared: &'a HttpConnection, late: Unread, begun: Option<Instant>) -> Step<'a> {
        Box::pin(async move {
            self.refuse(shared, late, begun).await;
            Ok(Then::Gone)
        })
    }

    async fn exchange(self: &Rc<Self>, shared: &Rc<HttpConnection>, head: RequestHead) -> Result<Then, Fault> {
        let RequestHead { method, uri, version, headers, length, keep, expects } = head;
        self.number.set(self.number.get() + 1);
        self.expects.set(expects);
        *self.decoder.borrow_mut() = match length {
            Length::Exact(0) => Decoder::Done,
            Length::Exact(length) => Decoder::Length(length),
            Length::Chunked => Decoder::chunked(self.limits),
        };
        let asked = Asked { method: method.clone(), version, keep };
        let (hand, upgrade) = if headers.contains_key(header::UPGRADE) || method == Method::CONNECT {
            let (hand, side) = oneshot::channel();
            (Some(hand), Some(Side::Coming(side)))
        } else {
            (None, None)
        };
        // Clients of HTTP/1.0 know no interim answers.
        let relays = shared.manager.relay_interim && version == Version::HTTP_11;
        let channels = Channels { upgrade, interim: relays.then(|| Rc::clone(&shared.interim)) };
        let body = Body { conn: Rc::clone(self), shared: Rc::clone(shared), number: self.number.get() };
        let mut request = Request::new(Incoming::Request(body));
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.version_mut() = version;
        *request.headers_mut() = headers;
        let response = {
            let mut exchange = pin!(exchange(shared, request, channels));
            let answered = poll_fn(|cx| match exchange.as_mut().poll(cx) {
                Poll::Ready(response) => Poll::Ready(Ok(response)),
                Poll::Pending => match self.poll_interim(cx, shared) {
                    Poll::Pending => self.poll_gone(cx).map(Err),
                    gone => gone.map(Err),
                },
            });
            answered.await?
        };
        self.write_interim(shared);
        self.answer(shared, &asked, response, hand).await
    }

    /// Sends the interim answers that have come; ready when the client takes nothing any more.
    fn poll_interim(&self, cx: &mut Context<'_>, shared: &HttpConnection) -> Poll<Fault> {
        if !shared.manager.relay_interim {
            return Poll::Pending;
        }
        self.write_interim(shared);
        match self.wire.borrow_mut().poll_flush(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(error.into()),
            _ => Poll::Pending,
        }
    }

    fn write_interim(&self, shared: &HttpConnection) {
        for (status, headers) in shared.interim.take() {
            if status == StatusCode::CONTINUE {
                self.expects.set(false);
            }
            let mut wire = self.wire.borrow_mut();
            let output = wire.output();
            encode::status_line(output, Version::HTTP_11, status);
            encode::headers(output, &headers, shared.manager.http1.proper_case, |_| false);
            output.extend_from_slice(b"\r\n");
        }
    }

    /// Ready when the client has left while its request is served.
    fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<Fault> {
        let mut wire = self.wire.borrow_mut();
        while self.decoder.borrow().is_done() && wire.input.len() < MOST_AHEAD {
            match ready!(wire.poll_fill(cx)) {
                Ok(0) => return Poll::Ready(Fault::Ended),
                Ok(_) => {}
                Err(error) => return Poll::Ready(error.into()),
            }
        }
        Poll::Pending
    }

    async fn answer(
        self: &Rc<Self>,
        shared: &Rc<HttpConnection>,
        asked: &Asked,
        response: Response<DownBody>,
        hand: Option<oneshot::Sender<(Stream, BytesMut)>>,
    ) -> Result<Then, Fault> {
        let (parts, mut body) = response.into_parts();
        let tunnel = parts.status == StatusCode::SWITCHING_PROTOCOLS
            || (asked.method == Method::CONNECT && parts.status.is_success());
        let closing = parts.headers.get(header::CONNECTION).is_some_and(|value| value == "close");
        let whole = self.decoder.borrow().is_done();
        // Who still waits for leave to send will perhaps not send, perhaps send: nobody can tell.
        let unsure = self.expects.get() && !whole;
        // And whoever was too slow with this request is not waited for.
        let slow = !whole && matches!(parts.status, StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT);
        let keep = asked.keep && !closing && !shared.closing.get() && !unsure && !slow;
        let (mut encoder, keep) = self.write_head(shared, asked, &parts, &body, keep, tunnel);
        super::recycle(parts.headers);
        let written = poll_fn(|cx| {
            let pumped = poll_pump(&mut body, &mut encoder, &self.wire, cx);
            {
                let wire = self.wire.borrow();
                shared.traffic.stand(wire.sent, wire.holds_output());
            }
            if pumped.is_ready() {
                return pumped;
            }
            // A client that reads no answer before it has sent all must still be read from.
            body.drive_upload(cx);
            self.poll_gone(cx).map(|fault| Err(Stopped::Wire(fault)))
        })
        .await;
        drop(body);
        match written {
            Ok(()) => {}
            // The answer cannot be made whole: only the connection's end can say so.
            Err(Stopped::Source) => return Err(Fault::Length),
            Err(Stopped::Wire(fault)) => return Err(fault),
        }
        if tunnel {
            if let (Some(hand), Some(stream)) = (hand, self.wire.borrow_mut().take()) {
                let _ = hand.send(stream);
            }
            return Ok(Then::Gone);
        }
        let whole = self.decoder.borrow().is_done() || (keep && self.read_rest(shared).await);
        Ok(if keep && whole { Then::Next } else { Then::Close { unread: !whole } })
    }

    /// Reads what is still to come of a request that was answered already; whether all of it came.
    async fn read_rest(self: &Rc<Self>, shared: &Rc<HttpConnection>) -> bool {
        let number = self.number.get();
        let mut left = MOST_REST;
        let rest = poll_fn(|cx| {
            while let Some(frame) = ready!(self.poll_body(cx, shared, number)) {
                let Ok(frame) = frame else { return Poll::Ready(false) };
                let length = frame.data_ref().map_or(0, Bytes::len) as u64;
                match left.checked_sub(length) {
                    Some(less) => left = less,
                    None => return Poll::Ready(false),
                }
            }
            Poll::Ready(true)
        });
        timeout(self.linger, rest).await.unwrap_or(false)
    }

    /// Traffic a head; how the body follows, and whether the connection goes on.
    fn write_head(
        &self,
        shared: &HttpConnection,
        asked: &Asked,
        parts: &response::Parts,
        body: &DownBody,
        mut keep: bool,
        tunnel: bool,
    ) -> (Encoder, bool) {
        let case = shared.manager.http1.proper_case;
        let mut wire = self.wire.borrow_mut();
        let output = wire.output();
        encode::status_line(output, asked.version, parts.status);
        encode::headers(output, &parts.headers, case, |name| !tunnel && *name == header::CONNECTION);
        if !parts.headers.contains_key(header::DATE) {
            date::with(|date| encode::line(output, &header::DATE, date.as_bytes(), case));
        }
        let bare = asked.method == Method::HEAD
            || parts.status == StatusCode::NOT_MODIFIED
            || parts.status == StatusCode::NO_CONTENT;
        let encoder = if tunnel {
            keep = false;
            Encoder::Mute
        } else if bare {
            // The length that the body would have, where the upstream told it.
            let length = parts.headers.get(header::CONTENT_LENGTH);
            if let Some(length) = length.filter(|_| parts.status != StatusCode::NO_CONTENT) {
                encode::line(output, &header::CONTENT_LENGTH, length.as_bytes(), case);
            }
            Encoder::Mute
        } else if let Some(length) = body.size_hint().exact() {
            encode::content_length(output, length, case);
            Encoder::Length(length)
        } else if asked.version == Version::HTTP_10 {
            keep = false;
            Encoder::UntilClose
        } else {
            encode::line(output, &header::TRANSFER_ENCODING, b"chunked", case);
            Encoder::Chunked { trailers: self.limits.trailers }
        };
        if !keep && !tunnel {
            encode::line(output, &header::CONNECTION, b"close", case);
        } else if asked.version == Version::HTTP_10 {
            encode::line(output, &header::CONNECTION, b"keep-alive", case);
        }
        output.extend_from_slice(b"\r\n");
        (encoder, keep)
    }

    fn poll_body(
        &self,
        cx: &mut Context<'_>,
        shared: &HttpConnection,
        number: u64,
    ) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        if number != self.number.get() {
            return Poll::Ready(Some(Err(Fault::Over)));
        }
        let mut wire = self.wire.borrow_mut();
        let mut decoder = self.decoder.borrow_mut();
        loop {
            match decoder.next(&mut wire.input) {
                Ok(Part::Data(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Ok(Part::Trailers(trailers)) => return Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                Ok(Part::End) => return Poll::Ready(None),
                Ok(Part::More) => {}
                Err(fault) => return Poll::Ready(Some(Err(fault.into()))),
            }
            // Where the endpoint is to give leave, it is passed on when it comes.
            if !shared.manager.relay_interim && self.expects.replace(false) {
                wire.output().extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                if let Poll::Ready(Err(error)) = wire.poll_flush(cx) {
                    return Poll::Ready(Some(Err(error.into())));
                }
            }
            match ready!(wire.poll_fill(cx)) {
                Ok(0) => return Poll::Ready(Some(Err(Fault::Ended))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Some(Err(error.into()))),
            }
        }
    }

    /// Tells a client that what it sent is no request.
    async fn refuse(&self, shared: &HttpConnection, unread: Unread, begun: Option<Instant>) {
        let (status, mut headers, body) = unread.answer(shared, begun.unwrap_or_else(Instant::now));
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        {
            let case = shared.manager.http1.proper_case;
            let mut wire = self.wire.borrow_mut();
            let output = wire.output();
            encode::status_line(output, Version::HTTP_11, status);
            encode::headers(output, &headers, case, |_| false);
            date::with(|date| encode::line(output, &header::DATE, date.as_bytes(), case));
            encode::content_length(output, body.len() as u64, case);
            output.extend_from_slice(b"\r\n");
            output.extend_from_slice(&body);
        }
        let _ = self.close(true).await;
    }

    /// Ends the connection: what is written arrives even where the client has not read it yet and goes on sending.
    async fn close(&self, unread: bool) -> Result<(), Fault> {
        let ended = poll_fn(|cx| {
            let mut wire = self.wire.borrow_mut();
            ready!(wire.poll_flush(cx))?;
            wire.poll_shutdown(cx)
        });
        let linger = async {
            ended.await?;
            if unread && !self.linger.is_zero() {
                poll_fn(|cx| {
                    let mut wire = self.wire.borrow_mut();
                    let mut left = MOST_REST;
                    loop {
                        wire.input.clear();
                        let read = ready!(wire.poll_fill(cx))? as u64;
                        left = left.saturating_sub(read);
                        if read == 0 || left == 0 {
                            return Poll::Ready(std::io::Result::Ok(()));
                        }
                    }
                })
                .await?;
            }
            std::io::Result::Ok(())
        };
        // The client's end is none of our concern any more.
        let _ = timeout(if self.linger.is_zero() { LINGER } else { self.linger }, linger).await;
        Ok(())
    }
}

/// A request's body.
pub struct Body {
    conn: Rc<Conn>,
    shared: Rc<HttpConnection>,
    number: u64,
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Body").field("number", &self.number).finish_non_exhaustive()
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        self.conn.poll_body(cx, &self.shared, self.number)
    }

    fn is_end_stream(&self) -> bool {
        self.number == self.conn.number.get() && self.conn.decoder.borrow().is_done()
    }

    fn size_hint(&self) -> SizeHint {
        match &*self.conn.decoder.borrow() {
            Decoder::Done => SizeHint::with_exact(0),
            Decoder::Length(length) => SizeHint::with_exact(*length),
            _ => SizeHint::default(),
        }
    }
}
