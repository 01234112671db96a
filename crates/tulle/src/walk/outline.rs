//! A plan as people read it: what comes in under which rules, what goes out by which routes.

use std::fmt::Write;

use compile::Mesh;
use engine::http_manager::HttpFilterKind;
use engine::listener::{Direction, NetworkFilter, TcpClusters};
use engine::rbac::{Action, Rules};
use engine::routes::{ClusterChoice, Route, RouteAction};
use engine::{FilterChain, Listener, Plan};
use model::Workload;

use super::plan::plan_of;

/// The outline of what a workload's proxy runs.
pub(crate) fn outline(mesh: &Mesh, workload: &Workload) -> Result<String, String> {
    let plan = plan_of(mesh, workload)?;
    let mut listeners: Vec<_> = plan.listeners().collect();
    listeners.sort_by_key(|listener| (listener.direction != Direction::Inbound, listener.name.clone()));
    let mut text = format!("{}, {}\n", workload.id(), workload.origin);
    for listener in listeners {
        describe(&mut text, &plan, listener);
    }
    let mut clusters: Vec<_> = plan.clusters().collect();
    clusters.sort_by_key(|cluster| cluster.name().clone());
    let _ = writeln!(text, "clusters");
    for cluster in clusters {
        let places: Vec<String> = cluster.endpoints.iter().take(4).map(|one| one.address.to_string()).collect();
        let more = if cluster.endpoints.len() > places.len() { ", ..." } else { "" };
        let _ = writeln!(text, "  {}  {}{more}", cluster.name(), places.join(", "));
    }
    Ok(text)
}

fn describe(text: &mut String, plan: &Plan, listener: &Listener) {
    let way = match listener.direction {
        Direction::Inbound => "in ",
        _ => "out",
    };
    let _ = writeln!(text, "{way} {}  {}", listener.address, listener.name);
    for chain in listener.chains.iter() {
        let how = match (listener.direction, chain.tls.is_some()) {
            (Direction::Inbound, true) => "  mesh mTLS",
            (Direction::Inbound, false) => "  plaintext",
            _ => "",
        };
        let _ = writeln!(text, "  {}{how}", chain.name);
        for filter in &chain.filters {
            network(text, plan, chain, filter);
        }
    }
}

fn network(text: &mut String, plan: &Plan, chain: &FilterChain, filter: &NetworkFilter) {
    match filter {
        NetworkFilter::Rbac(rbac) => {
            rules(text, chain, rbac.rules.as_deref(), "");
            rules(text, chain, rbac.shadow.as_deref(), " (dry run)");
        }
        NetworkFilter::Tcp(proxy) => {
            let clusters = match &proxy.clusters {
                TcpClusters::One(name) => name.to_string(),
                TcpClusters::Weighted { clusters, .. } => {
                    weighted(clusters.iter().map(|(name, weight)| (&**name, *weight)))
                }
            };
            let _ = writeln!(text, "    → {clusters}");
        }
        NetworkFilter::Http(manager) => {
            for filter in &manager.filters {
                if let HttpFilterKind::Rbac(rbac) = plan.kind_of(filter) {
                    rules(text, chain, rbac.rules.as_deref(), "");
                    rules(text, chain, rbac.shadow.as_deref(), " (dry run)");
                }
            }
            let hosts = plan.routes_of(manager).into_iter().flat_map(|table| &table.virtual_hosts);
            for host in hosts {
                let _ = writeln!(text, "    {}", host.name);
                for one in &host.routes {
                    let _ = writeln!(text, "      {}", route(one));
                }
            }
        }
        _ => {}
    }
}

fn rules(text: &mut String, chain: &FilterChain, rules: Option<&Rules>, when: &str) {
    let Some(rules) = rules else { return };
    let action = match rules.action {
        Action::Allow => "allow",
        Action::Deny => "deny",
        Action::Log => "audit",
    };
    if rules.policies().is_empty() {
        let _ = writeln!(text, "    {action}{when} nothing");
    }
    for policy in rules.policies() {
        let origin = chain.metadata.find("tulle", [&*policy.name]).and_then(|origin| origin.text());
        let _ = writeln!(text, "    {action}{when} {}", origin.unwrap_or(&policy.name));
    }
}

fn route(route: &Route) -> String {
    let origin = route.metadata.origin().map_or_else(|| route.name.to_string(), ToString::to_string);
    let target = match &route.action {
        RouteAction::Forward(action) => match &action.clusters {
            ClusterChoice::One(name) => name.to_string(),
            ClusterChoice::Header(_) => "the cluster that a header names".to_owned(),
            ClusterChoice::Weighted(all) => {
                weighted(all.clusters.iter().filter_map(|one| Some((&**one.cluster.as_ref().ok()?, one.weight))))
            }
        },
        RouteAction::Redirect(_) => "a redirect".to_owned(),
        _ => "an answer of the proxy's own".to_owned(),
    };
    format!("{origin} → {target}")
}

fn weighted<'n>(shares: impl Iterator<Item = (&'n str, u32)>) -> String {
    shares.map(|(name, weight)| format!("{weight} {name}")).collect::<Vec<_>>().join(" / ")
}
