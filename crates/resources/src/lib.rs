//! What users write, read and lowered: YAML or JSON in, [`model::Entry`]s and diagnostics out.
//!
//! Istio's networking and security kinds, SMI TrafficSplit, Kubernetes Services and Namespaces, and the
//! mesh's own `Workload` for machines without Kubernetes. One bad document never hurts the others, and
//! whatever is not understood is reported with its place: nothing is dropped silently.
//!
//! Architecture invariant: no IO, no clock, no runtime. The YAML parser is known to `yaml` alone.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unreachable)
)]

pub mod codes;
mod document;
mod draw;
mod field;
mod istio;
mod kubernetes;
mod names;
mod native;
mod node;
mod places;
mod report;
mod smi;
mod values;
mod yaml;

use std::collections::HashSet;
use std::sync::Arc;

use model::{Declaration, Diagnostic, Entry, MeshConfig, ObjectKey, Severity};

pub use draw::render;
pub use places::Places;

/// How a text is read.
#[derive(Debug, Clone)]
pub struct ParseOptions {
    /// The file's name for messages and origins; `None` for text without a file.
    pub file: Option<Arc<str>>,
    /// Namespace of objects that name none; `default` by default.
    pub default_namespace: String,
    /// DNS suffix of Kubernetes Services; `cluster.local` by default.
    pub cluster_domain: String,
}

impl Default for ParseOptions {
    fn default() -> Self {
        Self { file: None, default_namespace: "default".to_owned(), cluster_domain: "cluster.local".to_owned() }
    }
}

impl ParseOptions {
    /// The defaults, for a file of this name.
    pub fn of_file(name: &str) -> Self {
        Self { file: Some(name.into()), ..Self::default() }
    }
}

/// What a text declares.
#[derive(Debug, Clone, Default)]
pub struct Parsed {
    /// Objects that take effect, in the order of the text.
    pub entries: Vec<Entry>,
    /// Findings in the order of the text. An object with an error is not among `entries`.
    pub diagnostics: Vec<Diagnostic>,
}

/// Reads all documents of a YAML or JSON text.
pub fn parse(text: &str, options: &ParseOptions) -> Parsed {
    let mut parsed = Parsed::default();
    let mut seen = HashSet::new();
    for document in yaml::documents(text) {
        match document {
            Ok(node) => document::read(&node, options, &mut seen, &mut parsed),
            Err(fault) => parsed.diagnostics.append(&mut document::unreadable(fault, options)),
        }
    }
    parsed
}

/// Whether a text still means an object that an earlier state of it declared: its findings say that the object
/// is wrong, or that some document, which may be the object's, cannot be read at all. Such an object should keep
/// its last good state: a slip of the pen in a policy must not open what the policy closed.
pub fn still_means(findings: &[Diagnostic], object: &ObjectKey) -> bool {
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error);
    errors.map(|finding| finding.object.as_deref()).any(|named| named.is_none_or(|named| named == object))
}

/// Reads a text that holds the fields of a MeshConfig alone, without kind (what Istio's ConfigMap has under `mesh`).
pub fn parse_mesh(text: &str, options: &ParseOptions) -> (Option<MeshConfig>, Vec<Diagnostic>) {
    let Some(document) = yaml::documents(text).into_iter().next() else {
        return (Some(MeshConfig::default()), Vec::new());
    };
    match document {
        Ok(node) => document::read_mesh(&node, options),
        Err(fault) => (None, document::unreadable(fault, options)),
    }
}

/// The mesh-wide settings among some entries: the first, or the defaults.
pub fn mesh_config(entries: &[Entry]) -> MeshConfig {
    entries
        .iter()
        .flat_map(|entry| &entry.declarations)
        .find_map(|declaration| match declaration {
            Declaration::Mesh(mesh) => Some(mesh.clone()),
            _ => None,
        })
        .unwrap_or_default()
}
