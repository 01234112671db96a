//! How a running mesh is.

use std::path::PathBuf;
use std::time::SystemTime;

use control::api::{Proxy, Status, Workload};
use control::client::{Client, ClientError};
use identity::tls::{PeerFacts, TrustBundle};
use serde_json::Value;

use super::Finding;
use crate::verbs::admin;

const CONTROL: &str = "control plane";
const CONFIGURATION: &str = "configuration";
const PROXIES: &str = "proxies";
const CERTIFICATES: &str = "certificates";

/// Findings of one kind that are named one by one; the rest is counted.
const NAMED: usize = 5;
/// When the end of a root certificate is worth a word, in days.
const ROOT_DAYS: u64 = 60;

pub(super) async fn check(client: &Client) -> Vec<Finding> {
    let status = match client.status().await {
        Ok(status) => status,
        Err(error) => return vec![unreachable(&error)],
    };
    let mut findings = vec![Finding::well(
        CONTROL,
        format!("answers at {}: version {}, configuration v{}", client.address(), status.version, status.revision),
    )];
    findings.extend(version(&status));
    findings.extend(configuration(client, &status).await);
    let (proxies, workloads) = match (client.proxies().await, client.workloads().await) {
        (Ok(proxies), Ok(workloads)) => (proxies, workloads),
        (Err(error), _) | (_, Err(error)) => {
            findings.push(unreachable(&error));
            return findings;
        }
    };
    findings.extend(synced(&proxies));
    findings.extend(missing(&workloads));
    findings.extend(certificates(&proxies).await);
    findings
}

fn unreachable(error: &ClientError) -> Finding {
    let hint = "start it with `tulle control --config DIR`, or name it with --run-dir or --api; `--pre` checks the machine alone";
    Finding::wrong(CONTROL, error.to_string(), hint)
}

fn version(status: &Status) -> Option<Finding> {
    let own = env!("CARGO_PKG_VERSION");
    (status.version != own).then(|| {
        Finding::warning(
            CONTROL,
            format!("it is version {}, this program {own}", status.version),
            "use the same version",
        )
    })
}

async fn configuration(client: &Client, status: &Status) -> Vec<Finding> {
    if status.errors == 0 && status.warnings == 0 {
        let text = format!("{} services and {} workloads, nothing wrong", status.services, status.workloads);
        return vec![Finding::well(CONFIGURATION, text)];
    }
    let all = match client.findings().await {
        Ok(all) => all,
        Err(error) => return vec![unreachable(&error)],
    };
    let mut findings = Vec::new();
    for (severity, wrong) in [("error", true), ("warning", false)] {
        let of = all.iter().filter(|finding| finding.severity == severity);
        for finding in of.clone().take(NAMED) {
            let place = match (&finding.file, finding.line) {
                (Some(file), Some(line)) => format!(" ({file}:{line})"),
                (Some(file), None) => format!(" ({file})"),
                _ => String::new(),
            };
            let object = finding.object.as_ref().map(|object| format!("{object}: ")).unwrap_or_default();
            let text = format!("{object}{}{place}", finding.message);
            let hint = finding.help.clone().unwrap_or_else(|| format!("tulle explain {}", finding.code));
            findings.push(match wrong {
                true => Finding::wrong(CONFIGURATION, text, hint),
                false => Finding::warning(CONFIGURATION, text, hint),
            });
        }
        let rest = of.count().saturating_sub(NAMED);
        if rest > 0 {
            let text = format!("{rest} more {severity}s");
            let hint = "`tulle get -A` and `tulle analyze DIR` show all of them";
            findings.push(match wrong {
                true => Finding::wrong(CONFIGURATION, text, hint),
                false => Finding::warning(CONFIGURATION, text, hint),
            });
        }
    }
    findings
}

fn synced(proxies: &[Proxy]) -> Vec<Finding> {
    if proxies.is_empty() {
        let hint = "start programs with `tulle run`, or proxies with a bootstrap for this control plane";
        return vec![Finding::warning(PROXIES, "none is connected", hint)];
    }
    let (well, behind): (Vec<_>, Vec<_>) = proxies.iter().partition(|proxy| proxy.is_synced());
    let mut findings = Vec::new();
    if !well.is_empty() {
        findings.push(Finding::well(
            PROXIES,
            format!("{} of {} have their whole configuration", well.len(), proxies.len()),
        ));
    }
    for proxy in behind.iter().take(NAMED) {
        findings.push(match proxy.refused.first() {
            Some(refused) => Finding::wrong(
                PROXIES,
                format!("{} refused {}: {}", proxy.workload, refused.name, refused.message),
                "it runs its last good configuration; correct what it names",
            ),
            None => Finding::warning(
                PROXIES,
                format!("{} has v{} of v{}", proxy.workload, proxy.acknowledged, proxy.wanted),
                "wait a moment and look again; if it stays, read the proxy's log",
            ),
        });
    }
    if behind.len() > NAMED {
        findings.push(Finding::warning(PROXIES, format!("{} more are behind", behind.len() - NAMED), "tulle proxy ls"));
    }
    findings
}

fn missing(workloads: &[Workload]) -> Option<Finding> {
    let without = workloads.iter().filter(|workload| workload.meshed && !workload.connected);
    let names: Vec<&str> = without.map(|workload| workload.workload.as_str()).collect();
    let shown = names.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    let more = if names.len() > NAMED { format!(" and {} more", names.len() - NAMED) } else { String::new() };
    (!names.is_empty()).then(|| {
        Finding::warning(
            PROXIES,
            format!("no proxy is connected for {shown}{more}"),
            "start them with `tulle run`, or declare `meshed: false`",
        )
    })
}

/// The certificates that the proxies use now.
async fn certificates(proxies: &[Proxy]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let (mut seen, mut first_end) = (0, None::<String>);
    for proxy in proxies {
        let Some(address) = &proxy.admin else { continue };
        let page = match admin::get(address, "/certs").await {
            Ok(page) => page,
            Err(error) => {
                let text = format!("{} does not answer at {address}: {error}", proxy.workload);
                findings.push(Finding::warning(CERTIFICATES, text, "is it alive, and is its socket yours to open?"));
                continue;
            }
        };
        for end in ends(&page) {
            seen += 1;
            if end.expired {
                let text = format!("the certificate of {} ended at {}", proxy.workload, end.at);
                findings.push(Finding::wrong(
                    CERTIFICATES,
                    text,
                    "it must attest again: `tulle token create`, then start it with --token",
                ));
            }
            if first_end.as_ref().is_none_or(|first| end.at < *first) {
                first_end = Some(end.at);
            }
        }
    }
    if let Some(first) = first_end {
        findings
            .push(Finding::well(CERTIFICATES, format!("{seen} in use; the first one to be renewed ends at {first}")));
    }
    findings.truncate(NAMED * 2);
    findings
}

struct End {
    /// As Envoy writes it, which sorts by time.
    at: String,
    expired: bool,
}

/// The ends of the certificate chains on a proxy's `/certs`.
fn ends(page: &str) -> Vec<End> {
    let page: Value = serde_json::from_str(page).unwrap_or_default();
    let list = |value: &Value, key: &str| value.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let chains = list(&page, "certificates").into_iter().flat_map(|one| list(&one, "cert_chain"));
    let now = jiff::Timestamp::now();
    chains
        .filter_map(|certificate| {
            let at = certificate.get("expiration_time")?.as_str()?.to_owned();
            let expired = at.parse::<jiff::Timestamp>().is_ok_and(|end| end < now);
            Some(End { at, expired })
        })
        .collect()
}

/// The root of the certificate authority, where this program may read it.
pub(super) fn root(directory: Option<PathBuf>, strict: Option<u64>, now: SystemTime) -> Option<Finding> {
    let given = directory.is_some();
    let path = directory.unwrap_or_else(identity::ca::default_directory).join("root-cert.pem");
    let read = || -> Result<SystemTime, String> {
        let text = std::fs::read(&path).map_err(|error| error.to_string())?;
        let bundle = TrustBundle::for_any_name(&text).map_err(|error| error.to_string())?;
        let root = bundle.certificates().first().ok_or("there is no certificate in it")?;
        Ok(PeerFacts::read(root).map_err(|error| error.detail)?.not_after)
    };
    let end = match read() {
        Ok(end) => end,
        // Elsewhere the authority's directory is not ours to read.
        Err(_) if !given => return None,
        Err(error) => {
            let text = format!("cannot read {}: {error}", path.display());
            return Some(Finding::wrong(CERTIFICATES, text, "give the authority's directory with --ca-dir"));
        }
    };
    let Ok(left) = end.duration_since(now) else {
        return Some(Finding::wrong(
            CERTIFICATES,
            "the root certificate has ended",
            "make a new authority and join again",
        ));
    };
    let days = left.as_secs() / 86_400;
    let text = format!("the root certificate ends in {days} days");
    let hint = "plan a new authority: every workload must join again";
    Some(match strict {
        Some(least) if days < least => Finding::wrong(CERTIFICATES, format!("{text} (--cert-days {least})"), hint),
        None if days < ROOT_DAYS => Finding::warning(CERTIFICATES, text, hint),
        _ => Finding::well(CERTIFICATES, text),
    })
}
