//! Which rules are in force for calls to a host: VirtualServices chosen, delegates merged in, and what does not
//! concern the caller left out.

use model::matching::StringMatch;
use model::mesh::TrafficSplit;
use model::name::selects;
use model::route::{HttpAction, HttpMatch, HttpRule, L4Match, L4Rule, WeightedDestination};
use model::{Origin, RouteTable};

use crate::destination::Caller;
use crate::host;
use crate::mesh::Mesh;

/// How deep tables may delegate; Istio allows one level.
const DELEGATION_DEPTH: usize = 1;

/// An HTTP rule as it holds for one caller and port.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rule {
    /// With only the matches that may hold for the caller; none means that it matches all.
    pub(crate) rule: HttpRule,
    /// Where its short hosts are resolved.
    pub(crate) namespace: String,
}

/// A connection rule as it holds for one caller and port.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ConnectionRule<'a> {
    pub(crate) matches: Vec<&'a L4Match>,
    pub(crate) destinations: &'a [WeightedDestination],
    pub(crate) namespace: &'a str,
    pub(crate) origin: &'a Origin,
}

impl Mesh {
    /// The table for a host: the one with the most specific host pattern, the oldest among equals.
    pub(crate) fn table(&self, caller: Caller<'_>, hostname: &str) -> Option<&RouteTable> {
        host::covering(hostname).find_map(|pattern| {
            let declared = self.tables.get(&pattern)?;
            declared.values().map(AsRef::as_ref).find(|table| {
                host::exported(&table.export_to, &table.namespace, caller.namespace)
                    && (names_mesh(&table.gateways) || in_mesh_by_rule(table))
            })
        })
    }

    /// The split of a service that has no table of its own.
    pub(crate) fn split(&self, hostname: &str) -> Option<&TrafficSplit> {
        self.splits.get(hostname)?.values().next().map(AsRef::as_ref)
    }

    /// Hosts that tables name and that stand for one host (no wildcard).
    pub(crate) fn hosts_with_rules(&self) -> impl Iterator<Item = &str> {
        self.tables.keys().map(String::as_str)
    }

    /// The HTTP rules of a table for one caller and port, delegates in their places.
    pub(crate) fn http_rules(&self, table: &RouteTable, caller: Caller<'_>, port: u16) -> Vec<Rule> {
        let mut rules = Vec::new();
        for rule in &table.http {
            self.expand(table, rule, 0, &mut |rule, namespace| {
                let had_matches = !rule.matches.is_empty();
                let mut rule = rule;
                rule.matches.retain(|wanted| concerns(wanted, &table.gateways, caller, port));
                if !had_matches && !names_mesh(&table.gateways) || had_matches && rule.matches.is_empty() {
                    return;
                }
                rules.push(Rule { rule, namespace });
            });
        }
        rules
    }

    fn expand(&self, table: &RouteTable, rule: &HttpRule, depth: usize, found: &mut dyn FnMut(HttpRule, String)) {
        let HttpAction::Delegate { name, namespace } = &rule.action else {
            found(rule.clone(), table.namespace.clone());
            return;
        };
        let Some(delegate) = self.delegate(table, namespace, name) else { return };
        if depth >= DELEGATION_DEPTH {
            return;
        }
        for leaf in &delegate.http {
            if let Some(merged) = merge(rule, leaf) {
                self.expand(delegate, &merged, depth + 1, found);
            }
        }
    }

    /// A delegate by name, if the table may use it.
    pub(crate) fn delegate(&self, table: &RouteTable, namespace: &str, name: &str) -> Option<&RouteTable> {
        let namespace = if namespace.is_empty() { &table.namespace } else { namespace };
        let delegate = self.delegates.get(&(namespace.to_owned(), name.to_owned()))?;
        host::exported(&delegate.export_to, &delegate.namespace, &table.namespace).then_some(delegate)
    }

    /// The connection rules of a table (`tcp` or `tls`) for one caller and port.
    pub(crate) fn connection_rules<'a>(
        table: &'a RouteTable,
        rules: &'a [L4Rule],
        caller: Caller<'_>,
        port: u16,
    ) -> Vec<ConnectionRule<'a>> {
        let mut active = Vec::new();
        for rule in rules {
            let matches: Vec<&L4Match> =
                rule.matches.iter().filter(|wanted| l4_concerns(wanted, &table.gateways, caller, port)).collect();
            if rule.matches.is_empty() && !names_mesh(&table.gateways) || !rule.matches.is_empty() && matches.is_empty()
            {
                continue;
            }
            let destinations = &rule.destinations;
            active.push(ConnectionRule { matches, destinations, namespace: &table.namespace, origin: &rule.origin });
        }
        active
    }
}

/// Whether a list of gateways includes the sidecars; an empty list means them alone.
pub(crate) fn names_mesh(gateways: &[String]) -> bool {
    gateways.is_empty() || gateways.iter().any(|gateway| gateway == "mesh")
}

fn in_mesh_by_rule(table: &RouteTable) -> bool {
    table.http.iter().flat_map(|rule| &rule.matches).any(|wanted| wanted.gateways.iter().any(|name| name == "mesh"))
}

fn concerns(wanted: &HttpMatch, gateways: &[String], caller: Caller<'_>, port: u16) -> bool {
    let gateways = if wanted.gateways.is_empty() { gateways } else { &wanted.gateways };
    names_mesh(gateways)
        && wanted.port.is_none_or(|number| number == port)
        && selects(&wanted.source_labels, caller.labels)
        && wanted.source_namespace.as_ref().is_none_or(|namespace| namespace == caller.namespace)
}

fn l4_concerns(wanted: &L4Match, gateways: &[String], caller: Caller<'_>, port: u16) -> bool {
    let gateways = if wanted.gateways.is_empty() { gateways } else { &wanted.gateways };
    names_mesh(gateways)
        && wanted.port.is_none_or(|number| number == port)
        && selects(&wanted.source_labels, caller.labels)
        && wanted.source_namespace.as_ref().is_none_or(|namespace| namespace == caller.namespace)
}

/// A delegate's rule under the rule that delegates. `None` when no request can match both.
fn merge(root: &HttpRule, leaf: &HttpRule) -> Option<HttpRule> {
    let matches = match (root.matches.is_empty(), leaf.matches.is_empty()) {
        (true, _) => leaf.matches.clone(),
        (false, true) => root.matches.clone(),
        (false, false) => {
            let pairs = root.matches.iter().flat_map(|outer| leaf.matches.iter().map(move |inner| (outer, inner)));
            let merged: Vec<HttpMatch> = pairs.filter_map(|(outer, inner)| merge_matches(outer, inner)).collect();
            if merged.is_empty() {
                return None;
            }
            merged
        }
    };
    let mut rule = leaf.clone();
    rule.matches = matches;
    rule.timeout = leaf.timeout.or(root.timeout);
    rule.retries = leaf.retries.clone().or_else(|| root.retries.clone());
    rule.fault = leaf.fault.clone().or_else(|| root.fault.clone());
    rule.rewrite = leaf.rewrite.clone().or_else(|| root.rewrite.clone());
    rule.cors = leaf.cors.clone().or_else(|| root.cors.clone());
    if leaf.mirrors.is_empty() {
        rule.mirrors.clone_from(&root.mirrors);
    }
    if leaf.headers == Default::default() {
        rule.headers = root.headers.clone();
    }
    Some(rule)
}

fn merge_matches(outer: &HttpMatch, inner: &HttpMatch) -> Option<HttpMatch> {
    let mut merged = inner.clone();
    (merged.uri, merged.ignore_uri_case) = merge_uri(outer, inner)?;
    merged.scheme = merge_same(&outer.scheme, &inner.scheme)?;
    merged.method = merge_same(&outer.method, &inner.method)?;
    merged.authority = merge_same(&outer.authority, &inner.authority)?;
    merged.headers = merge_lists(&outer.headers, &inner.headers)?;
    merged.without_headers = merge_lists(&outer.without_headers, &inner.without_headers)?;
    merged.query = merge_lists(&outer.query, &inner.query)?;
    merged.port = merge_same(&outer.port, &inner.port)?;
    merged.source_namespace = merge_same(&outer.source_namespace, &inner.source_namespace)?;
    for (key, value) in &outer.source_labels {
        if merged.source_labels.insert(key.clone(), value.clone()).is_some_and(|other| other != *value) {
            return None;
        }
    }
    if inner.gateways.is_empty() {
        merged.gateways.clone_from(&outer.gateways);
    }
    Some(merged)
}

/// A path match of both: the inner one must lie within the outer one. (Two expressions cannot be compared.)
fn merge_uri(outer: &HttpMatch, inner: &HttpMatch) -> Option<(Option<StringMatch>, bool)> {
    use StringMatch::{Exact, Prefix};
    match (&outer.uri, &inner.uri) {
        (None, uri) => Some((uri.clone(), inner.ignore_uri_case)),
        (uri, None) => Some((uri.clone(), outer.ignore_uri_case)),
        (Some(Prefix(wide)), Some(Prefix(narrow) | Exact(narrow))) if narrow.starts_with(wide.as_str()) => {
            Some((inner.uri.clone(), inner.ignore_uri_case))
        }
        (Some(a), Some(b)) if a == b => Some((inner.uri.clone(), inner.ignore_uri_case)),
        _ => None,
    }
}

fn merge_same<T: Clone + PartialEq>(outer: &Option<T>, inner: &Option<T>) -> Option<Option<T>> {
    match (outer, inner) {
        (Some(a), Some(b)) if a != b => None,
        (Some(_), _) => Some(outer.clone()),
        (None, _) => Some(inner.clone()),
    }
}

type Named = (String, StringMatch);

fn merge_lists(outer: &[Named], inner: &[Named]) -> Option<Vec<Named>> {
    let mut merged = inner.to_vec();
    for (name, wanted) in outer {
        match inner.iter().find(|(other, _)| other == name) {
            Some((_, other)) if other != wanted => return None,
            Some(_) => {}
            None => merged.push((name.clone(), wanted.clone())),
        }
    }
    Some(merged)
}

/// The hosts that a table's rules send requests to, as written, with where it says so.
pub(crate) fn destinations_of(
    table: &RouteTable,
) -> impl Iterator<Item = (&model::route::Destination, &Origin, String)> {
    let http = table.http.iter().enumerate().flat_map(|(rule_number, rule)| {
        let routed: &[WeightedDestination] = match &rule.action {
            HttpAction::Route(destinations) => destinations,
            _ => &[],
        };
        let routed = routed.iter().enumerate().map(move |(number, weighted)| {
            let field = format!("spec.http[{rule_number}].route[{number}].destination");
            (&weighted.destination, &rule.origin, field)
        });
        let mirrors = rule
            .mirrors
            .iter()
            .map(move |mirror| (&mirror.destination, &rule.origin, format!("spec.http[{rule_number}].mirror")));
        routed.chain(mirrors)
    });
    let connections = [("tcp", &table.tcp), ("tls", &table.tls)].into_iter().flat_map(|(kind, rules)| {
        rules.iter().enumerate().flat_map(move |(rule_number, rule)| {
            rule.destinations.iter().enumerate().map(move |(number, weighted)| {
                let field = format!("spec.{kind}[{rule_number}].route[{number}].destination");
                (&weighted.destination, &rule.origin, field)
            })
        })
    });
    http.chain(connections)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(wanted: StringMatch) -> HttpMatch {
        HttpMatch { uri: Some(wanted), ..HttpMatch::default() }
    }

    #[test]
    fn a_delegate_narrows_the_path_and_never_widens_it() {
        let outer = uri(StringMatch::Prefix("/api".to_owned()));
        let inside = uri(StringMatch::Exact("/api/v1".to_owned()));
        let outside = uri(StringMatch::Prefix("/other".to_owned()));
        assert_eq!(merge_matches(&outer, &inside).unwrap().uri, inside.uri);
        assert_eq!(merge_matches(&outer, &outside), None);
        assert_eq!(merge_matches(&outer, &HttpMatch::default()).unwrap().uri, outer.uri);
    }

    #[test]
    fn delegates_cannot_contradict_headers() {
        let wants = |value: &str| HttpMatch {
            headers: vec![("user".to_owned(), StringMatch::Exact(value.to_owned()))],
            ..HttpMatch::default()
        };
        assert_eq!(merge_matches(&wants("amy"), &wants("ben")), None);
        assert_eq!(merge_matches(&wants("amy"), &wants("amy")).unwrap().headers.len(), 1);
    }
}
