//! `tulle demo`.

use crate::cli::Global;
use crate::demo::app;
use crate::output::Exit;

/// Start a whole mesh on this machine, with traffic
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tulle demo\n  tulle demo --check", args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    App(app::Args),
}

pub(crate) fn run(args: Args, _global: &Global) -> Exit {
    match args.what {
        Some(What::App(args)) => app::run(args),
        None => Exit::Usage,
    }
}
