//! Role-based access control, for requests and for connections, with Envoy's semantics.
//!
//! [`Rules::judge`] decides; [`Rules::explain`] decides the same and says of every policy which of its rules failed
//! first, for `tulle authz check` and `tulle explain`.

mod explain;
mod index;
mod notes;
mod tree;

use std::sync::Arc;
use std::time::Duration;

pub use explain::{PolicyTrace, RuleTrace, Trace};
pub use notes::noted;
pub use tree::{Permission, Principal, Subject};

/// Authorization of requests (`envoy.extensions.filters.http.rbac.v3.RBAC`).
#[derive(Debug, Clone, Default)]
pub struct HttpRbac {
    /// Enforced; `None`: everything passes.
    pub rules: Option<Arc<Rules>>,
    /// Only counted.
    pub shadow: Option<Arc<Rules>>,
    /// First part of the enforced rules' metric names.
    pub stat_prefix: Option<Arc<str>>,
    /// First part of the shadow rules' metric names.
    pub shadow_stat_prefix: Option<Arc<str>>,
}

/// Authorization of connections (`envoy.extensions.filters.network.rbac.v3.RBAC`).
#[derive(Debug, Clone, Default)]
pub struct NetworkRbac {
    /// Enforced; `None`: everything passes.
    pub rules: Option<Arc<Rules>>,
    /// Only counted.
    pub shadow: Option<Arc<Rules>>,
    /// First part of metric names.
    pub stat_prefix: Arc<str>,
    /// First part of the shadow rules' metric names.
    pub shadow_stat_prefix: Option<Arc<str>>,
    /// Ask again at every read (true) or once (false, the default).
    pub continuous: bool,
    /// Hold a denied connection this long before it is closed.
    pub delay_deny: Option<Duration>,
}

/// A set of policies with one action.
#[derive(Debug, Clone)]
pub struct Rules {
    /// What a matching policy means.
    pub action: Action,
    policies: Vec<Policy>,
    index: Option<index::PolicyIndex>,
}

/// What a matching policy means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Pass if a policy matches, else refuse.
    Allow,
    /// Refuse if a policy matches, else pass.
    Deny,
    /// Pass, and note whether a policy matched.
    Log,
}

/// Who may do what.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Its name; ours has the namespace, policy and rule of the user's YAML in it.
    pub name: Arc<str>,
    /// One must hold.
    pub permissions: Vec<Permission>,
    /// One must hold.
    pub principals: Vec<Principal>,
}

/// The answer of one set of policies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it passes.
    pub allowed: bool,
    /// The policy that matched, if one did.
    pub policy: Option<Arc<str>>,
    /// What [`Action::Log`] says to access logs: whether a policy matched. `None` for other actions.
    pub log_hint: Option<bool>,
}

impl Rules {
    /// A set of policies, tried in the order of their names as in Envoy.
    #[must_use]
    pub fn new(action: Action, mut policies: Vec<Policy>) -> Self {
        policies.sort_by(|one, other| one.name.cmp(&other.name));
        let index = index::PolicyIndex::new(&policies);
        Self { action, policies, index }
    }

    /// The policies, sorted by name.
    #[must_use]
    pub fn policies(&self) -> &[Policy] {
        &self.policies
    }

    /// Decides for one request or connection.
    #[must_use]
    pub fn judge(&self, subject: &Subject<'_>) -> Verdict {
        let found = match &self.index {
            Some(index) => index.find(&self.policies, subject),
            None => self.policies.iter().find(|policy| policy.matches(subject)),
        };
        self.verdict(found.map(|policy| policy.name.clone()))
    }

    /// The verdict that follows from the policy that matched first.
    fn verdict(&self, policy: Option<Arc<str>>) -> Verdict {
        let matched = policy.is_some();
        let allowed = match self.action {
            Action::Allow => matched,
            Action::Deny => !matched,
            Action::Log => true,
        };
        Verdict { allowed, policy, log_hint: (self.action == Action::Log).then_some(matched) }
    }
}

impl Policy {
    /// Whether the policy matches: one permission and one principal hold.
    #[must_use]
    pub fn matches(&self, subject: &Subject<'_>) -> bool {
        self.permissions.iter().any(|permission| permission.holds(subject))
            && self.principals.iter().any(|principal| principal.holds(subject))
    }
}

/// What the authorization filters of a request said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RbacReport {
    /// First part of metric names.
    pub stat_prefix: Option<Arc<str>>,
    /// The enforced answer.
    pub enforced: Option<Verdict>,
    /// First part of the shadow rules' metric names.
    pub shadow_stat_prefix: Option<Arc<str>>,
    /// The answer that was only counted.
    pub shadow: Option<Verdict>,
}

/// The answer of a network filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionVerdict {
    /// Whether the connection goes on.
    pub allowed: bool,
    /// Details for metrics and logs.
    pub report: RbacReport,
    /// `rbac_access_denied_matched_policy[NAME]`, if denied: `%CONNECTION_TERMINATION_DETAILS%`.
    pub details: Option<String>,
}

impl NetworkRbac {
    /// Decides for one connection.
    #[must_use]
    pub fn judge(&self, connection: &crate::ConnectionFacts) -> ConnectionVerdict {
        let subject = Subject::connection(connection);
        let enforced = self.rules.as_ref().map(|rules| rules.judge(&subject));
        let shadow = self.shadow.as_ref().map(|rules| rules.judge(&subject));
        let allowed = enforced.as_ref().is_none_or(|verdict| verdict.allowed);
        let details = enforced.as_ref().filter(|_| !allowed).map(denied_details);
        let report = RbacReport {
            stat_prefix: Some(self.stat_prefix.clone()),
            enforced,
            shadow_stat_prefix: self.shadow_stat_prefix.clone(),
            shadow,
        };
        ConnectionVerdict { allowed, report, details }
    }
}

/// `rbac_access_denied_matched_policy[NAME]`; white space in the name becomes underscores, as in Envoy.
pub(crate) fn denied_details(verdict: &Verdict) -> String {
    let name = verdict.policy.as_deref().unwrap_or("none");
    let name: String = name.chars().map(|c| if c.is_whitespace() { '_' } else { c }).collect();
    format!("rbac_access_denied_matched_policy[{name}]")
}
