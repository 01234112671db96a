//! `tulle proxy config`.

use serde_json::{Value, json};

use super::admin;
use super::connection::{Connection, ask, block_on};
use super::get::{Format, structured};
use super::table;
use crate::cli::Global;
use crate::output::{self, Exit, fail};

/// Show what a proxy runs now, read from the proxy itself
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tulle proxy config web-1.shop clusters\n  tulle proxy config web-1.shop -o json | jq .configs"
)]
pub(crate) struct Args {
    /// NAME.NAMESPACE
    workload: String,
    /// Which part
    #[arg(value_enum)]
    part: Option<Part>,
    /// The proxy's admin address, when the control plane does not know it: unix:PATH or IP:PORT
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<String>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    /// Leave the headings out
    #[arg(long)]
    no_headers: bool,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Listeners,
    Routes,
    Clusters,
    Endpoints,
    Secrets,
}

pub(crate) fn run(args: Args, _global: &Global) -> Exit {
    match show(&args) {
        Ok(exit) | Err(exit) => exit,
    }
}

fn show(args: &Args) -> Result<Exit, Exit> {
    let admin = match &args.admin {
        Some(admin) => admin.clone(),
        None => known_admin(args)?,
    };
    let read = |path: &'static str| -> Result<Value, Exit> {
        let text = block_on(admin::get(&admin, path))?.map_err(|why| {
            fail(Exit::Unreachable, format!("cannot read {path} of the proxy at {admin}: {why}"), None)
        })?;
        serde_json::from_str(&text).map_err(|error| {
            fail(Exit::Unreachable, format!("{path} of the proxy at {admin} is no JSON: {error}"), None)
        })
    };
    let dump = match args.part {
        Some(Part::Endpoints) => read("/clusters?format=json")?,
        _ => read("/config_dump?include_eds")?,
    };
    output::print(&render(&dump, args.part, args.output, args.no_headers));
    Ok(Exit::Done)
}

/// The admin address that the proxy told the control plane.
fn known_admin(args: &Args) -> Result<String, Exit> {
    let client = args.connection.client()?;
    let proxies = ask(client.proxies())?;
    let mut of_workload = proxies.iter().filter(|proxy| proxy.workload == args.workload);
    let Some(first) = of_workload.next() else {
        let message = format!("no proxy of {} is connected", args.workload);
        return Err(fail(Exit::No, message, Some("tulle proxy ls shows those that are; --admin asks one directly")));
    };
    first.admin.clone().ok_or_else(|| {
        let message = format!("the proxy of {} did not say where its admin interface is", args.workload);
        fail(Exit::Unreachable, message, Some("give it with --admin ADDRESS"))
    })
}

fn render(dump: &Value, part: Option<Part>, format: Format, no_headers: bool) -> String {
    let Some(part) = part else {
        return match format {
            Format::Json | Format::Yaml => structured(dump, format),
            _ => summary(dump, no_headers),
        };
    };
    if part != Part::Endpoints && matches!(format, Format::Json | Format::Yaml) {
        return structured(&json!(resources(dump, part)), format);
    }
    if matches!(format, Format::Json | Format::Yaml) {
        return structured(dump, format);
    }
    let (headings, rows): (&[&str], _) = match part {
        Part::Listeners => (&["NAME", "ADDRESS", "CHAINS"], rows(dump, part, listener)),
        Part::Routes => (&["NAME", "VIRTUAL HOST", "DOMAINS", "ROUTES"], routes(dump)),
        Part::Clusters => (&["NAME", "TYPE", "BALANCING"], rows(dump, part, cluster)),
        Part::Secrets => (&["NAME", "KIND"], rows(dump, part, secret)),
        Part::Endpoints => (&["CLUSTER", "ADDRESS", "HEALTH", "WEIGHT"], endpoints(dump)),
    };
    if format == Format::Name {
        return rows.iter().filter_map(|row| row.first()).map(|name| format!("{name}\n")).collect();
    }
    table::render(if no_headers { &[] } else { headings }, &rows)
}

/// How many of each there are.
fn summary(dump: &Value, no_headers: bool) -> String {
    let parts = [
        ("listeners", Part::Listeners),
        ("routes", Part::Routes),
        ("clusters", Part::Clusters),
        ("secrets", Part::Secrets),
    ];
    let rows: Vec<Vec<String>> =
        parts.iter().map(|(name, part)| vec![(*name).to_owned(), resources(dump, *part).len().to_string()]).collect();
    table::render(if no_headers { &[] } else { &["PART", "COUNT"] }, &rows)
}

/// The resources of a part in Envoy's dump, wherever they came from.
fn resources(dump: &Value, part: Part) -> Vec<Value> {
    // List in the dump, then the path from an item to its resource.
    let lists: &[(&str, &str)] = match part {
        Part::Listeners => &[("static_listeners", "/listener"), ("dynamic_listeners", "/active_state/listener")],
        Part::Routes => &[("static_route_configs", "/route_config"), ("dynamic_route_configs", "/route_config")],
        Part::Clusters => &[("static_clusters", "/cluster"), ("dynamic_active_clusters", "/cluster")],
        Part::Secrets => &[("static_secrets", "/secret"), ("dynamic_active_secrets", "/secret")],
        Part::Endpoints => &[],
    };
    let configs = dump.get("configs").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let mut found = Vec::new();
    for (list, path) in lists {
        let items = configs.iter().filter_map(|config| config.get(list)?.as_array()).flatten();
        found.extend(items.filter_map(|item| item.pointer(path)).cloned());
    }
    found.sort_by_key(|resource| text(resource, "/name"));
    found
}

fn rows(dump: &Value, part: Part, row: fn(&Value) -> Vec<String>) -> Vec<Vec<String>> {
    resources(dump, part).iter().map(row).collect()
}

fn text(value: &Value, pointer: &str) -> String {
    match value.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    }
}

fn dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

fn address(value: &Value) -> String {
    match value.pointer("/socket_address") {
        Some(socket) => {
            let host = text(socket, "/address");
            let host = if host.contains(':') { format!("[{host}]") } else { host };
            format!("{host}:{}", text(socket, "/port_value"))
        }
        None => dash(text(value, "/pipe/path")),
    }
}

fn length(value: &Value, pointer: &str) -> usize {
    value.pointer(pointer).and_then(Value::as_array).map_or(0, Vec::len)
}

fn listener(listener: &Value) -> Vec<String> {
    let at = listener.get("address").map_or_else(|| "-".to_owned(), address);
    let chains = length(listener, "/filter_chains") + usize::from(listener.get("default_filter_chain").is_some());
    vec![text(listener, "/name"), at, chains.to_string()]
}

fn cluster(cluster: &Value) -> Vec<String> {
    let kind = match text(cluster, "/type") {
        kind if kind.is_empty() => "STATIC".to_owned(),
        kind => kind,
    };
    let policy = match text(cluster, "/lb_policy") {
        policy if policy.is_empty() => "ROUND_ROBIN".to_owned(),
        policy => policy,
    };
    vec![text(cluster, "/name"), kind, policy]
}

fn secret(secret: &Value) -> Vec<String> {
    let kinds = ["tls_certificate", "validation_context", "session_ticket_keys", "generic_secret"];
    let kind = kinds.iter().find(|kind| secret.get(**kind).is_some());
    vec![text(secret, "/name"), kind.map_or("-", |kind| *kind).to_owned()]
}

fn routes(dump: &Value) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for config in resources(dump, Part::Routes) {
        let hosts = config.get("virtual_hosts").and_then(Value::as_array).cloned().unwrap_or_default();
        for host in hosts {
            let domains = host.get("domains").and_then(Value::as_array).cloned().unwrap_or_default();
            let shown: Vec<String> = domains.iter().take(3).map(|domain| text(domain, "")).collect();
            let more = domains.len().saturating_sub(shown.len());
            let domains = if more > 0 { format!("{} +{more}", shown.join(",")) } else { shown.join(",") };
            let name = dash(text(&config, "/name"));
            rows.push(vec![name, text(&host, "/name"), dash(domains), length(&host, "/routes").to_string()]);
        }
    }
    rows
}

fn endpoints(statuses: &Value) -> Vec<Vec<String>> {
    let clusters = statuses.get("cluster_statuses").and_then(Value::as_array).cloned().unwrap_or_default();
    let mut rows = Vec::new();
    for cluster in clusters {
        let hosts = cluster.get("host_statuses").and_then(Value::as_array).cloned().unwrap_or_default();
        for host in hosts {
            let at = host.get("address").map_or_else(|| "-".to_owned(), address);
            let failed = host.get("health_status").and_then(Value::as_object).cloned().unwrap_or_default();
            let failed = failed.iter().filter(|(_, value)| **value == Value::Bool(true)).map(|(name, _)| name.clone());
            let failed: Vec<String> = failed.collect();
            let health = match text(&host, "/health_status/eds_health_status") {
                _ if !failed.is_empty() => failed.join(","),
                eds if eds.is_empty() => "UNKNOWN".to_owned(),
                eds => eds,
            };
            let weight = match text(&host, "/weight") {
                weight if weight.is_empty() => "1".to_owned(),
                weight => weight,
            };
            rows.push(vec![text(&cluster, "/name"), at, health, weight]);
        }
    }
    rows.sort();
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dump() -> Value {
        json!({"configs": [
            {"@type": "type.googleapis.com/envoy.admin.v3.ListenersConfigDump",
             "dynamic_listeners": [{"name": "virtualInbound", "active_state": {"listener": {
                "name": "virtualInbound", "address": {"socket_address": {"address": "::", "port_value": 15006}},
                "filter_chains": [{}, {}], "default_filter_chain": {}}}}]},
            {"@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump",
             "static_clusters": [{"cluster": {"name": "xds-grpc"}}],
             "dynamic_active_clusters": [{"cluster": {"name": "outbound|80||web", "type": "EDS", "lb_policy": "LEAST_REQUEST"}}]},
            {"@type": "type.googleapis.com/envoy.admin.v3.RoutesConfigDump",
             "dynamic_route_configs": [{"route_config": {"name": "80", "virtual_hosts": [
                {"name": "web:80", "domains": ["web", "web.shop", "web.shop.svc", "10.0.0.1"], "routes": [{}]}]}}]},
            {"dynamic_active_secrets": [{"name": "default", "secret": {"name": "default", "tls_certificate": {}}}]}
        ]})
    }

    fn shown(part: Part) -> String {
        render(&dump(), Some(part), Format::Table, false)
    }

    #[test]
    fn each_part_is_a_table() {
        assert_eq!(shown(Part::Listeners), "NAME            ADDRESS     CHAINS\nvirtualInbound  [::]:15006  3\n");
        assert_eq!(
            shown(Part::Clusters),
            "NAME              TYPE    BALANCING\noutbound|80||web  EDS     LEAST_REQUEST\nxds-grpc          STATIC  ROUND_ROBIN\n"
        );
        assert_eq!(
            shown(Part::Routes),
            "NAME  VIRTUAL HOST  DOMAINS                      ROUTES\n80    web:80        web,web.shop,web.shop.svc +1  1\n"
                .replace("DOMAINS                      ", "DOMAINS                       ")
        );
        assert_eq!(shown(Part::Secrets), "NAME     KIND\ndefault  tls_certificate\n");
        assert_eq!(
            render(&dump(), None, Format::Table, false),
            "PART       COUNT\nlisteners  1\nroutes     1\nclusters   2\nsecrets    1\n"
        );
    }

    #[test]
    fn endpoints_show_their_health() {
        let statuses = json!({"cluster_statuses": [{"name": "c", "host_statuses": [
            {"address": {"socket_address": {"address": "10.0.0.1", "port_value": 80}},
             "health_status": {"eds_health_status": "HEALTHY"}, "weight": 2},
            {"address": {"pipe": {"path": "/run/app.sock"}},
             "health_status": {"eds_health_status": "HEALTHY", "failed_outlier_check": true}}
        ]}]});
        assert_eq!(
            render(&statuses, Some(Part::Endpoints), Format::Table, false),
            "CLUSTER  ADDRESS        HEALTH                WEIGHT\n\
             c        /run/app.sock  failed_outlier_check  1\n\
             c        10.0.0.1:80    HEALTHY               2\n"
        );
    }
}
