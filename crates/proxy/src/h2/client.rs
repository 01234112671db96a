//! The upstream side: a connection that many streams share, each driven by who asks.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use engine::http_manager::Http2Options;
use h2::client::{Builder, Connection, ResponseFuture, SendRequest};
use h2::{Reason, RecvStream};
use http::{HeaderValue, Method, Request, Response, header};
use http_body::Body as _;

use super::SEND_BUFFER;
use super::alive::{Alive, Quiet};
use super::body::{Body, Upload};
use super::pump::{Pump, Stopped};
use crate::http::body::UpBody;
use crate::http::interim::Interim;
use crate::net::stream::Ahead;
use crate::upstream::reach::{MAX_RESPONSE_HEAD, Open};

/// Streams that this side has reset and whose frames are still passed over.
const MAX_RESET_STREAMS: usize = 100;
/// What each interim answer counts beyond its headers.
const INTERIM: usize = 32;

/// Sends requests on one connection.
#[derive(Debug)]
pub struct Sender {
    requests: RefCell<SendRequest<Bytes>>,
    quiet: Option<Rc<Quiet>>,
}

/// Why a request has no answer.
pub enum Unanswered {
    /// The connection takes no more requests; the body is as it was.
    Unsent(UpBody),
    /// It was sent, or a part of it.
    Failed(h2::Error),
}

/// Makes a connection of a stream; it runs in a task of its own, and counts as `open` until its end.
///
/// # Errors
/// When the stream takes not even the first bytes.
pub async fn connect(stream: Ahead, options: &Http2Options, open: Open) -> Result<Sender, h2::Error> {
    let mut builder = Builder::new();
    builder
        .initial_window_size(options.stream_window)
        .initial_connection_window_size(options.connection_window)
        .header_table_size(options.hpack_table_size)
        .max_header_list_size(MAX_RESPONSE_HEAD as u32)
        .max_frame_size(16 << 10)
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_reset_streams(MAX_RESET_STREAMS)
        .enable_push(false);
    let traffic = stream.traffic();
    let quiet = options.keepalive.as_ref().and_then(|times| Quiet::new(times, Arc::clone(&traffic)));
    let (requests, mut connection) = builder.handshake::<_, Bytes>(stream).await?;
    let alive =
        options.keepalive.and_then(|times| Some(Alive::new(connection.ping_pong()?, times, traffic, quiet.clone())));
    // On the heap: the runtime moves what it is given several times.
    tokio::task::spawn_local(Box::pin(drive(connection, alive, open)));
    Ok(Sender { requests: RefCell::new(requests), quiet })
}

async fn drive(mut connection: Connection<Ahead, Bytes>, mut alive: Option<Alive>, open: Open) {
    let ended = poll_fn(|cx| {
        if alive.as_mut().is_some_and(|alive| alive.poll_lost(cx).is_ready()) {
            tracing::debug!(endpoint = %open.endpoint(), "upstream connection is lost: no answer to a ping");
            return Poll::Ready(Ok(()));
        }
        let ended = Pin::new(&mut connection).poll(cx);
        if let Some(alive) = &alive {
            alive.listen();
        }
        ended
    });
    if let Err(error) = ended.await {
        tracing::debug!(endpoint = %open.endpoint(), %error, "upstream connection ended");
    }
}

impl Sender {
    /// Whether no further request can be sent.
    pub fn is_closed(&self) -> bool {
        let ready = self.requests.borrow_mut().poll_ready(&mut Context::from_waker(Waker::noop()));
        matches!(ready, Poll::Ready(Err(_)))
    }

    /// Sends a request and waits for the head of its answer. The request's body goes on while the answer's body is read.
    ///
    /// # Errors
    /// [`Unanswered`].
    pub async fn send(
        &self,
        mut request: Request<()>,
        body: UpBody,
        interim: Option<&Interim>,
    ) -> Result<Response<Body>, Unanswered> {
        super::fit(request.headers_mut(), true);
        let connect = *request.method() == Method::CONNECT;
        announce(&mut request, &body);
        let mut requests = self.requests.borrow().clone();
        if poll_fn(|cx| requests.poll_ready(cx)).await.is_err() {
            return Err(Unanswered::Unsent(body));
        }
        let ends = !connect && body.is_end_stream();
        if let Some(quiet) = &self.quiet {
            quiet.stream_begins();
        }
        let (answer, send) = requests.send_request(request, ends).map_err(Unanswered::Failed)?;
        let upload = match (connect, ends) {
            (true, _) => Upload::Tunnel(send),
            (_, true) => Upload::Over,
            _ => Upload::Under(Box::new(Pump::new(body, send, Reason::CANCEL))),
        };
        let mut asked = Asked { answer, upload, interim, seen: 0 };
        let response = poll_fn(|cx| asked.poll(cx)).await.map_err(Unanswered::Failed)?;
        let (parts, recv) = response.into_parts();
        let body = Body::of(recv, &parts.headers, asked.upload);
        Ok(Response::from_parts(parts, body))
    }
}

/// Says how long a body is where that is known, and where a server would wonder.
fn announce(request: &mut Request<()>, body: &UpBody) {
    let without = matches!(*request.method(), Method::GET | Method::HEAD | Method::DELETE | Method::CONNECT);
    if let Some(length) = body.size_hint().exact().filter(|length| *length > 0 || !without) {
        request.headers_mut().entry(header::CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
    }
}

/// A request under way.
struct Asked<'a> {
    answer: ResponseFuture,
    upload: Upload,
    interim: Option<&'a Interim>,
    /// Bytes of interim answers so far.
    seen: usize,
}

impl Asked<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<RecvStream>, h2::Error>> {
        if let Upload::Under(pump) = &mut self.upload
            && let Poll::Ready(sent) = pump.poll(cx)
        {
            self.upload = Upload::Over;
            if sent == Err(Stopped::Source) {
                return Poll::Ready(Err(Reason::CANCEL.into()));
            }
        }
        while let Some(interim) = self.interim
            && let Poll::Ready(Some(Ok(response))) = self.answer.poll_informational(cx)
        {
            let (parts, ()) = response.into_parts();
            let bytes = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len());
            self.seen += bytes.sum::<usize>() + INTERIM;
            if self.seen > MAX_RESPONSE_HEAD {
                return Poll::Ready(Err(Reason::ENHANCE_YOUR_CALM.into()));
            }
            interim.push(parts.status, parts.headers);
        }
        Pin::new(&mut self.answer).poll(cx)
    }
}
