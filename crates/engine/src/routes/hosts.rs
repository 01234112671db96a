//! Which virtual host a host name means: exact, then the longest suffix wildcard, then the longest prefix wildcard,
//! then `*`.

use std::sync::Arc;

use hashbrown::HashMap;

use super::matching::folded;

/// Host names to positions in the list of virtual hosts.
#[derive(Debug, Clone, Default)]
pub struct HostIndex {
    exact: HashMap<Arc<str>, u32>,
    /// `*.foo.com` as `.foo.com`, lengths longest first.
    suffixes: HashMap<Arc<str>, u32>,
    suffix_lengths: Vec<usize>,
    /// `foo.*` as `foo.`, lengths longest first.
    prefixes: HashMap<Arc<str>, u32>,
    prefix_lengths: Vec<usize>,
    any: Option<u32>,
}

impl HostIndex {
    /// Adds a domain of the virtual host at `position`. The error is the position that has it already.
    pub fn insert(&mut self, domain: &str, position: usize) -> Result<(), usize> {
        let position = u32::try_from(position).unwrap_or(u32::MAX);
        let domain = folded(domain);
        let taken = if domain == "*" {
            self.any.replace(position)
        } else if let Some(suffix) = domain.strip_prefix('*') {
            note_length(&mut self.suffix_lengths, suffix.len());
            self.suffixes.insert(suffix.into(), position)
        } else if let Some(prefix) = domain.strip_suffix('*') {
            note_length(&mut self.prefix_lengths, prefix.len());
            self.prefixes.insert(prefix.into(), position)
        } else {
            self.exact.insert(Arc::from(&*domain), position)
        };
        taken.map_or(Ok(()), |other| Err(other as usize))
    }

    /// The position of the virtual host for an authority.
    #[must_use]
    pub fn find(&self, authority: &str, ignore_port: bool) -> Option<usize> {
        if self.exact.is_empty() && self.suffixes.is_empty() && self.prefixes.is_empty() {
            return self.any.map(|at| at as usize);
        }
        let host = if ignore_port { without_port(authority) } else { authority };
        let host = folded(host);
        let found = self
            .exact
            .get(&*host)
            .or_else(|| {
                // A wildcard stands for at least one character.
                let parts = self.suffix_lengths.iter().filter(|len| **len < host.len());
                parts.filter_map(|len| host.get(host.len() - len..)).find_map(|part| self.suffixes.get(part))
            })
            .or_else(|| {
                let parts = self.prefix_lengths.iter().filter(|len| **len < host.len());
                parts.filter_map(|len| host.get(..*len)).find_map(|part| self.prefixes.get(part))
            })
            .or(self.any.as_ref());
        found.map(|at| *at as usize)
    }
}

fn note_length(lengths: &mut Vec<usize>, length: usize) {
    if let Err(at) = lengths.binary_search_by(|known| length.cmp(known)) {
        lengths.insert(at, length);
    }
}

/// The host of an authority; brackets of IPv6 stay.
#[must_use]
pub(crate) fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port))
            if port.bytes().all(|b| b.is_ascii_digit()) && (!host.contains(':') || host.ends_with(']')) =>
        {
            host
        }
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_specific_domain_wins() {
        let mut index = HostIndex::default();
        let domains = ["*", "www.foo.com", "*.foo.com", "*-bar.foo.com", "foo.*", "foo.b*", "a:8080"];
        for (at, domain) in domains.iter().enumerate() {
            index.insert(domain, at).unwrap();
        }
        let find = |host: &str| domains[index.find(host, false).unwrap()];
        assert_eq!(find("WWW.foo.com"), "www.foo.com");
        assert_eq!(find("x.foo.com"), "*.foo.com");
        assert_eq!(find("baz-bar.foo.com"), "*-bar.foo.com");
        assert_eq!(find("-bar.foo.com"), "*.foo.com");
        assert_eq!(find("foo.com"), "foo.*");
        assert_eq!(find("foo.bar"), "foo.b*");
        assert_eq!(find("foo."), "*");
        assert_eq!(find("a:8080"), "a:8080");
        assert_eq!(find("www.foo.com:80"), "*");
        assert_eq!(index.find("www.foo.com:80", true), Some(1));
        assert_eq!(index.insert("*.FOO.com", 9), Err(2));
    }

    #[test]
    fn ports() {
        assert_eq!(without_port("[::1]:80"), "[::1]");
        assert_eq!(without_port("[::1]"), "[::1]");
        assert_eq!(without_port("::1"), "::1");
        assert_eq!(without_port("a:"), "a");
    }
}
