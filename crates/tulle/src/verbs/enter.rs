//! `tulle enter`: the hidden verb that puts a process into namespaces and becomes another program.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use node::enter::{Enter, Ids};

use crate::cli::Global;
use crate::output::{self, Exit};

/// Enter namespaces, then become another program (used by run and demo)
#[derive(Debug, clap::Args)]
#[command(
    hide = true,
    after_help = "Examples:\n  tulle enter --new-user --new-network -- ip link\n  \
                                     tulle enter --network ns/web -- curl http://catalog:8080"
)]
pub(crate) struct Args {
    /// Make a user namespace in which you are root
    #[arg(long)]
    new_user: bool,
    /// Make a network namespace
    #[arg(long)]
    new_network: bool,
    /// Make a mount namespace
    #[arg(long)]
    new_mounts: bool,
    /// Make a network namespace for a program whose proxy is outside, bound to this file
    #[arg(long, value_name = "FILE")]
    pocket: Option<PathBuf>,
    /// Enter the network namespace bound to this file
    #[arg(long, value_name = "FILE")]
    network: Option<PathBuf>,
    /// Show this file as /etc/resolv.conf
    #[arg(long, value_name = "FILE")]
    resolv_conf: Option<PathBuf>,
    /// Be this user in a user namespace below
    #[arg(long, value_name = "UID:GID")]
    again: Option<Ids>,
    /// Become this user
    #[arg(long, value_name = "UID")]
    user: Option<u32>,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

pub(crate) fn run(args: Args, _global: &Global) -> Exit {
    let enter = Enter {
        new_user: args.new_user,
        new_network: args.new_network,
        new_mounts: args.new_mounts,
        pocket: args.pocket,
        network: args.network,
        resolv_conf: args.resolv_conf,
        again: args.again,
        user: args.user,
    };
    if let Err(error) = enter.enter() {
        return output::fail(Exit::Forbidden, error, None);
    }
    let mut words = args.command.into_iter();
    let Some(program) = words.next() else { return Exit::Usage };
    // This very program may lie where the other user cannot go, so it is started by what the kernel holds of it.
    let myself = std::env::current_exe().is_ok_and(|path| path == program.as_os_str());
    let mut command = Command::new(if myself { OsString::from("/proc/self/exe") } else { program.clone() });
    command.arg0(&program).args(words);
    if let Some(user) = args.user {
        command.uid(user).gid(user);
    }
    let error = command.exec();
    output::fail(Exit::Invalid, format!("cannot start {}: {error}", program.display()), None)
}
