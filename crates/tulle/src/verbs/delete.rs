//! `tulle delete`.

use std::path::PathBuf;
use std::time::Duration;

use control::api::{DeleteRequest, ObjectName};

use super::apply;
use super::connection::{Connection, ask};
use crate::cli::Global;
use crate::output::{self, Exit, fail};

/// Remove objects from the control plane's store
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tulle delete virtualservice catalog -n shop\n  tulle delete -f catalog.yaml --wait"
)]
pub(crate) struct Args {
    /// Kind, also plural or short: virtualservices, vs
    #[arg(required_unless_present = "files", requires = "names")]
    kind: Option<String>,
    /// Names
    names: Vec<String>,
    /// Remove what this file declares; may be repeated
    #[arg(short, long = "filename", value_name = "FILE", conflicts_with = "kind")]
    files: Vec<PathBuf>,
    /// Namespace
    #[arg(short, long, value_name = "NAMESPACE", env = "TULLE_NAMESPACE", default_value = "default")]
    namespace: String,
    /// Return when every proxy that it concerns has acknowledged it, at the latest after so long
    #[arg(long, value_name = "TIME", num_args = 0..=1, default_missing_value = "30s", require_equals = true, value_parser = super::duration::parse)]
    wait: Option<Duration>,
    #[command(flatten)]
    connection: Connection,
}

pub(crate) fn run(args: Args, _global: &Global) -> Exit {
    match delete(&args) {
        Ok(exit) | Err(exit) => exit,
    }
}

fn delete(args: &Args) -> Result<Exit, Exit> {
    let objects = match &args.kind {
        Some(kind) => args.names.iter().map(|name| object(kind, &args.namespace, name)).collect(),
        None => declared(args)?,
    };
    let wait_ms = args.wait.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
    let client = args.connection.client()?;
    let answer = ask(client.delete(&DeleteRequest { objects, wait_ms }))?;
    output::print(&apply::text(&answer, false));
    Ok(answer.wait.as_ref().map_or(Exit::Done, apply::outcome))
}

fn object(kind: &str, namespace: &str, name: &str) -> ObjectName {
    ObjectName { kind: kind.to_owned(), namespace: namespace.to_owned(), name: name.to_owned(), resource_version: None }
}

/// The objects that files declare.
fn declared(args: &Args) -> Result<Vec<ObjectName>, Exit> {
    let mut objects = Vec::new();
    for (name, text) in apply::read_all(&args.files)? {
        let options = resources::ParseOptions {
            default_namespace: args.namespace.clone(),
            ..resources::ParseOptions::of_file(&name)
        };
        let entries = resources::parse(&text, &options).entries;
        objects.extend(entries.iter().map(|entry| object(&entry.key.kind, &entry.key.namespace, &entry.key.name)));
    }
    if objects.is_empty() {
        return Err(fail(Exit::Invalid, "the files declare no object", None));
    }
    Ok(objects)
}
