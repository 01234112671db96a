//! Pumps, tunnels and pings over a real connection in memory.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use engine::http_manager::Keepalive;
use h2::client::{ResponseFuture, SendRequest};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body::Frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::{sleep, timeout};

use super::alive::{Alive, Quiet};
use super::pump::{Pump, Stopped};
use super::tunnel::Tunnel;

const SOON: Duration = Duration::from_secs(5);

/// One stream: both ends of it, with their connections under way.
struct Pair {
    _requests: SendRequest<Bytes>,
    answer: ResponseFuture,
    up: SendStream<Bytes>,
    request: RecvStream,
    respond: SendResponse<Bytes>,
}

impl Pair {
    /// A stream on which the server lets `window` bytes come ahead.
    async fn open(window: u32) -> Self {
        let (near, far) = duplex(1 << 20);
        let server = tokio::spawn(async move {
            let mut builder = h2::server::Builder::new();
            let mut connection = builder.initial_window_size(window).handshake::<_, Bytes>(far).await.unwrap();
            let stream = connection.accept().await.unwrap().unwrap();
            tokio::spawn(async move { while connection.accept().await.is_some() {} });
            stream
        });
        let (requests, connection) = h2::client::handshake(near).await.unwrap();
        tokio::spawn(connection);
        let mut requests = requests.ready().await.unwrap();
        let (answer, up) = requests.send_request(Request::get("http://a/").body(()).unwrap(), false).unwrap();
        let (request, respond) = server.await.unwrap();
        // What the server allows is known to the client by now: it came before its first look at the stream.
        sleep(Duration::from_millis(20)).await;
        Self { _requests: requests, answer, up, request: request.into_body(), respond }
    }

    /// The same stream as two tunnels.
    async fn tunnels(self) -> (Tunnel, Tunnel, SendRequest<Bytes>) {
        let Self { _requests: requests, answer, up, request, mut respond } = self;
        let down = respond.send_response(Response::new(()), false).unwrap();
        let answer = answer.await.unwrap().into_body();
        (Tunnel::new(up, answer), Tunnel::new(down, request), requests)
    }
}

/// A body of these frames; an error breaks it, and without an end it goes on for ever.
struct Frames(VecDeque<Result<Frame<Bytes>, ()>>, bool);

impl Frames {
    fn of(chunks: &[&'static [u8]]) -> Self {
        Self(chunks.iter().map(|chunk| Ok(Frame::data(Bytes::from_static(chunk)))).collect(), true)
    }
}

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = ();

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ()>>> {
        match self.0.pop_front() {
            None if !self.1 => Poll::Pending,
            next => Poll::Ready(next),
        }
    }
}

async fn all(stream: &mut RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.data().await {
        let chunk = chunk?;
        let _ = stream.flow_control().release_capacity(chunk.len());
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

async fn pumped(pump: &mut Pump<Frames>) -> Result<(), Stopped> {
    timeout(SOON, poll_fn(|cx| pump.poll(cx))).await.unwrap()
}

#[tokio::test]
async fn a_body_goes_as_the_window_allows() {
    let mut pair = Pair::open(4).await;
    let mut pump = Pump::new(Frames::of(&[b"abcd", b"efgh"]), pair.up, Reason::CANCEL);
    let blocked = timeout(Duration::from_millis(50), poll_fn(|cx| pump.poll(cx))).await;
    assert!(blocked.is_err() && pump.blocked_at() == Some(1), "the second chunk does not fit");
    let (sent, read) = tokio::join!(pumped(&mut pump), all(&mut pair.request));
    assert_eq!((sent, read.unwrap()), (Ok(()), b"abcdefgh".to_vec()));
}

#[tokio::test]
async fn trailers_follow_and_a_body_that_breaks_says_so() {
    let mut pair = Pair::open(100).await;
    let trailers = HeaderMap::from_iter([(header::ETAG, HeaderValue::from_static("x"))]);
    let frames = Frames([Ok(Frame::data(Bytes::from_static(b"ab"))), Ok(Frame::trailers(trailers))].into(), true);
    assert_eq!(pumped(&mut Pump::new(frames, pair.up, Reason::CANCEL)).await, Ok(()));
    assert_eq!(all(&mut pair.request).await.unwrap(), b"ab");
    assert_eq!(pair.request.trailers().await.unwrap().unwrap()[header::ETAG], "x");

    let mut pair = Pair::open(100).await;
    let frames = Frames([Ok(Frame::data(Bytes::from_static(b"ab"))), Err(())].into(), true);
    assert_eq!(pumped(&mut Pump::new(frames, pair.up, Reason::INTERNAL_ERROR)).await, Err(Stopped::Source));
    assert_eq!(all(&mut pair.request).await.unwrap_err().reason(), Some(Reason::INTERNAL_ERROR));
}

#[tokio::test]
async fn who_has_nothing_to_send_hears_of_a_reset() {
    let mut pair = Pair::open(100).await;
    let mut pump = Pump::new(Frames(VecDeque::new(), false), pair.up, Reason::CANCEL);
    pair.respond.send_reset(Reason::REFUSED_STREAM);
    assert_eq!(pumped(&mut pump).await, Err(Stopped::Peer));
}

#[tokio::test]
async fn a_tunnel_carries_bytes_both_ways_and_ends_by_halves() {
    let (mut near, mut far, _requests) = Pair::open(1 << 16).await.tunnels().await;
    near.write_all(b"there").await.unwrap();
    near.shutdown().await.unwrap();
    let mut text = String::new();
    timeout(SOON, far.read_to_string(&mut text)).await.unwrap().unwrap();
    assert_eq!(text, "there");
    far.write_all(b"and back").await.unwrap();
    far.shutdown().await.unwrap();
    text.clear();
    timeout(SOON, near.read_to_string(&mut text)).await.unwrap().unwrap();
    assert_eq!(text, "and back");
}

#[tokio::test]
async fn a_tunnel_that_is_dropped_ends_the_other_one() {
    let (near, mut far, _requests) = Pair::open(1 << 16).await.tunnels().await;
    drop(near);
    let mut bytes = Vec::new();
    timeout(SOON, far.read_to_end(&mut bytes)).await.unwrap().unwrap();
    assert!(bytes.is_empty());
    let broken = timeout(SOON, async { while far.write_all(b"x").await.is_ok() {} });
    broken.await.unwrap();
}

/// Asks whether a peer is there that answers only where `answers`. A stream `begins` after a quiet time.
async fn lost(answers: bool, times: Keepalive, begins: bool) -> bool {
    let (near, far) = duplex(1 << 16);
    tokio::spawn(peer(far, answers));
    let (_requests, mut connection) = h2::client::handshake::<_>(near).await.unwrap();
    let quiet = Quiet::new(&times, Arc::default());
    let mut alive = Alive::new(connection.ping_pong().unwrap(), times, Arc::default(), quiet.clone());
    sleep(Duration::from_millis(20)).await;
    if let Some(quiet) = quiet.filter(|_| begins) {
        quiet.stream_begins();
    }
    let found = poll_fn(|cx| {
        if alive.poll_lost(cx).is_ready() {
            return Poll::Ready(());
        }
        assert!(Pin::new(&mut connection).poll(cx).is_pending(), "the connection lives");
        Poll::Pending
    });
    timeout(Duration::from_millis(400), found).await.is_ok()
}

async fn peer(stream: DuplexStream, answers: bool) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    if answers {
        while connection.accept().await.is_some() {}
    }
    sleep(SOON).await;
    drop(connection);
}

#[tokio::test]
async fn who_answers_is_there_and_who_does_not_is_lost() {
    let times = Keepalive { interval: Some(Duration::from_millis(20)), idle: None, ..TIMES };
    assert!(!lost(true, times, false).await, "each question is answered");
    assert!(lost(false, times, false).await, "no answer came in time");
}

#[tokio::test]
async fn who_was_quiet_for_long_is_asked_when_a_stream_begins() {
    let times = Keepalive { idle: Some(Duration::from_millis(10)), ..TIMES };
    assert!(!lost(false, times, false).await, "nobody asked");
    assert!(lost(false, times, true).await, "no answer came in time");
    assert!(!lost(true, times, true).await, "it was answered");
    let patient = Keepalive { idle: Some(SOON), ..TIMES };
    assert!(!lost(false, patient, true).await, "it was not quiet for so long");
}

const TIMES: Keepalive = Keepalive { interval: None, jitter: 15.0, timeout: Duration::from_millis(100), idle: None };
