//! `cargo xtask corpus`: documents of other people, each of which must be accepted, refused, or named.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use model::{Code, Diagnostic, Severity};
use resources::{ParseOptions, codes};
use serde::Deserialize;
use serde_json::Value;

/// Read collections of documents: valid ones must be accepted, invalid ones refused
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask corpus ../shared/cases/corpus\n\n\
    DIR/valid holds files of valid documents, DIR/invalid tables (*.json) of documents with a fault each.\n\
    Kinds and fields that are not supported yet must be named as such.")]
pub(crate) struct Args {
    /// Directory with `valid` and `invalid`
    dir: PathBuf,
}

/// What a document may be refused for without being wrong.
const NOT_YET: [Code; 2] = [codes::UNSUPPORTED_KIND, codes::UNSUPPORTED_FIELD];

#[derive(Default)]
struct Tally {
    passed: usize,
    failed: usize,
    not_yet: usize,
}

#[derive(Deserialize)]
struct Table {
    cases: Vec<Case>,
}

/// A document that must be refused: in place, or in a file beside the table's directory.
#[derive(Deserialize)]
struct Case {
    id: String,
    reason: Option<String>,
    document: Option<Value>,
    file: Option<PathBuf>,
}

/// Reads both collections; true when nothing failed.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let mut tally = Tally::default();
    let mut files = Vec::new();
    walk(&args.dir.join("valid"), &mut files)?;
    files.sort();
    for file in &files {
        let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        valid(file, &text, &mut tally);
    }
    for table in tables(&args.dir.join("invalid"))? {
        invalid(&args.dir, &table, &mut tally)?;
    }
    println!("{} documents wait for kinds or fields that are not supported yet", tally.not_yet);
    println!("{} passed, {} failed", tally.passed, tally.failed);
    Ok(tally.failed == 0 && tally.passed > 0)
}

fn valid(file: &Path, text: &str, tally: &mut Tally) {
    let errors = errors(text);
    if errors.iter().any(|error| NOT_YET.contains(&error.code)) {
        tally.not_yet += 1;
    }
    match errors.iter().find(|error| !NOT_YET.contains(&error.code)) {
        None => tally.passed += 1,
        Some(error) => {
            tally.failed += 1;
            println!("{}: is valid, but: {error}", file.display());
        }
    }
}

fn invalid(dir: &Path, table: &Path, tally: &mut Tally) -> Result<()> {
    let name = || table.display().to_string();
    let table: Table = serde_json::from_str(&fs::read_to_string(table).with_context(name)?).with_context(name)?;
    for case in table.cases {
        let text = match (&case.document, &case.file) {
            (Some(document), _) => document.to_string(),
            (None, Some(file)) => fs::read_to_string(dir.join(file)).with_context(|| file.display().to_string())?,
            (None, None) => continue,
        };
        if errors(&text).is_empty() {
            tally.failed += 1;
            println!("{}: is accepted, but {}", case.id, case.reason.as_deref().unwrap_or("it is wrong"));
        } else {
            tally.passed += 1;
        }
    }
    Ok(())
}

fn errors(text: &str) -> Vec<Diagnostic> {
    let mut findings = resources::parse(text, &ParseOptions::default()).diagnostics;
    findings.retain(|finding| finding.severity == Severity::Error);
    findings
}

fn walk(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            walk(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "yaml" || extension == "json") {
            files.push(path);
        }
    }
    Ok(())
}

fn tables(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| dir.display().to_string())?;
    let mut tables = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    tables.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    tables.sort();
    Ok(tables)
}
