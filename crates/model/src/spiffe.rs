//! SPIFFE identities (SPIFFE-ID standard, sections 2 and 3).

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`: the only path form that Istio and Tulle issue.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(into = "String")]
pub struct SpiffeId {
    trust_domain: String,
    namespace: String,
    service_account: String,
}

/// Why a text is not an identity of this mesh.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeError {
    /// It does not begin with `spiffe://`.
    #[error("`{0}` is not a SPIFFE id: it must begin with spiffe://")]
    Scheme(String),
    /// The path is not `/ns/NAMESPACE/sa/SERVICE-ACCOUNT`.
    #[error("`{0}` has not the path /ns/NAMESPACE/sa/SERVICE-ACCOUNT")]
    Path(String),
    /// A part holds a character that SPIFFE forbids, or is empty.
    #[error("`{0}` is empty or holds a character that a SPIFFE id must not have")]
    Characters(String),
}

impl SpiffeId {
    /// Checks the parts and makes an identity.
    ///
    /// # Errors
    /// [`SpiffeError::Characters`] when a part is empty or holds a forbidden character.
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Result<Self, SpiffeError> {
        let domain_ok = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._".contains(c);
        let segment_ok = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        let dots = |s: &str| s == "." || s == "..";
        if trust_domain.is_empty() || !trust_domain.chars().all(domain_ok) {
            return Err(SpiffeError::Characters(trust_domain.to_owned()));
        }
        for part in [namespace, service_account] {
            if part.is_empty() || dots(part) || !part.chars().all(segment_ok) {
                return Err(SpiffeError::Characters(part.to_owned()));
            }
        }
        Ok(Self {
            trust_domain: trust_domain.to_owned(),
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
        })
    }

    /// The trust domain: `cluster.local`.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The service account.
    pub fn service_account(&self) -> &str {
        &self.service_account
    }

    /// The identity without its scheme, as Istio's `principals` write it: `cluster.local/ns/shop/sa/web`.
    pub fn principal(&self) -> String {
        format!("{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl From<SpiffeId> for String {
    fn from(id: SpiffeId) -> Self {
        id.to_string()
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rest = text.strip_prefix("spiffe://").ok_or_else(|| SpiffeError::Scheme(text.to_owned()))?;
        match rest.split('/').collect::<Vec<_>>()[..] {
            [domain, "ns", namespace, "sa", account] => Self::new(domain, namespace, account),
            _ => Err(SpiffeError::Path(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        let text = "spiffe://cluster.local/ns/shop/sa/web";
        let id: SpiffeId = text.parse().unwrap();
        assert_eq!(id.to_string(), text);
        assert_eq!(id.principal(), "cluster.local/ns/shop/sa/web");
    }

    #[test]
    fn refuses_what_is_no_identity() {
        for text in [
            "http://cluster.local/ns/shop/sa/web",
            "spiffe://cluster.local/ns/shop",
            "spiffe://cluster.local/ns//sa/web",
            "spiffe://cluster.local/ns/../sa/web",
            "spiffe://Cluster.local/ns/shop/sa/web",
            "spiffe://cluster.local/ns/shop/sa/web/more",
            "spiffe://cluster.local/ns/shop/sa/w%20b",
        ] {
            assert!(text.parse::<SpiffeId>().is_err(), "{text}");
        }
    }
}
