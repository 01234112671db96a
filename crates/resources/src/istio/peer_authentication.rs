//! PeerAuthentication.

use model::security::{MtlsMode, PeerAuthentication};
use model::{Declaration, Labels};

use super::selector;
use crate::codes;
use crate::document::Subject;
use crate::field::{Field, Object};

/// Lowers a PeerAuthentication.
pub(crate) fn read(spec: &Object<'_>, subject: &Subject<'_>) -> Vec<Declaration> {
    let selector = selector(spec, "selector", "matchLabels");
    let policy = PeerAuthentication {
        namespace: subject.namespace(),
        mode: spec.get("mtls").and_then(|field| mode(&field)),
        ports: spec.get_even_null("portLevelMtls").map(|field| ports(&field, &selector)).unwrap_or_default(),
        selector,
        created: subject.created.clone(),
        origin: subject.origin.clone(),
    };
    vec![Declaration::PeerAuthentication(policy)]
}

fn mode(field: &Field<'_>) -> Option<MtlsMode> {
    let words = [
        ("UNSET", None),
        ("DISABLE", Some(MtlsMode::Disable)),
        ("PERMISSIVE", Some(MtlsMode::Permissive)),
        ("STRICT", Some(MtlsMode::Strict)),
    ];
    field.object().get("mode").and_then(|mode| mode.word(&words)).flatten()
}

fn ports(field: &Field<'_>, selector: &Labels) -> Vec<(u16, Option<MtlsMode>)> {
    let pairs = field.pairs();
    if pairs.is_empty() {
        field
            .error(codes::PEER_PORTS, "`portLevelMtls` is empty")
            .help("remove it, or name a port: \"8080\": {mode: STRICT}");
    } else if selector.is_empty() {
        field
            .error(codes::PEER_PORTS, "`portLevelMtls` needs a selector: ports belong to workloads")
            .help("add selector: {matchLabels: {app: ...}}");
    }
    let mut ports = Vec::new();
    for pair in &pairs {
        match pair.key().parse::<u16>() {
            Ok(port) if port > 0 => ports.push((port, mode(pair))),
            _ => {
                pair.error_at_key(codes::RANGE, format!("`{}` is no port (1 to 65535)", pair.key()));
            }
        }
    }
    ports
}
