//! Who runs, and where things are.

use std::path::PathBuf;
use std::time::Duration;

use compile::WorkloadKey;
use identity::reach::Server;
use identity::token::JoinToken;
use node::enter::Ids;

use super::Args;
use crate::output::{Exit, fail};

/// Who runs, and where things are. Made before any namespace is entered: in there the user is another.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) workload: WorkloadKey,
    pub(super) server: Server,
    /// The workload's own directory.
    pub(super) dir: PathBuf,
    /// A control plane's directory when nothing else is said.
    pub(super) usual: PathBuf,
    /// Who started this.
    pub(super) user: Ids,
    pub(super) root: bool,
    pub(super) wait: Duration,
    /// This program's file.
    pub(super) myself: PathBuf,
}

pub(super) fn place(args: &Args) -> Result<Place, Exit> {
    let token = match &args.token {
        None => None,
        Some(path) => Some(JoinToken::read(path).map_err(|error| fail(Exit::Forbidden, error, None))?),
    };
    let missing = |what: &str| {
        let next = "give --token FILE (from `tulle token create`), or --workload, --namespace and --control";
        fail(Exit::Usage, format!("the workload's {what} is not known"), Some(next))
    };
    let name = args.workload.clone().or_else(|| token.as_ref().map(|t| t.workload.clone()));
    let namespace = args.namespace.clone().or_else(|| token.as_ref().map(|t| t.identity.namespace().to_owned()));
    let server = match (&args.control, &token) {
        (Some(server), _) => server.clone(),
        (None, Some(token)) => token.server.parse().map_err(|error| fail(Exit::Invalid, error, None))?,
        (None, None) => return Err(missing("control plane")),
    };
    let name = name.ok_or_else(|| missing("name"))?;
    // Tokens may carry `NAME.NAMESPACE`.
    let name = name.split('.').next().unwrap_or_default().to_owned();
    let workload = WorkloadKey::new(namespace.ok_or_else(|| missing("namespace"))?, name);
    let usual = crate::verbs::connection::default_run_dir();
    let dir = args.run_dir.clone();
    let dir = dir.unwrap_or_else(|| usual.join("run").join(format!("{}.{}", workload.name, workload.namespace)));
    let dir = std::path::absolute(&dir).unwrap_or(dir);
    let myself = std::env::current_exe();
    let myself = myself.map_err(|error| fail(Exit::Invalid, format!("where is this program? {error}"), None))?;
    let (user, root) = (Ids::own(), node::probe::is_root());
    Ok(Place { workload, server, dir, usual, user, root, wait: args.wait, myself })
}
