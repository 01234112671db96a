//! `tulle stat`.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use telemetry::edges::{REPORT_VERSION, Report};

use super::connection::block_on;
use super::mesh::{Found, Mesh};
use super::stat_rows::{Answer, Stat};
use super::{admin, duration};
use crate::cli::Global;
use crate::output::{self, Exit, fail};

/// How often a watched table is renewed.
const RENEW: Duration = Duration::from_secs(2);

/// Show the golden signals of every workload: success, rate, latency, mTLS, denials, configuration
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tulle stat -n shop\n  tulle stat -n shop -w -t 5m\n  tulle stat --admin unix:/run/tulle/web-1/admin.sock -o json"
)]
pub(crate) struct Args {
    /// Only this service or workload
    name: Option<String>,
    /// Only this namespace [default: all]
    #[arg(short, long, value_name = "NAMESPACE", env = "TULLE_NAMESPACE")]
    namespace: Option<String>,
    /// All namespaces (the default)
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// Renew the table until interrupted
    #[arg(short, long)]
    watch: bool,
    /// Over how long: 30s, 1m, up to 10m
    #[arg(short = 't', long, value_name = "DURATION", default_value = "1m", value_parser = duration::parse)]
    window: Duration,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    /// Leave the headings out
    #[arg(long)]
    no_headers: bool,
    #[command(flatten)]
    mesh: Mesh,
}

/// How the numbers are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum Format {
    #[default]
    Table,
    Wide,
    Json,
}

pub(crate) fn run(args: Args, global: &Global) -> Exit {
    match block_on(show(&args, global)) {
        Ok(exit) | Err(exit) => exit,
    }
}

async fn show(args: &Args, global: &Global) -> Exit {
    loop {
        let stat = match gather(&args.mesh, args.window).await {
            Ok(stat) => stat.only(args.namespace.as_deref(), args.name.as_deref()),
            Err(exit) => return exit,
        };
        if !args.watch {
            complain(&stat, global);
            output::print(&rendered(args, &stat));
            let missed = !stat.unreachable.is_empty() && stat.proxies == 0;
            return if missed { Exit::Unreachable } else { Exit::Done };
        }
        let home = if std::io::stdout().is_terminal() { "\x1b[H\x1b[2J" } else { "" };
        let mut out = std::io::stdout().lock();
        let written = out.write_all(format!("{home}{}", rendered(args, &stat)).as_bytes()).and_then(|()| out.flush());
        drop(out);
        if written.is_err() {
            return Exit::Done;
        }
        tokio::time::sleep(RENEW).await;
    }
}

fn rendered(args: &Args, stat: &Stat) -> String {
    match args.output {
        Format::Json => {
            let mut text = serde_json::to_string(stat).unwrap_or_default();
            text.push('\n');
            text
        }
        Format::Table | Format::Wide => stat.table(!args.no_headers, args.output == Format::Wide),
    }
}

fn complain(stat: &Stat, global: &Global) {
    if global.quiet {
        return;
    }
    for (admin, why) in &stat.unreachable {
        fail(Exit::Unreachable, format!("proxy at {admin}: {why}"), None);
    }
}

/// Asks every proxy at once and puts the answers together.
pub(crate) async fn gather(mesh: &Mesh, window: Duration) -> Result<Stat, Exit> {
    let found = mesh.search().await?;
    Ok(ask(found, window).await)
}

async fn ask(found: Found, window: Duration) -> Stat {
    let path = format!("/tulle/edges?window={}", window.as_secs_f64());
    let mut asking = tokio::task::JoinSet::new();
    for known in found.proxies {
        let path = path.clone();
        asking.spawn(async move {
            let report = report(&known.admin, &path).await;
            Answer { known, report }
        });
    }
    let mut answers = Vec::new();
    while let Some(answer) = asking.join_next().await {
        answers.extend(answer);
    }
    answers.sort_by(|a, b| a.known.admin.cmp(&b.known.admin));
    Stat::of(&answers, &found.workloads)
}

async fn report(address: &str, path: &str) -> Result<Report, String> {
    let text = admin::get(address, path).await?;
    let report: Report = serde_json::from_str(&text).map_err(|error| format!("not a Tulle proxy: {error}"))?;
    match report.version {
        REPORT_VERSION => Ok(report),
        other => Err(format!("its report has version {other}, this program reads {REPORT_VERSION}")),
    }
}
