//! `tulle proxy` and what is asked about proxies.

use super::{proxy_config, proxy_ls};
use crate::cli::Global;
use crate::output::Exit;

/// Look at the mesh's proxies
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tulle proxy ls\n  tulle proxy config web-1.shop routes")]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Ls(proxy_ls::Args),
    Config(proxy_config::Args),
}

pub(crate) fn run(args: Args, global: &Global) -> Exit {
    match args.what {
        What::Ls(args) => proxy_ls::run(args, global),
        What::Config(args) => proxy_config::run(args, global),
    }
}
