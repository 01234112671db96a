//! Responses of HTTP/1.1 read from a socket, for clients that must send exactly the bytes they are given.

use anyhow::{Context, Result, bail};
use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// A response as received.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    /// Status.
    pub status: u16,
    /// Headers with lower-case names, in order.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Vec<u8>,
    /// Trailers (HTTP/2) with lower-case names.
    pub trailers: Vec<(String, String)>,
}

impl Reply {
    /// All values of a header.
    pub fn header(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str()).collect()
    }

    /// The gRPC status from trailers or headers.
    pub fn grpc_status(&self) -> Option<u32> {
        let named = |list: &[(String, String)]| {
            list.iter().find(|(name, _)| name == "grpc-status").and_then(|(_, value)| value.parse().ok())
        };
        named(&self.trailers).or_else(|| named(&self.headers))
    }
}

/// Reads one response; `None` when the peer closed before its first byte.
///
/// # Errors
/// When the bytes are no HTTP/1.1 response, or the peer closed in its middle.
pub async fn read<S: AsyncRead + Unpin>(
    stream: &mut S,
    buffer: &mut BytesMut,
    head_request: bool,
) -> Result<Option<Reply>> {
    loop {
        let Some(reply) = read_head(stream, buffer).await? else { return Ok(None) };
        if reply.status >= 200 || reply.status == 101 {
            return read_body(stream, buffer, reply, head_request).await.map(Some);
        }
    }
}

async fn read_head<S: AsyncRead + Unpin>(stream: &mut S, buffer: &mut BytesMut) -> Result<Option<Reply>> {
    loop {
        let mut storage = [httparse::EMPTY_HEADER; 128];
        let mut parsed = httparse::Response::new(&mut storage);
        if let httparse::Status::Complete(length) = parsed.parse(buffer).context("not an HTTP/1.1 response")? {
            let headers = parsed
                .headers
                .iter()
                .map(|h| (h.name.to_ascii_lowercase(), String::from_utf8_lossy(h.value).into_owned()))
                .collect();
            let reply = Reply { status: parsed.code.unwrap_or(0), headers, ..Reply::default() };
            buffer.advance(length);
            return Ok(Some(reply));
        }
        if stream.read_buf(buffer).await? == 0 {
            if buffer.is_empty() {
                return Ok(None);
            }
            bail!("the peer closed in the middle of a response head");
        }
    }
}

async fn read_body<S: AsyncRead + Unpin>(
    stream: &mut S,
    buffer: &mut BytesMut,
    mut reply: Reply,
    head_request: bool,
) -> Result<Reply> {
    if head_request || matches!(reply.status, 101 | 204 | 304) {
        return Ok(reply);
    }
    let chunked = reply.header("transfer-encoding").iter().any(|value| value.eq_ignore_ascii_case("chunked"));
    let length = reply.header("content-length").first().and_then(|value| value.parse::<usize>().ok());
    reply.body = match (chunked, length) {
        (true, _) => read_chunks(stream, buffer).await?,
        (false, Some(length)) => take(stream, buffer, length).await?,
        (false, None) => {
            while stream.read_buf(buffer).await? > 0 {}
            buffer.split().to_vec()
        }
    };
    Ok(reply)
}

async fn read_chunks<S: AsyncRead + Unpin>(stream: &mut S, buffer: &mut BytesMut) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = read_line(stream, buffer).await?;
        let size = line.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).with_context(|| format!("chunk size `{line}`"))?;
        if size == 0 {
            while !read_line(stream, buffer).await?.is_empty() {}
            return Ok(body);
        }
        body.extend(take(stream, buffer, size).await?);
        take(stream, buffer, 2).await?;
    }
}

async fn read_line<S: AsyncRead + Unpin>(stream: &mut S, buffer: &mut BytesMut) -> Result<String> {
    loop {
        if let Some(end) = buffer.windows(2).position(|pair| pair == b"\r\n") {
            let line = buffer.split_to(end);
            buffer.advance(2);
            return Ok(String::from_utf8_lossy(&line).into_owned());
        }
        if stream.read_buf(buffer).await? == 0 {
            bail!("the peer closed in the middle of a chunked body");
        }
    }
}

async fn take<S: AsyncRead + Unpin>(stream: &mut S, buffer: &mut BytesMut, length: usize) -> Result<Vec<u8>> {
    while buffer.len() < length {
        if stream.read_buf(buffer).await? == 0 {
            bail!("the peer closed {} bytes before the end of a body", length - buffer.len());
        }
    }
    Ok(buffer.split_to(length).to_vec())
}
