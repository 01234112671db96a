//! Reading declarations from files, the same for every offline verb.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use compile::Mesh;
use model::{Declaration, Diagnostic, Entry, Severity};
use resources::{ParseOptions, Places, codes};

use crate::output::{ColorChoice, Exit, fail};

/// The name of standard input among files.
const STDIN: &str = "-";

/// What files declare, compiled.
pub(crate) struct Declared {
    /// The objects that take effect.
    pub(crate) mesh: Mesh,
    /// All findings, of reading and of compiling, in the order of files and lines.
    pub(crate) diagnostics: Vec<Diagnostic>,
    /// How many objects take effect.
    pub(crate) objects: usize,
    /// How many of them declare services.
    pub(crate) services: usize,
    sources: BTreeMap<Arc<str>, Arc<str>>,
}

impl Declared {
    /// Reads all YAML and JSON files of some files and directories; `-` is standard input.
    pub(crate) fn read(paths: &[PathBuf]) -> Result<Self, Exit> {
        Self::read_with(paths, &ParseOptions::default())
    }

    /// As [`Self::read`], with a namespace for objects that name none.
    pub(crate) fn read_with(paths: &[PathBuf], options: &ParseOptions) -> Result<Self, Exit> {
        let next = Some("-f takes files and directories of YAML or JSON");
        let (sources, mut diagnostics) = sources(paths).map_err(|error| fail(Exit::Invalid, error, next))?;
        if sources.is_empty() && diagnostics.is_empty() {
            return Err(fail(Exit::Invalid, "there is no YAML or JSON file to read", next));
        }
        let (entries, more) = parse(&sources, options);
        diagnostics.extend(more);
        let (mesh, mut across) = Mesh::compile(&entries);
        sharpen(&mut across, &sources);
        diagnostics.extend(across);
        diagnostics.sort_by(|a, b| place(a).cmp(&place(b)));
        let declares_service =
            |entry: &&Entry| entry.declarations.iter().any(|one| matches!(one, Declaration::Service(_)));
        let services = entries.iter().filter(declares_service).count();
        Ok(Self { mesh, diagnostics, objects: entries.len(), services, sources })
    }

    /// How many files were read.
    pub(crate) fn files(&self) -> usize {
        self.sources.len()
    }

    /// A finding as a person sees it, ending with a line break.
    pub(crate) fn draw(&self, finding: &Diagnostic, color: bool) -> String {
        let source = finding.file.as_ref().and_then(|file| self.sources.get(file));
        resources::render(finding, source.map(AsRef::as_ref), color)
    }

    /// Draws the findings that are at least this bad on standard error; true when there is an error among them.
    pub(crate) fn complain(&self, at_least: Severity, color: ColorChoice) -> bool {
        let mut err = std::io::stderr().lock();
        for finding in self.diagnostics.iter().filter(|finding| finding.severity >= at_least) {
            // A closed standard error changes nothing about the answer.
            let _ = writeln!(err, "{}", self.draw(finding, color.stderr()));
        }
        self.diagnostics.iter().any(|finding| finding.severity == Severity::Error)
    }
}

type Sources = BTreeMap<Arc<str>, Arc<str>>;

/// The texts of all files, and a finding for each that cannot be read.
fn sources(paths: &[PathBuf]) -> std::io::Result<(Sources, Vec<Diagnostic>)> {
    let (stdin, paths): (Vec<_>, Vec<_>) = paths.iter().cloned().partition(|path| path == Path::new(STDIN));
    let reading = universal::directory::survey(&paths)?;
    let mut sources: Sources = reading.files.into_iter().filter_map(|file| Some((file.file, file.text?))).collect();
    let unreadable = reading.unreadable.into_iter().map(|(file, error)| unreadable(file, &error)).collect();
    if !stdin.is_empty() {
        let mut text = String::new();
        std::io::stdin().lock().read_to_string(&mut text)?;
        sources.insert("<stdin>".into(), text.into());
    }
    Ok((sources, unreadable))
}

fn unreadable(file: Arc<str>, error: &std::io::Error) -> Diagnostic {
    Diagnostic {
        code: codes::UNREADABLE,
        severity: Severity::Error,
        message: format!("the file cannot be read: {error}"),
        object: None,
        field: String::new(),
        file: Some(file),
        labels: Vec::new(),
        help: None,
    }
}

/// Services' names depend on the mesh's cluster domain, which stands in one of the files: found first.
fn parse(sources: &Sources, options: &ParseOptions) -> (Vec<Entry>, Vec<Diagnostic>) {
    let (entries, diagnostics) = parse_with(sources, options);
    let domain = resources::mesh_config(&entries).cluster_domain;
    if domain == options.cluster_domain {
        return (entries, diagnostics);
    }
    parse_with(sources, &ParseOptions { cluster_domain: domain, ..options.clone() })
}

fn parse_with(sources: &Sources, options: &ParseOptions) -> (Vec<Entry>, Vec<Diagnostic>) {
    let mut entries = Vec::new();
    let mut diagnostics = Vec::new();
    for (file, text) in sources {
        let parsed = resources::parse(text, &ParseOptions { file: Some(file.clone()), ..options.clone() });
        entries.extend(parsed.entries);
        diagnostics.extend(parsed.diagnostics);
    }
    (entries, diagnostics)
}

/// Findings across objects know the object and the field; the exact place is in the text.
fn sharpen(findings: &mut [Diagnostic], sources: &Sources) {
    let mut places: BTreeMap<Arc<str>, Places> = BTreeMap::new();
    for finding in findings {
        let Some(file) = finding.file.clone() else { continue };
        let Some(text) = sources.get(&file) else { continue };
        places.entry(file).or_insert_with(|| Places::of(text)).sharpen(finding);
    }
}

fn place(finding: &Diagnostic) -> (Option<&Arc<str>>, Option<model::Position>, model::Code) {
    (finding.file.as_ref(), finding.labels.first().map(|label| label.start), finding.code)
}
