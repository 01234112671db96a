//! `tulle agent`: a workload's key and certificate, for a proxy that is not ours.

use std::path::PathBuf;
use std::time::Duration;

use identity::agent::{Agent, AgentError, AgentHandle, AgentSettings};
use identity::reach::Server;
use telemetry::logging::{self, Style};
use tokio::signal::unix::{SignalKind, signal};

use super::duration;
use super::token::fail_private;
use crate::cli::Global;
use crate::output::{self, Exit};

/// Get and renew a workload's certificate; serve it to an Envoy over SDS, or as PEM files
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tulle agent --token cart.shop.token --run-dir /run/tulle/cart
  tulle agent --token cart.shop.token --run-dir /run/tulle/cart --pem-dir /run/cart-certs --no-sds
  tulle agent --token cart.shop.token --run-dir /run/tulle/cart --once")]
pub(crate) struct Args {
    /// The token file of first contact (from `tulle token create`); may be left out once joined
    #[arg(long, value_name = "FILE")]
    token: Option<PathBuf>,
    /// Private directory for key, certificate and sds.sock, best on tmpfs [default: $XDG_RUNTIME_DIR/tulle/agent, root:
    /// /run/tulle/agent]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Where the control plane is, HOST:PORT or unix:PATH [default: what the token says]
    #[arg(long, value_name = "ADDR")]
    server: Option<Server>,
    /// Also write cert-chain.pem, key.pem and root-cert.pem here, swapped in one step
    #[arg(long, value_name = "DIR")]
    pem_dir: Option<PathBuf>,
    /// Do not serve SDS
    #[arg(long)]
    no_sds: bool,
    /// Users besides this one and root who may get the key over SDS
    #[arg(long, value_name = "UID")]
    sds_uid: Vec<u32>,
    /// Ask for a shorter life than the control plane gives: 5m, 1h
    #[arg(long, value_parser = duration::parse, value_name = "TIME")]
    cert_ttl: Option<Duration>,
    /// Get a certificate, write the files and end
    #[arg(long)]
    once: bool,
    /// With --once: how long to try
    #[arg(long, default_value = "30s", value_parser = duration::parse, value_name = "TIME", requires = "once")]
    wait: Duration,
}

pub(crate) fn run(args: Args, global: &Global) -> Exit {
    let levels = match (global.quiet, global.verbose) {
        (true, _) => "error",
        (false, 0) => "info",
        (false, 1) => "debug",
        (false, _) => "trace",
    };
    if let Err(error) = logging::init(levels, Style::default()) {
        return output::fail(Exit::Usage, error, None);
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return output::fail(Exit::Invalid, format!("cannot start: {error}"), None),
    };
    runtime.block_on(serve(args, global))
}

async fn serve(args: Args, global: &Global) -> Exit {
    let (once, wait) = (args.once, args.wait);
    let settings = AgentSettings {
        run_dir: args.run_dir.unwrap_or_else(default_run_dir),
        token: args.token,
        server: args.server,
        ttl: args.cert_ttl,
        serve_sds: !args.no_sds && !once,
        sds_uids: args.sds_uid,
        pem_dir: args.pem_dir,
    };
    let run_dir = settings.run_dir.clone();
    let agent = match Agent::start(settings) {
        Ok(agent) => agent,
        Err(AgentError::Private(error)) => return fail_private(&error),
        Err(error) => return output::fail(Exit::Invalid, error, None),
    };
    if once {
        return match agent.ready(wait).await {
            Ok(material) => {
                output::print(&format!("{}\n", material.identity));
                Exit::Done
            }
            Err(problem) => {
                let exit = if agent.status().forbidden { Exit::Forbidden } else { Exit::Unreachable };
                output::fail(exit, problem, None)
            }
        };
    }
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return output::fail(Exit::Invalid, "cannot listen for signals", None);
    };
    tokio::select! {
        () = announce(&agent, run_dir, global.quiet) => Exit::Done,
        _ = terminate.recv() => Exit::Done,
        _ = interrupt.recv() => Exit::Done,
    }
}

/// Says once who this is and where its secrets are; then waits for ever.
async fn announce(agent: &AgentHandle, run_dir: PathBuf, quiet: bool) {
    if let Ok(material) = agent.ready(Duration::MAX).await
        && !quiet
    {
        eprintln!("ready: {}", material.identity);
        match agent.sds_socket() {
            Some(socket) => eprintln!("  SDS  {} (secrets `default` and `ROOTCA`)", socket.display()),
            None => eprintln!("  PEM  {}", run_dir.display()),
        }
    }
    std::future::pending::<()>().await;
}

fn default_run_dir() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/run/tulle/agent");
    }
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|v| !v.is_empty()).map(PathBuf::from);
    let own_tmp = || std::env::temp_dir().join(format!("tulle-{}", rustix::process::geteuid().as_raw()));
    runtime.unwrap_or_else(own_tmp).join("tulle/agent")
}
