//! The client's side: streams that come at the same time, each an exchange in a task of its own.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use engine::HttpManager;
use h2::server::{Builder, Connection, Handshake, SendResponse};
use h2::{Reason, RecvStream};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Body as _;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep_until};

use super::SEND_BUFFER;
use super::alive::Alive;
use super::body::{Body, Upload};
use super::pump::Pump;
use super::tunnel::Tunnel;
use crate::http::body::Incoming;
use crate::http::date;
use crate::http::exchange::{Channels, exchange};
use crate::http::interim::Interim;
use crate::http::respond::DownBody;
use crate::http::serve::HttpConnection;
use crate::http::tunnel::Side;
use crate::net::stream::Ahead;

/// Streams that a client may reset before they are served, and errors of streams, before the connection counts as hostile.
const MAX_RESETS: usize = 100;

/// One connection; ready when it has ended.
pub struct Serving {
    shared: Rc<HttpConnection>,
    stage: Stage,
    /// No further stream is taken.
    closing: bool,
}

enum Stage {
    /// The client's first bytes are waited for.
    Begun(Handshake<Ahead, Bytes>),
    /// Streams come.
    Open { connection: Connection<Ahead, Bytes>, alive: Option<Alive> },
}

/// Serves a connection.
pub fn serve(shared: Rc<HttpConnection>, stream: Ahead) -> Serving {
    let stage = Stage::Begun(builder(&shared.manager).handshake(stream));
    Serving { shared, stage, closing: false }
}

fn builder(manager: &HttpManager) -> Builder {
    let options = &manager.http2;
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(options.max_concurrent_streams)
        .initial_window_size(options.stream_window)
        .initial_connection_window_size(options.connection_window)
        .max_frame_size(16 << 10)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(manager.max_request_headers_bytes)
        .max_pending_accept_reset_streams(MAX_RESETS)
        .max_local_error_reset_streams(Some(MAX_RESETS));
    if options.allow_connect {
        builder.enable_connect_protocol();
    }
    builder
}

impl Serving {
    /// Says goodbye: streams that are under way may end, no further ones begin.
    pub fn graceful_shutdown(mut self: Pin<&mut Self>) {
        self.closing = true;
        if let Stage::Open { connection, .. } = &mut self.stage {
            connection.graceful_shutdown();
        }
    }
}

impl Future for Serving {
    type Output = Result<(), h2::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        loop {
            match &mut this.stage {
                Stage::Begun(handshake) => {
                    let mut connection = ready!(Pin::new(handshake).poll(cx))?;
                    if this.closing {
                        connection.graceful_shutdown();
                    }
                    let keepalive = this.shared.manager.http2.keepalive;
                    let alive = keepalive.and_then(|times| {
                        Some(Alive::new(connection.ping_pong()?, times, Arc::clone(&this.shared.traffic), None))
                    });
                    this.stage = Stage::Open { connection, alive };
                }
                Stage::Open { connection, alive } => {
                    if alive.as_mut().is_some_and(|alive| alive.poll_lost(cx).is_ready()) {
                        *alive = None;
                        connection.abrupt_shutdown(Reason::NO_ERROR);
                    }
                    let Some(stream) = ready!(connection.poll_accept(cx)) else { return Poll::Ready(Ok(())) };
                    let (request, respond) = stream?;
                    // On the heap, and made where it stands: its room, most of it unused as yet, is not to be moved about.
                    let stream = Box::write(Box::new_uninit(), serve_stream(Rc::clone(&this.shared), request, respond));
                    tokio::task::spawn_local(Box::into_pin(stream));
                }
            }
        }
    }
}

/// What of the client's side is kept for a tunnel.
struct Hand {
    to: oneshot::Sender<Tunnel>,
    recv: RecvStream,
}

async fn serve_stream(shared: Rc<HttpConnection>, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    // What was taken back in the same breath was never asked.
    if poll_fn(|cx| Poll::Ready(respond.poll_reset(cx).is_ready())).await {
        return;
    }
    shared.traffic.head_served(head_size(&request));
    let (parts, recv) = request.into_parts();
    let interim = shared.manager.relay_interim.then(Rc::<Interim>::default);
    if interim.is_none() && expects(&parts.headers) {
        inform(&mut respond, StatusCode::CONTINUE, HeaderMap::new());
    }
    let (body, upgrade, hand) = if parts.method == Method::CONNECT {
        let (to, side) = oneshot::channel();
        (Body::none(), Some(Side::Http2(side)), Some(Hand { to, recv }))
    } else {
        (Body::of(recv, &parts.headers, Upload::Over), None, None)
    };
    let request = Request::from_parts(parts, Incoming::Http2(body));
    let response = {
        let channels = Channels { upgrade, interim: interim.clone() };
        let mut exchange = pin!(exchange(&shared, request, channels));
        poll_fn(|cx| {
            let response = exchange.as_mut().poll(cx);
            for (status, headers) in interim.as_ref().map(|interim| interim.take()).unwrap_or_default() {
                inform(&mut respond, status, headers);
            }
            match response {
                Poll::Ready(response) => Poll::Ready(Some(response)),
                // A client that has gone or taken its request back ends the exchange.
                Poll::Pending => respond.poll_reset(cx).map(|_| None),
            }
        })
        .await
    };
    if let Some(response) = response {
        answer(response, respond, hand).await;
    }
}

/// Bytes of what a head says; a long one may be so by its path alone.
fn head_size<B>(request: &Request<B>) -> usize {
    let path = request.uri().path_and_query().map_or(0, |path| path.as_str().len());
    request.headers().iter().fold(path, |size, (name, value)| size + name.as_str().len() + value.len())
}

/// Whether the client waits for leave to send its body.
fn expects(headers: &HeaderMap) -> bool {
    headers.get(header::EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// Sends an interim answer; where it cannot be sent any more, the answer itself cannot either, and says so.
fn inform(respond: &mut SendResponse<Bytes>, status: StatusCode, headers: HeaderMap) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    super::fit(response.headers_mut(), false);
    let _ = respond.send_informational(response);
}

async fn answer(response: Response<DownBody>, mut respond: SendResponse<Bytes>, hand: Option<Hand>) {
    let (mut parts, body) = response.into_parts();
    super::fit(&mut parts.headers, false);
    parts.headers.entry(header::DATE).or_insert_with(|| date::with(HeaderValue::clone));
    let hand = hand.filter(|_| parts.status.is_success());
    if hand.is_some() {
        parts.headers.remove(header::CONTENT_LENGTH);
    }
    let over = hand.is_none() && body.is_end_stream();
    if !over && let Some(length) = body.size_hint().exact().filter(|_| hand.is_none()) {
        parts.headers.entry(header::CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
    }
    let Ok(send) = respond.send_response(Response::from_parts(parts, ()), over) else {
        respond.send_reset(Reason::INTERNAL_ERROR);
        return;
    };
    match hand {
        // Where the tunnel was given up meanwhile, it is reset.
        Some(Hand { to, recv }) => drop(to.send(Tunnel::new(send, recv))),
        None if over => {}
        None => {
            let mut patience = Patience { limit: body.still_limit(), since: None, timer: None };
            let mut pump = Pump::new(body, send, Reason::INTERNAL_ERROR);
            poll_fn(|cx| {
                if pump.poll(cx).is_ready() {
                    return Poll::Ready(());
                }
                // A client that takes no answer before it has sent all must still be read from.
                pump.body().drive_upload(cx);
                patience.poll_over(pump.blocked_at(), cx)
            })
            .await;
        }
    }
}

/// How long a client is waited for that takes nothing of its answer; then the stream is dropped, and so reset. The body's own
/// limits never come due meanwhile: nobody asks it for more.
struct Patience {
    limit: Option<Duration>,
    /// It takes nothing since then, and what it had taken.
    since: Option<(u64, Instant)>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    fn poll_over(&mut self, blocked_at: Option<u64>, cx: &mut Context<'_>) -> Poll<()> {
        let (Some(limit), Some(taken)) = (self.limit, blocked_at) else {
            self.since = None;
            return Poll::Pending;
        };
        let since = match self.since {
            Some((before, since)) if before == taken => since,
            _ => self.since.insert((taken, Instant::now())).1,
        };
        let at = since + limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if timer.deadline() != at {
            timer.as_mut().reset(at);
        }
        timer.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_takes_something_is_waited_for_anew() {
        let mut patience = Patience { limit: Some(Duration::from_millis(60)), since: None, timer: None };
        let begun = Instant::now();
        for taken in 0..4 {
            let waited = poll_fn(|cx| patience.poll_over(Some(taken), cx));
            assert!(tokio::time::timeout(Duration::from_millis(30), waited).await.is_err(), "{taken}");
        }
        poll_fn(|cx| patience.poll_over(Some(3), cx)).await;
        assert!(begun.elapsed() >= Duration::from_millis(3 * 30 + 60), "{:?}", begun.elapsed());
        assert!(begun.elapsed() < Duration::from_secs(10));
        let free = poll_fn(|cx| patience.poll_over(None, cx));
        assert!(tokio::time::timeout(Duration::from_millis(100), free).await.is_err(), "nothing stands still");
    }

    #[test]
    fn a_long_path_is_a_long_head() {
        let request = Request::builder().uri(format!("/{}", "a".repeat(8191))).header("b", "cd").body(()).unwrap();
        assert_eq!(head_size(&request), 8195);
    }
}
