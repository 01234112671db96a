//! `localityLbSetting` of a traffic policy or of the mesh: which endpoints are preferred by where they are.

use model::destination::{Distribute, LocalityBalancing, PriorityLabel};

use crate::codes;
use crate::field::Field;

/// Labels that stand for a place.
const PLACES: [&str; 3] = ["topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone"];

/// Reads a locality setting.
pub(super) fn read(field: &Field<'_>) -> LocalityBalancing {
    let object = field.object();
    let (distribute, failover, priority) =
        (object.get("distribute"), object.get("failover"), object.get("failoverPriority"));
    for other in [&failover, &priority].into_iter().flatten() {
        if let Some(first) = &distribute {
            other
                .error_at_key(codes::EXCLUSIVE, format!("`distribute` and `{}` exclude each other", other.name()))
                .also(first.key_span(), "given here as well");
        }
    }
    let setting = LocalityBalancing {
        off: object.get("enabled").is_some_and(|field| !field.boolean()),
        distribute: distribute.as_ref().map(shares).unwrap_or_default(),
        failover: failover.as_ref().map(failovers).unwrap_or_default(),
        failover_priority: priority.as_ref().map(priorities).unwrap_or_default(),
    };
    if let (Some(failover), Some(place)) =
        (&failover, setting.failover_priority.iter().find(|label| PLACES.contains(&label.key.as_str())))
    {
        failover.error_at_key(
            codes::EXCLUSIVE,
            format!("`failover` and `{}` in `failoverPriority` exclude each other", place.key),
        );
    }
    setting
}

fn shares(field: &Field<'_>) -> Vec<Distribute> {
    let items = field.items();
    let mut seen = Vec::new();
    let shares = items.iter().map(|item| {
        let object = item.object();
        let from = object.need("from").map(|field| place(&field, &field.filled(), &mut seen)).unwrap_or_default();
        let to = object.need("to").map(|field| targets(&field)).unwrap_or_default();
        Distribute { from, to }
    });
    shares.collect()
}

fn targets(field: &Field<'_>) -> Vec<(String, u32)> {
    let mut seen = Vec::new();
    let pairs = field.pairs();
    let targets: Vec<(String, u32)> = pairs
        .iter()
        .map(|pair| {
            let share = u32::try_from(pair.integer(1, 100)).unwrap_or_default();
            (place(pair, pair.key(), &mut seen), share)
        })
        .collect();
    let sum: u32 = targets.iter().map(|(_, share)| share).sum();
    if sum != 100 {
        field.error(codes::WEIGHTS, format!("the shares add up to {sum}, but must be 100"));
    }
    targets
}

/// A place with `*`: only at the end, and no two of a list may mean the same endpoints.
fn place(field: &Field<'_>, text: &str, seen: &mut Vec<String>) -> String {
    let parts: Vec<&str> = text.split('/').collect();
    let star = text.find('*');
    if parts.len() > 3 {
        field.error(codes::LOCALITY, format!("locality `{text}` has more than three parts"));
    } else if star.is_some_and(|at| at + 1 != text.len()) {
        field
            .error(codes::LOCALITY, format!("`*` stands in the middle of `{text}`"))
            .help("write it as the last part: region/zone/*");
    } else if parts.iter().any(|part| part.len() > 1 && part.contains('*')) {
        field.error(codes::LOCALITY, format!("`*` is only a part of a name in `{text}`")).help("write region/*");
    }
    if let Some(other) = seen.iter().find(|other| overlap(other, text)) {
        field.error(codes::LOCALITY, format!("`{text}` and `{other}` overlap"));
    }
    seen.push(text.to_owned());
    text.to_owned()
}

fn overlap(one: &str, other: &str) -> bool {
    let wild = |part: Option<&str>| part.is_none_or(|part| part == "*");
    let (mut one, mut other) = (one.split('/'), other.split('/'));
    loop {
        match (one.next(), other.next()) {
            (a, b) if wild(a) || wild(b) => return true,
            (a, b) if a != b => return false,
            _ => {}
        }
    }
}

fn failovers(field: &Field<'_>) -> Vec<(String, String)> {
    let region = |field: Field<'_>| {
        let text = field.filled();
        if text.contains(['/', '*']) {
            field.error(codes::LOCALITY, format!("`{text}` is no region")).help("write the region's name alone");
        }
        text
    };
    let one = |item: &Field<'_>| {
        let object = item.object();
        let (from, to) = (object.need("from").map(region)?, object.need("to").map(region)?);
        if from == to {
            item.error(codes::LOCALITY, format!("region `{from}` cannot stand in for itself"));
        }
        Some((from, to))
    };
    field.items().iter().filter_map(one).collect()
}

fn priorities(field: &Field<'_>) -> Vec<PriorityLabel> {
    let label = |text: String| match text.split_once('=') {
        Some((key, value)) => PriorityLabel { key: key.to_owned(), value: Some(value.to_owned()) },
        None => PriorityLabel { key: text, value: None },
    };
    field.filled_texts().into_iter().map(label).collect()
}
