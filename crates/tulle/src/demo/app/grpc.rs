//! The two gRPC services, `shop.Pricing/Quote` and `pay.Payments/Charge`: unary calls, framed by hand so that the demo
//! needs no generated code.

use std::convert::Infallible;
use std::rc::Rc;

use anyhow::Context;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use prost::Message;

use super::Settings;
use super::call::{Call, Peer};
use super::serve::{self, Body, Listen, Listener};
use super::shop;

/// gRPC's codes that the demo uses.
const OK: u32 = 0;
const UNIMPLEMENTED: u32 = 12;
const INVALID_ARGUMENT: u32 = 3;
const UNAVAILABLE: u32 = 14;

/// A message longer than this is not one of ours.
const MAX_MESSAGE: usize = 64 * 1024;

#[derive(Clone, PartialEq, Message)]
pub(super) struct QuoteRequest {
    /// The goods.
    #[prost(string, tag = "1")]
    pub(super) item: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct QuoteReply {
    /// Price in cents.
    #[prost(uint32, tag = "1")]
    pub(super) cents: u32,
    /// The instance that said so.
    #[prost(string, tag = "2")]
    pub(super) instance: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ChargeRequest {
    /// Whom.
    #[prost(string, tag = "1")]
    pub(super) account: String,
    /// How much, in cents.
    #[prost(uint32, tag = "2")]
    pub(super) cents: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ChargeReply {
    /// Number of the entry in the ledger.
    #[prost(uint64, tag = "1")]
    pub(super) entry: u64,
}

/// `shop.Pricing`: every item has a price.
pub(super) async fn pricing(settings: Rc<Settings>, listen: Listen) -> anyhow::Result<()> {
    let listener = Listener::bind(&listen).await?;
    serve::http(listener, true, move |request| {
        let settings = settings.clone();
        async move {
            if settings.sick.strikes().await {
                return shop::failure(&settings);
            }
            if request.uri().path() != "/shop.Pricing/Quote" {
                return status(UNIMPLEMENTED, "no such method");
            }
            match message::<QuoteRequest>(request).await {
                Some(quote) => {
                    let cents = 100 + quote.item.bytes().map(u32::from).sum::<u32>() % 900;
                    reply(&QuoteReply { cents, instance: settings.instance.clone() })
                }
                None => status(INVALID_ARGUMENT, "not a QuoteRequest"),
            }
        }
    })
    .await
}

/// `pay.Payments`: a charge is an entry in the ledger.
pub(super) async fn payments(settings: Rc<Settings>, listen: Listen) -> anyhow::Result<()> {
    let listener = Listener::bind(&listen).await?;
    let ledger = Peer::named("ledger", 7070, false)?;
    serve::http(listener, true, move |request| {
        let (settings, ledger) = (settings.clone(), ledger.clone());
        async move {
            if settings.sick.strikes().await {
                return shop::failure(&settings);
            }
            if request.uri().path() != "/pay.Payments/Charge" {
                return status(UNIMPLEMENTED, "no such method");
            }
            let Some(charge) = message::<ChargeRequest>(request).await else {
                return status(INVALID_ARGUMENT, "not a ChargeRequest");
            };
            match shop::write_entry(&ledger, &charge.account, charge.cents).await {
                Ok(entry) => reply(&ChargeReply { entry }),
                Err(error) => status(UNAVAILABLE, &format!("the ledger: {error:#}")),
            }
        }
    })
    .await
}

/// Calls a method; anything but `OK` is an error.
pub(super) async fn call<M: Message + Default>(
    peer: &Peer,
    path: &str,
    message: &impl Message,
    headers: &[(&str, &str)],
) -> anyhow::Result<M> {
    let mut all = vec![("content-type", "application/grpc"), ("te", "trailers")];
    all.extend_from_slice(headers);
    let answer = peer.call(Call::post(path, framed(message)).headers(&all)).await?;
    anyhow::ensure!(answer.status == 200, "{path} answered HTTP {}", answer.status);
    let code = answer.header("grpc-status");
    anyhow::ensure!(code == "0", "{path} answered gRPC status {code} {}", answer.header("grpc-message"));
    let body = answer.body.get(5..).context("the answer has no message")?;
    Ok(M::decode(body)?)
}

/// One uncompressed message with its length.
fn framed(message: &impl Message) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(message.encoded_len() as u32);
    bytes.extend_from_slice(&message.encode_to_vec());
    bytes.freeze()
}

async fn message<M: Message + Default>(request: Request<Incoming>) -> Option<M> {
    let body = request.into_body().collect().await.ok()?.to_bytes();
    if body.len() > MAX_MESSAGE {
        return None;
    }
    M::decode(body.get(5..)?).ok()
}

fn reply(message: &impl Message) -> Response<Body> {
    let frames = [Frame::data(framed(message)), Frame::trailers(trailers(OK, ""))];
    let body = StreamBody::new(stream::iter(frames.map(Ok::<_, Infallible>)));
    grpc_response(body.boxed())
}

fn status(code: u32, message: &str) -> Response<Body> {
    let body = StreamBody::new(stream::iter([Ok::<_, Infallible>(Frame::trailers(trailers(code, message)))]));
    grpc_response(body.boxed())
}

fn grpc_response(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

fn trailers(code: u32, message: &str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(code));
    if let Ok(message) = HeaderValue::from_str(message)
        && !message.is_empty()
    {
        trailers.insert("grpc-message", message);
    }
    trailers
}
