//! Clients that send exactly what a test says.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::frames::{Frame, Frames, flag, kind};
use crate::head::{self, Reply};

/// A request, protocol apart.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Method, any token.
    pub method: String,
    /// Path and query, sent as it is.
    pub path: String,
    /// Host or `:authority`.
    pub authority: String,
    /// Further headers.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Vec<u8>,
}

/// An HTTP/1.1 connection kept open between requests.
#[derive(Debug)]
pub struct Http1 {
    to: SocketAddr,
    from: Option<IpAddr>,
    open: Option<(TcpStream, BytesMut)>,
}

/// How long any single answer may take.
const PATIENCE: Duration = Duration::from_secs(15);

impl Http1 {
    /// Connects at the first request.
    pub fn new(to: SocketAddr) -> Self {
        Self { to, from: None, open: None }
    }

    /// Connects at the first request, from this address.
    pub fn from(to: SocketAddr, from: IpAddr) -> Self {
        Self { to, from: Some(from), open: None }
    }

    /// Sends a request and reads its answer; `None` when the peer closed without a byte of answer.
    ///
    /// # Errors
    /// When the connection fails or what comes is no HTTP.
    pub async fn send(&mut self, ask: &Ask) -> Result<Option<Reply>> {
        tokio::time::timeout(PATIENCE, self.send_once(ask)).await.context("no answer within 15 s")?
    }

    async fn send_once(&mut self, ask: &Ask) -> Result<Option<Reply>> {
        let (mut stream, mut buffer) = match self.open.take() {
            Some(open) => open,
            None => (connect_from(self.to, self.from).await?, BytesMut::new()),
        };
        if stream.write_all(&encode(ask)).await.is_err() {
            return Ok(None);
        }
        let reply = match head::read(&mut stream, &mut buffer, ask.method == "HEAD").await {
            Ok(reply) => reply,
            Err(error) if closed(&error) => None,
            Err(error) => return Err(error),
        };
        if let Some(reply) = &reply
            && !reply.header("connection").iter().any(|value| value.eq_ignore_ascii_case("close"))
        {
            self.open = Some((stream, buffer));
        }
        Ok(reply)
    }
}

/// Whether an error only says that the peer closed or reset the connection.
pub fn closed(error: &anyhow::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| matches!(error.kind(), ConnectionReset | BrokenPipe | ConnectionAborted | UnexpectedEof))
}

async fn connect(to: SocketAddr) -> Result<TcpStream> {
    connect_from(to, None).await
}

async fn connect_from(to: SocketAddr, from: Option<IpAddr>) -> Result<TcpStream> {
    let socket = if to.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
    if let Some(from) = from {
        socket.bind(SocketAddr::new(from, 0)).with_context(|| format!("bind to {from}"))?;
    }
    let stream = socket.connect(to).await.with_context(|| format!("connect to {to}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn encode(ask: &Ask) -> Vec<u8> {
    let mut out = format!("{} {} HTTP/1.1\r\nhost: {}\r\n", ask.method, ask.path, ask.authority).into_bytes();
    for (name, value) in &ask.headers {
        out.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    if !ask.body.is_empty() || matches!(ask.method.as_str(), "POST" | "PUT" | "PATCH") {
        out.extend_from_slice(format!("content-length: {}\r\n", ask.body.len()).as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(&ask.body);
    out
}

/// Sends raw bytes and reads until the peer closes or is silent for `quiet`.
///
/// # Errors
/// When the connection cannot be made.
pub async fn raw(to: SocketAddr, bytes: &[u8], quiet: Duration) -> Result<Vec<u8>> {
    let mut stream = connect(to).await?;
    // The peer may refuse before it has read all: what it said still counts.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    while let Ok(Ok(1..)) = tokio::time::timeout(quiet, stream.read_buf(&mut answer)).await {}
    Ok(answer)
}

/// One exchange over bytes: sends a line, reads what comes first; empty when the peer closed.
///
/// # Errors
/// When the connection is refused.
pub async fn tcp(to: SocketAddr) -> Result<Vec<u8>> {
    let mut stream = connect(to).await?;
    let _ = stream.write_all(b"hello\n").await;
    let mut answer = vec![0u8; 1024];
    let count = tokio::time::timeout(PATIENCE, stream.read(&mut answer)).await.context("no answer within 15 s")?;
    answer.truncate(count.unwrap_or(0));
    Ok(answer)
}

/// Sends one request over HTTP/2 with prior knowledge.
///
/// # Errors
/// When the connection fails; a reset stream is `Ok(None)`.
pub async fn http2(to: SocketAddr, ask: &Ask) -> Result<Option<Reply>> {
    tokio::time::timeout(PATIENCE, http2_once(to, ask)).await.context("no answer within 15 s")?
}

async fn http2_once(to: SocketAddr, ask: &Ask) -> Result<Option<Reply>> {
    let (mut send, connection) = h2::client::handshake(connect(to).await?).await?;
    let driver = tokio::spawn(connection);
    let uri = format!("http://{}{}", ask.authority, ask.path);
    let mut request = http::Request::builder().method(ask.method.as_str()).uri(uri);
    for (name, value) in &ask.headers {
        request = request.header(name.as_str(), value.as_str());
    }
    let request = request.body(()).context("request")?;
    let result = exchange(&mut send, request, &ask.body).await;
    drop(send);
    driver.abort();
    result
}

async fn exchange(
    send: &mut h2::client::SendRequest<Bytes>,
    request: http::Request<()>,
    body: &[u8],
) -> Result<Option<Reply>> {
    let (response, mut stream) = send.send_request(request, body.is_empty())?;
    if !body.is_empty() {
        stream.send_data(Bytes::copy_from_slice(body), true)?;
    }
    let Ok(response) = response.await else { return Ok(None) };
    let (head, mut incoming) = response.into_parts();
    let mut reply = Reply { status: head.status.as_u16(), headers: list(&head.headers), ..Reply::default() };
    while let Some(chunk) = incoming.data().await {
        let chunk = match chunk {
            Ok(chunk) => chunk,
            // The answer is whole, and the rest of the request is not wanted (RFC 9113 section 8.1).
            Err(error) if error.reason() == Some(h2::Reason::NO_ERROR) => break,
            Err(_) => return Ok(None),
        };
        let _ = incoming.flow_control().release_capacity(chunk.len());
        reply.body.extend_from_slice(&chunk);
    }
    if let Ok(Some(trailers)) = incoming.trailers().await {
        reply.trailers = list(&trailers);
    }
    Ok(Some(reply))
}

/// Sends one request over HTTP/2 whose header block is given field by field, whatever it says. Of the answer only the status
/// is read; `None` when the stream or the connection was ended without one.
///
/// # Errors
/// When the connection is refused.
pub async fn http2_fields(to: SocketAddr, fields: &[(Vec<u8>, Vec<u8>)], body: Option<&[u8]>) -> Result<Option<Reply>> {
    let fields: Vec<(&[u8], &[u8])> = fields.iter().map(|(name, value)| (&**name, &**value)).collect();
    let mut frames = Frames::open(to).await?;
    frames.send(&Frame::headers(1, body.is_none(), &fields)).await;
    if let Some(body) = body {
        frames.send(&Frame::new(kind::DATA, flag::END_STREAM, 1, body)).await;
    }
    let mut reply = None;
    while let Some(frame) = frames.next(PATIENCE).await {
        if let Some(status) = frame.status().filter(|status| *status >= 200) {
            reply = Some(Reply { status, ..Reply::default() });
        }
        let ended = matches!(frame.kind, kind::DATA | kind::HEADERS) && frame.flags & flag::END_STREAM != 0;
        if ended || matches!(frame.kind, kind::RST_STREAM | kind::GOAWAY) {
            break;
        }
    }
    Ok(reply)
}

fn list(headers: &http::HeaderMap) -> Vec<(String, String)> {
    headers.iter().map(|(n, v)| (n.to_string(), String::from_utf8_lossy(v.as_bytes()).into_owned())).collect()
}
