//! What authorization filters leave in a request's metadata for those who come after them: authorizers and access logs.

use std::sync::Arc;

use super::{RbacReport, Verdict};
use crate::metadata::Datum;

/// The namespace of verdicts.
const SPACE: &str = "envoy.filters.http.rbac";
/// The namespace of what [`super::Action::Log`] says.
const COMMON: &str = "envoy.common";

/// What filters noted under a key of a namespace; the last one counts.
#[must_use]
pub fn noted(reports: &[RbacReport], space: &str, key: &str) -> Option<Datum> {
    match (space, key) {
        (SPACE, _) => reports.iter().rev().find_map(|report| report.noted(key)).map(Datum::Text),
        (COMMON, "access_log_hint") => {
            let mut hints = reports.iter().rev().filter_map(|report| report.enforced.as_ref()?.log_hint);
            hints.next().map(Datum::Flag)
        }
        _ => None,
    }
}

impl RbacReport {
    fn noted(&self, key: &str) -> Option<Arc<str>> {
        let (shadow, enforced) = (self.shadow.as_ref(), self.enforced.as_ref());
        let shadowed = shadow.and_then(|said| said.noted(key, self.shadow_stat_prefix.as_deref(), "shadow_"));
        shadowed.or_else(|| enforced?.noted(key, self.stat_prefix.as_deref(), "enforced_"))
    }
}

impl Verdict {
    fn noted(&self, key: &str, prefix: Option<&str>, rules: &str) -> Option<Arc<str>> {
        match key.strip_prefix(prefix.unwrap_or_default())?.strip_prefix(rules)? {
            "engine_result" => Some(Arc::from(if self.allowed { "allowed" } else { "denied" })),
            "effective_policy_id" => self.policy.clone(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_found_by_its_whole_name() {
        let said = |allowed, log_hint| Verdict { allowed, policy: Some("p".into()), log_hint };
        let report = RbacReport {
            stat_prefix: None,
            enforced: Some(said(true, Some(false))),
            shadow_stat_prefix: Some("dry_".into()),
            shadow: Some(said(false, None)),
        };
        let found = |space, key| noted(std::slice::from_ref(&report), space, key);
        let text = |text: &str| Some(Datum::Text(text.into()));
        assert_eq!(found(SPACE, "dry_shadow_engine_result"), text("denied"));
        assert_eq!(found(SPACE, "shadow_engine_result"), None);
        assert_eq!(found(SPACE, "enforced_engine_result"), text("allowed"));
        assert_eq!(found(SPACE, "enforced_effective_policy_id"), text("p"));
        assert_eq!(found(COMMON, "access_log_hint"), Some(Datum::Flag(false)));
        assert_eq!(found("other", "access_log_hint"), None);
    }
}
