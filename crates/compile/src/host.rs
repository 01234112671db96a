//! Names of hosts: from as written to fully qualified, and wildcards from specific to general.

/// The fully qualified form of a host as Istio resolves it: a name without a dot is a service of `namespace`.
pub(crate) fn resolve(host: &str, namespace: &str, domain: &str) -> String {
    let lower = host.to_ascii_lowercase();
    let qualified = lower.contains(['.', ':', '*']) || namespace.is_empty() || lower.is_empty();
    if qualified { lower } else { format!("{lower}.{namespace}.svc.{domain}") }
}

/// The patterns that cover a host, the most specific first: itself, `*.b.c`, `*.c`, `*`.
pub(crate) fn covering(host: &str) -> impl Iterator<Item = String> + '_ {
    let start = host.strip_prefix('*').unwrap_or(host);
    let suffixes = start
        .match_indices('.')
        .map(move |(at, _)| format!("*{}", &start[at..]))
        .filter(move |pattern| pattern != host);
    let any = (host != "*").then(|| "*".to_owned());
    std::iter::once(host.to_owned()).chain(suffixes).chain(any)
}

/// Whether objects of `namespace` can be seen from `from` under an `exportTo` list (empty = everywhere).
pub(crate) fn exported(export_to: &[String], namespace: &str, from: &str) -> bool {
    export_to.is_empty()
        || export_to.iter().any(|entry| match entry.as_str() {
            "*" => true,
            "." => namespace == from,
            "~" => false,
            name => name == from,
        })
}

/// The names under which callers of a namespace know a host, besides the host itself (Kubernetes' search paths).
pub(crate) fn aliases(hostname: &str, name: &str, namespace: &str, domain: &str, caller: &str) -> Vec<String> {
    if hostname != format!("{name}.{namespace}.svc.{domain}") {
        return Vec::new();
    }
    let mut names = vec![format!("{name}.{namespace}.svc"), format!("{name}.{namespace}")];
    if caller == namespace {
        names.push(name.to_owned());
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_dot_is_a_service_of_the_namespace() {
        assert_eq!(resolve("Reviews", "shop", "cluster.local"), "reviews.shop.svc.cluster.local");
        assert_eq!(resolve("reviews.shop", "other", "cluster.local"), "reviews.shop");
        assert_eq!(resolve("*", "other", "cluster.local"), "*");
        assert_eq!(resolve("::1", "other", "cluster.local"), "::1");
    }

    #[test]
    fn wildcards_go_from_specific_to_general() {
        assert_eq!(covering("a.b.c").collect::<Vec<_>>(), ["a.b.c", "*.b.c", "*.c", "*"]);
        assert_eq!(covering("*.b.c").collect::<Vec<_>>(), ["*.b.c", "*.c", "*"]);
        assert_eq!(covering("*").collect::<Vec<_>>(), ["*"]);
        assert_eq!(covering("").collect::<Vec<_>>(), ["", "*"]);
    }

    #[test]
    fn export_lists() {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert!(exported(&[], "shop", "other"));
        assert!(exported(&list(&["."]), "shop", "shop"));
        assert!(!exported(&list(&["."]), "shop", "other"));
        assert!(!exported(&list(&["~"]), "shop", "shop"));
        assert!(exported(&list(&["bank", "other"]), "shop", "other"));
    }
}
