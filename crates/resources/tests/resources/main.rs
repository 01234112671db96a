//! What users write: read, refused with a drawn reason, lowered.

mod errors;
mod garbage;
mod identities;
mod lowering;

use resources::{ParseOptions, Parsed};

/// Reads a text as the file `mesh.yaml`.
fn parse(text: &str) -> Parsed {
    resources::parse(text, &ParseOptions::of_file("mesh.yaml"))
}

/// All findings as a person sees them.
fn drawn(text: &str) -> String {
    let parsed = parse(text);
    let all = parsed.diagnostics.iter().map(|finding| resources::render(finding, Some(text), false));
    all.collect::<Vec<_>>().join("\n")
}

/// The codes of all findings, in order.
fn codes(text: &str) -> Vec<String> {
    parse(text).diagnostics.iter().map(|finding| finding.code.to_string()).collect()
}
