//! DestinationRule.

use std::collections::HashMap;

use model::destination::Subset;
use model::{Declaration, DestinationPolicy};

use super::{selector, traffic_policy};
use crate::document::Subject;
use crate::field::{Field, Object};
use crate::{codes, names};

/// Lowers a DestinationRule.
pub(crate) fn read(spec: &Object<'_>, subject: &Subject<'_>) -> Vec<Declaration> {
    let host = spec.need("host").map(|field| field.host(names::wildcard_host));
    let policy = DestinationPolicy {
        namespace: subject.namespace(),
        host: host.unwrap_or_default(),
        traffic: spec.get_even_null("trafficPolicy").map(|field| traffic_policy::read(&field)).unwrap_or_default(),
        subsets: spec.get("subsets").map(|field| subsets(&field)).unwrap_or_default(),
        export_to: spec.get("exportTo").map(|field| field.export_to(&subject.key.namespace)).unwrap_or_default(),
        client_selector: selector(spec, "workloadSelector", "matchLabels"),
        created: subject.created.clone(),
        origin: subject.origin.clone(),
    };
    vec![Declaration::Destination(policy)]
}

fn subsets(field: &Field<'_>) -> Vec<Subset> {
    let mut seen = HashMap::new();
    let mut subsets = Vec::new();
    for item in field.items() {
        let object = item.object();
        let name = object.need("name").map(|name| {
            let text = name.filled();
            if let (false, Err(why)) = (text.is_empty(), names::dns_label(&text)) {
                name.error(codes::NAME, format!("subset `{text}` {why}"));
            }
            if let Some(first) = seen.insert(text.clone(), name.span()) {
                name.error(codes::SUBSET_TWICE, format!("subset `{text}` stands twice")).also(first, "first here");
            }
            text
        });
        subsets.push(Subset {
            name: name.unwrap_or_default(),
            labels: object.get("labels").map(|labels| labels.labels()).unwrap_or_default(),
            traffic: object
                .get_even_null("trafficPolicy")
                .map(|field| traffic_policy::read(&field))
                .unwrap_or_default(),
            origin: item.origin(),
        });
    }
    subsets
}
