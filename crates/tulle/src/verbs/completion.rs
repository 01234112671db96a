//! `tulle completion`.

use clap_complete::Shell;

use crate::cli::{self, Global};
use crate::output::{self, Exit};

/// Print a completion script for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tulle completion bash > /etc/bash_completion.d/tulle\n  \
                        tulle completion zsh > ~/.zfunc/_tulle")]
pub(crate) struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

pub(crate) fn run(args: Args, _global: &Global) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut cli::command(), "tulle", &mut script);
    output::print(&String::from_utf8_lossy(&script));
    Exit::Done
}
