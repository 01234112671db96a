//! `tulle tap`.

use std::io::Write;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use telemetry::istio::{Party, Reporter, Security};
use telemetry::tap::{DEFAULT_RATE, Event, named, of_service};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::connection::block_on;
use super::mesh::{Known, Mesh};
use crate::cli::Global;
use crate::output::{Exit, fail};

/// Longest line that a proxy may send, in bytes.
const LONGEST_LINE: usize = 1 << 20;
/// How long connecting to a proxy may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Show requests and connections as they happen
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tulle tap web.shop --status 5xx\n  tulle tap --to payments --only denied -o json --max 10"
)]
pub(crate) struct Args {
    /// Only what goes into or out of this workload or service: NAME or NAME.NAMESPACE
    workload: Option<String>,
    /// Only to this workload, service or host
    #[arg(long, value_name = "NAME")]
    to: Option<String>,
    /// Only from this workload or identity (spiffe://...)
    #[arg(long, value_name = "NAME")]
    from: Option<String>,
    /// Only this method
    #[arg(long)]
    method: Option<String>,
    /// Only this path; a prefix when it ends in *
    #[arg(long)]
    path: Option<String>,
    /// Only this status: 503, or 5xx
    #[arg(long)]
    status: Option<String>,
    /// Only what a policy refused, or what failed
    #[arg(long, value_enum)]
    only: Option<Only>,
    /// At most so many events per second and proxy; the rest is counted
    #[arg(long, value_name = "N", default_value_t = DEFAULT_RATE)]
    rate: u32,
    /// End after so many events
    #[arg(long, value_name = "N")]
    max: Option<u64>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    mesh: Mesh,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Only {
    Denied,
    Errors,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum Format {
    #[default]
    Line,
    Json,
}

/// What comes from a proxy.
enum Heard {
    Event(Box<Event>),
    /// So many were not shown.
    LeftOut(u64),
    /// The proxy is gone, or never was there.
    Lost {
        admin: String,
        why: String,
    },
}

pub(crate) fn run(args: Args, global: &Global) -> Exit {
    match block_on(watch(&args, global)) {
        Ok(exit) | Err(exit) => exit,
    }
}

async fn watch(args: &Args, global: &Global) -> Exit {
    let found = match args.mesh.search().await {
        Ok(found) => found,
        Err(exit) => return exit,
    };
    if found.proxies.is_empty() {
        return fail(Exit::No, "no proxy is connected that has an admin address", Some("tulle proxy ls lists them"));
    }
    let (heard, mut events) = mpsc::channel(256);
    let query = query(args);
    for known in found.proxies {
        let (heard, query) = (heard.clone(), query.clone());
        tokio::spawn(async move {
            let Known { admin, .. } = known;
            if let Err(why) = listen(&admin, &query, &heard).await {
                let _ = heard.send(Heard::Lost { admin, why }).await;
            }
        });
    }
    drop(heard);
    let mut shown = 0;
    let mut lost = 0;
    while let Some(heard) = events.recv().await {
        match heard {
            Heard::Event(event) => {
                if !is_wanted(args, &event) {
                    continue;
                }
                if print(args.output, &event).is_err() {
                    return Exit::Done;
                }
                shown += 1;
                if args.max.is_some_and(|max| shown >= max) {
                    return Exit::Done;
                }
            }
            Heard::LeftOut(count) if !global.quiet => eprintln!("({count} not shown: more than --rate {})", args.rate),
            Heard::LeftOut(_) => {}
            Heard::Lost { admin, why } => {
                lost += 1;
                fail(Exit::Unreachable, format!("proxy at {admin}: {why}"), None);
            }
        }
    }
    if shown == 0 && lost > 0 { Exit::Unreachable } else { Exit::Done }
}

/// The filters that the proxies apply themselves.
fn query(args: &Args) -> String {
    let only = args.only.map(|only| match only {
        Only::Denied => "denied",
        Only::Errors => "errors",
    });
    let mut query = format!("/tulle/tap?rate={}", args.rate);
    for (key, value) in [
        ("to", args.to.as_deref()),
        ("from", args.from.as_deref()),
        ("method", args.method.as_deref()),
        ("path", args.path.as_deref()),
        ("status", args.status.as_deref()),
        ("only", only),
    ] {
        if let Some(value) = value {
            query.push_str(&format!("&{key}={}", escaped(value)));
        }
    }
    query
}

fn escaped(value: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/:*".contains(&byte);
    value.bytes().fold(String::new(), |mut out, byte| {
        match plain(byte) {
            true => out.push(char::from(byte)),
            false => out.push_str(&format!("%{byte:02X}")),
        }
        out
    })
}

/// Of a hop that both sides saw, the called side's event is shown; with a workload given, both are its own business.
fn is_wanted(args: &Args, event: &Event) -> bool {
    match &args.workload {
        Some(workload) => {
            let own = match event.reporter {
                Reporter::Source => &event.source,
                Reporter::Destination => &event.destination,
            };
            named(workload, own) || (event.reporter == Reporter::Destination && of_service(workload, &event.service))
        }
        None => event.reporter == Reporter::Destination || event.destination.principal.is_empty(),
    }
}

async fn listen(address: &str, query: &str, heard: &mpsc::Sender<Heard>) -> Result<(), String> {
    let slow = |_| format!("no answer in {} s", PATIENCE.as_secs());
    match address.strip_prefix("unix:") {
        Some(socket) => {
            let connecting = tokio::net::UnixStream::connect(socket);
            let stream = tokio::time::timeout(PATIENCE, connecting).await.map_err(slow)?;
            stream_of(stream.map_err(|error| error.to_string())?, "localhost", query, heard).await
        }
        None => {
            let connecting = tokio::net::TcpStream::connect(address);
            let stream = tokio::time::timeout(PATIENCE, connecting).await.map_err(slow)?;
            stream_of(stream.map_err(|error| error.to_string())?, address, query, heard).await
        }
    }
}

async fn stream_of<S>(stream: S, host: &str, query: &str, heard: &mpsc::Sender<Heard>) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    let request = http::Request::get(query).header("host", host).body(Empty::<Bytes>::new());
    let response = sender.send_request(request.map_err(|error| error.to_string())?).await;
    let mut response = response.map_err(|error| error.to_string())?;
    if !response.status().is_success() {
        let status = response.status();
        let body = response.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        return Err(format!("{status}: {}", String::from_utf8_lossy(&body).trim()));
    }
    let mut held = Vec::new();
    while let Some(frame) = response.frame().await {
        let frame = frame.map_err(|error| format!("the proxy went away: {error}"))?;
        let Ok(data) = frame.into_data() else { continue };
        held.extend_from_slice(&data);
        while let Some(end) = held.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = held.drain(..=end).collect();
            if let Some(one) = understood(&line)
                && heard.send(one).await.is_err()
            {
                return Ok(());
            }
        }
        if held.len() > LONGEST_LINE {
            return Err("it does not send lines".to_owned());
        }
    }
    Err("the proxy went away".to_owned())
}

fn understood(line: &[u8]) -> Option<Heard> {
    let value: serde_json::Value = serde_json::from_slice(line).ok()?;
    if let Some(count) = value.get("left_out").and_then(serde_json::Value::as_u64) {
        return Some(Heard::LeftOut(count));
    }
    serde_json::from_value(value).ok().map(|event| Heard::Event(Box::new(event)))
}

fn print(format: Format, event: &Event) -> std::io::Result<()> {
    let text = match format {
        Format::Json => serde_json::to_string(event).unwrap_or_default(),
        Format::Line => line(event),
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

/// `12:04:11.302  web → catalog  GET /items → 200 in 2.1 ms  mTLS`.
fn line(event: &Event) -> String {
    let time = event.time.split_once('T').map_or(event.time.as_str(), |(_, time)| time.trim_end_matches('Z'));
    let source = of(&event.source, &event.source_address);
    let destination =
        of(&event.destination, if event.service.name.is_empty() { &event.upstream } else { &event.service.name });
    let took = event.duration_ms;
    let flags = match event.flags.as_str() {
        "" | "-" => String::new(),
        flags => format!(" {flags}"),
    };
    let what = if event.method.is_empty() {
        format!("tcp {} B in, {} B out{flags} in {took:.1} ms", event.received, event.sent)
    } else {
        let status = if event.status == 0 { "no answer".to_owned() } else { event.status.to_string() };
        let grpc = event.grpc_status.map(|status| format!(" grpc {status}")).unwrap_or_default();
        format!("{} {} → {status}{grpc}{flags} in {took:.1} ms", event.method, clean(&event.path))
    };
    let mut text = format!("{time}  {source} → {destination}  {what}");
    match event.security {
        Security::MutualTls => text.push_str("  mTLS"),
        Security::None => text.push_str("  plaintext"),
        Security::Unknown => {}
    }
    if event.attempts > 1 {
        text.push_str(&format!("  {} attempts", event.attempts));
    }
    if event.denied {
        // Envoy's word for a request that no rule of the ALLOW policies takes.
        match event.policy.as_str() {
            "none" | "" => text.push_str("  DENIED: no rule allows it"),
            policy => text.push_str(&format!("  DENIED by {}", clean(policy))),
        }
    } else if !event.would_deny.is_empty() {
        text.push_str(&format!("  would be denied by {}", clean(&event.would_deny)));
    } else if event.is_error() && !event.details.is_empty() {
        text.push_str(&format!("  {}", clean(&event.details)));
    }
    if !event.tulle_id.is_empty() {
        text.push_str(&format!("  id={}", clean(&event.tulle_id)));
    }
    text
}

/// The workload; else the service account of its identity (raw TCP carries no more); else what else is known.
fn of(party: &Party, otherwise: &str) -> String {
    let account = party.principal.rsplit_once("/sa/").map(|(_, account)| account);
    let name = if party.workload.is_empty() { account.unwrap_or(otherwise) } else { &party.workload };
    clean(if name.is_empty() { "unknown" } else { name })
}

/// Without control characters: what strangers send must not steer the terminal.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn event() -> Event {
        let party = |name: &str| Arc::new(Party { workload: name.to_owned(), ..Party::default() });
        Event {
            time: "2026-11-21T12:04:11.302Z".to_owned(),
            source: party("web"),
            destination: party("catalog"),
            method: "GET".to_owned(),
            path: "/items".to_owned(),
            status: 200,
            duration_ms: 2.14,
            flags: "-".to_owned(),
            security: Security::MutualTls,
            attempts: 1,
            ..Event::default()
        }
    }

    #[test]
    fn lines() {
        assert_eq!(line(&event()), "12:04:11.302  web → catalog  GET /items → 200 in 2.1 ms  mTLS");
        let denied = Event {
            status: 403,
            denied: true,
            policy: "ns[shop]-policy[callers]-rule[0]".to_owned(),
            tulle_id: "7f3a".to_owned(),
            ..event()
        };
        assert_eq!(
            line(&denied),
            "12:04:11.302  web → catalog  GET /items → 403 in 2.1 ms  mTLS  DENIED by ns[shop]-policy[callers]-rule[0]  id=7f3a"
        );
        let left_out = Event { policy: "none".to_owned(), ..denied.clone() };
        assert!(line(&left_out).ends_with("  mTLS  DENIED: no rule allows it  id=7f3a"), "{}", line(&left_out));
        let failed = Event {
            status: 503,
            flags: "UF,URX".to_owned(),
            details: "upstream_reset".to_owned(),
            attempts: 3,
            path: "/x\u{1b}[2J".to_owned(),
            source: Arc::default(),
            source_address: "10.0.0.9:4000".to_owned(),
            security: Security::None,
            ..event()
        };
        assert_eq!(
            line(&failed),
            "12:04:11.302  10.0.0.9:4000 → catalog  GET /x\u{fffd}[2J → 503 UF,URX in 2.1 ms  plaintext  3 attempts  upstream_reset"
        );
        let named = Party { principal: "spiffe://cluster.local/ns/shop/sa/web".to_owned(), ..Party::default() };
        let source = Arc::new(named);
        let tcp = Event { source, method: String::new(), status: 0, received: 84, sent: 224, ..event() };
        assert_eq!(line(&tcp), "12:04:11.302  web → catalog  tcp 84 B in, 224 B out in 2.1 ms  mTLS");
    }

    #[test]
    fn what_proxies_send_is_understood() {
        assert!(understood(b"\n").is_none());
        assert!(matches!(understood(b"{\"left_out\":3}\n"), Some(Heard::LeftOut(3))));
        let text = serde_json::to_vec(&event()).unwrap();
        assert!(matches!(understood(&text), Some(Heard::Event(got)) if *got == event()));
    }

    #[test]
    fn questions_are_escaped() {
        assert_eq!(escaped("a b&c=/x*"), "a%20b%26c%3D/x*");
    }
}
