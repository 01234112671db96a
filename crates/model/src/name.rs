//! Names and labels as Kubernetes has them.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

/// Labels of a workload, in stable order.
pub type Labels = BTreeMap<String, String>;

/// Whether every label of `selector` is on `labels`. An empty selector selects everything.
pub fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// The name of one user object: kind (without version), namespace, name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct ObjectKey {
    /// API group, empty for the core group: `networking.istio.io`.
    pub group: String,
    /// Kind: `VirtualService`.
    pub kind: String,
    /// Namespace; empty for objects that have none.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl fmt::Display for ObjectKey {
    /// `VirtualService shop/reviews`, as messages print it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}
