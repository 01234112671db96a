//! Starting a demo, showing it, and taking it down.

use std::io::{IsTerminal, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context;
use node::enter::Enter;
use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::{SignalKind, signal};

use super::cast::{self, NAMESPACE, Net, PARTS, Part, TRUST_DOMAIN};
use super::check;
use super::place::Place;
use super::show;
use super::world::{Wish, World};
use crate::cli;
use crate::output::{self, Exit};
use crate::verbs::demo::{Args, NetChoice};

/// The door of the shop, if nobody else has it.
const DOOR: u16 = 8080;
/// The environment variables by which the outer process tells the inner one what it prepared.
const INNER_DIR: &str = "TULLE_DEMO_DIR";
const INNER_DOOR: &str = "TULLE_DEMO_DOOR";

/// A network, and in words why this one.
struct Choice {
    net: Net,
    why: String,
}

pub(crate) fn run(args: &Args, global: &cli::Global) -> Exit {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return output::fail(Exit::Unreachable, format!("cannot start: {error}"), None),
    };
    let inner = std::env::var_os(INNER_DIR).map(|dir| Place::at(PathBuf::from(dir)));
    let work = async {
        match inner {
            Some(place) => inside(args, global, place).await,
            None => outside(args, global).await,
        }
    };
    match runtime.block_on(tokio::task::LocalSet::new().run_until(work)) {
        Ok(exit) => exit,
        Err(error) => output::fail(Exit::Unreachable, format!("{error:#}"), None),
    }
}

/// What the user started: chooses the network, opens the door, and sees that nothing stays.
async fn outside(args: &Args, global: &cli::Global) -> anyhow::Result<Exit> {
    let myself = std::env::current_exe().context("cannot find this program's file")?;
    let choice = match choose(args.net, &myself) {
        Ok(choice) => choice,
        Err(why) => return Ok(output::fail(Exit::Forbidden, why, Some("try --net loopback, which needs nothing"))),
    };
    let place = Place::create().context("cannot make the demo's folder")?;
    let door = open_door(args.port)?;
    if !args.check {
        announce(&choice, &door)?;
    }
    if global.verbose > 0 {
        eprintln!("files: {}", place.dir().display());
    }
    let result = match choice.net {
        Net::Loopback => {
            let (block, _lock) = cast::take_block().context("no block of loopback addresses is free")?;
            inside_of(Wish { block, ..wish(args, choice.net, door.as_raw_fd()) }, args, global, place.clone()).await
        }
        net => deeper(args, global, net, &place, &door, &myself).await,
    };
    if !matches!(result, Ok(Exit::Done | Exit::No)) {
        show::logs_of_failures(&place);
    }
    let door_address = door.local_addr()?;
    drop(door);
    place.remove().with_context(|| format!("cannot remove {}", place.dir().display()))?;
    let exit = result?;
    if args.check {
        let gone = check::gone(&place, door_address);
        return Ok(if check::report("gone", Instant::now(), gone) { exit } else { Exit::No });
    }
    Ok(exit)
}

/// Starts this program again inside namespaces of its own and waits for it.
async fn deeper(
    args: &Args,
    global: &cli::Global,
    net: Net,
    place: &Place,
    door: &TcpListener,
    myself: &Path,
) -> anyhow::Result<Exit> {
    let enter = Enter { new_user: net == Net::Userns, new_network: true, new_mounts: true, ..Enter::default() };
    node::inherited::hand_down(door.as_raw_fd(), true)?;
    let mut child = tokio::process::Command::new(myself)
        .arg("enter")
        .args(enter.to_args())
        .arg("--")
        .arg(myself)
        .args(args.again(net))
        .args(if global.verbose > 0 { &["-v"][..] } else { &[] })
        .env(INNER_DIR, place.dir())
        .env(INNER_DOOR, door.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .context("cannot start the demo in namespaces of its own")?;
    node::inherited::hand_down(door.as_raw_fd(), false)?;
    let mut end = Interrupt::new()?;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status?,
            () = end.wait() => {
                if let Some(pid) = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
                    let _ = kill_process(pid, Signal::TERM);
                }
            }
        }
    };
    Ok(match status.code() {
        Some(0) => Exit::Done,
        Some(1) => Exit::No,
        _ => Exit::Unreachable,
    })
}

async fn inside(args: &Args, global: &cli::Global, place: Place) -> anyhow::Result<Exit> {
    let door = std::env::var(INNER_DOOR).ok().and_then(|door| door.parse().ok()).context("the door is missing")?;
    node::inherited::hand_down(door, false)?;
    let net = if args.net == NetChoice::Netns { Net::Netns } else { Net::Userns };
    inside_of(wish(args, net, door), args, global, place).await
}

fn wish(args: &Args, net: Net, door: i32) -> Wish {
    Wish {
        net,
        block: 0,
        cert_ttl: args.life(),
        rate: args.visitor_rate(),
        intruder_rate: args.intruder_rate(),
        envoys: args.envoys.clone(),
        door: Some(door),
    }
}

/// The demo itself, in whatever namespaces this process is.
async fn inside_of(wish: Wish, args: &Args, global: &cli::Global, place: Place) -> anyhow::Result<Exit> {
    let start = Instant::now();
    let mut end = Interrupt::new()?;
    let world = World::start(wish, place).await?;
    let result = tokio::select! {
        result = live(&world, start, args, global) => result,
        () = end.wait() => Ok(Exit::Done),
    };
    world.stop().await;
    if !args.check {
        let totals = world.record.totals();
        output::print(&format!("visitor: {} requests, {} failed\n", totals.requests, totals.failed));
    }
    result
}

async fn live(world: &Rc<World>, start: Instant, args: &Args, global: &cli::Global) -> anyhow::Result<Exit> {
    let first = world.first_edge(start).await?;
    output::print(&format!("first edge after {} ms\n", first.as_millis()));
    if args.check {
        return Ok(if check::all(world, start).await { Exit::Done } else { Exit::No });
    }
    if !global.quiet {
        what_next(world);
    }
    let watched = std::io::stdout().is_terminal() && !global.quiet;
    tokio::select! {
        () = show::live(world, watched) => {}
        () = tokio::time::sleep(args.duration()) => {}
        failed = outage(world, args.outage()) => return Err(failed),
        fallen = fallen(world) => anyhow::bail!("{fallen}"),
    }
    Ok(Exit::Done)
}

/// Stages the outage that was asked for, if one was; returns only when it did not go as it must.
async fn outage(world: &Rc<World>, time: Option<Duration>) -> anyhow::Error {
    if let Some(time) = time
        && let Err(error) = super::outage::stage(world, time).await
    {
        return error;
    }
    std::future::pending().await
}

/// Returns when a process ended that should not have. A mesh goes on without its control plane, so that is only said.
async fn fallen(world: &Rc<World>) -> String {
    let mut told = false;
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let (control, others): (Vec<_>, Vec<_>) =
            world.fallen().into_iter().partition(|fallen| fallen.starts_with("control "));
        if let Some(fallen) = others.into_iter().next() {
            return fallen;
        }
        if let Some(fallen) = control.first().filter(|_| !std::mem::replace(&mut told, true)) {
            eprintln!("{fallen}: the mesh goes on with the configuration and the identities it has");
        }
    }
}

fn choose(wanted: NetChoice, myself: &Path) -> Result<Choice, String> {
    let userns = || node::probe::user_namespaces(myself);
    match wanted {
        NetChoice::Loopback => Ok(Choice { net: Net::Loopback, why: "as asked".to_owned() }),
        NetChoice::Userns => match userns() {
            Ok(()) => Ok(Choice { net: Net::Userns, why: "as asked".to_owned() }),
            Err(obstacle) => Err(format!("user namespaces are not to be had: {} ({})", obstacle.reason, obstacle.hint)),
        },
        NetChoice::Netns if node::probe::is_root() => Ok(Choice { net: Net::Netns, why: "as asked".to_owned() }),
        NetChoice::Netns => Err("network namespaces without a user namespace need root".to_owned()),
        NetChoice::Auto => Ok(match userns() {
            Ok(()) => Choice { net: Net::Userns, why: "user namespaces work here".to_owned() },
            Err(_) if node::probe::is_root() => Choice { net: Net::Netns, why: "this is root".to_owned() },
            Err(obstacle) => Choice { net: Net::Loopback, why: format!("{}; {}", obstacle.reason, obstacle.hint) },
        }),
    }
}

/// The usual port, or any when somebody else has it.
fn open_door(wanted: Option<u16>) -> anyhow::Result<TcpListener> {
    let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    match wanted {
        Some(port) => bind(port).with_context(|| format!("cannot open the shop's door at port {port}")),
        None => bind(DOOR).or_else(|_| bind(0)).context("cannot open the shop's door"),
    }
}

fn announce(choice: &Choice, door: &TcpListener) -> anyhow::Result<()> {
    let how = match choice.net {
        Net::Userns => "rootless namespaces (real transparent interception)",
        Net::Netns => "namespaces made by root (real transparent interception)",
        Net::Loopback => "loopback addresses (explicit, not transparent; programs of one user trust each other)",
    };
    let proxies = Part::meshed().count();
    let text = format!(
        "Tulle {} · demo mesh \"{NAMESPACE}\" · network: {how}\n  chosen because: {}\n  {proxies} proxies, {} programs, \
         identities spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/…\n  Shop       http://{}\n",
        env!("CARGO_PKG_VERSION"),
        choice.why,
        PARTS.len(),
        door.local_addr()?,
    );
    output::print(&text);
    // The inner process prints next.
    std::io::stdout().flush()?;
    Ok(())
}

/// Only verbs that exist are told of.
fn what_next(world: &World) {
    let tree = cli::command();
    let ideas = ["stat", "tap", "get"].into_iter().filter(|verb| tree.find_subcommand(verb).is_some());
    let ideas: Vec<String> = ideas.map(|verb| format!("tulle {verb}")).collect();
    let dir = world.place.control();
    let text = format!(
        "  Try next in another terminal:  export TULLE_RUN_DIR={}; {}\n  Everything stops with Ctrl-C.\n",
        dir.display(),
        ideas.join("; ")
    );
    output::print(&text);
}

/// Ctrl-C, or a polite request to end.
struct Interrupt {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Interrupt {
    fn new() -> anyhow::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
