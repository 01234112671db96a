//! `tulle proxy` and what is asked about proxies.

use super::{proxy_config, proxy_ls, proxy_run};
use crate::cli::Global;
use crate::output::Exit;

/// Run the data plane, or look at the mesh's proxies
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(
    after_help = "Examples:\n  tulle proxy -c bootstrap.yaml --concurrency 2\n  tulle proxy -c bootstrap.yaml --mode validate\n  tulle proxy -c bootstrap.yaml --run-dir /run/web --take-over\n  tulle proxy ls\n  tulle proxy config web-1.shop routes"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    run: proxy_run::Args,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Ls(proxy_ls::Args),
    Config(proxy_config::Args),
}

pub(crate) fn run(args: Args, global: &Global) -> Exit {
    match args.what {
        Some(What::Ls(args)) => proxy_ls::run(args, global),
        Some(What::Config(args)) => proxy_config::run(args, global),
        None => proxy_run::run(args.run, global),
    }
}
