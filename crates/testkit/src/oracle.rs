//! Servers that proxies ask: an external authorizer (HTTP and gRPC) and a server of key sets. They record nothing.
//!
//! The authorizer obeys the header `x-ext`: `allow`, `teapot` (418), `fail` (an error of its own), `hang`; everything else
//! is refused. It tells what it saw: an allowed request gets `x-ext-user` and `x-ext-saw`, a refused client `x-ext-why`.

use std::convert::Infallible;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use prost::Message;
use proto::envoy::config::core::v3::{HeaderValue as Header, HeaderValueOption, Metadata};
use proto::envoy::service::auth::v3::{
    AttributeContext, CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse, check_response::HttpResponse,
};
use proto::envoy::r#type::v3::HttpStatus;
use proto::google::rpc::Status;
use serde::Deserialize;
use tokio::net::{TcpListener, TcpStream};

use crate::token;

/// What a server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Oracle {
    /// Whether requests may pass.
    Authorizer,
    /// `/keys`: key set 2.
    KeyServer,
}

impl Oracle {
    /// The server that a fixture's words ask for.
    pub fn of(behaviour: &str) -> Option<Self> {
        if behaviour.starts_with("external authorizer") {
            Some(Self::Authorizer)
        } else if behaviour.starts_with("key server") {
            Some(Self::KeyServer)
        } else {
            None
        }
    }

    /// Starts it; it stops when the task is aborted.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn start(self, address: SocketAddr) -> Result<tokio::task::JoinHandle<()>> {
        let listener = TcpListener::bind(address).await.with_context(|| format!("{self:?} at {address}"))?;
        Ok(tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(self.serve(stream));
            }
        }))
    }

    async fn serve(self, stream: TcpStream) {
        let mut first = [0_u8; 3];
        let Ok(_) = stream.peek(&mut first).await else { return };
        if &first == b"PRI" {
            serve_grpc(stream).await;
            return;
        }
        let service = hyper::service::service_fn(move |request| async move {
            Ok::<_, Infallible>(match self {
                Self::Authorizer => answer(request).await,
                Self::KeyServer => keys(&request),
            })
        });
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    }
}

fn keys(request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let set = token::mint().map(|mint| mint.key_set(2)).unwrap_or_default();
    let known = request.uri().path() == "/keys";
    let mut reply = Response::new(Full::new(Bytes::from(if known { set } else { String::new() })));
    *reply.status_mut() = if known { StatusCode::OK } else { StatusCode::NOT_FOUND };
    reply
}

/// What the authorizer was told, in one line.
fn saw(method: &str, path: &str, host: &str, body: usize, more: &str) -> String {
    format!("{method} {path} of {host}, body {body}{more}")
}

async fn answer(request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|all| all.to_bytes()).unwrap_or_default();
    let word = text(&head.headers, "x-ext");
    let hidden = if head.headers.contains_key("x-hidden") { ", x-hidden" } else { "" };
    let path = head.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
    let saw = saw(head.method.as_str(), &path, &text(&head.headers, "host"), body.len(), hidden);
    let (status, text): (u16, &'static str) = match word.as_str() {
        "allow" => (200, ""),
        "teapot" => (418, "short and stout"),
        "fail" => (500, ""),
        "hang" => std::future::pending().await,
        _ => (403, "not you"),
    };
    let mut reply = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *reply.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::FORBIDDEN);
    for (name, value) in [("x-ext-user", "amy"), ("x-ext-why", "asked"), ("x-ext-saw", &saw)] {
        if let Ok(value) = HeaderValue::from_str(value) {
            reply.headers_mut().insert(name, value);
        }
    }
    reply
}

fn text(headers: &HeaderMap, name: &str) -> String {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).unwrap_or_default()
}

async fn serve_grpc(stream: TcpStream) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, respond))) = connection.accept().await {
        tokio::spawn(check(request, respond));
    }
}

async fn check(request: Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>) {
    let (head, mut incoming) = request.into_parts();
    let metadata = head.headers;
    let mut body = Vec::new();
    while let Some(Ok(chunk)) = incoming.data().await {
        let _ = incoming.flow_control().release_capacity(chunk.len());
        body.extend_from_slice(&chunk);
    }
    let question = body.get(5..).and_then(|message| CheckRequest::decode(message).ok()).unwrap_or_default();
    let (code, message) = match verdict(question, &text(&metadata, "x-asked-by")).await {
        Some(message) => (0, Some(message)),
        None => (13, None),
    };
    let mut head = Response::new(());
    head.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    let Ok(mut stream) = respond.send_response(head, false) else { return };
    if let Some(message) = message {
        let mut framed = BytesMut::new();
        framed.put_u8(0);
        framed.put_u32(u32::try_from(message.encoded_len()).unwrap_or_default());
        framed.extend_from_slice(&message.encode_to_vec());
        let _ = stream.send_data(framed.freeze(), false);
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(code));
    let _ = stream.send_trailers(trailers);
}

/// What of a question goes beyond the request itself.
fn beyond(attributes: &AttributeContext, asked_by: &str) -> String {
    let source = attributes.source.clone().unwrap_or_default();
    let mut more = format!(" from {}", source.principal);
    for (name, value) in &attributes.context_extensions {
        more.push_str(&format!(", {name}={value}"));
    }
    let told = |metadata: &Option<Metadata>| {
        let spaces = metadata.iter().flat_map(|metadata| metadata.filter_metadata.keys());
        let mut spaces: Vec<_> = spaces.cloned().collect();
        spaces.sort_unstable();
        spaces.join("+")
    };
    let http = attributes.request.as_ref().and_then(|request| request.http.as_ref());
    let parts = [
        ("bytes", http.filter(|http| !http.raw_body.is_empty()).map(|_| String::new())),
        ("certificate", Some(source.certificate).filter(|text| !text.is_empty()).map(|_| String::new())),
        ("sni ", attributes.tls_session.as_ref().map(|session| session.sni.clone())),
        ("metadata ", Some(told(&attributes.metadata_context))),
        ("route metadata ", Some(told(&attributes.route_metadata_context))),
        ("asked by ", Some(asked_by.to_owned())),
    ];
    for (name, value) in parts {
        if let Some(value) = value.filter(|value| !(name.ends_with(' ') && value.is_empty())) {
            more.push_str(&format!(", {name}{value}"));
        }
    }
    more
}

/// `None`: the call fails.
async fn verdict(question: CheckRequest, asked_by: &str) -> Option<CheckResponse> {
    let attributes = question.attributes.unwrap_or_default();
    let more = beyond(&attributes, asked_by);
    let http = attributes.request.and_then(|request| request.http).unwrap_or_default();
    let saw = saw(&http.method, &http.path, &http.host, http.body.len().max(http.raw_body.len()), &more);
    let header = |name: &str, value: &str| HeaderValueOption {
        header: Some(Header { key: name.to_owned(), value: value.to_owned(), ..Header::default() }),
        ..HeaderValueOption::default()
    };
    let denied = |status: i32, body: &str| {
        let denied = DeniedHttpResponse {
            status: Some(HttpStatus { code: status }),
            headers: vec![header("x-ext-why", "asked"), header("x-ext-saw", &saw)],
            body: body.to_owned(),
        };
        CheckResponse {
            status: Some(Status { code: 7, ..Status::default() }),
            http_response: Some(HttpResponse::DeniedResponse(denied)),
            ..CheckResponse::default()
        }
    };
    Some(match http.headers.get("x-ext").map_or("", String::as_str) {
        "allow" => CheckResponse {
            status: Some(Status::default()),
            http_response: Some(HttpResponse::OkResponse(OkHttpResponse {
                headers: vec![header("x-ext-user", "amy"), header("x-ext-saw", &saw)],
                headers_to_remove: vec!["x-ext-secret".to_owned()],
                response_headers_to_add: vec![header("x-ext-note", "seen")],
                ..OkHttpResponse::default()
            })),
            ..CheckResponse::default()
        },
        "teapot" => denied(418, "short and stout"),
        "fail" => return None,
        "hang" => std::future::pending().await,
        _ => denied(403, "not you"),
    })
}
