//! `tulle version`.

use crate::cli::Global;
use crate::output::{self, Exit};

/// Print the version of this program
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tulle version\n  tulle version -o json")]
pub(crate) struct Args {
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
enum Format {
    #[default]
    Text,
    Json,
}

pub(crate) fn run(args: Args, _global: &Global) -> Exit {
    let version = env!("CARGO_PKG_VERSION");
    match args.output {
        Format::Text => output::print(&format!("tulle {version}\n")),
        Format::Json => output::print(&format!("{}\n", serde_json::json!({ "version": version }))),
    }
    Exit::Done
}
