//! The services of the shop that speak HTTP or lines.

use std::cell::Cell;
use std::rc::Rc;

use anyhow::Context;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::call::{Answer, Call, Peer, handed_on};
use super::grpc::{self, ChargeReply, ChargeRequest, QuoteReply, QuoteRequest};
use super::serve::{self, Body, Listen, Listener};
use super::{Settings, page};

const ITEMS: [&str; 6] = ["kettle", "lamp", "chair", "clock", "rug", "mirror"];
/// A line of the ledger longer than this is not one.
const MAX_LINE: u64 = 1024;

/// The door: hands everything to `web`, also from a socket that was opened outside the mesh.
pub(super) async fn gateway(settings: Rc<Settings>, listen: Listen, inherit: Option<i32>) -> anyhow::Result<()> {
    let web = Peer::named("web", 8080, false)?;
    let answer = move |request: Request<Incoming>| {
        let (settings, web) = (settings.clone(), web.clone());
        async move {
            let path = request.uri().path_and_query().map_or("/", http::uri::PathAndQuery::as_str).to_owned();
            let handed = handed_on(request.headers());
            let headers: Vec<(&str, &str)> = handed.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let call = Call { method: request.method().clone(), ..Call::get(&path) };
            match web.call(call.headers(&headers)).await {
                Ok(answer) => passed(&settings, answer),
                Err(error) => text(StatusCode::BAD_GATEWAY, format!("web: {error:#}\n")),
            }
        }
    };
    if let Some(fd) = inherit {
        tokio::task::spawn_local(serve::http(Listener::inherited(fd)?, false, answer.clone()));
    }
    serve::http(Listener::bind(&listen).await?, false, answer).await
}

/// The pages.
pub(super) async fn web(settings: Rc<Settings>, listen: Listen) -> anyhow::Result<()> {
    let listener = Listener::bind(&listen).await?;
    let catalog = Peer::named("catalog", 8080, true)?;
    let cart = Peer::named("cart", 8080, false)?;
    serve::http(listener, false, move |request| {
        let (settings, catalog, cart) = (settings.clone(), catalog.clone(), cart.clone());
        async move {
            if settings.sick.strikes().await {
                return failure(&settings);
            }
            let handed = handed_on(request.headers());
            let headers: Vec<(&str, &str)> = handed.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let path = request.uri().path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
            match (request.uri().path(), request.method()) {
                ("/", &Method::GET) => match catalog.call(Call::get("/items").headers(&headers)).await {
                    Ok(answer) if answer.status == 200 => page::of_items(&settings, &answer),
                    Ok(answer) => text(StatusCode::BAD_GATEWAY, format!("catalog answered {}\n", answer.status)),
                    Err(error) => text(StatusCode::BAD_GATEWAY, format!("catalog: {error:#}\n")),
                },
                ("/search", &Method::GET) => through(&settings, &catalog, Call::get(path).headers(&headers)).await,
                ("/cart", _) => through(&settings, &cart, Call::post("/checkout", "").headers(&headers)).await,
                _ => text(StatusCode::NOT_FOUND, "no such page\n"),
            }
        }
    })
    .await
}

/// The goods, with the prices that `pricing` says.
pub(super) async fn catalog(settings: Rc<Settings>, listen: Listen) -> anyhow::Result<()> {
    let listener = Listener::bind(&listen).await?;
    let pricing = Peer::named("pricing", 9090, true)?;
    serve::http(listener, true, move |request| {
        let (settings, pricing) = (settings.clone(), pricing.clone());
        async move {
            if settings.sick.strikes().await {
                return failure(&settings);
            }
            let wanted = match request.uri().path() {
                "/items" => "",
                "/search" => request.uri().query().and_then(|query| query.strip_prefix("q=")).unwrap_or(""),
                _ => return text(StatusCode::NOT_FOUND, "no such list\n"),
            };
            let item = ITEMS[rand::random_range(0..ITEMS.len())];
            let quote = QuoteRequest { item: item.to_owned() };
            match grpc::call::<QuoteReply>(&pricing, "/shop.Pricing/Quote", &quote, &[]).await {
                Ok(quote) => {
                    let items: Vec<&str> = ITEMS.into_iter().filter(|item| item.contains(wanted)).collect();
                    let list = json!({"version": settings.version, "instance": settings.instance, "items": items,
                        "offer": {"item": item, "cents": quote.cents}, "pricing": quote.instance});
                    let mut response = json_response(&list);
                    told(&mut response, "x-catalog-version", &settings.version);
                    told(&mut response, "x-pricing-instance", &quote.instance);
                    response
                }
                Err(error) => text(StatusCode::BAD_GATEWAY, format!("pricing: {error:#}\n")),
            }
        }
    })
    .await
}

/// Charges what is in the cart.
pub(super) async fn cart(settings: Rc<Settings>, listen: Listen) -> anyhow::Result<()> {
    let listener = Listener::bind(&listen).await?;
    let payments = Peer::named("payments", 9090, true)?;
    serve::http(listener, false, move |request| {
        let (settings, payments) = (settings.clone(), payments.clone());
        async move {
            if settings.sick.strikes().await {
                return failure(&settings);
            }
            if request.uri().path() != "/checkout" {
                return text(StatusCode::NOT_FOUND, "only /checkout is here\n");
            }
            let account = handed_on(request.headers()).remove("x-user").unwrap_or_else(|| "somebody".to_owned());
            let charge = ChargeRequest { account, cents: 250 };
            match grpc::call::<ChargeReply>(&payments, "/pay.Payments/Charge", &charge, &[]).await {
                Ok(reply) => json_response(&json!({"entry": reply.entry, "instance": settings.instance})),
                Err(error) => text(StatusCode::BAD_GATEWAY, format!("payments: {error:#}\n")),
            }
        }
    })
    .await
}

/// The books: `ENTRY account cents` is answered by `OK number`. The client speaks first.
pub(super) async fn ledger(_settings: Rc<Settings>, listen: Listen) -> anyhow::Result<()> {
    let listener = Listener::bind(&listen).await?;
    let entries = Rc::new(Cell::new(0_u64));
    loop {
        let stream = listener.accept().await?;
        let entries = entries.clone();
        tokio::task::spawn_local(async move {
            let (reader, mut writer) = tokio::io::split(stream);
            let mut reader = BufReader::new(reader);
            loop {
                let mut line = String::new();
                match (&mut reader).take(MAX_LINE).read_line(&mut line).await {
                    Ok(length) if length > 0 => {}
                    _ => return,
                }
                let answer = if line.starts_with("ENTRY ") {
                    entries.set(entries.get() + 1);
                    format!("OK {}\n", entries.get())
                } else {
                    "WHAT?\n".to_owned()
                };
                if writer.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// Writes an entry over a connection of its own.
pub(super) async fn write_entry(ledger: &Peer, account: &str, cents: u32) -> anyhow::Result<u64> {
    let work = async {
        let (host, port) = ledger.address();
        let mut stream = TcpStream::connect((host.as_str(), port)).await?;
        stream.write_all(format!("ENTRY {account} {cents}\n").as_bytes()).await?;
        let mut line = String::new();
        BufReader::new(&mut stream).take(MAX_LINE).read_line(&mut line).await?;
        let number = line.trim().strip_prefix("OK ").with_context(|| format!("the ledger said {line:?}"))?;
        Ok(number.parse()?)
    };
    tokio::time::timeout(std::time::Duration::from_secs(5), work).await.context("the ledger is silent")?
}

async fn through(settings: &Settings, peer: &Peer, call: Call<'_>) -> Response<Body> {
    match peer.call(call).await {
        Ok(answer) => passed(settings, answer),
        Err(error) => text(StatusCode::BAD_GATEWAY, format!("{error:#}\n")),
    }
}

/// Somebody else's answer, with what it told about who served it.
fn passed(settings: &Settings, answer: Answer) -> Response<Body> {
    let mut response = Response::new(Full::new(answer.body.clone()).boxed());
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::BAD_GATEWAY);
    for name in ["content-type", "x-catalog-version", "x-pricing-instance"] {
        if let Some(value) = answer.headers.get(name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    told(&mut response, "x-served-by", &settings.instance);
    response
}

/// What a sick instance answers.
pub(super) fn failure(settings: &Settings) -> Response<Body> {
    text(StatusCode::INTERNAL_SERVER_ERROR, format!("{} is sick\n", settings.instance))
}

pub(super) fn told(response: &mut Response<Body>, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(body.into()).boxed());
    *response.status_mut() = status;
    response
}

fn json_response(value: &Value) -> Response<Body> {
    let mut response = text(StatusCode::OK, value.to_string());
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
