//! From a request to a page.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Semaphore;

use super::{Door, Drain, House, Scope, State, certs, clusters, dump, guard, info, levels, stats, watch};
use crate::report::Watchtower;

/// Most connections at once.
const MOST_CONNECTIONS: usize = 128;
/// How long a client may take to send a head.
const HEAD_LIMIT: Duration = Duration::from_secs(10);

pub(super) type Body = BoxBody<Bytes, Infallible>;
pub(super) type Page = Response<Body>;

/// What every page can look at.
#[derive(Clone)]
pub(super) struct Desk {
    pub(super) house: Arc<dyn House>,
    pub(super) tower: Arc<Watchtower>,
}

/// A page: path, whether it changes something (and so needs POST), what it is.
const PAGES: [(&str, bool, &str); 19] = [
    ("/", false, "this list"),
    ("/certs", false, "print certs on machine"),
    ("/clusters", false, "upstream cluster status (?format=json, ?filter=REGEX)"),
    ("/config_dump", false, "dump current configs (?resource=, ?name_regex=, ?include_eds)"),
    ("/drain_listeners", true, "drain listeners (?graceful, ?inboundonly)"),
    ("/healthcheck/fail", true, "cause the server to fail health checks"),
    ("/healthcheck/ok", true, "cause the server to pass health checks"),
    ("/help", false, "print out list of admin commands"),
    ("/hot_restart_version", false, "print the hot restart compatibility version"),
    ("/listeners", false, "print listener info (?format=json)"),
    ("/logging", true, "query/change logging levels (?level=, ?paths=NAME:LEVEL,..., ?NAME=LEVEL)"),
    ("/memory", false, "print current memory usage"),
    ("/quitquitquit", true, "exit the server"),
    ("/ready", false, "print server state, return 200 if LIVE, otherwise return 503"),
    ("/reopen_logs", true, "reopen access logs"),
    ("/server_info", false, "print server version/status information"),
    ("/stats", false, "print server stats (?filter=REGEX, ?usedonly, ?format=text|json|prometheus)"),
    ("/stats/prometheus", false, "print server stats in prometheus format"),
    ("/tulle/edges", false, "who called whom in the last minutes, as JSON (?window=SECONDS)"),
];

/// The page that streams.
const TAP: (&str, &str) =
    ("/tulle/tap", "finished exchanges as they happen, as JSON lines (?to, from, method, path, status, only, rate)");

/// Serves an address until the process ends.
pub async fn serve(door: Door, scope: Scope, house: Arc<dyn House>, tower: Arc<Watchtower>) {
    let plan = Arc::clone(&house);
    tower.observe(move || plan.plan());
    let keys = Arc::clone(&house);
    tower.identify(move || {
        let held = keys.certificates();
        held.iter().find_map(|(_, credentials)| credentials.facts().identity.as_ref().map(ToString::to_string))
    });
    let desk = Desk { house, tower };
    let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        let accepted = match &door {
            Door::Tcp(listener) => listener
                .accept()
                .await
                .map(|(stream, peer)| spawn(TokioIo::new(stream), Some(peer), scope, &desk, place)),
            Door::Unix(listener) => {
                listener.accept().await.map(|(stream, _)| spawn(TokioIo::new(stream), None, scope, &desk, place))
            }
        };
        if let Err(error) = accepted {
            tracing::warn!(event = "admin-accept-failed", %error, "administration: a connection could not be accepted");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

fn spawn<I>(io: I, peer: Option<SocketAddr>, scope: Scope, desk: &Desk, place: tokio::sync::OwnedSemaphorePermit)
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let desk = desk.clone();
    tokio::spawn(async move {
        let service = service_fn(move |request: Request<Incoming>| {
            let desk = desk.clone();
            async move { Ok::<_, Infallible>(dressed(answer(&desk, scope, peer, request).await)) }
        });
        let served = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_LIMIT)
            .serve_connection(io, service)
            .await;
        if let Err(error) = served {
            tracing::debug!(%error, "administration: a connection ended badly");
        }
        drop(place);
    });
}

async fn answer(desk: &Desk, scope: Scope, peer: Option<SocketAddr>, request: Request<Incoming>) -> Page {
    let path = request.uri().path();
    if !scope.has(path) {
        return text(StatusCode::NOT_FOUND, help("invalid path. "));
    }
    if scope == Scope::Admin && peer.is_some() {
        let authority = request.uri().authority().map(|authority| authority.as_str());
        if let Err(refusal) = guard::judge(request.method(), request.uri().path(), request.headers(), authority) {
            return text(StatusCode::FORBIDDEN, refusal.text());
        }
    }
    let changes = PAGES.iter().any(|(page, changes, _)| *page == path && *changes);
    // As Envoy: a page that changes nothing may be asked for in any way.
    if changes && *request.method() != Method::POST {
        let refusal = format!("Method {} not allowed, POST required.", request.method());
        return text(StatusCode::METHOD_NOT_ALLOWED, refusal);
    }
    let query = Query::of(request.uri().query().unwrap_or_default());
    match path {
        "/stats/prometheus" => stats::prometheus(desk, request.headers(), &query),
        "/healthz/ready" | "/ready" => ready(desk),
        _ => admin_page(desk, path, request.headers(), &query),
    }
}

impl Scope {
    fn has(self, path: &str) -> bool {
        match self {
            Self::Admin => path == TAP.0 || PAGES.iter().any(|(page, ..)| *page == path),
            Self::Metrics => path == "/stats/prometheus",
            Self::Health => path == "/healthz/ready",
        }
    }
}

fn admin_page(desk: &Desk, path: &str, headers: &http::HeaderMap, query: &Query) -> Page {
    match path {
        "/" | "/help" => text(StatusCode::OK, help("")),
        "/stats" => stats::stats(desk, headers, query),
        "/clusters" => clusters::clusters(desk, query),
        "/listeners" => clusters::listeners(desk, query),
        "/config_dump" => dump::config_dump(desk, query),
        "/certs" => certs::certs(desk),
        "/server_info" => info::server_info(desk),
        "/memory" => info::memory(),
        "/hot_restart_version" => text(StatusCode::OK, "disabled"),
        "/logging" => levels::logging(query),
        "/drain_listeners" => {
            desk.house.drain(Drain { inbound_only: query.has("inboundonly"), graceful: query.has("graceful") });
            ok()
        }
        "/healthcheck/fail" => {
            desk.house.fail_health_checks(true);
            ok()
        }
        "/healthcheck/ok" => {
            desk.house.fail_health_checks(false);
            ok()
        }
        "/reopen_logs" => {
            desk.tower.sinks.reopen();
            ok()
        }
        "/quitquitquit" => {
            desk.house.quit();
            ok()
        }
        "/tulle/edges" => watch::edges(desk, query),
        "/tulle/tap" => watch::tap(desk, query),
        _ => text(StatusCode::NOT_FOUND, help("invalid path. ")),
    }
}

fn ready(desk: &Desk) -> Page {
    let state = desk.house.state();
    let status = if state == State::Live { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    text(status, format!("{state}\n"))
}

fn help(before: &str) -> String {
    let mut all: Vec<(&str, bool, &str)> = PAGES.to_vec();
    all.push((TAP.0, false, TAP.1));
    let mut text = format!("{before}admin commands are:\n");
    for (page, changes, what) in all {
        text.push_str(&format!("  {page}{}: {what}\n", if changes { " (POST)" } else { "" }));
    }
    text
}

fn ok() -> Page {
    text(StatusCode::OK, "OK\n")
}

pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> Page {
    typed(status, "text/plain; charset=UTF-8", body)
}

/// JSON as Envoy prints it: indented by one space.
pub(super) fn json(value: &serde_json::Value) -> Page {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b" ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    // Writing a JSON value to a Vec cannot fail.
    let _ = serde::Serialize::serialize(value, &mut serializer);
    out.push(b'\n');
    typed(StatusCode::OK, "application/json", out)
}

pub(super) fn typed(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Page {
    let mut page = Response::new(Full::new(body.into()).boxed());
    *page.status_mut() = status;
    page.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    page
}

/// Puts on what Envoy's pages have.
fn dressed(mut page: Page) -> Page {
    let headers = page.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, max-age=0"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::SERVER, HeaderValue::from_static("tulle"));
    page
}

/// The parameters of a query, decoded.
#[derive(Debug, Default)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    fn of(query: &str) -> Self {
        let decoded = |text: &str| {
            let spaced = text.replace('+', " ");
            percent_encoding::percent_decode_str(&spaced).decode_utf8_lossy().into_owned()
        };
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                .map(|(k, v)| (decoded(k), decoded(v)))
                .collect(),
        )
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.0.iter().any(|(held, _)| held == key)
    }

    pub(super) fn value(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(held, _)| held == key).map(|(_, value)| value.as_str())
    }

    pub(super) fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// The regular expression of `key`, of bounded size; an error page when it is none.
    pub(super) fn pattern(&self, key: &str) -> Result<Option<engine::matcher::Pattern>, Box<Page>> {
        let Some(source) = self.value(key).filter(|source| !source.is_empty()) else { return Ok(None) };
        // Envoy searches, it does not match the whole name.
        let anywhere = format!("(?s).*(?:{source}).*");
        engine::matcher::Pattern::new(&anywhere)
            .map(Some)
            .map_err(|error| Box::new(text(StatusCode::BAD_REQUEST, format!("Invalid re2 regex: {error}\n"))))
    }
}
