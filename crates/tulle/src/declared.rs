//! Reading declarations from files, the same for every offline verb.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use compile::Mesh;
use model::{Diagnostic, Entry, Severity};
use resources::ParseOptions;

use crate::output::{ColorChoice, Exit, fail};

/// What files declare, compiled.
pub(crate) struct Declared {
    /// The objects that take effect.
    pub(crate) mesh: Mesh,
    /// All findings, of reading and of compiling.
    pub(crate) diagnostics: Vec<Diagnostic>,
    sources: BTreeMap<Arc<str>, Arc<str>>,
}

impl Declared {
    /// Reads all YAML and JSON files of some files and directories.
    pub(crate) fn read(paths: &[PathBuf]) -> Result<Self, Exit> {
        let next = Some("-f takes files and directories of YAML or JSON");
        let files = universal::directory::read(paths).map_err(|error| fail(Exit::Invalid, error, next))?;
        let sources: BTreeMap<Arc<str>, Arc<str>> =
            files.into_iter().filter_map(|file| Some((file.file, file.text?))).collect();
        if sources.is_empty() {
            return Err(fail(Exit::Invalid, "there is no YAML or JSON file to read", next));
        }
        let (entries, mut diagnostics) = parse(&sources);
        let (mesh, more) = Mesh::compile(&entries);
        diagnostics.extend(more);
        Ok(Self { mesh, diagnostics, sources })
    }

    /// Draws the findings that are at least this bad on standard error; true when there is an error among them.
    pub(crate) fn complain(&self, at_least: Severity, color: ColorChoice) -> bool {
        let mut err = std::io::stderr().lock();
        for finding in self.diagnostics.iter().filter(|finding| finding.severity >= at_least) {
            let source = finding.file.as_ref().and_then(|file| self.sources.get(file));
            let drawn = resources::render(finding, source.map(AsRef::as_ref), color.stderr());
            // A closed standard error changes nothing about the answer.
            let _ = writeln!(err, "{drawn}");
        }
        self.diagnostics.iter().any(|finding| finding.severity == Severity::Error)
    }
}

/// Services' names depend on the mesh's cluster domain, which stands in one of the files: found first.
fn parse(sources: &BTreeMap<Arc<str>, Arc<str>>) -> (Vec<Entry>, Vec<Diagnostic>) {
    let defaults = ParseOptions::default();
    let (entries, diagnostics) = parse_with(sources, &defaults);
    let domain = resources::mesh_config(&entries).cluster_domain;
    if domain == defaults.cluster_domain {
        return (entries, diagnostics);
    }
    parse_with(sources, &ParseOptions { cluster_domain: domain, ..defaults })
}

fn parse_with(sources: &BTreeMap<Arc<str>, Arc<str>>, options: &ParseOptions) -> (Vec<Entry>, Vec<Diagnostic>) {
    let mut entries = Vec::new();
    let mut diagnostics = Vec::new();
    for (file, text) in sources {
        let parsed = resources::parse(text, &ParseOptions { file: Some(file.clone()), ..options.clone() });
        entries.extend(parsed.entries);
        diagnostics.extend(parsed.diagnostics);
    }
    (entries, diagnostics)
}
