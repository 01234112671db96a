//! Rules that are never reached, and tables that stand in each other's way.

use model::route::{HttpMatch, HttpRule};
use model::{Diagnostic, Entry, RouteTable, StringMatch};

use super::{code, seen_together, warning, with};
use crate::mesh::Mesh;

pub(super) fn table(mesh: &Mesh, entry: &Entry, table: &RouteTable, found: &mut Vec<Diagnostic>) {
    shadowed(table, found);
    for host in &table.hosts {
        let resolved = mesh.resolve_host(host, &table.namespace);
        let Some(declared) = mesh.tables.get(&resolved) else { continue };
        // At a gateway the tables of one host are merged; for sidecars only one of those that a caller sees counts.
        let in_mesh = |table: &RouteTable| table.gateways.is_empty() || table.gateways.iter().any(|one| one == "mesh");
        let overlaps =
            |other: &RouteTable| in_mesh(table) && in_mesh(other) && seen_together(&table.export_to, &other.export_to);
        let first = declared.iter().find(|(_, other)| overlaps(other));
        if let Some(((_, key, _), other)) = first
            && *key != entry.key
        {
            let message =
                format!("{resolved} already has rules of {}, which is older: these never apply", other.origin);
            let help = "put both into one VirtualService, or delegate from the first to the second";
            found.push(with(warning(&table.origin, code::SECOND_TABLE, message), "spec.hosts", help));
        }
    }
}

fn shadowed(table: &RouteTable, found: &mut Vec<Diagnostic>) {
    for (number, rule) in table.http.iter().enumerate() {
        let earlier = table.http.iter().take(number).enumerate().find(|(_, earlier)| covers(earlier, rule));
        if let Some((before, _)) = earlier {
            let message = format!("http[{before}] matches everything that this rule matches: it is never reached");
            let help = format!("move the rule before http[{before}], or take it out");
            let field = format!("spec.http[{number}]");
            found.push(with(warning(&rule.origin, code::SHADOWED_RULE, message), field, help));
        }
    }
}

/// Whether every request of `later` matches `earlier` already. (When in doubt: no.)
fn covers(earlier: &HttpRule, later: &HttpRule) -> bool {
    if earlier.matches.is_empty() {
        return true;
    }
    !later.matches.is_empty()
        && later.matches.iter().all(|narrow| earlier.matches.iter().any(|wide| covers_match(wide, narrow)))
}

fn covers_match(wide: &HttpMatch, narrow: &HttpMatch) -> bool {
    let same = |a: &Option<StringMatch>, b: &Option<StringMatch>| a.is_none() || a == b;
    let listed = |a: &[(String, StringMatch)], b: &[(String, StringMatch)]| a.iter().all(|entry| b.contains(entry));
    covers_uri(wide, narrow)
        && same(&wide.scheme, &narrow.scheme)
        && same(&wide.method, &narrow.method)
        && same(&wide.authority, &narrow.authority)
        && listed(&wide.headers, &narrow.headers)
        && listed(&wide.without_headers, &narrow.without_headers)
        && listed(&wide.query, &narrow.query)
        && (wide.port.is_none() || wide.port == narrow.port)
        && model::name::selects(&wide.source_labels, &narrow.source_labels)
        && (wide.source_namespace.is_none() || wide.source_namespace == narrow.source_namespace)
        && (wide.gateways.is_empty() || wide.gateways == narrow.gateways)
}

fn covers_uri(wide: &HttpMatch, narrow: &HttpMatch) -> bool {
    match (&wide.uri, &narrow.uri) {
        (None | Some(StringMatch::Present), _) => true,
        (Some(StringMatch::Prefix(prefix)), _) if prefix == "/" => true,
        (Some(_), None) => false,
        (Some(a), Some(b)) if a == b => wide.ignore_uri_case || !narrow.ignore_uri_case,
        (Some(StringMatch::Prefix(prefix)), Some(StringMatch::Prefix(text) | StringMatch::Exact(text))) => {
            !narrow.ignore_uri_case && text.starts_with(prefix.as_str())
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(wanted: StringMatch) -> HttpMatch {
        HttpMatch { uri: Some(wanted), ..HttpMatch::default() }
    }

    #[test]
    fn a_prefix_covers_what_begins_with_it() {
        let prefix = |text: &str| uri(StringMatch::Prefix(text.to_owned()));
        let exact = |text: &str| uri(StringMatch::Exact(text.to_owned()));
        assert!(covers_match(&prefix("/"), &exact("/x")));
        assert!(covers_match(&prefix("/a"), &prefix("/a/b")));
        assert!(!covers_match(&prefix("/a/b"), &prefix("/a")));
        assert!(!covers_match(&exact("/a"), &prefix("/a")));
        assert!(!covers_match(&prefix("/a"), &HttpMatch::default()));
    }

    #[test]
    fn a_match_with_more_conditions_covers_less() {
        let with_header = HttpMatch {
            headers: vec![("user".to_owned(), StringMatch::Present)],
            ..uri(StringMatch::Prefix("/".to_owned()))
        };
        let without = uri(StringMatch::Prefix("/a".to_owned()));
        assert!(!covers_match(&with_header, &without));
        assert!(covers_match(&without, &HttpMatch { headers: with_header.headers.clone(), ..without.clone() }));
    }
}
