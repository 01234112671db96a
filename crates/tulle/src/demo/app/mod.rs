//! The sample services of the demo. They know nothing of the mesh: they listen, they call `http://NAME:PORT`, and
//! environment variables say when an address is another one, as in any twelve-factor program.
//!
//! `gateway` -> `web` -> `catalog` (HTTP/2) -> `pricing` (gRPC); `web` -> `cart` -> `payments` (gRPC) -> `ledger`
//! (lines over TCP). `visitor` is the public, `intruder` has no business with payments, `legacy` is outside the mesh.

mod call;
mod grpc;
mod page;
mod serve;
mod shop;
mod sick;
pub(crate) mod traffic;

use std::path::PathBuf;

use crate::output::{self, Exit};

/// Which service to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Role {
    /// The door of the shop; HTTP/1.1.
    Gateway,
    /// The pages; HTTP/1.1.
    Web,
    /// The list of goods; HTTP/2.
    Catalog,
    /// Prices; gRPC.
    Pricing,
    /// The cart; HTTP/1.1.
    Cart,
    /// Charges; gRPC.
    Payments,
    /// The books; lines over TCP.
    Ledger,
    /// The public: an open-loop load on the gateway.
    Visitor,
    /// Searches the catalog --requests times, as fast as it answers.
    Burst,
    /// Tries to charge without being allowed to.
    Intruder,
    /// A program outside the mesh that calls the catalog.
    Legacy,
}

/// Be one of the demo's services
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  tulle demo app web --listen 127.0.0.1:8080\n  \
                        GATEWAY_URL=http://127.0.0.1:8080 tulle demo app visitor --rate 40")]
pub(crate) struct Args {
    /// The service
    #[arg(value_enum)]
    role: Role,
    /// Where to listen: IP:PORT or unix:PATH
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:8080")]
    listen: serve::Listen,
    /// A listening socket that was opened before, by its file descriptor
    #[arg(long, value_name = "FD")]
    inherit: Option<i32>,
    /// Name of this instance, told in responses
    #[arg(long, default_value = "unnamed")]
    instance: String,
    /// Version of this service, told in responses
    #[arg(long, default_value = "v1")]
    app_version: String,
    /// A file that makes this instance sick while it exists: {"errors": 0.3, "slow": 0.1, "slow_ms": 800}
    #[arg(long, value_name = "FILE")]
    sick_file: Option<PathBuf>,
    /// Requests per second, for the services that make traffic
    #[arg(long, default_value_t = 1.0)]
    rate: f64,
    /// Requests in all, for `burst`
    #[arg(long, default_value_t = 1000)]
    requests: usize,
}

/// What every service is told.
#[derive(Debug)]
struct Settings {
    instance: String,
    version: String,
    sick: sick::Sick,
    rate: f64,
    requests: usize,
}

pub(crate) fn run(args: Args) -> Exit {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return output::fail(Exit::Unreachable, format!("cannot start: {error}"), None),
    };
    let role = args.role;
    match runtime.block_on(tokio::task::LocalSet::new().run_until(be(args))) {
        Ok(()) => Exit::Done,
        Err(error) => output::fail(Exit::Unreachable, format!("demo app {role:?}: {error:#}"), None),
    }
}

async fn be(args: Args) -> anyhow::Result<()> {
    let settings = std::rc::Rc::new(Settings {
        instance: args.instance,
        version: args.app_version,
        sick: sick::Sick::new(args.sick_file),
        rate: args.rate,
        requests: args.requests,
    });
    let listen = args.listen;
    let inherit = args.inherit;
    match args.role {
        Role::Gateway => shop::gateway(settings, listen, inherit).await,
        Role::Web => shop::web(settings, listen).await,
        Role::Catalog => shop::catalog(settings, listen).await,
        Role::Pricing => grpc::pricing(settings, listen).await,
        Role::Cart => shop::cart(settings, listen).await,
        Role::Payments => grpc::payments(settings, listen).await,
        Role::Ledger => shop::ledger(settings, listen).await,
        Role::Visitor => traffic::visitor(settings).await,
        Role::Burst => traffic::burst(settings).await,
        Role::Intruder => traffic::intruder(settings).await,
        Role::Legacy => traffic::legacy(settings).await,
    }
}
