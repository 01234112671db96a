//! What an upstream's TLS is offered by ALPN where a filter says so, by the version of HTTP that is spoken to it (Istio's filter
//! `istio.alpn`). So a receiving proxy knows before the first byte that HTTP comes, and that the mesh sends it.

use std::sync::Arc;

use crate::build::fingerprint;

/// One filter (`istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig`). An upstream is never spoken to in HTTP/1.0, so what is
/// said of that is never offered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AlpnOverrides {
    /// Where HTTP/1.1 is spoken.
    pub http11: Option<Offer>,
    /// Where HTTP/2 is spoken, or whatever the server agrees to.
    pub http2: Option<Offer>,
}

/// Protocols in order of preference, never none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Their ALPN names.
    pub names: Arc<[Arc<str>]>,
    /// Differs whenever they differ, and is never 0: connections with another offer are others.
    pub id: u64,
}

impl Offer {
    /// An offer of these; `None`: there are none, and what the cluster says stands.
    #[must_use]
    pub fn of(names: Vec<Arc<str>>) -> Option<Self> {
        let mut bytes = Vec::new();
        for name in &names {
            bytes.extend_from_slice(name.as_bytes());
            bytes.push(0);
        }
        (!names.is_empty()).then(|| Self { id: fingerprint(&bytes).max(1), names: names.into() })
    }
}

impl AlpnOverrides {
    /// What is offered.
    #[must_use]
    pub fn offer(&self, http11: bool) -> Option<&Offer> {
        if http11 { self.http11.as_ref() } else { self.http2.as_ref() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offers_differ_by_their_names() {
        let offer = |names: &[&str]| Offer::of(names.iter().map(|name| Arc::from(*name)).collect());
        assert_eq!(offer(&[]), None);
        assert_eq!(offer(&["a", "b"]), offer(&["a", "b"]));
        assert_ne!(offer(&["a", "b"]).unwrap().id, offer(&["ab"]).unwrap().id);
        assert_ne!(offer(&["a", "b"]).unwrap().id, offer(&["b", "a"]).unwrap().id);
    }
}
