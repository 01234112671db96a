//! `tulle check`: is the machine ready, and is the mesh well?

mod machine;
mod mesh;

use std::fmt::Write;
use std::path::PathBuf;

use serde_json::json;

use super::connection::{Connection, block_on};
use crate::cli::Global;
use crate::output::{Exit, print};

/// Check that this machine is ready for a mesh and that the mesh is well, with a hint for whatever is not
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tulle check --pre
  tulle check --cert-days 60 --fail-on warning
  tulle check --run-dir /run/tulle -o json

√ is well, ‼ could be better, × is wrong.
Exit codes: 0 nothing at or above --fail-on, 1 findings, 2 wrong usage.")]
pub(crate) struct Args {
    /// Check the machine alone, before there is a mesh
    #[arg(long)]
    pre: bool,
    /// From which severity on findings make the exit code 1
    #[arg(long, value_enum, default_value_t, value_name = "SEVERITY")]
    fail_on: FailOn,
    /// A root certificate that ends within so many days is wrong (×); without this flag 60 days are worth a ‼
    #[arg(long, value_name = "DAYS")]
    cert_days: Option<u64>,
    /// Directory of the certificate authority, to look at its root
    #[arg(long, value_name = "DIR")]
    ca_dir: Option<PathBuf>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum FailOn {
    /// × alone
    #[default]
    Error,
    /// ‼ and ×
    Warning,
    /// Nothing
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum Output {
    /// For people
    #[default]
    Text,
    /// One JSON document
    Json,
}

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Mark {
    Well,
    Warning,
    Wrong,
}

/// One thing that was looked at.
#[derive(Debug)]
struct Finding {
    /// Under which heading.
    area: &'static str,
    mark: Mark,
    text: String,
    /// What to do; not empty unless it is well.
    hint: String,
}

impl Finding {
    fn well(area: &'static str, text: impl Into<String>) -> Self {
        Self { area, mark: Mark::Well, text: text.into(), hint: String::new() }
    }

    fn warning(area: &'static str, text: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { area, mark: Mark::Warning, text: text.into(), hint: hint.into() }
    }

    fn wrong(area: &'static str, text: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { area, mark: Mark::Wrong, text: text.into(), hint: hint.into() }
    }
}

pub(crate) fn run(args: Args, global: &Global) -> Exit {
    let mut findings = machine::check();
    if !args.pre {
        let client = match args.connection.client() {
            Ok(client) => client,
            Err(exit) => return exit,
        };
        match block_on(mesh::check(&client)) {
            Ok(more) => findings.extend(more),
            Err(exit) => return exit,
        }
        findings.extend(mesh::root(args.ca_dir, args.cert_days, std::time::SystemTime::now()));
    }
    print(&match args.output {
        Output::Text => text(&findings, global.color.stdout(), global.quiet),
        Output::Json => format!("{:#}\n", document(&findings)),
    });
    let least = match args.fail_on {
        FailOn::Error => Mark::Wrong,
        FailOn::Warning => Mark::Warning,
        FailOn::Never => return Exit::Done,
    };
    if findings.iter().any(|finding| finding.mark >= least) { Exit::No } else { Exit::Done }
}

fn text(findings: &[Finding], color: bool, quiet: bool) -> String {
    let mut text = String::new();
    let mut area = "";
    for finding in findings.iter().filter(|finding| !quiet || finding.mark > Mark::Well) {
        if finding.area != area {
            area = finding.area;
            let _ = writeln!(text, "{area}");
        }
        let (sign, tone) = match finding.mark {
            Mark::Well => ("√", "32"),
            Mark::Warning => ("‼", "33"),
            Mark::Wrong => ("×", "31"),
        };
        let sign = if color { format!("\x1b[{tone}m{sign}\x1b[0m") } else { sign.to_owned() };
        let hint = if finding.hint.is_empty() { String::new() } else { format!("\n      → {}", finding.hint) };
        let _ = writeln!(text, "  {sign} {}{hint}", finding.text);
    }
    let [warnings, wrong] =
        [Mark::Warning, Mark::Wrong].map(|mark| findings.iter().filter(|finding| finding.mark == mark).count());
    let _ = match (wrong, warnings) {
        (0, 0) => writeln!(text, "all is well"),
        _ => writeln!(text, "{wrong} wrong, {warnings} that could be better"),
    };
    text
}

/// The published shape, version 1: fields may be added, none is renamed.
fn document(findings: &[Finding]) -> serde_json::Value {
    let one = |finding: &Finding| {
        json!({
            "area": finding.area,
            "state": match finding.mark {
                Mark::Well => "ok",
                Mark::Warning => "warning",
                Mark::Wrong => "error",
            },
            "text": finding.text,
            "hint": finding.hint,
        })
    };
    json!({ "version": 1, "findings": findings.iter().map(one).collect::<Vec<_>>() })
}
