//! What every verb says in the same way: exit codes, colours, errors with a next step.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

/// How a verb ended. 1 is an answer; 2 and above mean there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Done, or the answer is yes.
    Done = 0,
    /// The tool worked and the answer is no (denied, differs, check failed, findings at or above the threshold).
    No = 1,
    /// The command line is wrong.
    Usage = 2,
    /// Could not reach something, or it took too long.
    Unreachable = 3,
    /// Not permitted.
    Forbidden = 4,
    /// Somebody else owns it, or it changed meanwhile.
    Conflict = 5,
    /// An input file is invalid.
    Invalid = 6,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// When to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum ColorChoice {
    /// On a terminal, unless NO_COLOR is set; always with CLICOLOR_FORCE.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl ColorChoice {
    /// Whether to colour what goes to standard output.
    pub(crate) fn stdout(self) -> bool {
        self.decide(std::io::stdout().is_terminal())
    }

    /// Whether to colour what goes to standard error.
    pub(crate) fn stderr(self) -> bool {
        self.decide(std::io::stderr().is_terminal())
    }

    fn decide(self, terminal: bool) -> bool {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty() && value != "0");
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto if set("NO_COLOR") => false,
            Self::Auto => terminal || set("CLICOLOR_FORCE"),
        }
    }
}

/// Prints `error: WHAT` and `  next: STEP` to standard error and gives the exit back.
pub(crate) fn fail(exit: Exit, what: impl std::fmt::Display, next: Option<&str>) -> Exit {
    let mut err = std::io::stderr().lock();
    // A closed standard error is no reason to fail differently.
    let _ = writeln!(err, "error: {what}");
    if let Some(next) = next {
        let _ = writeln!(err, " next: {next}");
    }
    exit
}

/// Writes data to standard output; a closed pipe ends quietly (`tulle get | head`).
pub(crate) fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
