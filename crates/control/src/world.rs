//! What is declared, compiled, and what each change did.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use compile::{Incremental, Mesh, WorkloadKey};
use model::{Code, Diagnostic, Entry, Label, MeshConfig, ObjectKey, Origin, Position, Severity};
use parking_lot::{RwLock, RwLockReadGuard};
use resources::{ParseOptions, Places};
use tokio::sync::watch;

use crate::inputs::Batch;

/// How many past changes are remembered for `apply --wait` and convergence times.
const REMEMBERED: usize = 256;
/// "Declared twice" (see `resources::codes`).
const DECLARED_TWICE: Code = Code(511);

/// Everything declared, behind one lock: changes come one after the other, readers encode beside each other.
#[derive(Debug)]
pub struct World {
    model: RwLock<Model>,
    /// The store's revision that is in force.
    stored: watch::Sender<u64>,
}

/// What one text declares.
#[derive(Debug, Clone)]
pub struct Unit {
    /// As it came.
    pub text: Arc<str>,
    /// The revision of a stored object.
    pub revision: Option<u64>,
    /// Objects that can take effect.
    pub entries: Vec<Arc<Entry>>,
    /// What is wrong with it alone.
    pub diagnostics: Vec<Diagnostic>,
}

/// A change that took effect.
#[derive(Debug, Clone)]
pub struct Applied {
    /// The configuration's revision since then.
    pub revision: u64,
    /// The store's revision that it includes.
    pub stored: u64,
    /// Workloads whose configuration it may concern.
    pub workloads: Arc<BTreeSet<WorkloadKey>>,
    /// Objects that it changed.
    pub objects: Vec<ObjectKey>,
    /// When it began to be applied.
    pub at: Instant,
}

/// The state behind the lock.
#[derive(Debug)]
pub struct Model {
    incremental: Incremental,
    /// By file, in order of names.
    pub units: BTreeMap<Arc<str>, Unit>,
    owners: HashMap<ObjectKey, BTreeSet<Arc<str>>>,
    /// The configuration's revision: counts changes since the start.
    pub revision: u64,
    log: VecDeque<Applied>,
    /// The last change of each object.
    last: HashMap<ObjectKey, (u64, Arc<BTreeSet<WorkloadKey>>)>,
}

impl Default for World {
    fn default() -> Self {
        let model = Model {
            incremental: Incremental::default(),
            units: BTreeMap::new(),
            owners: HashMap::new(),
            revision: 0,
            log: VecDeque::new(),
            last: HashMap::new(),
        };
        Self { model: RwLock::new(model), stored: watch::channel(0).0 }
    }
}

impl World {
    /// Takes changes in. Gives back what they did; the caller publishes and then calls [`Self::in_force`].
    pub fn apply(&self, batches: &[Batch]) -> Applied {
        let at = Instant::now();
        let parsed: Vec<_> =
            batches.iter().flat_map(|batch| &batch.changes).map(|change| (change, parse(change))).collect();
        let mut model = self.model.write();
        let mut touched = BTreeSet::new();
        for (change, unit) in parsed {
            model.replace(&change.file, unit, &mut touched);
        }
        let stored = batches.iter().filter_map(|batch| batch.revision).max().unwrap_or_else(|| *self.stored.borrow());
        let (objects, workloads) = model.recompile(&touched);
        model.revision += 1;
        let workloads = Arc::new(workloads);
        let applied = Applied { revision: model.revision, stored, workloads, objects, at };
        model.remember(&applied);
        applied
    }

    /// A change was published to all who wanted it.
    pub fn in_force(&self, applied: &Applied) {
        self.stored.send_if_modified(|stored| std::mem::replace(stored, applied.stored) != applied.stored);
    }

    /// Waits until a revision of the store is in force, and gives the change back that brought it.
    pub async fn wait_for_store(&self, revision: u64) -> Option<Applied> {
        let mut stored = self.stored.subscribe();
        stored.wait_for(|stored| *stored >= revision).await.ok()?;
        let model = self.model.read();
        model.log.iter().find(|applied| applied.stored >= revision).cloned()
    }

    /// The store's revision that is in force.
    pub fn stored(&self) -> u64 {
        *self.stored.borrow()
    }

    /// Reads the state. Keep it short: changes wait.
    pub fn read(&self) -> RwLockReadGuard<'_, Model> {
        self.model.read()
    }
}

impl Model {
    /// The compiled mesh.
    pub fn mesh(&self) -> &Mesh {
        self.incremental.mesh()
    }

    /// Mesh-wide settings.
    pub fn config(&self) -> &MeshConfig {
        self.mesh().config()
    }

    /// How many services are declared.
    pub fn services(&self) -> usize {
        let all = self.units.values().flat_map(|unit| &unit.entries).flat_map(|entry| &entry.declarations);
        all.filter(|declaration| matches!(declaration, model::Declaration::Service(_))).count()
    }

    /// Everything that is wrong: with single texts, with objects declared twice, and between objects.
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        let mut all: Vec<Diagnostic> = self.units.values().flat_map(|unit| unit.diagnostics.iter().cloned()).collect();
        let twice = self.owners.iter().filter(|(_, files)| files.len() > 1);
        all.extend(twice.filter_map(|(key, files)| self.declared_twice(key, files)));
        let mut places = HashMap::new();
        for mut finding in self.mesh().diagnostics() {
            let unit = finding.file.as_ref().and_then(|file| Some((file.clone(), self.units.get(file)?)));
            if let Some((file, unit)) = unit {
                places.entry(file).or_insert_with(|| Places::of(&unit.text)).sharpen(&mut finding);
            }
            all.push(finding);
        }
        all.sort_by_key(place);
        all
    }

    /// The last change of an object and the workloads it may concern.
    pub fn last_change(&self, key: &ObjectKey) -> Option<(u64, Arc<BTreeSet<WorkloadKey>>)> {
        self.last.get(key).cloned()
    }

    /// When a revision began to be applied.
    pub fn applied_at(&self, revision: u64) -> Option<Instant> {
        self.log.iter().find(|applied| applied.revision == revision).map(|applied| applied.at)
    }

    fn replace(&mut self, file: &Arc<str>, unit: Option<Unit>, touched: &mut BTreeSet<ObjectKey>) {
        let old = self.units.remove(file);
        if let Some(old) = &old {
            for entry in &old.entries {
                touched.insert(entry.key.clone());
                if let Some(files) = self.owners.get_mut(&entry.key) {
                    files.remove(file);
                }
            }
        }
        let Some(mut unit) = unit else { return };
        if let Some(old) = &old {
            unit.keep_last_good(old);
        }
        for entry in &unit.entries {
            touched.insert(entry.key.clone());
            self.owners.entry(entry.key.clone()).or_default().insert(file.clone());
        }
        for diagnostic in &unit.diagnostics {
            log(diagnostic);
        }
        self.units.insert(file.clone(), unit);
    }

    /// Brings the compiled mesh up to date. Where two texts declare an object, the last one by file name counts.
    fn recompile(&mut self, touched: &BTreeSet<ObjectKey>) -> (Vec<ObjectKey>, BTreeSet<WorkloadKey>) {
        if self.revision == 0 {
            return self.compile_all(touched);
        }
        let (mut objects, mut changes) = (Vec::new(), Vec::new());
        for key in touched {
            let file = self.owners.get(key).and_then(|files| files.last());
            let entry = file.and_then(|file| self.units.get(file)).and_then(|unit| unit.entry(key));
            match entry {
                Some(entry) => changes.push(compile::Change::Put(Entry::clone(entry))),
                None => {
                    self.owners.remove(key);
                    self.last.remove(key);
                    changes.push(compile::Change::Delete(key.clone()));
                }
            }
            objects.push(key.clone());
        }
        let mut workloads = BTreeSet::new();
        for change in changes {
            let applied = self.incremental.apply(change);
            applied.diagnostics.iter().for_each(log);
            workloads.extend(applied.workloads);
        }
        (objects, workloads)
    }

    /// The first batch, at once.
    fn compile_all(&mut self, touched: &BTreeSet<ObjectKey>) -> (Vec<ObjectKey>, BTreeSet<WorkloadKey>) {
        let entry = |key: &ObjectKey| {
            let file = self.owners.get(key)?.last()?;
            self.units.get(file)?.entry(key).map(|entry| Entry::clone(entry))
        };
        let entries: Vec<Entry> = touched.iter().filter_map(entry).collect();
        let (incremental, diagnostics) = Incremental::load(&entries);
        self.incremental = incremental;
        diagnostics.iter().for_each(log);
        (touched.iter().cloned().collect(), self.mesh().workload_keys().cloned().collect())
    }

    fn remember(&mut self, applied: &Applied) {
        for key in &applied.objects {
            if self.owners.contains_key(key) {
                self.last.insert(key.clone(), (applied.revision, applied.workloads.clone()));
            }
        }
        if self.log.len() == REMEMBERED {
            self.log.pop_front();
        }
        self.log.push_back(applied.clone());
    }

    fn declared_twice(&self, key: &ObjectKey, files: &BTreeSet<Arc<str>>) -> Option<Diagnostic> {
        let winner = files.last()?;
        let loser = files.first()?;
        let origin = self.units.get(loser)?.entry(key).and_then(|entry| origin(entry));
        let at = origin.and_then(|origin| origin.at).unwrap_or(Position { line: 1, column: 1 });
        Some(Diagnostic {
            code: DECLARED_TWICE,
            severity: Severity::Warning,
            message: format!("{key} is declared in {winner} too; that one counts"),
            object: Some(Arc::new(key.clone())),
            field: String::new(),
            file: Some(loser.clone()),
            labels: vec![Label { start: at, length: 1, text: String::new() }],
            help: Some("delete one of them".to_owned()),
        })
    }
}

impl Unit {
    /// Objects that this text is wrong about stay as they were: a policy with a slip of the pen must not open
    /// what it closed before.
    fn keep_last_good(&mut self, old: &Self) {
        let kept = old
            .entries
            .iter()
            .filter(|entry| self.entry(&entry.key).is_none() && resources::still_means(&self.diagnostics, &entry.key));
        let kept: Vec<_> = kept.cloned().collect();
        for entry in &kept {
            tracing::warn!(event = "last_good_kept", object = %entry.key, "its new text is wrong: what it said before stays");
        }
        self.entries.extend(kept);
    }

    /// An object of this text.
    pub fn entry(&self, key: &ObjectKey) -> Option<&Arc<Entry>> {
        self.entries.iter().rev().find(|entry| entry.key == *key)
    }
}

fn parse(change: &crate::inputs::Change) -> Option<Unit> {
    let text = change.text.clone()?;
    let parsed = resources::parse(&text, &ParseOptions::of_file(&change.file));
    let entries = parsed.entries.into_iter().map(Arc::new).collect();
    Some(Unit { text, revision: change.revision, entries, diagnostics: parsed.diagnostics })
}

/// Where an object was declared.
pub(crate) fn origin(entry: &Entry) -> Option<&Origin> {
    use model::Declaration as D;
    entry.declarations.iter().find_map(|declaration| match declaration {
        D::Service(it) => Some(&it.origin),
        D::Workload(it) => Some(&it.origin),
        D::Routes(it) => Some(&it.origin),
        D::Split(it) => Some(&it.origin),
        D::Destination(it) => Some(&it.origin),
        D::PeerAuthentication(it) => Some(&it.origin),
        D::RequestAuthentication(it) => Some(&it.origin),
        D::Authorization(it) => Some(&it.origin),
        D::Mesh(_) | D::Namespace { .. } => None,
    })
}

fn place(diagnostic: &Diagnostic) -> (Option<Arc<str>>, u32, u32) {
    let (line, column) = diagnostic.labels.first().map_or((0, 0), |label| (label.start.line, label.start.column));
    (diagnostic.file.clone(), line, column)
}

fn log(diagnostic: &Diagnostic) {
    match diagnostic.severity {
        Severity::Error => tracing::error!(event = "configuration_rejected", "{diagnostic}"),
        Severity::Warning => tracing::warn!(event = "configuration_finding", "{diagnostic}"),
        Severity::Info => tracing::debug!(event = "configuration_finding", "{diagnostic}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inputs::Change;

    const POLICY: &str =
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: closed}\nspec: {}\n";
    const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 80}]}\n";

    /// The kinds in force after the file changed to this.
    fn after(world: &World, text: Option<&str>) -> Vec<String> {
        let change = Change { file: "mesh.yaml".into(), text: text.map(Into::into), revision: None };
        world.apply(&[Batch { changes: vec![change], revision: None }]);
        let model = world.read();
        let mut kinds: Vec<String> = model.owners.keys().map(|key| key.kind.clone()).collect();
        kinds.retain(|kind| !model.owners.iter().any(|(key, files)| key.kind == *kind && files.is_empty()));
        kinds.sort();
        kinds
    }

    #[test]
    fn a_policy_that_became_wrong_stays_in_force() {
        let world = World::default();
        let both = format!("{POLICY}---\n{SERVICE}");
        let all = ["AuthorizationPolicy", "Service"];
        assert_eq!(after(&world, Some(&both)), all);
        // A wrong field, then text that is no YAML: the policy still closes what it closed.
        assert_eq!(after(&world, Some(&both.replace("spec: {}", "spec: {acton: DENY}"))), all);
        assert_eq!(world.read().diagnostics().iter().filter(|finding| finding.severity == Severity::Error).count(), 1);
        assert_eq!(after(&world, Some(&both.replace("spec: {}", "spec: {"))), all);
        // Good again; then taken out by intent.
        assert_eq!(after(&world, Some(&both)), all);
        assert_eq!(after(&world, Some(SERVICE)), ["Service"]);
        assert!(after(&world, None).is_empty());
    }
}
