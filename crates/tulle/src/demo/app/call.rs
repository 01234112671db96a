//! A small HTTP client with kept connections: what any program would use.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpSocket, TcpStream};

use super::serve::LocalExecutor;

/// How long a caller waits for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Idle connections kept for each address.
const KEPT: usize = 32;

/// A service to call, at `NAME_URL` or `http://name:port`.
#[derive(Clone)]
pub(super) struct Peer {
    origin: Uri,
    http2: bool,
    /// The address that connections leave from; `SOURCE_IP` in the environment, else the system's choice.
    source: Option<std::net::IpAddr>,
    idle: Rc<RefCell<Vec<http1::SendRequest<Full<Bytes>>>>>,
    shared: Rc<RefCell<Option<http2::SendRequest<Full<Bytes>>>>>,
}

/// An answer with its body read.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) trailers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    /// A header or trailer as text; empty when absent.
    pub(super) fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name).or_else(|| self.trailers.get(name));
        value.and_then(|value| value.to_str().ok()).unwrap_or("")
    }
}

impl Peer {
    /// The service `name` on its usual port, unless the environment says otherwise.
    pub(super) fn named(name: &str, port: u16, http2: bool) -> anyhow::Result<Self> {
        let variable = format!("{}_URL", name.to_uppercase());
        let url = std::env::var(&variable).unwrap_or_else(|_| format!("http://{name}:{port}"));
        let origin: Uri = url.parse().with_context(|| format!("{variable}={url} is not a URL"))?;
        anyhow::ensure!(origin.host().is_some(), "{variable}={url} has no host");
        let source = std::env::var("SOURCE_IP").ok().and_then(|source| source.parse().ok());
        Ok(Self { origin, http2, source, idle: Rc::default(), shared: Rc::default() })
    }

    /// Host and port, to connect to.
    pub(super) fn address(&self) -> (String, u16) {
        let host = self.origin.host().unwrap_or_default().trim_matches(['[', ']']);
        (host.to_owned(), self.origin.port_u16().unwrap_or(80))
    }

    /// Calls, and reads the whole answer. Too late is an error.
    pub(super) async fn call(&self, request: Call<'_>) -> anyhow::Result<Answer> {
        let work = async {
            let response = self.send(&request).await?;
            let (parts, body) = response.into_parts();
            let collected = body.collect().await?;
            let trailers = collected.trailers().cloned().unwrap_or_default();
            Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, trailers, body: collected.to_bytes() })
        };
        tokio::time::timeout(request.patience, work).await.context("no answer in time")?
    }

    async fn send(&self, call: &Call<'_>) -> anyhow::Result<Response<Incoming>> {
        if self.http2 {
            let mut sender = self.shared().await?;
            return Ok(sender.send_request(self.request(call)?).await?);
        }
        let mut sender = self.taken().await?;
        let response = sender.send_request(self.request(call)?).await?;
        let idle = self.idle.clone();
        // Comes back to the pool when the body was read and the connection is usable again.
        tokio::task::spawn_local(async move {
            if sender.ready().await.is_ok() && idle.borrow().len() < KEPT {
                idle.borrow_mut().push(sender);
            }
        });
        Ok(response)
    }

    fn request(&self, call: &Call<'_>) -> anyhow::Result<Request<Full<Bytes>>> {
        let authority = self.origin.authority().map(ToString::to_string).unwrap_or_default();
        let builder = Request::builder().method(call.method.clone());
        let mut builder = if self.http2 {
            builder.uri(format!("http://{authority}{}", call.path))
        } else {
            builder.uri(call.path).header(http::header::HOST, authority)
        };
        for (name, value) in call.headers {
            builder = builder.header(*name, *value);
        }
        Ok(builder.body(Full::new(call.body.clone()))?)
    }

    async fn shared(&self) -> anyhow::Result<http2::SendRequest<Full<Bytes>>> {
        if let Some(sender) = self.shared.borrow().as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let stream = TokioIo::new(self.connect().await?);
        let (sender, connection) = http2::handshake(LocalExecutor, stream).await?;
        tokio::task::spawn_local(connection);
        *self.shared.borrow_mut() = Some(sender.clone());
        Ok(sender)
    }

    async fn taken(&self) -> anyhow::Result<http1::SendRequest<Full<Bytes>>> {
        loop {
            let kept = self.idle.borrow_mut().pop();
            match kept {
                Some(sender) if sender.is_closed() => {}
                Some(sender) => return Ok(sender),
                None => break,
            }
        }
        let stream = TokioIo::new(self.connect().await?);
        let (sender, connection) = http1::handshake(stream).await?;
        tokio::task::spawn_local(connection);
        Ok(sender)
    }

    async fn connect(&self) -> anyhow::Result<TcpStream> {
        let (host, port) = self.address();
        let stream = match &self.source {
            Some(source) => {
                let socket = TcpSocket::new_v4()?;
                socket.bind((*source, 0).into())?;
                let address = tokio::net::lookup_host((host.as_str(), port)).await?.next();
                socket.connect(address.with_context(|| format!("{host} has no address"))?).await
            }
            None => TcpStream::connect((host.as_str(), port)).await,
        };
        let stream = stream.with_context(|| format!("cannot connect to {host}:{port}"))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// A request.
pub(super) struct Call<'a> {
    pub(super) method: Method,
    pub(super) path: &'a str,
    pub(super) headers: &'a [(&'a str, &'a str)],
    pub(super) body: Bytes,
    pub(super) patience: Duration,
}

impl<'a> Call<'a> {
    pub(super) fn get(path: &'a str) -> Self {
        Self { method: Method::GET, path, headers: &[], body: Bytes::new(), patience: PATIENCE }
    }

    pub(super) fn post(path: &'a str, body: impl Into<Bytes>) -> Self {
        Self { method: Method::POST, body: body.into(), ..Self::get(path) }
    }

    pub(super) fn headers(self, headers: &'a [(&'a str, &'a str)]) -> Self {
        Self { headers, ..self }
    }
}

/// The headers that a good citizen hands on: who the visitor is, and the trace.
pub(super) fn handed_on(headers: &HeaderMap) -> HashMap<&'static str, String> {
    let names = ["x-user", "x-request-id", "traceparent", "tracestate", "x-b3-traceid", "x-b3-spanid", "x-b3-sampled"];
    let value = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    names.into_iter().filter_map(|name| value(name).map(|value| (name, value))).collect()
}
