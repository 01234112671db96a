//! The program itself: its streams, its signals, its end.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;

use node::enter::Enter;
use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::{SignalKind, signal};

use super::names::Names;
use super::network::Network;
use super::place::Place;
use crate::output::{Exit, fail};

/// Runs the program with our own standard streams, hands signals on, and gives its exit code (128 + N after signal N).
pub(super) async fn run(
    command: &[OsString],
    place: &Place,
    network: &Network,
    resolv_conf: Option<PathBuf>,
    names: &Names,
) -> Result<i32, Exit> {
    // A terminal sends Ctrl-C to the program itself as well.
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stdin());
    let handed = [
        (SignalKind::terminate(), Signal::TERM, true),
        (SignalKind::hangup(), Signal::HUP, true),
        (SignalKind::quit(), Signal::QUIT, !terminal),
        (SignalKind::interrupt(), Signal::INT, !terminal),
        (SignalKind::user_defined1(), Signal::USR1, true),
        (SignalKind::user_defined2(), Signal::USR2, true),
    ];
    // From here on signals are the program's, also those that come before it runs.
    let streams = handed.map(|(kind, number, hand_on)| (signal(kind), number, hand_on));
    // `enter` becomes the program: the process is the same, and so are its end and its streams.
    let mut child = tokio::process::Command::new(&place.myself)
        .arg("enter")
        .args(enter(place, network, resolv_conf).to_args())
        .arg("--")
        .args(command)
        .envs(names.environment())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| fail(Exit::Invalid, format!("cannot start {}: {error}", place.myself.display()), None))?;
    let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
    for (stream, number, hand_on) in streams {
        let Ok(mut stream) = stream else { continue };
        tokio::task::spawn_local(async move {
            while stream.recv().await.is_some() {
                if let Some(pid) = pid.filter(|_| hand_on) {
                    let _ = kill_process(pid, number);
                }
            }
        });
    }
    let status = child.wait().await.map_err(|error| fail(Exit::Invalid, format!("waiting: {error}"), None))?;
    Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()))
}

/// Where the program starts. It is the user that started us, also where we are root of a user namespace: then it has no
/// rights over its network.
fn enter(place: &Place, network: &Network, resolv_conf: Option<PathBuf>) -> Enter {
    let below = node::probe::is_root() && !place.root;
    Enter {
        network: network.pocket().map(Into::into),
        resolv_conf,
        again: below.then_some(place.user),
        ..Enter::default()
    }
}
