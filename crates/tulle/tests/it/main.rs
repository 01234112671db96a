//! One integration-test program: the verbs as people run them, with their whole output.

mod analyze;
mod asking;
mod bad_peers;
mod check;
mod control;
mod joining;
mod living;

use std::path::Path;
use std::process::{Command, Output};

/// Runs `tulle` in a directory and shows everything it said.
fn tulle(directory: &Path, args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_tulle")).args(args).current_dir(directory).output().expect("runs");
    shown(&output)
}

/// Exit code, standard output and standard error as one text.
fn shown(output: &Output) -> String {
    let stream = |name: &str, bytes: &[u8]| match bytes {
        [] => String::new(),
        bytes => format!("--- {name}\n{}", String::from_utf8_lossy(bytes)),
    };
    let code = output.status.code().map_or_else(|| "none".to_owned(), |code| code.to_string());
    format!("exit {code}\n{}{}", stream("stdout", &output.stdout), stream("stderr", &output.stderr))
}
