//! Backends that write down what reaches them and answer as the request asks (`x-fail`, `x-delay-ms`, `x-stream`, `x-reset-in`).

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::checked::{CHECK, Check, Checked, is_check};

/// What one backend saw of one request or connection.
#[derive(Debug, Clone)]
pub struct Record {
    /// When the head (or the first byte) arrived.
    pub at: Instant,
    /// The recorder's name.
    pub backend: String,
    /// A number for each connection, unique in the log.
    pub connection: u64,
    /// `http1`, `http2` or `tcp`.
    pub protocol: &'static str,
    /// Method; empty for TCP.
    pub method: String,
    /// Path and query as received.
    pub path: String,
    /// Host header or `:authority`.
    pub authority: String,
    /// All headers, in order.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// The whole body came.
    pub complete: bool,
}

impl Record {
    /// All values of a header.
    pub fn header(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str()).collect()
    }
}

/// What all recorders of a world share.
#[derive(Debug, Default)]
pub struct Log {
    records: Mutex<Vec<Record>>,
    attempts: Mutex<HashMap<String, usize>>,
    connections: AtomicU64,
    busy: Mutex<HashMap<String, (usize, usize)>>,
}

impl Log {
    /// Forgets everything.
    pub fn clear(&self) {
        lock(&self.records).clear();
        lock(&self.attempts).clear();
        lock(&self.busy).clear();
    }

    /// What was seen since the last [`Self::clear`].
    pub fn records(&self) -> Vec<Record> {
        lock(&self.records).clone()
    }

    /// The most requests that a backend served at one time since the last [`Self::clear`].
    pub fn most_at_once(&self, backend: &str) -> usize {
        lock(&self.busy).get(backend).map_or(0, |(_, most)| *most)
    }

    fn attempt(&self, request_id: &str) -> usize {
        let mut attempts = lock(&self.attempts);
        let count = attempts.entry(request_id.to_owned()).or_default();
        *count += 1;
        *count - 1
    }

    fn enter(&self, backend: &str) {
        let mut busy = lock(&self.busy);
        let (now, most) = busy.entry(backend.to_owned()).or_default();
        *now += 1;
        *most = (*most).max(*now);
    }

    fn leave(&self, backend: &str) {
        if let Some((now, _)) = lock(&self.busy).get_mut(backend) {
            *now = now.saturating_sub(1);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a recorder behaves towards every request.
#[derive(Debug, Clone, Default)]
pub struct Behaviour {
    /// Answer this status to everything.
    pub always: Option<u16>,
    /// Answer these statuses in turn.
    pub pattern: Vec<u16>,
    /// Wait this long before each answer.
    pub delay: Duration,
    /// What health checks must be like.
    pub checked: Option<Checked>,
}

/// A running backend; it stops when dropped.
#[derive(Debug)]
pub struct Recorder {
    address: SocketAddr,
    backend: Arc<Backend>,
    task: tokio::task::JoinHandle<()>,
}

/// What a recorder listens for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spoken {
    /// HTTP/1.1 and HTTP/2 with prior knowledge, gRPC included.
    Http,
    /// Bytes: answers its name and then echoes.
    Tcp,
}

#[derive(Debug)]
struct Backend {
    name: String,
    log: Arc<Log>,
    behaviour: Mutex<Behaviour>,
    served: AtomicUsize,
    checks: AtomicUsize,
}

impl Recorder {
    /// Starts a backend.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn start(
        name: &str,
        address: SocketAddr,
        spoken: Spoken,
        behaviour: Behaviour,
        log: Arc<Log>,
    ) -> Result<Self> {
        let listener = TcpListener::bind(address).await.with_context(|| format!("recorder {name} at {address}"))?;
        let address = listener.local_addr()?;
        let backend = Arc::new(Backend {
            name: name.to_owned(),
            log,
            behaviour: Mutex::new(behaviour),
            served: AtomicUsize::new(0),
            checks: AtomicUsize::new(0),
        });
        let serving = Arc::clone(&backend);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let backend = Arc::clone(&serving);
                tokio::spawn(async move {
                    let id = backend.log.connections.fetch_add(1, Ordering::Relaxed);
                    match spoken {
                        Spoken::Http => backend.serve_http(stream, id).await,
                        Spoken::Tcp => backend.serve_tcp(stream, id).await,
                    }
                });
            }
        });
        Ok(Self { address, backend, task })
    }

    /// Behaves so from now on, on connections that are open too.
    pub fn behave(&self, behaviour: Behaviour) {
        *lock(&self.backend.behaviour) = behaviour;
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What to do with one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    Status(u16),
    Grpc(u32),
    Reset,
    Hang,
    Refuse,
}

impl Backend {
    async fn serve_http(self: Arc<Self>, stream: TcpStream, id: u64) {
        let _ = stream.set_nodelay(true);
        let mut first = [0u8; 3];
        let Ok(_) = stream.peek(&mut first).await else { return };
        if &first == b"PRI" {
            self.serve_http2(stream, id).await;
        } else {
            let service = hyper::service::service_fn(move |request| self.clone().answer_http1(request, id));
            let _ = hyper::server::conn::http1::Builder::new()
                .preserve_header_case(false)
                .serve_connection(TokioIo::new(stream), service)
                .await;
        }
    }

    async fn answer_http1(
        self: Arc<Self>,
        request: Request<Incoming>,
        id: u64,
    ) -> Result<Response<BoxBody<Bytes, Infallible>>, std::io::Error> {
        let at = Instant::now();
        let (head, body) = request.into_parts();
        self.log.enter(&self.name);
        let body = body.collect().await.ok().map(|all| all.to_bytes().to_vec());
        let authority = text(head.headers.get(http::header::HOST));
        let path = head.uri.path_and_query().map_or_else(|| head.uri.to_string(), ToString::to_string);
        if is_check(&head.headers) {
            self.log.leave(&self.name);
            let body = body.unwrap_or_default();
            let (method, headers) = (head.method.as_str(), &head.headers);
            let check = Check { method, path: &path, host: &authority, headers, body: &body, protocol: "http1" };
            if self.behaviour().checked.is_some_and(|wanted| wanted.hang) {
                std::future::pending::<()>().await;
            }
            return Ok(self.reply_checked(&check));
        }
        self.record(at, id, "http1", head.method.as_str(), path, authority, &head.headers, body);
        let deed = self.deed(&head.headers);
        self.wait(&head.headers).await;
        self.log.leave(&self.name);
        match deed {
            Deed::Reset | Deed::Refuse => Err(std::io::Error::other("scripted reset")),
            Deed::Hang => std::future::pending().await,
            Deed::Status(status) => {
                let mut reply = self.reply(status, stream_plan(&head.headers));
                if let Some(time) = reset_time(&head.headers) {
                    reply.headers_mut().insert("x-reset", time.into());
                }
                Ok(reply)
            }
            Deed::Grpc(code) => {
                let mut reply = self.reply(200, None);
                reply.headers_mut().insert("grpc-status", code.into());
                Ok(reply)
            }
        }
    }

    fn reply(&self, status: u16, stream: Option<(usize, Duration)>) -> Response<BoxBody<Bytes, Infallible>> {
        let body = match stream {
            None => http_body_util::Full::new(Bytes::from_static(b"ok")).boxed(),
            Some((count, every)) => StreamBody::new(futures_util::stream::unfold(0, move |n| async move {
                if n == count {
                    return None;
                }
                if n > 0 {
                    tokio::time::sleep(every).await;
                }
                Some((Ok(Frame::data(Bytes::from(format!("piece {n}\n")))), n + 1))
            }))
            .boxed(),
        };
        let mut reply = Response::new(body);
        *reply.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        self.sign(reply.headers_mut());
        reply
    }

    fn reply_checked(&self, check: &Check<'_>) -> Response<BoxBody<Bytes, Infallible>> {
        let behaviour = self.behaviour();
        let Some(wanted) = behaviour.checked else { return self.reply(behaviour.always.unwrap_or(200), None) };
        let status = if wanted.allows(check, self.turn()) { wanted.status.unwrap_or(200) } else { 503 };
        let body = Bytes::from(wanted.answer.unwrap_or_else(|| "ok".to_owned()));
        let mut reply = Response::new(http_body_util::Full::new(body).boxed());
        *reply.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        for (name, value) in &wanted.answer_headers {
            if let (Ok(name), Ok(value)) = (http::HeaderName::try_from(name), http::HeaderValue::try_from(value)) {
                reply.headers_mut().insert(name, value);
            }
        }
        reply
    }

    fn sign(&self, headers: &mut HeaderMap) {
        if let Ok(name) = self.name.parse() {
            headers.insert("x-backend", name);
        }
        headers.insert("x-remove-me", http::HeaderValue::from_static("1"));
    }

    async fn serve_http2(self: Arc<Self>, stream: TcpStream, id: u64) {
        let Ok(mut connection) = h2::server::handshake(stream).await else { return };
        while let Some(Ok((request, respond))) = connection.accept().await {
            tokio::spawn(self.clone().answer_http2(request, respond, id));
        }
    }

    async fn answer_http2(
        self: Arc<Self>,
        request: Request<h2::RecvStream>,
        mut respond: h2::server::SendResponse<Bytes>,
        id: u64,
    ) {
        let at = Instant::now();
        let (mut head, mut incoming) = request.into_parts();
        self.log.enter(&self.name);
        let body = read_body(&mut incoming).await;
        // They stand among the headers, under names of their own.
        for (name, value) in incoming.trailers().await.ok().flatten().iter().flatten() {
            if let Ok(name) = http::HeaderName::try_from(format!("trailer.{name}")) {
                head.headers.append(name, value.clone());
            }
        }
        let authority = head.uri.authority().map(ToString::to_string).unwrap_or_default();
        let path = head.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
        if is_check(&head.headers) {
            self.log.leave(&self.name);
            let body = body.unwrap_or_default();
            let (method, headers) = (head.method.as_str(), &head.headers);
            let check = Check { method, path: &path, host: &authority, headers, body: &body, protocol: "http2" };
            self.reply_check(&check, &mut respond);
            return;
        }
        self.record(at, id, "http2", head.method.as_str(), path, authority, &head.headers, body);
        let deed = self.deed(&head.headers);
        self.wait(&head.headers).await;
        self.log.leave(&self.name);
        let grpc = text(head.headers.get("content-type")).starts_with("application/grpc");
        match deed {
            Deed::Reset => respond.send_reset(Reason::INTERNAL_ERROR),
            Deed::Refuse => respond.send_reset(Reason::REFUSED_STREAM),
            Deed::Hang => std::future::pending::<()>().await,
            Deed::Grpc(code) => self.reply_grpc(&mut respond, code),
            Deed::Status(200) if grpc => self.reply_grpc(&mut respond, 0),
            Deed::Status(status) => {
                let mut reply = Response::new(());
                *reply.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                self.sign(reply.headers_mut());
                if let Ok(mut body) = respond.send_response(reply, false) {
                    let _ = body.send_data(Bytes::from_static(b"ok"), true);
                }
            }
        }
    }

    /// gRPC's health service: serving, unless everything fails here; and checks by HTTP/2.
    fn reply_check(&self, check: &Check<'_>, respond: &mut h2::server::SendResponse<Bytes>) {
        let behaviour = self.behaviour();
        let well = behaviour.always.is_none_or(|status| status == 200);
        let serving = behaviour.checked.as_ref().map_or(well, |wanted| wanted.allows(check, self.turn()));
        if !text(check.headers.get("content-type")).starts_with("application/grpc") {
            let mut reply = Response::new(());
            *reply.status_mut() = if serving { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            let _ = respond.send_response(reply, true);
            return;
        }
        let mut reply = Response::new(());
        reply.headers_mut().insert("content-type", http::HeaderValue::from_static("application/grpc"));
        let Ok(mut body) = respond.send_response(reply, false) else { return };
        let _ = body.send_data(Bytes::from(vec![0, 0, 0, 0, 2, 8, if serving { 1 } else { 2 }]), false);
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
        let _ = body.send_trailers(trailers);
    }

    fn reply_grpc(&self, respond: &mut h2::server::SendResponse<Bytes>, code: u32) {
        let mut reply = Response::new(());
        self.sign(reply.headers_mut());
        reply.headers_mut().insert("content-type", http::HeaderValue::from_static("application/grpc"));
        if code != 0 {
            reply.headers_mut().insert("grpc-status", code.into());
            let _ = respond.send_response(reply, true);
            return;
        }
        if let Ok(mut body) = respond.send_response(reply, false) {
            let _ = body.send_data(Bytes::from_static(b"\0\0\0\0\0"), false);
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
            let _ = body.send_trailers(trailers);
        }
    }

    async fn serve_tcp(self: Arc<Self>, mut stream: TcpStream, id: u64) {
        let mut buffer = vec![0u8; 16 * 1024];
        let body: Vec<u8> = loop {
            let Ok(count @ 1..) = stream.read(&mut buffer).await else { return };
            let body: Vec<u8> = buffer.iter().take(count).copied().collect();
            if !body.starts_with(CHECK) {
                break body;
            }
            if stream.write_all(format!("I am {}\n", self.name).as_bytes()).await.is_err() {
                return;
            }
        };
        let body = Some(body);
        self.record(Instant::now(), id, "tcp", "", String::new(), String::new(), &HeaderMap::new(), body);
        if stream.write_all(format!("{}\n", self.name).as_bytes()).await.is_err() {
            return;
        }
        let (mut from, mut to) = stream.split();
        let _ = tokio::io::copy(&mut from, &mut to).await;
    }

    #[allow(clippy::too_many_arguments, reason = "the parts of one record, given once by each protocol")]
    fn record(
        &self,
        at: Instant,
        connection: u64,
        protocol: &'static str,
        method: &str,
        path: String,
        authority: String,
        headers: &HeaderMap,
        body: Option<Vec<u8>>,
    ) {
        let headers = headers.iter().map(|(name, value)| (name.to_string(), text(Some(value)))).collect();
        lock(&self.log.records).push(Record {
            at,
            backend: self.name.clone(),
            connection,
            protocol,
            method: method.to_owned(),
            path,
            authority,
            headers,
            complete: body.is_some(),
            body: body.unwrap_or_default(),
        });
    }

    /// How many checks came before this one.
    fn turn(&self) -> usize {
        self.checks.fetch_add(1, Ordering::Relaxed)
    }

    fn behaviour(&self) -> Behaviour {
        lock(&self.behaviour).clone()
    }

    fn deed(&self, headers: &HeaderMap) -> Deed {
        let behaviour = self.behaviour();
        if let Some(status) = behaviour.always {
            return Deed::Status(status);
        }
        if !behaviour.pattern.is_empty() {
            let turn = self.served.fetch_add(1, Ordering::Relaxed);
            let status = behaviour.pattern.get(turn % behaviour.pattern.len());
            return Deed::Status(status.copied().unwrap_or(200));
        }
        let script = text(headers.get("x-fail"));
        if script.is_empty() {
            return Deed::Status(200);
        }
        let attempt = self.log.attempt(&text(headers.get("x-request-id")));
        match script.split(',').nth(attempt).or_else(|| script.split(',').next_back()).unwrap_or("200").trim() {
            "reset" => Deed::Reset,
            "hang" => Deed::Hang,
            "refused" => Deed::Refuse,
            word => match word.strip_prefix('g') {
                Some(code) => Deed::Grpc(code.parse().unwrap_or(2)),
                None => Deed::Status(word.parse().unwrap_or(500)),
            },
        }
    }

    async fn wait(&self, headers: &HeaderMap) {
        let asked = text(headers.get("x-delay-ms")).parse().map(Duration::from_millis).unwrap_or_default();
        let delay = asked.max(self.behaviour().delay);
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
    }
}

/// The whole body; `None` when it broke off.
async fn read_body(incoming: &mut h2::RecvStream) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = incoming.data().await {
        let chunk = chunk.ok()?;
        let _ = incoming.flow_control().release_capacity(chunk.len());
        body.extend_from_slice(&chunk);
    }
    Some(body)
}

/// `x-stream: NxTms`.
fn stream_plan(headers: &HeaderMap) -> Option<(usize, Duration)> {
    let value = text(headers.get("x-stream"));
    let (count, every) = value.strip_suffix("ms")?.split_once('x')?;
    Some((count.parse().ok()?, Duration::from_millis(every.parse().ok()?)))
}

fn text(value: Option<&http::HeaderValue>) -> String {
    value.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).unwrap_or_default()
}

/// `x-reset-in: N`: the second of the clock that the header `x-reset` of the answer names.
fn reset_time(headers: &HeaderMap) -> Option<u64> {
    let after: u64 = text(headers.get("x-reset-in")).parse().ok()?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(now.as_secs() + after)
}
