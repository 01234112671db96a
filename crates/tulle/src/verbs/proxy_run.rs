//! `tulle proxy -c FILE`: the data plane.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::envoy::config::bootstrap::v3::{Admin, Bootstrap};
use proto::envoy::config::core::v3::{Address, Pipe, address};
use proto::json::{self, Format};
use proxy::process::{Proxy, Settings, StartError};
use telemetry::logging::{self, Style};

use crate::cli::Global;
use crate::output::{self, Exit, fail};

/// Flags of the data plane
#[derive(Debug, clap::Args)]
#[group(id = "data-plane")]
pub(crate) struct Args {
    /// Envoy bootstrap file (YAML, or JSON when its name ends so)
    #[arg(short, long = "config-path", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Workers, one thread each
    #[arg(long, value_name = "N", default_value_t = cores())]
    concurrency: usize,
    /// Serve, or only check the file
    #[arg(long, value_enum, default_value_t)]
    mode: Mode,
    /// Keep the last good configuration here (0700), for starts without a control plane
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// How long a silent control plane is waited for before the last good configuration is used
    #[arg(long, value_name = "TIME", value_parser = super::duration::parse, default_value = "100ms")]
    state_wait: Duration,
    /// Sockets of this proxy: DIR/admin.sock unless the bootstrap says otherwise, and DIR/handover.sock for --take-over
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Take over from the proxy that runs with this --run-dir, if one does: its listening sockets, with no connection lost;
    /// it drains and ends once this one serves
    #[arg(long, requires = "run_dir")]
    take_over: bool,
    /// Seconds that connections may take to end after SIGTERM
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    drain_time: u64,
    /// Allow an admin address that other machines can reach
    #[arg(long)]
    admin_anywhere: bool,
    /// How its log looks: logfmt or json
    #[arg(long, value_name = "STYLE", default_value = "logfmt")]
    log_format: Style,
    /// What it logs: `info`, or exceptions by module: `warn,proxy=debug`
    #[arg(long, value_name = "LEVELS", env = "TULLE_LOG", default_value = "info")]
    log: String,
}

/// What to do with the bootstrap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum Mode {
    /// Run the proxy.
    #[default]
    Serve,
    /// Say whether the file is right, and which safe limits apply.
    Validate,
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

pub(crate) fn run(args: Args, global: &Global) -> Exit {
    let Some(path) = &args.config else {
        let next = "tulle proxy -c FILE, or one of its subcommands (tulle proxy --help)";
        return fail(Exit::Usage, "which bootstrap?", Some(next));
    };
    let levels = if global.verbose > 0 { "debug" } else { args.log.as_str() };
    if let Err(error) = logging::init(levels, args.log_format) {
        return fail(Exit::Usage, error, None);
    }
    let bootstrap = match read(path) {
        Ok(bootstrap) => with_admin(bootstrap, args.run_dir.as_deref()),
        Err(exit) => return exit,
    };
    match args.mode {
        Mode::Validate => validate(path, &bootstrap),
        Mode::Serve => serve(args, bootstrap),
    }
}

/// Reads the file; every fault is named with its place.
fn read(path: &Path) -> Result<Bootstrap, Exit> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| fail(Exit::Invalid, format!("{}: {error}", path.display()), None))?;
    let format = if path.extension().is_some_and(|e| e == "json") { Format::Json } else { Format::Yaml };
    let (bootstrap, ignored) = json::parse_bootstrap(&text, format).map_err(|faults| {
        let lines: Vec<String> = faults
            .iter()
            .map(|f| format!("{}:{}:{}: {}: {}", path.display(), f.line, f.column, f.path, f.message))
            .collect();
        fail(Exit::Invalid, lines.join("\n"), Some("remove the fields that are not supported, or correct them"))
    })?;
    // One line for each kind, however many places have it.
    let mut kinds: BTreeMap<String, (String, usize)> = BTreeMap::new();
    for field in ignored.iter().map(ToString::to_string) {
        let (place, reason) = field.split_once(": ").unwrap_or(("", &field));
        let last = place.rsplit('.').next().unwrap_or(place);
        kinds.entry(format!("{last}: {reason}")).or_insert_with(|| (place.to_owned(), 0)).1 += 1;
    }
    for (kind, (place, count)) in kinds {
        tracing::info!(event = "field-ignored", file = %path.display(), first = %place, count, "{kind}");
    }
    Ok(bootstrap)
}

fn with_admin(mut bootstrap: Bootstrap, run_dir: Option<&Path>) -> Bootstrap {
    if let Some(directory) = run_dir.filter(|_| bootstrap.admin.is_none()) {
        let path = directory.join("admin.sock").display().to_string();
        let address = Address { address: Some(address::Address::Pipe(Pipe { path, mode: 0 })) };
        bootstrap.admin = Some(Admin { address: Some(address), ..Admin::default() });
    }
    bootstrap
}

fn validate(path: &Path, bootstrap: &Bootstrap) -> Exit {
    match proxy::validate::validate(bootstrap) {
        Ok(findings) => {
            let mut text = format!("configuration '{}' OK\n", path.display());
            for line in findings.defaults {
                text.push_str("limit: ");
                text.push_str(&line);
                text.push('\n');
            }
            output::print(&text);
            Exit::Done
        }
        Err(errors) => {
            let lines: Vec<String> = errors.iter().map(|error| format!("{}: {error}", path.display())).collect();
            fail(Exit::Invalid, lines.join("\n"), None)
        }
    }
}

fn serve(args: Args, bootstrap: Bootstrap) -> Exit {
    let mut settings = Settings::new(bootstrap);
    settings.concurrency = args.concurrency;
    settings.state_dir = args.state_dir;
    settings.state_wait = args.state_wait;
    settings.run_dir = args.run_dir;
    settings.take_over = args.take_over;
    settings.drain = Duration::from_secs(args.drain_time);
    settings.signals = true;
    settings.admin_anywhere = args.admin_anywhere;
    match Proxy::start(settings) {
        Ok(proxy) => {
            proxy.join();
            Exit::Done
        }
        Err(error) => {
            let exit = match error {
                StartError::Resources(_) => Exit::Invalid,
                StartError::State { .. } | StartError::Log { .. } => Exit::Forbidden,
                StartError::Admin(_) | StartError::System(_) | StartError::Office(_) | StartError::TakeOver { .. } => {
                    Exit::Conflict
                }
            };
            fail(exit, error, None)
        }
    }
}
