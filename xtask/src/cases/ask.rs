//! Sends what a case asks.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures_util::future::join_all;
use testkit::client::{self, Ask, Http1};
use testkit::head::Reply;
use testkit::table::{self, Expect};
use testkit::token;
use testkit::topology::{Callable, Placed, Topology};

/// What came of one request.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    /// The answer; `None` when the connection was closed or refused without one.
    pub(super) reply: Option<Reply>,
    /// How long it took.
    pub(super) took: Duration,
    /// The key of a hash case.
    pub(super) key: Option<usize>,
    /// The round: phases, or 1 for the second client.
    pub(super) round: usize,
    /// The answer of a connection of bytes.
    pub(super) bytes: Option<Vec<u8>>,
}

/// Sends all requests of a case.
pub(super) async fn ask(topology: &Topology, request: &table::Ask, expect: &Expect) -> Result<Vec<Answer>> {
    for (field, given) in
        [("via", request.via.as_deref().is_some_and(|via| via != "mesh")), ("protocol tls", request.protocol == "tls")]
    {
        if given {
            bail!("the runner cannot do `{field}` yet");
        }
    }
    let target = target(topology, request, request.from.as_deref())?;
    let mut answers = rounds(&target, request, expect, 0).await;
    if let Some(second) = &request.second_client {
        let target = self::target(topology, request, Some(second))?;
        answers.extend(rounds(&target, request, expect, 1).await);
    }
    // Mirrors and closing connections may arrive after the answer.
    if expect.mirrored_to.is_some() {
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    Ok(answers)
}

/// Sends the requests of a case once more, after its endpoints changed.
pub(super) async fn again(topology: &Topology, request: &table::Ask, expect: &Expect) -> Result<Vec<Answer>> {
    let target = target(topology, request, request.from.as_deref())?;
    Ok(rounds(&target, request, expect, 1).await)
}

/// Sends what a case asks after a wait.
pub(super) async fn afterwards(topology: &Topology, request: &table::Ask) -> Result<Vec<Answer>> {
    let Some(count) = request.requests_after else { return Ok(Vec::new()) };
    tokio::time::sleep(Duration::from_millis(request.wait_ms.unwrap_or(0))).await;
    let target = target(topology, request, request.from.as_deref())?;
    let round = request.phases.as_ref().map_or(1, Vec::len);
    Ok(many(&target, count, 1, round).await)
}

/// Asks until the client's proxy has found out which endpoints always fail: a round of good answers says so.
pub(super) async fn find_the_sick(topology: &Topology, request: &table::Ask) -> Result<()> {
    /// Good answers in a row after which nothing bad is expected any more.
    const ROUND: usize = 40;
    const PATIENCE: usize = 400;
    let is_sick = |workload: &Placed| workload.endpoint.as_ref().is_some_and(|endpoint| !endpoint.healthy);
    if !topology.workloads.iter().any(is_sick) {
        return Ok(());
    }
    let target = target(topology, request, request.from.as_deref())?;
    let mut connection = Http1::new(target.to);
    let mut good = 0;
    for _ in 0..PATIENCE {
        let answer = one(&target, &mut connection, &target.ask, None, 0).await;
        if answer.reply.is_some_and(|reply| reply.status < 500) {
            good += 1;
        } else {
            good = 0;
            // What one thread of the proxy found out reaches the others a moment later.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if good == ROUND {
            return Ok(());
        }
    }
    bail!("the proxy still calls endpoints that always fail");
}

/// Sends all requests of a case about one proxy.
pub(super) async fn directly(to: SocketAddr, request: &table::Ask, expect: &Expect) -> Result<Vec<Answer>> {
    let target = spoken_to(to, request, request.authority.clone().unwrap_or_else(|| "web.test".to_owned()))?;
    let mut answers = rounds(&target, request, expect, 0).await;
    if let Some(count) = request.requests_after {
        tokio::time::sleep(Duration::from_millis(request.wait_ms.unwrap_or(0))).await;
        answers.extend(many(&target, count, 1, 1).await);
    }
    if expect.mirrored_to.is_some() {
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    Ok(answers)
}

/// Where to connect, and what to say.
struct Target {
    to: SocketAddr,
    ask: Ask,
    protocol: String,
    raw: Option<String>,
    fields: Option<Vec<(Vec<u8>, Vec<u8>)>>,
    pause: Duration,
}

fn target(topology: &Topology, request: &table::Ask, from: Option<&str>) -> Result<Target> {
    if topology.bootstrap().is_some() {
        let to = topology.door(request.listener.as_deref()).context("a listener of that name")?;
        return spoken_to(to, request, request.authority.clone().unwrap_or_else(|| to.to_string()));
    }
    let client = from.and_then(|name| topology.workload(name));
    let namespace = client.map_or("shop", |client| client.namespace.as_str());
    let service = service(topology, request, namespace)?;
    let port = port(service, request)?;
    let to = match client {
        Some(client) => topology
            .listener(client, &service.host, port)
            .with_context(|| format!("no listener for {}", service.host))?,
        None => {
            let workload = topology.behind(service).next().context("a service with a workload")?;
            direct(workload, port)
        }
    };
    spoken_to(to, request, request.authority.clone().unwrap_or_else(|| service.host.clone()))
}

fn spoken_to(to: SocketAddr, request: &table::Ask, authority: String) -> Result<Target> {
    let mut headers: Vec<_> = request.headers.iter().map(|(n, v)| (n.clone(), v.clone())).collect();
    if request.protocol == "grpc" {
        headers.push(("content-type".to_owned(), "application/grpc".to_owned()));
        headers.push(("te".to_owned(), "trailers".to_owned()));
    }
    if request.headers.contains_key("x-fail") {
        headers.push(("x-request-id".to_owned(), "00000000-0000-4000-8000-000000000001".to_owned()));
    }
    let mut path = request.path.clone().unwrap_or_else(|| "/".to_owned());
    if let Some(wanted) = &request.jwt {
        place_token(&token::mint()?.token(wanted)?, request.jwt_in.as_ref(), &mut headers, &mut path)?;
    }
    let empty_message = if request.protocol == "grpc" { "\0\0\0\0\0" } else { "" };
    let body = request.body.clone().unwrap_or_else(|| empty_message.to_owned()).into_bytes();
    let ask =
        Ask { method: request.method.clone().unwrap_or_else(|| "GET".to_owned()), path, authority, headers, body };
    let raw = request.raw.as_ref().and_then(|raw| raw.as_str()).map(str::to_owned);
    let fields = request.h2_headers.as_ref();
    let fields = fields.map(|all| all.iter().map(|(name, value)| (latin(name), latin(value))).collect());
    let pause = Duration::from_millis(request.pause_ms.unwrap_or(0));
    Ok(Target { to, ask, protocol: request.protocol.clone(), raw, fields, pause })
}

/// Puts a token where a case wants it; into `Authorization` where it says nothing.
fn place_token(
    token: &str,
    place: Option<&serde_json::Value>,
    headers: &mut Vec<(String, String)>,
    path: &mut String,
) -> Result<()> {
    let Some(place) = place else {
        headers.push(("authorization".to_owned(), format!("Bearer {token}")));
        return Ok(());
    };
    let text = |name: &str| place[name].as_str();
    if let Some(name) = text("header") {
        headers.push((name.to_owned(), format!("{}{token}", text("prefix").unwrap_or_default())));
    } else if let Some(name) = text("param") {
        let separator = if path.contains('?') { '&' } else { '?' };
        path.push_str(&format!("{separator}{name}={token}"));
    } else if let Some(name) = text("cookie") {
        headers.push(("cookie".to_owned(), format!("{name}={token}")));
    } else {
        bail!("the runner cannot put a token into {place}");
    }
    Ok(())
}

fn service<'a>(topology: &'a Topology, request: &table::Ask, namespace: &str) -> Result<&'a Callable> {
    if let (Some(to), Some(subset)) = (&request.to, &request.subset) {
        let name = format!("{to}-{subset}");
        return topology.service_named(namespace, &name).with_context(|| format!("no workload {name}"));
    }
    if let Some(to) = &request.to {
        return topology.service_named(namespace, to).with_context(|| format!("no service {to}"));
    }
    let authority = request.authority.as_deref().context("a case needs `to` or `authority`")?;
    let known = topology.service(namespace, authority);
    known.or_else(|| topology.services.first()).context("a topology with services")
}

fn port(service: &Callable, request: &table::Ask) -> Result<u16> {
    let by_name = |name: &str| service.ports.iter().find(|(own, _)| own == name).map(|(_, number)| *number);
    let found = match &request.port {
        Some(serde_json::Value::String(name)) => by_name(name),
        Some(number) => number.as_u64().and_then(|number| u16::try_from(number).ok()),
        None => match request.protocol.as_str() {
            "grpc" => by_name("grpc").or_else(|| by_name("http")),
            "tcp" => by_name("tcp"),
            _ => by_name("http"),
        }
        .or_else(|| service.ports.first().map(|(_, number)| *number)),
    };
    found.with_context(|| format!("{} has no such port", service.host))
}

fn direct(workload: &Placed, port: u16) -> SocketAddr {
    SocketAddr::new(workload.address, port)
}

async fn rounds(target: &Target, request: &table::Ask, expect: &Expect, round: usize) -> Vec<Answer> {
    if let (Some(key), Some(keys)) = (&request.hash_key, request.keys) {
        return by_key(target, key, keys, request.per_key.unwrap_or(1), round).await;
    }
    if let Some(phases) = &request.phases {
        let mut answers = Vec::new();
        for (number, phase) in phases.iter().enumerate() {
            tokio::time::sleep(Duration::from_millis(phase.wait_ms)).await;
            answers.extend(many(target, phase.requests, 1, number).await);
        }
        return answers;
    }
    let count = request.requests.or(expect.requests).unwrap_or(1);
    many(target, count, request.concurrency.unwrap_or(1), round).await
}

async fn many(target: &Target, count: usize, concurrency: usize, round: usize) -> Vec<Answer> {
    let lanes = (0..concurrency).map(|lane| async move {
        let mut connection = Http1::new(target.to);
        let mut answers = Vec::new();
        for number in (lane..count).step_by(concurrency) {
            let mut ask = target.ask.clone();
            if count > 1 {
                vary_request_id(&mut ask, number);
            }
            if number > lane {
                tokio::time::sleep(target.pause).await;
            }
            answers.push(one(target, &mut connection, &ask, None, round).await);
        }
        answers
    });
    join_all(lanes).await.concat()
}

async fn by_key(target: &Target, kind: &str, keys: usize, per_key: usize, round: usize) -> Vec<Answer> {
    let mut connection = Http1::new(target.to);
    let mut answers = Vec::new();
    for _ in 0..per_key {
        for key in 0..keys {
            let mut ask = target.ask.clone();
            match kind.split_once(':') {
                Some(("header", name)) => ask.headers.push((name.to_owned(), format!("key-{key}"))),
                Some(("cookie", name)) => ask.headers.push(("cookie".to_owned(), format!("{name}=key-{key}"))),
                Some(("query", name)) => ask.path = format!("{}?{name}=key-{key}", ask.path),
                // The key is where the caller stands.
                _ => connection = Http1::from(target.to, source(key)),
            }
            answers.push(one(target, &mut connection, &ask, Some(key), round).await);
        }
    }
    answers
}

/// A loopback address of its own for each key.
fn source(key: usize) -> IpAddr {
    let [high, low] = u16::try_from(key).unwrap_or(u16::MAX).to_be_bytes();
    IpAddr::from([127, 100, high, low])
}

/// The recorder's scripts count attempts by request id: each request of a series needs its own.
fn vary_request_id(ask: &mut Ask, number: usize) {
    for (name, value) in &mut ask.headers {
        if name == "x-request-id" {
            *value = format!("00000000-0000-4000-8000-{number:012}");
        }
    }
}

async fn one(target: &Target, connection: &mut Http1, ask: &Ask, key: Option<usize>, round: usize) -> Answer {
    let start = Instant::now();
    let mut bytes = None;
    let reply = if let Some(raw) = &target.raw {
        let answer = client::raw(target.to, &latin(raw), Duration::from_millis(400)).await.unwrap_or_default();
        let reply = first_reply(&answer).await;
        bytes = Some(answer);
        Ok(reply)
    } else if let Some(fields) = &target.fields {
        client::http2_fields(target.to, fields, (!ask.body.is_empty()).then_some(&*ask.body)).await
    } else {
        match target.protocol.as_str() {
            "tcp" => {
                bytes = Some(client::tcp(target.to).await.unwrap_or_default());
                Ok(None)
            }
            "http2" | "grpc" => client::http2(target.to, ask).await,
            _ => connection.send(ask).await,
        }
    };
    Answer { reply: reply.unwrap_or_default(), took: start.elapsed(), key, round, bytes }
}

/// A text of a table, each character a byte.
fn latin(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(u32::from(c)).unwrap_or(b'?')).collect()
}

async fn first_reply(answer: &[u8]) -> Option<Reply> {
    let mut stream = answer;
    testkit::head::read(&mut stream, &mut bytes::BytesMut::new(), false).await.ok().flatten()
}
