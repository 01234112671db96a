//! `tulle translate`: what a workload's proxy would run, offline.

use std::net::SocketAddr;
use std::path::PathBuf;

use compile::{Admin, EncodeOptions, Mode, Resource, WorkloadKey};
use model::Severity;
use serde_json::{Value, json};

use crate::cli::Global;
use crate::declared::Declared;
use crate::output::{Exit, fail, print};
use crate::walk::outline;

/// Print the whole configuration that a workload's proxy would run, without a control plane
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tulle translate -f mesh/ --workload web-1.shop --certs /run/web > web.yaml
  tulle translate -f mesh/ --workload web-1.shop -o xds | jq '.clusters[].name'

The bootstrap runs in `tulle proxy -c` and in Envoy. The directory given by --certs must hold
cert-chain.pem, key.pem and root-cert.pem when it does (`tulle agent` writes them).")]
pub(crate) struct Args {
    /// File or directory of declarations (repeat for several)
    #[arg(short, long = "file", required = true, value_name = "PATH")]
    files: Vec<PathBuf>,
    /// Whose proxy
    #[arg(long, value_name = "NAME.NAMESPACE")]
    workload: WorkloadKey,
    /// What to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// Directory of the workload's certificate files, as the proxy will see it
    #[arg(long, value_name = "DIR", default_value = "certs")]
    certs: String,
    /// Where the proxy's admin interface listens: IP:PORT, or the path of a Unix socket
    #[arg(long, value_name = "ADDRESS", value_parser = admin)]
    admin: Option<Admin>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum Output {
    /// An Envoy bootstrap with everything in it, as YAML
    #[default]
    Bootstrap,
    /// The resources as the control plane would serve them, as JSON
    Xds,
    /// What it means, in short: who may come in, where calls go
    Plan,
}

fn admin(text: &str) -> Result<Admin, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        return Ok(Admin::Unix(path.to_owned()));
    }
    if text.contains('/') {
        return Ok(Admin::Unix(text.to_owned()));
    }
    text.parse::<SocketAddr>().map(Admin::Socket).map_err(|_| format!("`{text}` is neither IP:PORT nor a path"))
}

pub(crate) fn run(args: Args, global: &Global) -> Exit {
    let declared = match Declared::read(&args.files) {
        Ok(declared) => declared,
        Err(exit) => return exit,
    };
    let least = if global.quiet { Severity::Error } else { Severity::Warning };
    if declared.complain(least, global.color) {
        return fail(Exit::Invalid, "some declarations are wrong", Some("correct them and run again"));
    }
    let mesh = &declared.mesh;
    let Some(workload) = mesh.workload(&args.workload) else {
        let known: Vec<String> = mesh.workload_keys().take(12).map(ToString::to_string).collect();
        let next = match known.as_slice() {
            [] => "declare it with a document of kind Workload (tulle.dev/v1alpha1)".to_owned(),
            names => format!("declared are {}", names.join(", ")),
        };
        return fail(Exit::Invalid, format!("there is no workload {}", args.workload), Some(&next));
    };
    match args.output {
        Output::Bootstrap => {
            let mode = Mode::Static { certs_dir: args.certs, admin: args.admin };
            if let Some(bootstrap) = compile::bootstrap(mesh, &args.workload, &mode) {
                print(&proto::json::to_yaml(&bootstrap));
            }
        }
        Output::Xds => {
            let snapshot = compile::encode(mesh, &args.workload, &EncodeOptions::default());
            let list = |resources: &[std::sync::Arc<Resource>]| -> Vec<Value> {
                resources.iter().map(|resource| described(resource)).collect()
            };
            let all = json!({
                "listeners": list(&snapshot.listeners),
                "routes": list(&snapshot.routes),
                "clusters": list(&snapshot.clusters),
                "endpoints": list(&snapshot.endpoints),
            });
            print(&format!("{all:#}\n"));
        }
        Output::Plan => match outline(mesh, workload) {
            Ok(text) => print(&text),
            Err(error) => return fail(Exit::Invalid, error, None),
        },
    }
    Exit::Done
}

fn described(resource: &Resource) -> Value {
    json!({
        "name": resource.name,
        "version": resource.version,
        "resource": proto::json::any_to_json(&resource.body),
    })
}
