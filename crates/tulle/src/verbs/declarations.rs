//! Where an offline question takes the mesh from: files, or a running control plane.

use std::path::PathBuf;

use compile::Mesh;
use model::{Severity, Workload};
use resources::ParseOptions;

use super::connection::{Connection, ask};
use crate::cli::Global;
use crate::declared::Declared;
use crate::output::{Exit, fail};

/// Where the declarations are.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(crate) struct Declarations {
    /// File or directory of declarations (repeat for several) [default: what the control plane has]
    #[arg(short, long = "file", value_name = "PATH")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    connection: Connection,
}

impl Declarations {
    /// The mesh they make. Wrong files are an error; what a control plane took is taken.
    pub(super) fn mesh(&self, global: &Global) -> Result<Mesh, Exit> {
        if self.files.is_empty() {
            return self.running();
        }
        let declared = Declared::read(&self.files)?;
        if declared.complain(Severity::Error, global.color) {
            return Err(fail(Exit::Invalid, "some declarations are wrong", Some("correct them and run again")));
        }
        Ok(declared.mesh)
    }

    fn running(&self) -> Result<Mesh, Exit> {
        let client = self.connection.client()?;
        let objects = ask(client.objects(None, None, None))?;
        let mut entries = Vec::new();
        for object in objects.into_iter().filter(|object| object.accepted) {
            let mut document = object.object;
            if let Some(fields) = document.as_object_mut() {
                fields.remove("status");
            }
            let (file, line) = place(&object.origin);
            // The object stands on the line where the user's file has it.
            let text = "\n".repeat(line.saturating_sub(1)) + &document.to_string();
            let options = ParseOptions { file: file.map(Into::into), ..ParseOptions::default() };
            entries.extend(resources::parse(&text, &options).entries);
        }
        Ok(Mesh::compile(&entries).0)
    }
}

/// File and line of `shop.yaml:14`; a store's object has neither.
fn place(origin: &str) -> (Option<&str>, usize) {
    let split = origin.rsplit_once(':').and_then(|(file, line)| Some((file, line.parse().ok()?)));
    split.map_or((None, 1), |(file, line): (&str, usize)| (Some(file), line.min(1 << 20)))
}

/// The one workload that a name means; of several equal instances the first.
pub(super) fn workload<'m>(mesh: &'m Mesh, text: &str, flag: &str) -> Result<&'m Workload, Exit> {
    let found = mesh.workloads_meant(text);
    let Some(first) = found.first().copied() else {
        let known: Vec<String> = mesh.workload_keys().take(12).map(ToString::to_string).collect();
        let next = format!("known are {}", known.join(", "));
        return Err(fail(Exit::Usage, format!("no workload is named {text} ({flag})"), Some(&next)));
    };
    if found.iter().any(|other| other.namespace != first.namespace) {
        let names: Vec<String> = found.iter().map(|workload| workload.id()).collect();
        let next = format!("write one of {}", names.join(", "));
        return Err(fail(Exit::Usage, format!("{text} is not one workload ({flag})"), Some(&next)));
    }
    Ok(first)
}
