//! `tulle proxy ls`.

use control::api::Proxy;

use super::connection::{Connection, ask};
use super::get::{Format, structured};
use super::table;
use crate::cli::Global;
use crate::output::{self, Exit};

/// List the connected proxies and what each of them has
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tulle proxy ls\n  tulle proxy ls -n shop -o wide")]
pub(crate) struct Args {
    /// Only this namespace
    #[arg(short, long, value_name = "NAMESPACE", env = "TULLE_NAMESPACE")]
    namespace: Option<String>,
    /// All namespaces (the default)
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    /// Leave the headings out
    #[arg(long)]
    no_headers: bool,
    #[command(flatten)]
    connection: Connection,
}

pub(crate) fn run(args: Args, _global: &Global) -> Exit {
    match list(&args) {
        Ok(exit) | Err(exit) => exit,
    }
}

fn list(args: &Args) -> Result<Exit, Exit> {
    let client = args.connection.client()?;
    let mut proxies = ask(client.proxies())?;
    if let Some(namespace) = &args.namespace {
        let of = |proxy: &Proxy| proxy.workload.rsplit_once('.').is_some_and(|(_, of)| of == namespace);
        proxies.retain(of);
    }
    output::print(&render(&proxies, args.output, args.no_headers));
    Ok(Exit::Done)
}

fn render(proxies: &[Proxy], format: Format, no_headers: bool) -> String {
    match format {
        Format::Json | Format::Yaml => structured(&serde_json::to_value(proxies).unwrap_or_default(), format),
        Format::Name => proxies.iter().map(|proxy| format!("{}\n", proxy.workload)).collect(),
        Format::Table | Format::Wide => {
            let wide = format == Format::Wide;
            let mut headings = vec!["WORKLOAD", "CONFIG", "AGENT", "PROTOCOL", "IDENTITY"];
            if wide {
                headings.extend(["NODE", "ADMIN", "SINCE", "REFUSED"]);
            }
            let rows: Vec<Vec<String>> = proxies.iter().map(|proxy| row(proxy, wide)).collect();
            table::render(if no_headers { &[] } else { &headings }, &rows)
        }
    }
}

fn row(proxy: &Proxy, wide: bool) -> Vec<String> {
    let dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    let config = match proxy.refused.len() {
        _ if proxy.acknowledged == 0 => "none yet".to_owned(),
        0 if proxy.is_synced() => format!("v{} ✓", proxy.acknowledged),
        0 => format!("v{} of v{}", proxy.acknowledged, proxy.wanted),
        count => format!("v{} ✗ {count} refused", proxy.acknowledged),
    };
    let mut row = vec![proxy.workload.clone(), config, dash(&proxy.agent), proxy.protocol.clone(), dash(&proxy.peer)];
    if wide {
        let refused = proxy.refused.iter().map(|one| format!("{}: {}", one.name, one.message));
        let admin = proxy.admin.clone().unwrap_or_default();
        let refused = dash(&refused.collect::<Vec<_>>().join("; "));
        row.extend([proxy.node.clone(), dash(&admin), proxy.since.clone(), refused]);
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use control::api::RefusedResource;

    #[test]
    fn a_line_for_each_proxy() {
        let synced = Proxy {
            workload: "web-1.shop".to_owned(),
            agent: "envoy/1.40.0".to_owned(),
            protocol: "delta".to_owned(),
            peer: "spiffe://cluster.local/ns/shop/sa/web".to_owned(),
            wanted: 41,
            acknowledged: 41,
            ..Proxy::default()
        };
        let behind = Proxy { workload: "cart-1.shop".to_owned(), acknowledged: 40, ..synced.clone() };
        let refused = RefusedResource { type_url: String::new(), name: "l".to_owned(), message: "no".to_owned() };
        let refusing = Proxy { workload: "old.shop".to_owned(), refused: vec![refused], ..synced.clone() };
        let fresh = Proxy { workload: "new.shop".to_owned(), acknowledged: 0, ..synced.clone() };
        assert_eq!(
            render(&[synced, behind, refusing, fresh], Format::Table, false),
            "WORKLOAD     CONFIG           AGENT         PROTOCOL  IDENTITY\n\
             web-1.shop   v41 ✓            envoy/1.40.0  delta     spiffe://cluster.local/ns/shop/sa/web\n\
             cart-1.shop  v40 of v41       envoy/1.40.0  delta     spiffe://cluster.local/ns/shop/sa/web\n\
             old.shop     v41 ✗ 1 refused  envoy/1.40.0  delta     spiffe://cluster.local/ns/shop/sa/web\n\
             new.shop     none yet         envoy/1.40.0  delta     spiffe://cluster.local/ns/shop/sa/web\n"
        );
    }
}
