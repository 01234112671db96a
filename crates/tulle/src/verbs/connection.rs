//! Which control plane a verb speaks to, and how its failures become exit codes.

use std::net::SocketAddr;
use std::path::PathBuf;

use control::client::{ApiAddress, Client, ClientError};

use crate::output::{Exit, fail};

/// Flags of every verb that asks the control plane.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Connection {
    /// The control plane's run directory [default: /run/tulle for root, $XDG_RUNTIME_DIR/tulle else]
    #[arg(long, value_name = "DIR", env = "TULLE_RUN_DIR")]
    run_dir: Option<PathBuf>,
    /// The control plane's API: unix:PATH or IP:PORT [default: unix:RUN-DIR/api.sock]
    #[arg(long, value_name = "ADDRESS", env = "TULLE_API")]
    api: Option<String>,
    /// File with the token for an API on IP:PORT [default: RUN-DIR/api.token]
    #[arg(long, value_name = "FILE", env = "TULLE_TOKEN")]
    api_token: Option<PathBuf>,
}

impl Connection {
    /// To the control plane with this run directory.
    pub(crate) fn of_run_dir(dir: PathBuf) -> Self {
        Self { run_dir: Some(dir), api: None, api_token: None }
    }

    /// The run directory, when one was given.
    pub(crate) fn run_dir(&self) -> Option<PathBuf> {
        self.run_dir.clone()
    }

    /// A client of that control plane.
    pub(crate) fn client(&self) -> Result<Client, Exit> {
        let run_dir = self.run_dir.clone().unwrap_or_else(default_run_dir);
        let Some(api) = &self.api else { return Ok(Client::in_run_dir(&run_dir)) };
        if let Some(path) = api.strip_prefix("unix:") {
            return Ok(Client::new(ApiAddress::Unix(path.into())));
        }
        let address: SocketAddr = api.trim_start_matches("http://").trim_end_matches('/').parse().map_err(|_| {
            let next = "write unix:/run/tulle/api.sock or 127.0.0.1:15100";
            fail(Exit::Usage, format!("`{api}` is no API address"), Some(next))
        })?;
        let file = self.api_token.clone().unwrap_or_else(|| run_dir.join("api.token"));
        let token = std::fs::read_to_string(&file).map_err(|error| {
            let next = "give the file with --api-token; the control plane writes RUN-DIR/api.token";
            fail(Exit::Forbidden, format!("cannot read the token {}: {error}", file.display()), Some(next))
        })?;
        Ok(Client::new(ApiAddress::Tcp { address, token: token.trim().to_owned() }))
    }
}

/// Where a control plane's sockets are when nothing else is said.
pub(crate) fn default_run_dir() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return "/run/tulle".into();
    }
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
        Some(dir) => PathBuf::from(dir).join("tulle"),
        None => format!("/tmp/tulle-{}", rustix::process::geteuid().as_raw()).into(),
    }
}

/// Runs one question on a small runtime of its own.
pub(crate) fn ask<T>(question: impl Future<Output = Result<T, ClientError>>) -> Result<T, Exit> {
    block_on(question)?.map_err(|error| refuse(&error))
}

/// Runs a future on a small runtime of its own.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> Result<T, Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| fail(Exit::Unreachable, format!("cannot start: {error}"), None))?;
    Ok(runtime.block_on(future))
}

/// Says why there is no answer.
pub(crate) fn refuse(error: &ClientError) -> Exit {
    let ClientError::Refused(problem) = error else {
        let next = "is it running? start it with `tulle control --config DIR`, or name it with --run-dir or --api";
        return fail(Exit::Unreachable, error, Some(next));
    };
    let exit = match problem.kind.as_str() {
        "invalid" => Exit::Invalid,
        "conflict" | "read-only" => Exit::Conflict,
        "forbidden" => Exit::Forbidden,
        "not-found" => Exit::No,
        _ => Exit::Unreachable,
    };
    fail(exit, &problem.message, problem.next.as_deref())
}
