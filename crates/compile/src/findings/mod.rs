//! What does not fit together across objects. Each finding names the object, the field and what to do.

mod references;
mod routes;
mod security;
mod services;

use std::sync::Arc;

use model::{Code, Declaration, Diagnostic, Entry, Label, ObjectKey, Origin, Severity};

use crate::mesh::Mesh;

/// The numbers of the findings; their texts stand in the table of diagnostic codes.
pub(crate) mod code {
    use model::Code;
    pub(crate) const UNKNOWN_HOST: Code = Code(501);
    pub(crate) const UNDEFINED_SUBSET: Code = Code(502);
    pub(crate) const SHADOWED_RULE: Code = Code(503);
    pub(crate) const SECOND_TABLE: Code = Code(504);
    pub(crate) const OPEN_TO_ALL: Code = Code(505);
    pub(crate) const SELECTS_NOTHING: Code = Code(506);
    pub(crate) const UNKNOWN_DELEGATE: Code = Code(508);
    pub(crate) const SECOND_DESTINATION: Code = Code(509);
    pub(crate) const SECOND_PEER_POLICY: Code = Code(510);
    pub(crate) const DECLARED_TWICE: Code = Code(511);
    pub(crate) const UNKNOWN_PORT: Code = Code(512);
    pub(crate) const UNKNOWN_BACKEND: Code = Code(513);
    pub(crate) const REQUEST_FIELD: Code = Code(514);
    pub(crate) const NO_WORKLOAD: Code = Code(515);
    pub(crate) const SHARED_HOST: Code = Code(516);
    pub(crate) const UNKNOWN_PROVIDER: Code = Code(517);
    pub(crate) const NO_EFFECT: Code = Code(27);
    pub(crate) const TOKEN_TOO_LATE: Code = Code(410);
}

/// All findings of a mesh, in order of objects.
pub(crate) fn all(mesh: &Mesh) -> Vec<Diagnostic> {
    mesh.entries.values().flat_map(|entry| of_entry(mesh, entry)).collect()
}

/// The findings about one object.
pub(crate) fn of(mesh: &Mesh, key: &ObjectKey) -> Vec<Diagnostic> {
    mesh.entries.get(key).map(|entry| of_entry(mesh, entry)).unwrap_or_default()
}

fn of_entry(mesh: &Mesh, entry: &Entry) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    for declaration in &entry.declarations {
        match declaration {
            Declaration::Service(service) => services::service(mesh, service, &mut found),
            Declaration::Workload(workload) => security::workload(mesh, workload, &mut found),
            Declaration::Routes(table) => {
                references::table(mesh, table, &mut found);
                routes::table(mesh, entry, table, &mut found);
            }
            Declaration::Split(split) => references::split(mesh, split, &mut found),
            Declaration::Destination(policy) => services::destination(mesh, entry, policy, &mut found),
            Declaration::PeerAuthentication(policy) => security::peer_authentication(mesh, entry, policy, &mut found),
            Declaration::RequestAuthentication(policy) => security::request_authentication(mesh, policy, &mut found),
            Declaration::Authorization(policy) => security::authorization(mesh, policy, &mut found),
            Declaration::Mesh(_) | Declaration::Namespace { .. } => {}
        }
    }
    found
}

/// An object that was given before.
pub(crate) fn declared_twice(entry: &Entry, earlier: &Entry) -> Diagnostic {
    let place = earlier.declarations.iter().find_map(origin_of).map(|origin| format!("; the other is {origin}"));
    let message = format!("{} is declared twice{}", entry.key, place.unwrap_or_default());
    let mut finding = match entry.declarations.iter().find_map(origin_of) {
        Some(origin) => at(origin, code::DECLARED_TWICE, Severity::Warning, message),
        None => Diagnostic {
            code: code::DECLARED_TWICE,
            severity: Severity::Warning,
            message,
            object: Some(Arc::new(entry.key.clone())),
            field: String::new(),
            file: None,
            labels: Vec::new(),
            help: None,
        },
    };
    finding.help = Some("keep one of them: only the last one counts".to_owned());
    finding
}

fn origin_of(declaration: &Declaration) -> Option<&Origin> {
    match declaration {
        Declaration::Service(service) => Some(&service.origin),
        Declaration::Workload(workload) => Some(&workload.origin),
        Declaration::Routes(table) => Some(&table.origin),
        Declaration::Split(split) => Some(&split.origin),
        Declaration::Destination(policy) => Some(&policy.origin),
        Declaration::PeerAuthentication(policy) => Some(&policy.origin),
        Declaration::RequestAuthentication(policy) => Some(&policy.origin),
        Declaration::Authorization(policy) => Some(&policy.origin),
        Declaration::Mesh(_) | Declaration::Namespace { .. } => None,
    }
}

/// A finding at the place of an origin.
fn at(origin: &Origin, code: Code, severity: Severity, message: String) -> Diagnostic {
    let label = origin.at.map(|start| Label { start, length: 1, text: String::new() });
    Diagnostic {
        code,
        severity,
        message,
        object: Some(origin.object.clone()),
        field: origin.rule.clone(),
        file: origin.file.clone(),
        labels: label.into_iter().collect(),
        help: None,
    }
}

fn warning(origin: &Origin, code: Code, message: String) -> Diagnostic {
    at(origin, code, Severity::Warning, message)
}

fn info(origin: &Origin, code: Code, message: String) -> Diagnostic {
    at(origin, code, Severity::Info, message)
}

/// Whether some namespace sees both of two objects, by their `export_to`.
fn seen_together(one: &[String], other: &[String]) -> bool {
    one.is_empty() || other.is_empty() || one.iter().any(|namespace| other.contains(namespace))
}

/// With the field and the way out.
fn with(finding: Diagnostic, field: impl Into<String>, help: impl Into<String>) -> Diagnostic {
    Diagnostic { field: field.into(), help: Some(help.into()), ..finding }
}
