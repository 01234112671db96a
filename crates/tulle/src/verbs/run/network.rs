//! How the program's traffic comes to its proxy: a network namespace of its own, or loopback addresses.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use identity::reach::Server;
use node::enter::Enter;
use serde_json::Value;

use super::declare::is_own_word;
use super::place::Place;
use super::sidecar::Listener;
use super::{Args, local_control};
use crate::output::{Exit, fail};

/// What `--net` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(super) enum NetChoice {
    /// The best that works here, and that the workload's declaration allows
    #[default]
    Auto,
    /// A network namespace of the program's own, transparent
    Userns,
    /// Loopback addresses, explicit
    Loopback,
}

/// What the program gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Network {
    /// A network namespace of its own, bound to this file. The proxy is outside and listens in there.
    Pocket { file: PathBuf },
    /// The machine's own network, with the proxy on loopback addresses; and why.
    Loopback { why: String },
}

/// How a workload is declared to be intercepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Declared {
    Explicit,
    Namespace(PathBuf),
    Redirect,
}

/// How the workload is declared, where that can be known before anything starts: from the control plane on this machine.
pub(super) async fn declared(args: &Args, place: &Place) -> Option<Declared> {
    if args.service.is_none() && !matches!(place.server, Server::Unix(_)) {
        return None;
    }
    let (namespace, name) = (Some(place.workload.namespace.as_str()), Some(place.workload.name.as_str()));
    let found = local_control(place).objects(Some("Workload"), namespace, name).await.ok()?;
    let found = found.first().map(|object| &object.object);
    found.filter(|object| args.service.is_none() || !is_own_word(object)).map(Declared::of)
}

impl Declared {
    fn of(workload: &Value) -> Self {
        let interception = &workload["spec"]["interception"];
        match interception["namespace"].as_str() {
            Some(file) => Self::Namespace(file.into()),
            None if interception.get("explicit").is_some() => Self::Explicit,
            None => Self::Redirect,
        }
    }
}

/// Chooses, and says why if it cannot be had.
pub(super) fn choose(wanted: NetChoice, place: &Place, declared: Option<&Declared>) -> Result<Network, Exit> {
    let who = format!("{}.{}", place.workload.name, place.workload.namespace);
    match (declared, wanted) {
        (Some(Declared::Redirect), _) => Err(redirected(&who)),
        (Some(Declared::Explicit), NetChoice::Userns) => {
            let next = "declare it with `interception: {namespace: FILE}`, or leave --net out";
            Err(fail(Exit::Invalid, format!("{who} is declared with explicit addresses"), Some(next)))
        }
        (Some(Declared::Explicit), _) => Ok(Network::Loopback { why: "as declared".to_owned() }),
        (Some(Declared::Namespace(_)), NetChoice::Loopback) => {
            let next = "declare it with `interception: {explicit: {outbound: [...]}}`, or leave --net out";
            Err(fail(Exit::Invalid, format!("{who} is declared with a network namespace"), Some(next)))
        }
        (None, NetChoice::Loopback) => Ok(Network::Loopback { why: "as asked".to_owned() }),
        (Some(Declared::Namespace(file)), _) => pocket(place, file.clone()).map_err(|why| not_to_be_had(&why)),
        (None, NetChoice::Userns) => pocket(place, place.dir.join("netns")).map_err(|why| not_to_be_had(&why)),
        (None, NetChoice::Auto) => {
            Ok(pocket(place, place.dir.join("netns")).unwrap_or_else(|why| Network::Loopback { why }))
        }
    }
}

fn not_to_be_had(why: &str) -> Exit {
    let what = format!("a network namespace of the program's own is not to be had: {why}");
    fail(Exit::Forbidden, what, Some("--net loopback needs nothing"))
}

fn redirected(who: &str) -> Exit {
    let what = format!("{who} is declared as one whose whole machine or container is redirected");
    let next = "declare it with `interception: {namespace: FILE}` or `interception: {explicit: {outbound: [...]}}`";
    fail(Exit::Invalid, what, Some(next))
}

/// Tries in a process of its own whether everything works here that such a namespace takes.
fn pocket(place: &Place, file: PathBuf) -> Result<Network, String> {
    let dir = file.parent().unwrap_or(&place.dir);
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|error| format!("{}: {error}", dir.display()))?;
    match node::probe::pocket(&place.myself, &file) {
        Ok(()) => Ok(Network::Pocket { file }),
        Err(obstacle) => {
            let _ = std::fs::remove_file(&file);
            // The usual culprits are about namespaces; what fails inside of one speaks for itself.
            let usual = obstacle.reason.starts_with("cannot make a user namespace");
            Err(if usual { format!("{}; {}", obstacle.reason, obstacle.hint) } else { obstacle.reason })
        }
    }
}

impl Network {
    /// The file of the program's own namespace.
    pub(super) fn pocket(&self) -> Option<&Path> {
        match self {
            Self::Pocket { file } => Some(file),
            Self::Loopback { .. } => None,
        }
    }

    /// Puts this process, and with it the proxy, where it may make the program's namespace and open sockets in it. Its own
    /// network stays the machine's.
    pub(super) fn enter(&self) -> Result<(), Exit> {
        let Self::Pocket { file } = self else { return Ok(()) };
        let user = !node::probe::is_root();
        let enter = Enter { new_user: user, new_mounts: true, pocket: Some(file.clone()), ..Enter::default() };
        enter.stay().map_err(|error| not_to_be_had(&error.to_string()))
    }

    /// What the proxy's listeners show that the workload is really declared with.
    pub(super) fn into_declared(self, listeners: &[Listener], place: &Place) -> Result<Self, Exit> {
        let who = format!("{}.{}", place.workload.name, place.workload.namespace);
        let outbound = listeners.iter().find(|listener| listener.name == "virtualOutbound");
        match (self, outbound) {
            (Self::Pocket { file }, Some(outbound)) if outbound.namespace.as_deref() == Some(&file) => {
                Ok(Self::Pocket { file })
            }
            (_, Some(outbound)) => match &outbound.namespace {
                None => Err(redirected(&who)),
                Some(file) => {
                    let what = format!("{who} is declared with the network namespace {}", file.display());
                    Err(fail(Exit::Invalid, what, Some("give it --run-dir with the directory of that file")))
                }
            },
            (Self::Pocket { .. }, None) => Ok(Self::Loopback { why: "as declared".to_owned() }),
            (loopback, None) => Ok(loopback),
        }
    }

    /// What it is worth, in a line.
    pub(super) fn said(&self, listeners: &[Listener]) -> String {
        match self {
            Self::Pocket { .. } => {
                let inbound = listeners.iter().filter(|listener| listener.name.starts_with("inbound|"));
                let doors: Vec<String> = inbound.map(|listener| listener.address.to_string()).collect();
                let doors = match doors.as_slice() {
                    [] => "nobody calls it".to_owned(),
                    doors => format!("others reach it at {}", doors.join(", ")),
                };
                format!(
                    "network: a namespace of the program's own (transparent). All its TCP goes through its proxy, UDP but \
                     DNS is refused; {doors}"
                )
            }
            Self::Loopback { why } => format!(
                "network: explicit loopback addresses ({why}). Nothing forces this program through its proxy, and \
                 programs of one user trust each other"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_declaration_says_what_the_program_gets() {
        let of = |interception: Value| Declared::of(&json!({"spec": {"interception": interception}}));
        assert_eq!(of(json!({"explicit": {"outbound": []}})), Declared::Explicit);
        assert_eq!(of(json!({"explicit": null})), Declared::Explicit);
        assert_eq!(of(json!({"namespace": "/run/x/netns"})), Declared::Namespace("/run/x/netns".into()));
        assert_eq!(of(Value::Null), Declared::Redirect);
    }
}
