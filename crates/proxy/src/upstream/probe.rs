//! One health check: an HTTP request, bytes, or gRPC's health service, on a connection of its own.

use std::future::Future;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use engine::health::{CheckResult, HealthCheck, HttpProbe, Probe, has_in_order};
use engine::{Address, Cluster, Endpoint};
use http::{HeaderName, HeaderValue, Method, Request, Response, Uri, Version, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::DEGRADED;
use super::failure::Failure;
use super::reach::connect;
use crate::net::dial::Target;
use crate::net::stream::Stream;
use crate::shared::Shared;
use crate::tls::server_name;

/// How checks call themselves, as Envoy's do: programs know it from their logs.
const USER_AGENT: HeaderValue = HeaderValue::from_static("Envoy/HC");
const CHECKED_CLUSTER: HeaderName = HeaderName::from_static("x-envoy-upstream-healthchecked-cluster");
/// More of an answer than this is not read only to keep the connection.
const DRAINED: usize = 64 * 1024;
const GOOD: CheckResult = CheckResult::Good { degraded: false };
const BAD: CheckResult = CheckResult::Bad { retriable: false };

/// A connection that is kept for the next check.
pub(super) enum Line {
    H1(http1::SendRequest<Full<Bytes>>),
    H2(http2::SendRequest<Full<Bytes>>),
    Raw(Box<Stream>),
}

/// Who is asked, and how.
pub(super) struct Asked<'a> {
    pub(super) shared: &'a Shared,
    pub(super) cluster: &'a Arc<Cluster>,
    pub(super) check: &'a HealthCheck,
    pub(super) endpoint: &'a Arc<Endpoint>,
}

impl Asked<'_> {
    /// Asks once. `line` is the connection of the time before, and that for the next time.
    pub(super) async fn ask(&self, line: &mut Option<Line>) -> CheckResult {
        let kept = line.take();
        let result = match &self.check.probe {
            Probe::Http(probe) => self.http(probe, kept, line).await,
            Probe::Tcp { send, receive } => self.bytes(send, receive, kept, line).await,
            Probe::Grpc { service, .. } => self.grpc(service, kept, line).await,
        };
        if !self.check.reuse_connection || !matches!(result, Ok(CheckResult::Good { .. })) {
            *line = None;
        }
        result.unwrap_or(CheckResult::Network)
    }

    async fn http(&self, probe: &HttpProbe, kept: Option<Line>, line: &mut Option<Line>) -> Answered {
        let host = self.host(&probe.host);
        let mut request = request(probe.method.clone(), &probe.path, host, probe.http2, probe.send.clone())?;
        let headers = request.headers_mut();
        probe.removed.iter().for_each(|name| drop(headers.remove(name)));
        headers.extend(probe.headers.clone());
        let response = self.send(request, probe.http2, kept, line).await?;
        let degraded = response.headers().contains_key(DEGRADED);
        let verdict = probe.judge(response.status().as_u16());
        let named = response.headers().get(CHECKED_CLUSTER).and_then(|name| name.to_str().ok()).unwrap_or_default();
        let right = probe.service_name.as_ref().is_none_or(|matcher| matcher.matches(named));
        let body = self.read(response, probe.buffer, line).await?;
        Ok(match verdict {
            Some(bad) => bad,
            None if right && has_in_order(&body, &probe.receive) => CheckResult::Good { degraded },
            None => BAD,
        })
    }

    async fn grpc(&self, service: &str, kept: Option<Line>, line: &mut Option<Line>) -> Answered {
        let Probe::Grpc { authority, headers, .. } = &self.check.probe else { return Ok(BAD) };
        let mut message = BytesMut::new();
        let asked = HealthCheckRequest { service: service.to_owned() };
        message.put_u8(0);
        message.put_u32(u32::try_from(asked.encoded_len()).unwrap_or(0));
        asked.encode(&mut message).map_err(|_| Broken)?;
        let path = "/grpc.health.v1.Health/Check";
        let mut request = request(Method::POST, path, self.host(authority), true, message.to_vec())?;
        let own = [
            (header::CONTENT_TYPE, HeaderValue::from_static("application/grpc")),
            (header::TE, HeaderValue::from_static("trailers")),
        ];
        request.headers_mut().extend(own);
        request.headers_mut().extend(headers.clone());
        let response = self.send(request, true, kept, line).await?;
        let (head, body) = response.into_parts();
        let whole = body.collect().await.map_err(|_| Broken)?;
        let of = |headers: &http::HeaderMap| headers.get("grpc-status").cloned();
        let status = whole.trailers().and_then(of).or_else(|| of(&head.headers));
        let body = whole.to_bytes();
        let answer = body.get(5..).and_then(|bytes| HealthCheckResponse::decode(bytes).ok());
        let serving = status.is_some_and(|status| status == "0") && answer.is_some_and(|answer| answer.status == 1);
        Ok(if serving { GOOD } else { BAD })
    }

    async fn bytes(&self, send: &[u8], receive: &[Vec<u8>], kept: Option<Line>, line: &mut Option<Line>) -> Answered {
        let mut stream = match kept {
            Some(Line::Raw(stream)) => stream,
            _ => Box::new(self.connect().await?),
        };
        stream.write_all(send).await.map_err(|_| Broken)?;
        let mut seen = BytesMut::new();
        while !has_in_order(&seen, receive) {
            let count = stream.read_buf(&mut seen).await.map_err(|_| Broken)?;
            if count == 0 || seen.len() > DRAINED {
                return Err(Broken);
            }
        }
        // Nothing was said: whether it still stands would not be noticed on a kept connection.
        if !send.is_empty() || !receive.is_empty() {
            *line = Some(Line::Raw(stream));
        }
        Ok(GOOD)
    }

    /// Sends a request on the kept connection or a new one, which stays in `line`.
    async fn send(
        &self,
        request: Request<Full<Bytes>>,
        http2: bool,
        kept: Option<Line>,
        line: &mut Option<Line>,
    ) -> Result<Response<Incoming>, Broken> {
        let again = request.clone();
        if let Some(kept) = kept {
            // The server may have closed it in the meantime; that says nothing about its health.
            if let Ok(response) = speak(kept, request, line).await {
                return Ok(response);
            }
        }
        let stream = TokioIo::new(self.connect().await?);
        let fresh = if http2 {
            let (sender, connection) = http2::handshake(Spawn, stream).await.map_err(|_| Broken)?;
            tokio::spawn(connection);
            Line::H2(sender)
        } else {
            let (sender, connection) = http1::handshake(stream).await.map_err(|_| Broken)?;
            tokio::spawn(connection);
            Line::H1(sender)
        };
        speak(fresh, again, line).await
    }

    /// As much of a body as is looked at. A connection with more on it is not kept.
    async fn read(&self, response: Response<Incoming>, most: u64, line: &mut Option<Line>) -> Result<Bytes, Broken> {
        let most = if most == 0 { usize::MAX } else { usize::try_from(most).unwrap_or(usize::MAX) };
        let closes = response.headers().get(header::CONNECTION).is_some_and(|value| value == "close");
        let mut body = response.into_body();
        let mut seen = BytesMut::new();
        let mut total = 0;
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| Broken)?.into_data() else { continue };
            total += data.len();
            let room = most.saturating_sub(seen.len());
            seen.extend_from_slice(data.get(..room.min(data.len())).unwrap_or_default());
            if total > most.max(DRAINED) {
                *line = None;
                break;
            }
        }
        if closes {
            *line = None;
        }
        Ok(seen.freeze())
    }

    async fn connect(&self) -> Result<Stream, Broken> {
        let tls = match self.cluster.transport(self.endpoint) {
            None => None,
            Some(context) => {
                let client = self.shared.tls.client(context).map_err(|_| Broken)?;
                Some(client.towards(server_name(context.sni.as_deref())))
            }
        };
        Ok(connect(self.cluster, &self.target()?, tls).await?)
    }

    fn target(&self) -> Result<Target, Broken> {
        let own = self.endpoint.check.as_deref();
        let port = own.and_then(|own| own.port).or(self.check.port);
        match own.and_then(|own| own.address.as_ref()).unwrap_or(&self.endpoint.address) {
            Address::Socket(address) => {
                let mut address = *address;
                address.set_port(port.unwrap_or_else(|| address.port()));
                Ok(Target::Tcp(address))
            }
            Address::Unix(path) => Ok(Target::Unix(Arc::clone(path))),
            Address::Name { .. } => Err(Broken),
        }
    }

    /// The host that is asked for: the endpoint's own, the check's, or the cluster's name.
    fn host<'h>(&'h self, configured: &'h str) -> &'h str {
        let own = self.endpoint.check.as_deref().map(|own| &*own.hostname).filter(|host| !host.is_empty());
        own.or_else(|| Some(configured).filter(|host| !host.is_empty())).unwrap_or_else(|| self.cluster.name())
    }
}

type Answered = Result<CheckResult, Broken>;

/// The connection could not be made, or broke.
struct Broken;

impl From<Failure> for Broken {
    fn from(_: Failure) -> Self {
        Self
    }
}

async fn speak(
    mut through: Line,
    request: Request<Full<Bytes>>,
    line: &mut Option<Line>,
) -> Result<Response<Incoming>, Broken> {
    let response = match &mut through {
        Line::H1(sender) => {
            sender.ready().await.map_err(|_| Broken)?;
            sender.send_request(request).await
        }
        Line::H2(sender) => {
            sender.ready().await.map_err(|_| Broken)?;
            sender.send_request(request).await
        }
        Line::Raw(_) => return Err(Broken),
    };
    *line = Some(through);
    response.map_err(|_| Broken)
}

fn request(method: Method, path: &str, host: &str, http2: bool, body: Vec<u8>) -> Result<Request<Full<Bytes>>, Broken> {
    let mut request = Request::new(Full::new(Bytes::from(body)));
    *request.method_mut() = method;
    request.headers_mut().insert(header::USER_AGENT, USER_AGENT);
    let uri = if http2 {
        *request.version_mut() = Version::HTTP_2;
        // A cluster's name need not be an authority.
        let whole = format!("http://{host}{path}");
        Uri::try_from(whole).or_else(|_| Uri::try_from(format!("http://health{path}")))
    } else {
        request.headers_mut().insert(header::HOST, HeaderValue::try_from(host).map_err(|_| Broken)?);
        Uri::try_from(path)
    };
    *request.uri_mut() = uri.map_err(|_| Broken)?;
    Ok(request)
}

/// `grpc.health.v1.HealthCheckRequest`
#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`; 1 is SERVING.
#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// hyper's executor: tasks of the control thread.
#[derive(Debug, Clone, Copy)]
struct Spawn;

impl<F> hyper::rt::Executor<F> for Spawn
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, future: F) {
        tokio::spawn(future);
    }
}
