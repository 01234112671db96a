//! `tulle explain request`: the way of one request through the mesh, on paper.

use std::fmt::Write;
use std::sync::Arc;

use compile::{Arrival, Mesh};
use engine::Cluster;
use engine::balance::LbPolicy;
use model::service::Protocol;
use model::{Service, Workload};

use super::authz;
use super::declarations::{Declarations, workload};
use crate::cli::Global;
use crate::output::{Exit, fail, print};
use crate::walk::{Departed, Request, Target, Token, Verdict, Way, arrive, depart};

/// Walk a request through the compiled configuration, without sending it: exit 0 it would be served, 1 not
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tulle explain request --from web --to http://catalog/items -H x-user=amy
  tulle explain request -f mesh/ --from batch.bank --to tcp://ledger:9000")]
pub(crate) struct Args {
    /// The caller: instance, workload, service or service account, with `.NAMESPACE` where needed
    #[arg(long, value_name = "WORKLOAD")]
    from: String,
    /// What it calls, as the program writes it
    #[arg(long, value_name = "URL", value_parser = Target::parse)]
    to: Target,
    /// Method
    #[arg(long, short = 'X', default_value = "GET")]
    method: String,
    /// A header, NAME=VALUE (repeat for several)
    #[arg(long = "header", short = 'H', value_name = "NAME=VALUE")]
    headers: Vec<String>,
    #[command(flatten)]
    token: Token,
    #[command(flatten)]
    declarations: Declarations,
}

pub(crate) fn run(args: &Args, global: &Global) -> Exit {
    match explain(args, global) {
        Ok(exit) | Err(exit) => exit,
    }
}

fn explain(args: &Args, global: &Global) -> Result<Exit, Exit> {
    let mesh = args.declarations.mesh(global)?;
    let from = workload(&mesh, &args.from, "--from")?;
    let (service, port, protocol) = called(&mesh, from, &args.to)?;
    let usage = |error: String| fail(Exit::Usage, error, None);
    let invalid = |error: String| fail(Exit::Invalid, error, None);
    let request = Request::new(&args.method, &args.to.path, &args.to.authority, &args.headers)
        .and_then(|request| request.with(&args.token))
        .map_err(usage)?;
    let mut story = Story::default();
    let host = &args.to.host;
    story.step(
        "service",
        format!("{host} is {}, port {port} ({}), {}", service.hostname, name(protocol), service.origin),
    );
    let departed = depart(&mesh, from, service, port, &request).map_err(invalid)?;
    story.step("outbound", format!("{}'s proxy, listener {}", from.id(), departed.listener));
    story.step("route", route(&departed));
    let served = match &departed.way {
        Way::Answer(status, why) => {
            story.end(format!("answered {status} by {}'s own proxy: {why}", from.id()));
            *status < 400
        }
        Way::Cluster(cluster) => onwards(&mesh, from, cluster, &request, &mut story).map_err(invalid)?,
    };
    print(&story.text);
    Ok(if served { Exit::Done } else { Exit::No })
}

fn name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Http => "HTTP",
        Protocol::Http2 => "HTTP/2",
        Protocol::Grpc => "gRPC",
        Protocol::Tls => "TLS",
        Protocol::Https => "HTTPS",
        Protocol::Tcp => "TCP",
        Protocol::Auto => "detected",
    }
}

/// Numbered lines.
#[derive(Default)]
struct Story {
    text: String,
    steps: usize,
}

impl Story {
    fn step(&mut self, name: &str, what: impl AsRef<str>) {
        self.steps += 1;
        let _ = writeln!(self.text, "{:>2} {name:<9} {}", self.steps, what.as_ref());
    }

    fn more(&mut self, what: &str) {
        for line in what.lines() {
            let _ = writeln!(self.text, "             {line}");
        }
    }

    fn end(&mut self, what: impl AsRef<str>) {
        let _ = writeln!(self.text, " → {}", what.as_ref());
    }
}

/// The service and port a URL means: the port it names, else 80, else the only HTTP port.
fn called<'m>(mesh: &'m Mesh, from: &'m Workload, target: &Target) -> Result<(&'m Service, u16, Protocol), Exit> {
    let Some(service) = mesh.service_meant(&target.host, &from.namespace) else {
        let known: Vec<&str> =
            mesh.visible_services(&from.namespace).take(12).map(|service| service.hostname.as_str()).collect();
        let next = format!("{} sees {}", from.id(), known.join(", "));
        return Err(fail(Exit::Usage, format!("no service is called {}", target.host), Some(&next)));
    };
    let http: Vec<_> = service.ports.iter().filter(|port| port.protocol.is_http()).collect();
    let wanted = target.port.unwrap_or(80);
    let found = service.ports.iter().find(|port| port.number == wanted).or(match (target.port, http.as_slice()) {
        (None, [only, ..]) => Some(*only),
        _ => None,
    });
    found.map(|port| (service, port.number, port.protocol)).ok_or_else(|| {
        let ports: Vec<String> = service.ports.iter().map(|port| port.number.to_string()).collect();
        let next = format!("its ports are {}", ports.join(", "));
        fail(Exit::Usage, format!("{} has no port {wanted}", service.hostname), Some(&next))
    })
}

fn route(departed: &Departed) -> String {
    let mut text = departed.route.clone().unwrap_or_else(|| "none matches".to_owned());
    if !departed.shares.is_empty() {
        let share = |(name, weight): &(Arc<str>, u32)| format!("{} {weight}", subset(name));
        let shares: Vec<String> = departed.shares.iter().map(share).collect();
        let _ = write!(text, ", split {}", shares.join(" / "));
    }
    if let Way::Cluster(cluster) = &departed.way {
        let _ = write!(text, " → {}", label(cluster.name()));
    }
    if !departed.limits.is_empty() {
        let _ = write!(text, " ({})", departed.limits.join(", "));
    }
    text
}

/// `v2 of catalog.shop.svc.cluster.local:80` for `outbound|80|v2|catalog.shop.svc.cluster.local`.
fn label(cluster: &str) -> String {
    match cluster.split('|').collect::<Vec<_>>()[..] {
        ["outbound", port, "", host] => format!("{host}:{port}"),
        ["outbound", port, subset, host] => format!("{subset} of {host}:{port}"),
        _ => cluster.to_owned(),
    }
}

/// `v2` for `outbound|80|v2|catalog.shop.svc.cluster.local`, the whole label where there is no subset.
fn subset(cluster: &str) -> String {
    match cluster.split('|').nth(2).filter(|subset| !subset.is_empty()) {
        Some(subset) => subset.to_owned(),
        None => label(cluster),
    }
}

fn onwards(
    mesh: &Mesh,
    from: &Workload,
    cluster: &Arc<Cluster>,
    request: &Request,
    story: &mut Story,
) -> Result<bool, String> {
    story.step("balance", balance(cluster));
    let Some(endpoint) = cluster.endpoints.iter().next() else {
        story.end(format!("answered 503: {} has no endpoint", label(cluster.name())));
        return Ok(false);
    };
    let tls = cluster.transport(endpoint);
    story.step(
        "mTLS",
        match (tls, from.identity(&mesh.config().trust_domain)) {
            (Some(_), Some(identity)) => format!("as {identity}"),
            (Some(_), None) => "TLS without a mesh identity".to_owned(),
            (None, _) => "none: plaintext".to_owned(),
        },
    );
    let Some(at) = endpoint.address.socket() else {
        story.end(format!("would be sent to {}, outside of what the mesh knows", endpoint.address));
        return Ok(true);
    };
    let Some((to, number)) = mesh.workload_at(at) else {
        story.end(format!("would be sent to {at}, which is no workload of the mesh"));
        return Ok(true);
    };
    if !to.meshed {
        story.end(format!("would be served by {}, which has no proxy", to.id()));
        return Ok(true);
    }
    let arrival = Arrival { address: at, mtls: tls.is_some() };
    let arrived = arrive(mesh, from, to, number, arrival, request)?;
    let verdict = authz::verdict(mesh, from, to, &arrived, request);
    let (first, rest) = verdict.split_once('\n').unwrap_or((&verdict, ""));
    story.step("inbound", first);
    let reasons: Vec<&str> =
        rest.lines().filter(|line| !line.starts_with("  caller") && !line.starts_with("  request")).collect();
    story.more(&reasons.join("\n"));
    let served = arrived.verdict == Verdict::Allowed;
    story.end(match &arrived.verdict {
        Verdict::Allowed => format!("would be served by {}", to.id()),
        Verdict::Denied => "would be answered 403".to_owned(),
        Verdict::Refused(_) => "would fail: the connection is closed".to_owned(),
        Verdict::Answer(status, _) => format!("would be answered {status}"),
    });
    Ok(served)
}

fn balance(cluster: &Cluster) -> String {
    let how = match &cluster.config.lb {
        LbPolicy::RoundRobin { .. } => "in turn",
        LbPolicy::LeastRequest { .. } => "least request",
        LbPolicy::Random => "at random",
        LbPolicy::RingHash { .. } => "by ring hash",
        LbPolicy::Maglev { .. } => "by Maglev hash",
        _ => "as the cluster says",
    };
    let places: Vec<String> = cluster.endpoints.iter().take(4).map(|endpoint| endpoint.address.to_string()).collect();
    let number = cluster.endpoints.len();
    let more = if number > places.len() { ", ..." } else { "" };
    format!("{how} among {number} endpoint{}: {}{more}", if number == 1 { "" } else { "s" }, places.join(", "))
}
