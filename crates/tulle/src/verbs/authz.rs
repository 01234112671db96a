//! `tulle authz`: who may call whom.

use std::fmt::Write;

use clap::Subcommand;
use compile::Mesh;
use engine::rbac::{Action, Trace};
use model::Workload;
use model::security::PolicyAction;
use model::service::Protocol;
use serde_json::{Value, json};

use super::declarations::{Declarations, workload};
use crate::cli::Global;
use crate::output::{Exit, fail, print};
use crate::walk::{Arrived, Request, Token, Verdict, arrive};

/// Ask who may call whom
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tulle authz check web payments --method POST --path /charge
  tulle authz check intruder payments -f mesh/ --path /pay.Payments/Charge -o json")]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Check(Box<Check>),
}

/// Evaluate a call against the policies of the called workload: exit 0 allowed, 1 denied
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tulle authz check web payments --method POST --path /charge
  tulle authz check batch.bank ledger --port 9000 -f mesh/
  tulle authz check web payments --jwt-claims '{\"iss\": \"https://issuer.test\", \"sub\": \"amy\"}'

The answer comes from the same function that the proxies call, on the configuration that the called
workload's proxy gets. Nothing is sent.")]
struct Check {
    /// The caller: instance, workload, service or service account, with `.NAMESPACE` where needed
    from: String,
    /// The called one, as FROM
    to: String,
    /// Port of the called workload [default: its first HTTP port, else its first]
    #[arg(long)]
    port: Option<u16>,
    /// Method
    #[arg(long, short = 'X', default_value = "GET")]
    method: String,
    /// Path, with its query
    #[arg(long, default_value = "/")]
    path: String,
    /// Host header [default: the called service's name]
    #[arg(long, value_name = "HOST")]
    authority: Option<String>,
    /// A header, NAME=VALUE (repeat for several)
    #[arg(long = "header", short = 'H', value_name = "NAME=VALUE")]
    headers: Vec<String>,
    #[command(flatten)]
    token: Token,
    /// Call in plaintext, as a program outside the mesh would
    #[arg(long)]
    plaintext: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    declarations: Declarations,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum Output {
    /// For people
    #[default]
    Text,
    /// As JSON
    Json,
}

pub(crate) fn run(args: Args, global: &Global) -> Exit {
    let What::Check(check) = args.what;
    match check_call(&check, global) {
        Ok(exit) | Err(exit) => exit,
    }
}

fn check_call(args: &Check, global: &Global) -> Result<Exit, Exit> {
    let mesh = args.declarations.mesh(global)?;
    let from = workload(&mesh, &args.from, "FROM")?;
    let called = mesh.workloads_meant(&args.to);
    let first = workload(&mesh, &args.to, "TO")?;
    let port = port(&mesh, first, args.port)?;
    let service = mesh.service_at(first, port);
    let hostname = service.map_or_else(|| first.id(), |service| service.hostname.clone());
    let authority = args.authority.clone().unwrap_or(hostname);
    let request = Request::new(&args.method, &args.path, &authority, &args.headers)
        .and_then(|request| request.with(&args.token))
        .map_err(|error| fail(Exit::Usage, error, None))?;
    let mut answers = Vec::new();
    for to in called {
        let Some(mut arrival) = mesh.arrival(from, to, port) else { continue };
        arrival.mtls &= !args.plaintext;
        let arrived =
            arrive(&mesh, from, to, port, arrival, &request).map_err(|error| fail(Exit::Invalid, error, None))?;
        answers.push((to, arrived));
    }
    if answers.is_empty() {
        let next = "give it addresses in its Workload document";
        return Err(fail(Exit::Invalid, format!("nobody can call port {port} of {}", args.to), Some(next)));
    }
    let allowed = answers.iter().all(|(_, arrived)| arrived.verdict == Verdict::Allowed);
    print(&match args.output {
        Output::Text => text(&mesh, from, &answers, &request),
        Output::Json => format!("{:#}\n", document(from, port, &answers, allowed)),
    });
    Ok(if allowed { Exit::Done } else { Exit::No })
}

fn port(mesh: &Mesh, to: &Workload, wanted: Option<u16>) -> Result<u16, Exit> {
    let ports = mesh.served_ports(to);
    let http = ports.iter().find(|(_, spoken)| spoken.is_http() || *spoken == Protocol::Auto);
    let found = match wanted {
        Some(port) => ports.iter().find(|(number, _)| *number == port),
        None => http.or_else(|| ports.first()),
    };
    found.map(|(number, _)| *number).ok_or_else(|| {
        let known: Vec<String> = ports.iter().map(|(number, _)| number.to_string()).collect();
        let next = match known.as_slice() {
            [] => "it declares none".to_owned(),
            known => format!("its ports are {}", known.join(", ")),
        };
        fail(Exit::Usage, format!("{} does not serve that port", to.id()), Some(&next))
    })
}

/// One answer where all instances agree, else one for each.
fn text(mesh: &Mesh, from: &Workload, answers: &[(&Workload, Arrived)], request: &Request) -> String {
    let agree = answers.windows(2).all(|pair| match pair {
        [(_, a), (_, b)] => a.verdict == b.verdict,
        _ => true,
    });
    let shown = if agree { answers.get(..1).unwrap_or_default() } else { answers };
    shown.iter().fold(String::new(), |mut text, (to, arrived)| {
        text.push_str(&verdict(mesh, from, to, arrived, request));
        text
    })
}

/// What one called proxy says, and why.
pub(super) fn verdict(mesh: &Mesh, from: &Workload, to: &Workload, arrived: &Arrived, request: &Request) -> String {
    let place = format!("{}'s inbound proxy", to.id());
    let caller = arrived.peer.clone().unwrap_or_else(|| format!("{} in plaintext", from.id()));
    let mut text = String::new();
    let _ = match &arrived.verdict {
        Verdict::Allowed => match deciding(arrived, Action::Allow) {
            Some(name) => writeln!(text, "ALLOWED by {}, at {place}", origin(arrived, name)),
            None => writeln!(text, "ALLOWED: no policy with action ALLOW selects {}, and none denies this", to.id()),
        },
        Verdict::Denied => denied(&mut text, mesh, to, arrived, &place),
        Verdict::Refused(why) => {
            let help = "its PeerAuthentication asks for mTLS: the connection is closed before any request";
            writeln!(text, "REFUSED at {place}: {why}\n  {help}")
        }
        Verdict::Answer(status, why) => writeln!(text, "ANSWERED {status} by {place}: {why}"),
    };
    let _ = writeln!(text, "  caller    {caller}");
    if arrived.http {
        let _ = writeln!(text, "  request   {} {} of {}", request.method, request.path, request.authority);
    }
    if let Some(token) = &arrived.token {
        let _ = writeln!(text, "  token     {token}");
    }
    for authorizer in &arrived.unasked {
        let _ = writeln!(text, "  external  {authorizer} is asked as well, and may refuse");
    }
    for trace in &arrived.shadow {
        let would = if trace.verdict.allowed { "would allow" } else { "would deny" };
        let name = trace.verdict.policy.as_deref().map(|name| origin(arrived, name));
        let by = name.unwrap_or_else(|| "the policies on trial together".to_owned());
        let _ = writeln!(text, "  dry run   {by} {would} this");
    }
    text
}

fn denied(text: &mut String, mesh: &Mesh, to: &Workload, arrived: &Arrived, place: &str) -> std::fmt::Result {
    if let Some(name) = deciding(arrived, Action::Deny) {
        return writeln!(text, "DENIED by {}, enforced at {place}", origin(arrived, name));
    }
    let policies = mesh.policies_at(to, PolicyAction::Allow);
    let rules: usize = policies.iter().map(|policy| policy.rules.len()).sum();
    let names: Vec<String> = policies.iter().map(|policy| policy.origin.to_string()).collect();
    writeln!(text, "DENIED by {}, enforced at {place}", names.join(" and "))?;
    let count = |number: usize, what: &str| format!("{number} {what}{}", if number == 1 { "" } else { "s" });
    let policy = if policies.len() == 1 { "1 ALLOW policy selects" } else { "ALLOW policies select" };
    let matched = match rules {
        0 => "it has no rules, so nothing passes".to_owned(),
        _ => format!("none of {} matched", count(rules, "rule")),
    };
    writeln!(text, "  default-deny applies: {policy} {}, {matched}", to.id())?;
    let traces = arrived.traces.iter().filter(|trace| trace.action == Action::Allow);
    for policy in traces.flat_map(|trace| &trace.policies) {
        let failed = policy.principals.iter().chain(&policy.permissions).filter(|rule| !rule.held);
        for why in failed.filter_map(|rule| rule.failed.as_ref()).filter(|why| !why.is_empty()) {
            writeln!(text, "    {}  ✗ {why}", short(&policy.name))?;
        }
    }
    Ok(())
}

/// The rule that decided among those of an action.
fn deciding(arrived: &Arrived, action: Action) -> Option<&str> {
    let of_action = |trace: &&Trace| trace.action == action;
    arrived.traces.iter().filter(of_action).find_map(|trace| trace.verdict.policy.as_deref())
}

/// A rule's place in the user's files; its name in the proxy where that is not known.
fn origin(arrived: &Arrived, name: &str) -> String {
    arrived.origins.get(name).cloned().unwrap_or_else(|| name.to_owned())
}

/// `callers rule[1]` of `ns[shop]-policy[callers]-rule[1]`.
fn short(name: &str) -> String {
    let policy = name.split("policy[").nth(1).and_then(|rest| rest.split(']').next());
    let rule = name.rsplit('-').next();
    match (policy, rule) {
        (Some(policy), Some(rule)) => format!("{policy} {rule}"),
        _ => name.to_owned(),
    }
}

fn document(from: &Workload, port: u16, answers: &[(&Workload, Arrived)], allowed: bool) -> Value {
    let answer = |(to, arrived): &(&Workload, Arrived)| {
        let (word, detail) = match &arrived.verdict {
            Verdict::Allowed => ("allowed", None),
            Verdict::Denied => ("denied", None),
            Verdict::Refused(why) => ("refused", Some(why.clone())),
            Verdict::Answer(status, why) => ("answered", Some(format!("{status} {why}"))),
        };
        let policy = deciding(arrived, Action::Deny).or_else(|| deciding(arrived, Action::Allow));
        let dry_run = arrived
            .shadow
            .iter()
            .map(|trace| json!({ "allowed": trace.verdict.allowed, "policy": trace.verdict.policy.as_deref() }));
        json!({
            "workload": to.id(),
            "port": port,
            "verdict": word,
            "detail": detail,
            "policy": policy,
            "origin": policy.map(|name| origin(arrived, name)),
            "caller": arrived.peer,
            "token": arrived.token,
            "external": arrived.unasked,
            "dryRun": dry_run.collect::<Vec<_>>(),
        })
    };
    json!({
        "allowed": allowed,
        "from": from.id(),
        "answers": answers.iter().map(answer).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_have_short_names() {
        assert_eq!(short("ns[shop]-policy[pay-ments]-rule[1]"), "pay-ments rule[1]");
        assert_eq!(short("other"), "other");
    }
}
