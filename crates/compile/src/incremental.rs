//! A mesh kept up to date change by change.

use std::collections::BTreeSet;
use std::sync::Arc;

use model::name::selects;
use model::{Declaration, Diagnostic, Entry, Labels, ObjectKey, PeerAuthentication, Service, Workload};

use crate::host;
use crate::mesh::{Mesh, WorkloadKey, config_of};

/// One change of the declarations.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// An object is new or different.
    Put(Entry),
    /// An object is gone.
    Delete(ObjectKey),
}

/// What a change did.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Applied {
    /// The workloads whose configuration may have changed; all others have the same as before.
    pub workloads: BTreeSet<WorkloadKey>,
    /// What does not fit together in the object that changed.
    pub diagnostics: Vec<Diagnostic>,
}

/// A mesh that takes changes. After any changes it equals the compilation of what is then declared.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Incremental {
    mesh: Mesh,
}

impl Incremental {
    /// An empty mesh.
    pub fn new() -> Self {
        Self::default()
    }

    /// A mesh of many objects at once, with everything that does not fit together.
    pub fn load(entries: &[Entry]) -> (Self, Vec<Diagnostic>) {
        let (mesh, diagnostics) = Mesh::compile(entries);
        (Self { mesh }, diagnostics)
    }

    /// The mesh as it is now.
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// Takes one change and tells whom it may concern.
    pub fn apply(&mut self, change: Change) -> Applied {
        let (key, entry) = match change {
            Change::Put(entry) => (entry.key.clone(), Some(Arc::new(entry))),
            Change::Delete(key) => (key, None),
        };
        if self.mesh.entries.get(&key) == entry.as_ref() {
            return Applied { diagnostics: self.mesh.diagnostics_of(&key), ..Applied::default() };
        }
        let mut workloads = BTreeSet::new();
        if let Some(old) = self.mesh.entries.get(&key).cloned() {
            concerned(&self.mesh, &old, &mut workloads);
            self.mesh.entries.remove(&key);
            self.mesh.unindex(&old);
        }
        if let Some(new) = entry {
            self.mesh.index(&new);
            self.mesh.entries.insert(key.clone(), new.clone());
            concerned(&self.mesh, &new, &mut workloads);
        }
        let config = config_of(&self.mesh.entries);
        if config != self.mesh.config {
            self.mesh.rebuild();
            workloads.extend(self.mesh.workload_keys().cloned());
        }
        Applied { workloads, diagnostics: self.mesh.diagnostics_of(&key) }
    }
}

fn concerned(mesh: &Mesh, entry: &Entry, found: &mut BTreeSet<WorkloadKey>) {
    for declaration in &entry.declarations {
        match declaration {
            Declaration::Service(service) => {
                found.extend(mesh.member_keys(service));
                callers(mesh, &service.export_to, &service.namespace, found);
            }
            Declaration::Workload(workload) => of_workload(mesh, workload, found),
            Declaration::Routes(table) => {
                // A delegate is used by tables that may be seen elsewhere.
                let everywhere = table.hosts.is_empty();
                let export = if everywhere { &[][..] } else { &table.export_to };
                callers(mesh, export, &table.namespace, found);
            }
            Declaration::Split(split) => callers(mesh, &[], &split.namespace, found),
            Declaration::Destination(policy) => callers(mesh, &policy.export_to, &policy.namespace, found),
            Declaration::PeerAuthentication(policy) => of_peer_authentication(mesh, policy, found),
            Declaration::RequestAuthentication(policy) => {
                selected(mesh, &policy.namespace, &policy.selector, found);
            }
            Declaration::Authorization(policy) => selected(mesh, &policy.namespace, &policy.selector, found),
            // A change of settings is seen by comparing them; a namespace's labels decide nothing yet.
            Declaration::Mesh(_) | Declaration::Namespace { .. } => {}
        }
    }
}

/// The workloads of a policy: of its namespace, or of all for one of the root namespace.
fn selected(mesh: &Mesh, namespace: &str, selector: &Labels, found: &mut BTreeSet<WorkloadKey>) {
    let everywhere = namespace == mesh.config.root_namespace;
    let of_policy = |(key, workload): &(&WorkloadKey, &Workload)| {
        (everywhere || key.namespace == namespace) && selects(selector, &workload.labels)
    };
    found.extend(workloads(mesh).filter(of_policy).map(|(key, _)| key.clone()));
}

fn workloads(mesh: &Mesh) -> impl Iterator<Item = (&WorkloadKey, &Workload)> {
    mesh.workloads.iter().filter_map(|(key, declared)| Some((key, declared.values().next()?.as_ref())))
}

/// The workloads that see what is exported so.
fn callers(mesh: &Mesh, export_to: &[String], namespace: &str, found: &mut BTreeSet<WorkloadKey>) {
    let sees = |key: &&WorkloadKey| host::exported(export_to, namespace, &key.namespace);
    found.extend(mesh.workload_keys().filter(sees).cloned());
}

/// A workload's own proxy, and everybody who sees a service with this workload behind it.
fn of_workload(mesh: &Mesh, workload: &Workload, found: &mut BTreeSet<WorkloadKey>) {
    found.insert(WorkloadKey::of(workload));
    let services: Vec<&Service> = mesh.services_of(workload).map(|(service, _)| service).collect();
    for service in services {
        callers(mesh, &service.export_to, &service.namespace, found);
    }
}

/// The workloads of a policy, and those that call them: the mode decides how they are called.
fn of_peer_authentication(mesh: &Mesh, policy: &PeerAuthentication, found: &mut BTreeSet<WorkloadKey>) {
    let everywhere = policy.namespace == mesh.config.root_namespace && policy.selector.is_empty();
    let selected = workloads(mesh).filter(|(key, workload)| {
        (everywhere || key.namespace == policy.namespace) && selects(&policy.selector, &workload.labels)
    });
    for (_, workload) in selected {
        of_workload(mesh, workload, found);
    }
}
