//! `tulle run`: an unmodified program as a workload of the mesh, with its agent and its proxy beside it.

use std::ffi::OsString;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use compile::{Admin, Ads, AdsServer, Mesh, Mode, WorkloadKey};
use control::client::Client;
use identity::agent::{Agent, AgentHandle, AgentSettings, Material, SDS_SOCKET};
use identity::reach::Server;
use identity::token::JoinToken;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use telemetry::logging::{self, Style};
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};

use super::run_declare::{self, Offer};
use super::token::fail_private;
use super::{admin, duration};
use crate::cli::Global;
use crate::demo::spawn::{self, Program};
use crate::output::{Exit, fail};

/// How often things are looked at that nobody announces.
const LOOK: Duration = Duration::from_millis(20);

/// Run a program as a workload of the mesh
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tulle run --token cart.shop.token --service cart --port 8080 -- ./cart --port 8080
  tulle run --token web.shop.token --control 10.0.0.1:15012 -- python3 web.py

With --service and --port the workload declares itself for as long as it runs, in the store of a control plane on this
machine. Else it must be declared (kind Workload): its interception says on which addresses its proxy listens. The program
finds the proxy's address for each service it may call in NAME_ADDR and NAME_URL (CATALOG_URL=http://127.1.2.3:8080),
and by DNS at the address that --dns names.")]
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
    /// Private directory for key, certificate, sockets and the proxy's log [default: $XDG_RUNTIME_DIR/tulle/run/NAME,
    /// root: /run/tulle/run/NAME]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Where mesh names are answered: IP:PORT, or off
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15053")]
    dns: String,
    /// How long joining and configuration may take
    #[arg(long, value_parser = duration::parse, value_name = "TIME", default_value = "30s")]
    wait: Duration,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Who runs, and where things are.
struct Place {
    workload: WorkloadKey,
    server: Server,
    dir: PathBuf,
    dns: Option<SocketAddr>,
    wait: Duration,
}

pub(crate) fn run(args: Args, global: &Global) -> Exit {
    let levels = ["error", "info", "debug"][usize::from(global.verbose.min(2))];
    if let Err(error) = logging::init(levels, Style::default()) {
        return fail(Exit::Usage, error, None);
    }
    let place = match place(&args) {
        Ok(place) => place,
        Err(exit) => return exit,
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(Exit::Unreachable, format!("cannot start: {error}"), None),
    };
    // One thread, and everything on it: the proxy dies with the thread that started it.
    let ended = runtime.block_on(tokio::task::LocalSet::new().run_until(in_the_mesh(args, &place, global)));
    match ended {
        Ok(code) => {
            // The exit code is the program's own.
            drop(runtime);
            std::process::exit(code);
        }
        Err(exit) => exit,
    }
}

fn place(args: &Args) -> Result<Place, Exit> {
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
    let dns = match args.dns.as_str() {
        "off" => None,
        text => Some(text.parse().map_err(|_| fail(Exit::Usage, format!("--dns {text}: IP:PORT or off"), None))?),
    };
    let dir = args.run_dir.clone().unwrap_or_else(|| {
        super::connection::default_run_dir().join("run").join(format!("{}.{}", workload.name, workload.namespace))
    });
    let dir = std::path::absolute(&dir).unwrap_or(dir);
    Ok(Place { workload, server, dir, dns, wait: args.wait })
}

/// Joins, declares if asked, runs the program beside its proxy; gives the program's exit code.
async fn in_the_mesh(args: Args, place: &Place, global: &Global) -> Result<i32, Exit> {
    let agent = join(&args, place)?;
    let material = agent.ready(place.wait).await.map_err(|problem| {
        let exit = if agent.status().forbidden { Exit::Forbidden } else { Exit::Unreachable };
        fail(exit, problem, None)
    })?;
    let declared = match (&args.service, args.port) {
        (Some(service), Some(port)) => {
            let offer = Offer { service: service.clone(), port, protocol: args.protocol.clone() };
            run_declare::declare(local_control(place), &place.workload, &offer, &material).await?
        }
        _ => None,
    };
    let ended = beside_its_proxy(&args, place, &material, global).await;
    if let Some(declared) = declared {
        declared.withdraw().await;
    }
    ended
}

/// The control plane's own API on this machine: beside its socket, else at its usual place.
fn local_control(place: &Place) -> Client {
    let beside = match &place.server {
        Server::Unix(path) => path.parent().map(Path::to_owned),
        Server::Tcp { .. } => None,
    };
    Client::in_run_dir(&beside.unwrap_or_else(super::connection::default_run_dir))
}

/// Starts the proxy, runs the program, ends the proxy.
async fn beside_its_proxy(args: &Args, place: &Place, material: &Material, global: &Global) -> Result<i32, Exit> {
    let mut proxy = start_proxy(place, material).await?;
    let outbound = listeners(place, &mut proxy).await?;
    let zone = zone(&outbound, place);
    if let Some(address) = place.dns {
        match node::dns::Server::bind(address, zone).await {
            Ok(server) => drop(tokio::task::spawn_local(server.serve())),
            Err(error) => eprintln!("note: no DNS for mesh names on {address}: {error}"),
        }
    }
    if !global.quiet {
        let who = &material.identity;
        eprintln!("{}.{} runs as {who}", place.workload.name, place.workload.namespace);
        eprintln!(
            "network: explicit loopback addresses. Nothing forces this program through its proxy, and programs of one \
             user trust each other"
        );
    }
    let code = program(&args.command, &outbound).await;
    spawn::end(&mut proxy).await;
    code
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

/// Writes the proxy's bootstrap and starts it; its output goes to a file, never into the program's.
async fn start_proxy(place: &Place, material: &Material) -> Result<Child, Exit> {
    let invalid = |what: String| fail(Exit::Invalid, what, None);
    let trust_domain = material.identity.trust_domain();
    let server = match &place.server {
        Server::Unix(path) => AdsServer::Unix(path.display().to_string()),
        Server::Tcp { host, port } => {
            let resolved = (host.as_str(), *port).to_socket_addrs().ok().and_then(|mut all| all.next());
            let at = resolved.ok_or_else(|| fail(Exit::Unreachable, format!("cannot resolve {host}"), None))?;
            let identity = identity::ca::control_identity(trust_domain).map_err(|e| invalid(e.to_string()))?;
            AdsServer::Socket { at, identity: identity.to_string(), server_name: host.clone() }
        }
    };
    let text = |name: &str| place.dir.join(name).display().to_string();
    let mode = Mode::Dynamic {
        admin: Some(Admin::Unix(text("admin.sock"))),
        ads: Ads { server, delta: true },
        sds_path: text(SDS_SOCKET),
    };
    let (mesh, _) = Mesh::compile(&resources::parse(&declared(place, trust_domain), &Default::default()).entries);
    let bootstrap = compile::bootstrap(&mesh, &place.workload, &mode)
        .ok_or_else(|| invalid(format!("{} is no name of a workload", place.workload.name)))?;
    let file = place.dir.join("proxy.yaml");
    std::fs::write(&file, proto::json::to_yaml(&bootstrap))
        .map_err(|error| invalid(format!("cannot write {}: {error}", file.display())))?;
    let args = ["proxy", "-c", &text("proxy.yaml"), "--concurrency", "1", "--state-dir", &text("state")];
    let myself = std::env::current_exe().map_err(|error| invalid(format!("where is this program? {error}")))?;
    Program::new(args, place.dir.join("proxy.log")).spawn(&myself).map_err(|error| invalid(error.to_string()))
}

/// Just enough of a declaration for the proxy's `node`; what it listens on comes from the control plane.
fn declared(place: &Place, trust_domain: &str) -> String {
    let mesh = json!({"apiVersion": "tulle.dev/v1alpha1", "kind": "MeshConfig", "metadata": {"name": "mesh"},
        "spec": {"trustDomain": trust_domain}});
    let workload = json!({"apiVersion": "tulle.dev/v1alpha1", "kind": "Workload",
        "metadata": {"name": place.workload.name, "namespace": place.workload.namespace},
        "spec": {"addresses": ["127.0.0.1"], "meshed": true}});
    [mesh, workload].iter().map(proto::json::value_to_yaml).collect::<Vec<_>>().join("---\n")
}

/// A service that the program may call, and where its proxy listens for it.
struct Outbound {
    host: String,
    port: u16,
    address: SocketAddr,
}

/// Waits until the proxy is ready and listens somewhere; gives its outbound listeners.
async fn listeners(place: &Place, proxy: &mut Child) -> Result<Vec<Outbound>, Exit> {
    let socket = format!("unix:{}", place.dir.join("admin.sock").display());
    let WorkloadKey { name, namespace, .. } = &place.workload;
    let begin = Instant::now();
    loop {
        let ready = admin::get(&socket, "/ready").await.is_ok();
        let page = if ready { admin::get(&socket, "/listeners").await.unwrap_or_default() } else { String::new() };
        if page.lines().any(|line| line.starts_with("virtualOutbound::")) {
            let what =
                format!("{name}.{namespace} is declared with transparent interception, which is not to be had here");
            let next = "declare it with `interception: {explicit: {outbound: [...]}}`";
            return Err(fail(Exit::Invalid, what, Some(next)));
        }
        if page.lines().any(|line| line.contains("::")) {
            return Ok(page.lines().filter_map(outbound_of).collect());
        }
        if proxy.try_wait().ok().flatten().is_some() || begin.elapsed() > place.wait {
            let log = place.dir.join("proxy.log");
            let what = format!("the proxy of {name}.{namespace} got no configuration: {}", last_warning(&log));
            let next = format!(
                "is workload {name} declared in namespace {namespace}, with this service account? (log: {})",
                log.display()
            );
            return Err(fail(Exit::Unreachable, what, Some(&next)));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// `outbound|8080||catalog.shop.svc.cluster.local::127.1.2.3:8080` of the admin page.
fn outbound_of(line: &str) -> Option<Outbound> {
    let (name, address) = line.split_once("::")?;
    let mut parts = name.split('|');
    match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some("outbound"), Some(port), Some(""), Some(host), None) => {
            Some(Outbound { host: host.to_owned(), port: port.parse().ok()?, address: address.parse().ok()? })
        }
        _ => None,
    }
}

fn last_warning(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let serious = |line: &&str| line.contains("level=warn") || line.contains("level=error") || line.contains("error:");
    text.lines().rev().find(serious).unwrap_or("it says nothing").to_owned()
}

/// The names of the services, for DNS.
fn zone(outbound: &[Outbound], place: &Place) -> node::dns::Zone {
    let mut zone = node::dns::Zone::new("cluster.local", None);
    for one in outbound {
        zone.add(&one.host, &[one.address.ip()]);
        let mut labels = one.host.split('.');
        if let (Some(name), Some(namespace), Some("svc")) = (labels.next(), labels.next(), labels.next()) {
            zone.add_service(name, namespace, &place.workload.namespace, &[one.address.ip()]);
        }
    }
    zone
}

/// Environment variables by which the program finds its proxy; those that it has already stay as they are.
fn environment(outbound: &[Outbound]) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = Vec::new();
    for one in outbound {
        let name: String = one.host.split('.').next().unwrap_or_default().to_uppercase();
        let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        for stem in [name.clone(), format!("{name}_{}", one.port)] {
            for (ending, value) in [("ADDR", one.address.to_string()), ("URL", format!("http://{}", one.address))] {
                let variable = format!("{stem}_{ending}");
                if std::env::var_os(&variable).is_none() && all.iter().all(|(earlier, _)| *earlier != variable) {
                    all.push((variable, value));
                }
            }
        }
    }
    all
}

/// Runs the program with our own standard streams, hands signals on, and gives its exit code (128 + N after signal N).
async fn program(command: &[OsString], outbound: &[Outbound]) -> Result<i32, Exit> {
    let Some((file, args)) = command.split_first() else { return Err(Exit::Usage) };
    let mut child = tokio::process::Command::new(file)
        .args(args)
        .envs(environment(outbound))
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| fail(Exit::Invalid, format!("cannot start {}: {error}", file.display()), None))?;
    let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
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
    for (kind, number, hand_on) in handed {
        let Ok(mut stream) = signal(kind) else { continue };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outbound_listeners_become_variables() {
        let page = "outbound|8080||catalog.shop.svc.cluster.local::127.1.2.3:8080\n\
                    outbound|9090||catalog.shop.svc.cluster.local::127.1.2.3:9090\n\
                    inbound|8080::127.0.0.2:8080\noutbound|x||y::z\n";
        let outbound: Vec<Outbound> = page.lines().filter_map(outbound_of).collect();
        let all = environment(&outbound);
        let get = |name: &str| all.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
        assert_eq!(outbound.len(), 2);
        assert_eq!(get("CATALOG_URL"), Some("http://127.1.2.3:8080"));
        assert_eq!(get("CATALOG_9090_ADDR"), Some("127.1.2.3:9090"));
    }
}
