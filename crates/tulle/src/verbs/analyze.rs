//! `tulle analyze`: what is wrong with declarations, alone and together.

use std::fmt::Write;
use std::path::PathBuf;

use model::{Code, Diagnostic, Severity};
use resources::{ParseOptions, codes};
use serde_json::{Value, json};

use crate::cli::Global;
use crate::declared::Declared;
use crate::output::{Exit, fail, print};

/// Find what is wrong with declarations before they are applied, in each one and between them
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tulle analyze mesh/
  tulle analyze mesh/ --fail-on warning -o json | jq '.findings[].code'
  kubectl get vs,dr,svc -A -o yaml | tulle analyze -

Exit codes: 0 nothing at or above --fail-on, 1 findings, 2 wrong usage, 6 nothing could be read.
`tulle explain CODE` says more about a finding.")]
pub(crate) struct Args {
    /// Files and directories of YAML or JSON; `-` is standard input
    #[arg(value_name = "PATH", required_unless_present = "files")]
    paths: Vec<PathBuf>,
    /// The same as PATH
    #[arg(short, long = "file", value_name = "PATH")]
    files: Vec<PathBuf>,
    /// Namespace of objects that name none
    #[arg(short, long, value_name = "NAMESPACE", default_value = "default")]
    namespace: String,
    /// From which severity on findings make the exit code 1
    #[arg(long, value_enum, default_value_t, value_name = "SEVERITY")]
    fail_on: FailOn,
    /// Leave out findings with these codes
    #[arg(long, value_delimiter = ',', value_name = "CODE", value_parser = super::explain::code)]
    ignore: Vec<Code>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum FailOn {
    /// Errors alone
    #[default]
    Error,
    /// Warnings and errors
    Warning,
    /// Nothing
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum Output {
    /// Drawn for people
    #[default]
    Text,
    /// One JSON document
    Json,
    /// One line for each finding
    Short,
}

/// Findings about references to services. Without a single service among the files they say nothing: the
/// services are declared elsewhere.
const REFERENCES: [Code; 3] = [codes::UNKNOWN_HOST, codes::UNKNOWN_SUBSET, codes::UNKNOWN_BACKEND];

/// The same of workloads.
const SELECTIONS: [Code; 2] = [codes::SELECTS_NOTHING, codes::NO_ENDPOINTS];

pub(crate) fn run(args: Args, global: &Global) -> Exit {
    let paths = [args.paths, args.files].concat();
    let options = ParseOptions { default_namespace: args.namespace, ..ParseOptions::default() };
    let mut declared = match Declared::read_with(&paths, &options) {
        Ok(declared) => declared,
        Err(exit) => return exit,
    };
    declared.diagnostics.retain(|finding| !args.ignore.contains(&finding.code));
    let alone = declared.services == 0;
    let nobody = declared.mesh.workload_keys().next().is_none();
    declared.diagnostics.retain(|finding| {
        !(alone && REFERENCES.contains(&finding.code) || nobody && SELECTIONS.contains(&finding.code))
    });
    declared.diagnostics.iter_mut().for_each(advise);
    if declared.files() == 0 {
        for finding in &declared.diagnostics {
            let _ = fail(Exit::Invalid, finding, None);
        }
        return Exit::Invalid;
    }
    print(&match args.output {
        Output::Text => text(&declared, global.color.stdout()),
        Output::Short => short(&declared),
        Output::Json => format!("{:#}\n", document(&declared)),
    });
    let least = match args.fail_on {
        FailOn::Error => Severity::Error,
        FailOn::Warning => Severity::Warning,
        FailOn::Never => return Exit::Done,
    };
    if declared.diagnostics.iter().any(|finding| finding.severity >= least) { Exit::No } else { Exit::Done }
}

/// What a running mesh lives with, a reviewer should not: references that lead nowhere and shares that are
/// not what they seem are errors here, and a workload that is open to all is worth a warning.
fn advise(finding: &mut Diagnostic) {
    // A DestinationRule for a host that does not exist yet does no harm.
    let harmless = finding.object.as_ref().is_some_and(|object| object.kind == "DestinationRule");
    let wrong = REFERENCES.contains(&finding.code)
        || [codes::UNKNOWN_DELEGATE, codes::UNKNOWN_PORT, codes::WEIGHTS].contains(&finding.code);
    if wrong && finding.severity == Severity::Warning && !harmless {
        finding.severity = Severity::Error;
    }
    if finding.code == codes::OPEN_TO_ALL {
        finding.severity = Severity::Warning;
    }
}

fn text(declared: &Declared, color: bool) -> String {
    let drawn = declared.diagnostics.iter().map(|finding| declared.draw(finding, color) + "\n");
    let mut text = drawn.collect::<String>();
    text.push_str(&summary(declared));
    text
}

fn short(declared: &Declared) -> String {
    declared.diagnostics.iter().fold(String::new(), |mut text, finding| {
        let _ = writeln!(text, "{finding}");
        text
    })
}

/// `2 errors, 1 warning in 14 objects of 3 files`.
fn summary(declared: &Declared) -> String {
    let [errors, warnings, notes] = counts(declared);
    let mut parts = Vec::new();
    for (count, one, many) in [(errors, "error", "errors"), (warnings, "warning", "warnings"), (notes, "note", "notes")]
    {
        if count > 0 {
            parts.push(plural(count, one, many));
        }
    }
    let found = if parts.is_empty() { "nothing found".to_owned() } else { parts.join(", ") };
    let objects = plural(declared.objects, "object that takes effect", "objects that take effect");
    let unknown = match declared.services {
        0 => "; hosts were not checked: none of the files declares a service",
        _ => "",
    };
    format!("{found}; {objects} in {}{unknown}\n", plural(declared.files(), "file", "files"))
}

fn plural(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

fn counts(declared: &Declared) -> [usize; 3] {
    [Severity::Error, Severity::Warning, Severity::Info]
        .map(|severity| declared.diagnostics.iter().filter(|finding| finding.severity == severity).count())
}

/// The published shape, version 1: fields may be added, none is renamed.
fn document(declared: &Declared) -> Value {
    let [errors, warnings, notes] = counts(declared);
    json!({
        "version": 1,
        "summary": {
            "errors": errors,
            "warnings": warnings,
            "notes": notes,
            "objects": declared.objects,
            "files": declared.files(),
        },
        "findings": declared.diagnostics.iter().map(finding).collect::<Vec<_>>(),
    })
}

fn finding(finding: &Diagnostic) -> Value {
    let first = finding.labels.first();
    let place = |label: &model::Label| {
        json!({
            "line": label.start.line,
            "column": label.start.column,
            "length": label.length,
            "text": label.text,
        })
    };
    json!({
        "code": finding.code.to_string(),
        "severity": finding.severity,
        "message": finding.message,
        "title": codes::explanation(finding.code).map(|entry| entry.title),
        "object": finding.object,
        "field": finding.field,
        "file": finding.file,
        "line": first.map(|label| label.start.line),
        "column": first.map(|label| label.start.column),
        "places": finding.labels.iter().map(place).collect::<Vec<_>>(),
        "help": finding.help,
    })
}
