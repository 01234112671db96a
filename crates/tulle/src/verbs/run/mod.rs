//! `tulle run`: an unmodified program as a workload of the mesh, with its agent and its proxy beside it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use control::client::Client;
use identity::agent::{Agent, AgentHandle, AgentSettings, Material};
use identity::reach::Server;
use telemetry::logging::{self, Style};
use tokio::process::Child;

use self::declare::{Declared, Offer};
use self::network::{NetChoice, Network};
use self::place::Place;
use super::duration;
use super::token::fail_private;
use crate::cli::Global;
use crate::demo::spawn;
use crate::output::{Exit, fail};

mod declare;
mod names;
mod network;
mod place;
mod program;
mod sidecar;

/// Run a program as a workload of the mesh
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tulle run --token cart.shop.token --service cart --port 8080 -- ./cart --port 8080
  tulle run --token web.shop.token --service web --port 9090 -- sh -c 'curl http://cart:8080/'

Where the machine allows it, the program gets a network namespace of its own (no root needed): all TCP that it sends goes
through its proxy, and mesh names are answered at port 53 in there; other UDP is refused. Elsewhere its proxy listens on
loopback addresses, which the program finds in NAME_ADDR and NAME_URL (CATALOG_URL=http://127.1.2.3:8080) and by DNS at the
address that --dns names; programs of one user trust each other there. One line on standard error says which.

With --service and --port the workload declares itself for as long as it runs, in the store of a control plane on this
machine. Else it must be declared (kind Workload), and its interception says what it gets.")]
pub(crate) struct Args {
    /// The token file of first contact (from `tulle token create`); may be left out once joined
    #[arg(long, value_name = "FILE")]
    token: Option<PathBuf>,
    /// Where the control plane is, HOST:PORT or unix:PATH [default: what the token says]
    #[arg(long, value_name = "ADDR")]
    control: Option<Server>,
    /// Name of the workload [default: what the token says]
    #[arg(long, value_name = "NAME")]
    workload: Option<String>,
    /// Its namespace [default: what the token says]
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// The service that the program is an instance of: declare the workload, and the service unless there is one
    #[arg(long, value_name = "NAME", requires = "port")]
    service: Option<String>,
    /// The port on which the program listens (127.0.0.1 or every address), and the service's port
    #[arg(long, value_name = "P", requires = "service")]
    port: Option<u16>,
    /// What is spoken on the port
    #[arg(long, value_name = "NAME", default_value = "http", value_parser = ["http", "http2", "grpc", "tcp"])]
    protocol: String,
    /// How the program's traffic comes to its proxy
    #[arg(long, value_enum, default_value_t, value_name = "KIND")]
    net: NetChoice,
    /// Private directory for key, certificate, sockets and the proxy's log [default: $XDG_RUNTIME_DIR/tulle/run/NAME,
    /// root: /run/tulle/run/NAME]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Where mesh names are answered: IP:PORT, or off [default: 127.0.0.1:53 in a namespace of the program's own, else
    /// 127.0.0.1:15053]
    #[arg(long, value_name = "ADDR")]
    dns: Option<String>,
    /// How long joining and configuration may take
    #[arg(long, value_parser = duration::parse, value_name = "TIME", default_value = "30s")]
    wait: Duration,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

pub(crate) fn run(args: Args, global: &Global) -> Exit {
    let levels = ["error", "info", "debug"][usize::from(global.verbose.min(2))];
    if let Err(error) = logging::init(levels, Style::default()) {
        return fail(Exit::Usage, error, None);
    }
    match prepare(&args).and_then(|(place, network)| in_the_mesh(args, &place, network, global)) {
        // The exit code is the program's own.
        Ok(code) => std::process::exit(code),
        Err(exit) => exit,
    }
}

/// Finds out who runs where, and enters the namespaces of that network. Until then there is one thread only.
fn prepare(args: &Args) -> Result<(Place, Network), Exit> {
    let place = place::place(args)?;
    let declared = super::connection::block_on(network::declared(args, &place))?;
    let network = network::choose(args.net, &place, declared.as_ref())?;
    network.enter()?;
    Ok((place, network))
}

/// Everything on one thread: proxy and program die with the thread that started them.
fn in_the_mesh(args: Args, place: &Place, network: Network, global: &Global) -> Result<i32, Exit> {
    super::connection::block_on(tokio::task::LocalSet::new().run_until(joined(args, place, network, global)))?
}

/// Joins, declares if asked, runs the program beside its proxy; gives the program's exit code.
async fn joined(args: Args, place: &Place, network: Network, global: &Global) -> Result<i32, Exit> {
    let agent = join(&args, place)?;
    let material = agent.ready(place.wait).await.map_err(|problem| {
        let exit = if agent.status().forbidden { Exit::Forbidden } else { Exit::Unreachable };
        fail(exit, problem, None)
    })?;
    let declared = match (&args.service, args.port) {
        (Some(service), Some(port)) => {
            let offer = Offer {
                service: service.clone(),
                port,
                protocol: args.protocol.clone(),
                pocket: network.pocket().map(Path::to_owned),
            };
            declare::declare(local_control(place), &place.workload, &offer, &material).await?
        }
        _ => None,
    };
    let pocket = network.pocket().map(Path::to_owned);
    let ended = beside_its_proxy(&args, place, network, &material, declared, global).await;
    if let Some(file) = pocket {
        node::pocket::remove(&file);
    }
    ended
}

/// The control plane's own API on this machine: beside its socket, else at its usual place.
fn local_control(place: &Place) -> Client {
    let beside = match &place.server {
        Server::Unix(path) => path.parent().map(Path::to_owned),
        Server::Tcp { .. } => None,
    };
    Client::in_run_dir(&beside.unwrap_or_else(|| place.usual.clone()))
}

fn join(args: &Args, place: &Place) -> Result<AgentHandle, Exit> {
    let settings = AgentSettings {
        run_dir: place.dir.clone(),
        token: args.token.clone(),
        server: Some(place.server.clone()),
        serve_sds: true,
        ..AgentSettings::default()
    };
    Agent::start(settings).map_err(|error| match error {
        identity::agent::AgentError::Private(error) => fail_private(&error),
        other => fail(Exit::Invalid, other, None),
    })
}

/// Runs the program beside its proxy. When it has ended it is withdrawn first, so that nobody calls it any more; then the
/// proxy ends.
async fn beside_its_proxy(
    args: &Args,
    place: &Place,
    network: Network,
    material: &Material,
    declared: Option<Declared>,
    global: &Global,
) -> Result<i32, Exit> {
    let mut proxy = match sidecar::prepare(place, material).and_then(|()| sidecar::start(place, sidecar::FIRST_WAIT)) {
        Ok(proxy) => proxy,
        Err(exit) => return withdrawn(declared, Err(exit)).await,
    };
    let code = beside(args, place, network, material, &mut proxy, global).await;
    let code = withdrawn(declared, code).await;
    spawn::end(&mut proxy).await;
    code
}

async fn withdrawn(declared: Option<Declared>, code: Result<i32, Exit>) -> Result<i32, Exit> {
    if let Some(declared) = declared {
        declared.withdraw().await;
    }
    code
}

/// Waits for the proxy, runs the program, and sees to it that the proxy goes on.
async fn beside(
    args: &Args,
    place: &Place,
    network: Network,
    material: &Material,
    proxy: &mut Child,
    global: &Global,
) -> Result<i32, Exit> {
    let listeners = sidecar::listeners(place, proxy).await?;
    let network = network.into_declared(&listeners, place)?;
    let mesh = match &network {
        Network::Pocket { .. } => names::Names::ask(place).await.unwrap_or_default(),
        Network::Loopback { .. } => names::Names::explicit(&listeners),
    };
    let resolv_conf = names::serve(args.dns.as_deref(), place, &network, &mesh).await?;
    if !global.quiet {
        let who = &material.identity;
        eprintln!("{}.{} runs as {who}", place.workload.name, place.workload.namespace);
        eprintln!("{}", network.said(&listeners));
    }
    let code = tokio::select! {
        code = program::run(&args.command, place, &network, resolv_conf.clone(), &mesh) => code,
        never = sidecar::keep(place, proxy, global) => match never {},
    };
    if let Some(file) = resolv_conf {
        let _ = std::fs::remove_file(file);
    }
    code
}
