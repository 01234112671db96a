//! AuthorizationPolicy.

use model::Declaration;
use model::security::{AuthorizationPolicy, PolicyAction};

use super::{policy_rule, selector};
use crate::codes;
use crate::document::Subject;
use crate::field::Object;

/// Lowers an AuthorizationPolicy.
pub(crate) fn read(spec: &Object<'_>, subject: &Subject<'_>) -> Vec<Declaration> {
    for target in spec.given(&["targetRef", "targetRefs"]) {
        if let Some(selector) = spec.get("selector") {
            target
                .error_at_key(codes::EXCLUSIVE, format!("`selector` and `{}` exclude each other", target.name()))
                .also(selector.key_span(), "given here as well");
        }
    }
    spec.refuse("targetRef", "policies are attached to workloads by selector");
    spec.refuse("targetRefs", "policies are attached to workloads by selector");
    let action = action(spec);
    let provider = provider(spec, action);
    let rules = spec.get("rules");
    if rules.as_ref().is_none_or(|rules| rules.items().is_empty())
        && matches!(action, Some(PolicyAction::Deny | PolicyAction::Audit | PolicyAction::Custom))
    {
        spec.field
            .error(codes::RULE, "a DENY, AUDIT or CUSTOM policy without rules has no effect")
            .help("add rules; `rules: [{}]` matches every request");
    }
    let rules = rules.map(|field| field.items()).unwrap_or_default();
    if rules.is_empty() && action == Some(PolicyAction::Allow) {
        spec.field.note(codes::MATCHES_NOTHING, "an ALLOW policy without rules denies every request");
    }
    let policy = AuthorizationPolicy {
        namespace: subject.namespace(),
        name: subject.key.name.clone(),
        selector: selector(spec, "selector", "matchLabels"),
        action: action.unwrap_or(PolicyAction::Allow),
        provider,
        rules: rules.iter().map(|rule| policy_rule::read(rule, &subject.key.namespace)).collect(),
        dry_run: dry_run(subject),
        origin: subject.origin.clone(),
    };
    vec![Declaration::Authorization(policy)]
}

fn action(spec: &Object<'_>) -> Option<PolicyAction> {
    let words = [
        ("ALLOW", PolicyAction::Allow),
        ("DENY", PolicyAction::Deny),
        ("AUDIT", PolicyAction::Audit),
        ("CUSTOM", PolicyAction::Custom),
    ];
    spec.get("action").map_or(Some(PolicyAction::Allow), |field| field.word(&words))
}

/// The authorizer that a CUSTOM policy asks; others ask none.
fn provider(spec: &Object<'_>, action: Option<PolicyAction>) -> Option<String> {
    let field = spec.get("provider");
    if action != Some(PolicyAction::Custom) {
        if let Some(field) = field.filter(|_| action.is_some()) {
            field.error_at_key(codes::PROVIDER, "`provider` goes with `action: CUSTOM` only").help("remove it");
        }
        return None;
    }
    let Some(field) = field else {
        spec.field
            .error(codes::PROVIDER, "a CUSTOM policy needs `provider`: whom it asks")
            .help("write provider: {name: ...}, the name of one of MeshConfig's extensionProviders");
        return None;
    };
    let object = field.object();
    object.need("name").map(|name| name.filled())
}

fn dry_run(subject: &Subject<'_>) -> bool {
    subject.annotations.iter().any(|(key, value)| key == "istio.io/dry-run" && value == "true")
}
