//! Developer tasks: `cargo xtask --help`.

mod asked;
mod bench;
mod cases;
mod ci;
mod corpus;
mod cost;
mod counted;
mod demo;
mod deny;
mod docs;
mod floods;
mod fuzz;
mod growth;
mod interop;
mod layers;
mod promises;
mod rbac;
mod setup;
mod tidy;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Developer tasks of the Tulle workspace.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    Cases(cases::Args),
    Corpus(corpus::Args),
    Cost(cost::Args),
    /// Check that each crate imports only what `layers.toml` lets it
    Layers,
    /// Check the rules of the repository that no other linter knows
    Tidy,
    /// Check licences, bans and sources of the dependency tree
    Deny,
    /// Install the real parts that the tests need
    Setup,
    Docs(docs::Args),
    Growth(growth::Args),
    Promises(promises::Args),
    Bench(bench::Args),
    Interop(interop::Args),
    Fuzz(fuzz::Args),
    Floods(floods::Args),
    Rbac(rbac::Args),
    Ci(ci::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Cases(args) => cases::run(&args),
        Task::Corpus(args) => corpus::run(&args),
        Task::Cost(args) => cost::run(&args),
        Task::Layers => layers::run(),
        Task::Tidy => tidy::run(),
        Task::Deny => deny::run(),
        Task::Setup => setup::run(),
        Task::Interop(args) => interop::run(&args),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::Floods(args) => floods::run(&args),
        Task::Rbac(args) => rbac::run(&args),
        Task::Promises(args) => promises::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Docs(args) => docs::run(&args),
        Task::Growth(args) => growth::run(&args),
        Task::Ci(args) => ci::run(&args),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}
