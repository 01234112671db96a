//! The `tulle` program: every verb of the command line, the control plane, the proxy and the demo.

mod cli;
mod declared;
mod demo;
mod output;
mod verbs;
mod walk;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run(std::env::args_os()).into()
}
