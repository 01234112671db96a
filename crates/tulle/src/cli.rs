//! The command line's tree: which verbs there are and which flags they share.

use std::ffi::OsString;

use clap::{CommandFactory, Parser, Subcommand};

use crate::output::{ColorChoice, Exit};
use crate::verbs;

/// Tulle, a light service mesh.
#[derive(Debug, Parser)]
#[command(name = "tulle", version, propagate_version = true, disable_help_subcommand = true, max_term_width = 110)]
#[command(after_help = "Examples:\n  tulle demo\n  tulle check\n  tulle explain TL0107")]
pub(crate) struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

/// Flags that every verb takes.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Global {
    /// When to use colours
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN")]
    pub(crate) color: ColorChoice,
    /// Say less on standard error
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Say more on standard error (repeat for more)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Demo(verbs::demo::Args),
    Run(verbs::run::Args),
    Check(verbs::check::Args),
    Stat(verbs::stat::Args),
    Tap(verbs::tap::Args),
    Apply(verbs::apply::Args),
    Get(verbs::get::Args),
    Delete(verbs::delete::Args),
    Analyze(verbs::analyze::Args),
    Explain(verbs::explain::Args),
    Authz(verbs::authz::Args),
    Translate(verbs::translate::Args),
    Proxy(verbs::proxy::Args),
    Control(verbs::control::Args),
    Token(verbs::token::Args),
    Agent(verbs::agent::Args),
    Completion(verbs::completion::Args),
    Version(verbs::version::Args),
    Enter(verbs::enter::Args),
}

/// Parses the command line, runs the verb and tells how it ended.
pub(crate) fn run(args: impl IntoIterator<Item = OsString>) -> Exit {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Done };
        }
    };
    let global = cli.global;
    match cli.verb {
        Verb::Control(args) => verbs::control::run(args, &global),
        Verb::Apply(args) => verbs::apply::run(args, &global),
        Verb::Get(args) => verbs::get::run(args, &global),
        Verb::Delete(args) => verbs::delete::run(args, &global),
        Verb::Stat(args) => verbs::stat::run(args, &global),
        Verb::Tap(args) => verbs::tap::run(args, &global),
        Verb::Proxy(args) => verbs::proxy::run(args, &global),
        Verb::Version(args) => verbs::version::run(args, &global),
        Verb::Completion(args) => verbs::completion::run(args, &global),
        Verb::Demo(args) => verbs::demo::run(args, &global),
        Verb::Translate(args) => verbs::translate::run(args, &global),
        Verb::Enter(args) => verbs::enter::run(args, &global),
        Verb::Token(args) => verbs::token::run(args, &global),
        Verb::Agent(args) => verbs::agent::run(args, &global),
        Verb::Run(args) => verbs::run::run(args, &global),
        Verb::Analyze(args) => verbs::analyze::run(args, &global),
        Verb::Explain(args) => verbs::explain::run(args, &global),
        Verb::Authz(args) => verbs::authz::run(args, &global),
        Verb::Check(args) => verbs::check::run(args, &global),
    }
}

/// The whole tree, for completions and reference documents.
pub(crate) fn command() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_tree_is_consistent() {
        super::command().debug_assert();
    }
}
