//! `tulle demo`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;

use crate::cli::Global;
use crate::demo::cast::{Net, Part};
use crate::demo::{self, app};
use crate::output::Exit;

/// Start a whole mesh on this machine, with traffic
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tulle demo\n  tulle demo --check --net loopback\n  tulle demo --rate 100 \
                  --outage 60s --for 90s\n\nEverything is inside this program: \
                  nothing is fetched or installed, and nothing is left behind.",
    args_conflicts_with_subcommands = true
)]
pub(crate) struct Args {
    /// How traffic comes to the proxies
    #[arg(long, value_enum, default_value_t, value_name = "KIND")]
    pub(crate) net: NetChoice,
    /// Run the scenario as a test: one line for each step, exit 0 only if all hold
    #[arg(long)]
    pub(crate) check: bool,
    /// Stop by itself after this time
    #[arg(long = "for", value_name = "TIME", value_parser = super::duration::parse)]
    time: Option<Duration>,
    /// Life of a workload's certificate [default: 1h, with --check 20s]
    #[arg(long, value_name = "TIME", value_parser = super::duration::parse)]
    cert_ttl: Option<Duration>,
    /// The visitor's requests per second
    #[arg(long, value_name = "N", default_value_t = 40.0)]
    rate: f64,
    /// Kill the control plane, start it again after this time, and say what the visitor saw of it
    #[arg(long, value_name = "TIME", value_parser = super::duration::parse, conflicts_with = "check")]
    outage: Option<Duration>,
    /// Port of the shop's door on 127.0.0.1 [default: 8080, or any if that is taken]
    #[arg(long, value_name = "PORT")]
    pub(crate) port: Option<u16>,
    /// Put a real Envoy beside one of the programs instead of our proxy; may be repeated
    #[arg(long = "envoy", value_name = "NAME=FILE", value_parser = stand_in)]
    pub(crate) envoys: Vec<(String, PathBuf)>,
    #[command(subcommand)]
    what: Option<What>,
}

/// `cart-1=/usr/bin/envoy`.
fn stand_in(text: &str) -> Result<(String, PathBuf), String> {
    let names = || Part::meshed().map(|(_, part)| part.name);
    let (name, file) = text.split_once('=').ok_or("write NAME=FILE, for example cart-1=/usr/bin/envoy")?;
    if !names().any(|known| known == name) {
        return Err(format!("`{name}` is none of {}", names().collect::<Vec<_>>().join(", ")));
    }
    Ok((name.to_owned(), file.into()))
}

/// What `--net` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum NetChoice {
    /// The best that works here
    #[default]
    Auto,
    /// Namespaces of an unprivileged user, transparent
    Userns,
    /// Namespaces made by root, transparent
    Netns,
    /// Loopback addresses, explicit
    Loopback,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    App(app::Args),
}

impl Args {
    pub(crate) fn life(&self) -> Duration {
        self.cert_ttl.unwrap_or_else(|| Duration::from_secs(if self.check { 20 } else { 3600 }))
    }

    pub(crate) fn visitor_rate(&self) -> f64 {
        self.rate
    }

    pub(crate) fn intruder_rate(&self) -> f64 {
        if self.check { 5.0 } else { 0.5 }
    }

    pub(crate) fn outage(&self) -> Option<Duration> {
        self.outage
    }

    pub(crate) fn duration(&self) -> Duration {
        self.time.unwrap_or_else(|| Duration::from_secs(30 * 60))
    }

    /// The arguments that make another process of this program do the same on a given network.
    pub(crate) fn again(&self, net: Net) -> Vec<OsString> {
        let mut args: Vec<OsString> = ["demo", "--net", net.name()].map(Into::into).to_vec();
        if self.check {
            args.push("--check".into());
        }
        for (flag, value) in [("--for", self.duration()), ("--cert-ttl", self.life())] {
            args.extend([flag.into(), format!("{}ms", value.as_millis()).into()]);
        }
        args.extend(["--rate".into(), self.visitor_rate().to_string().into()]);
        if let Some(outage) = self.outage {
            args.extend(["--outage".into(), format!("{}ms", outage.as_millis()).into()]);
        }
        for (name, file) in &self.envoys {
            args.extend(["--envoy".into(), format!("{name}={}", file.display()).into()]);
        }
        args
    }
}

pub(crate) fn run(args: Args, global: &Global) -> Exit {
    match args.what {
        Some(What::App(args)) => app::run(args),
        None => demo::run(&args, global),
    }
}
