//! The `tulle` program: every verb of the command line, the control plane, the proxy and the demo.

mod cli;
mod declared;
mod demo;
mod output;
mod verbs;
mod walk;

use std::process::ExitCode;

/// A request asks for memory some ten times and a call over HTTP/2 some forty times: the C library's allocator took an eighth of the
/// time of the latter.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::run(std::env::args_os()).into()
}
