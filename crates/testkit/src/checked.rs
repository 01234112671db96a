//! What a backend wants of the health checks that proxies send it.

use std::collections::BTreeMap;

use http::HeaderMap;
use serde::Deserialize;

/// A check that is not as it must be is told that the backend is ill.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Checked {
    /// Method.
    pub method: Option<String>,
    /// Path and query.
    pub path: Option<String>,
    /// Host or `:authority`.
    pub host: Option<String>,
    /// Headers and their values.
    pub headers: BTreeMap<String, String>,
    /// Headers that must not be there.
    pub headers_absent: Vec<String>,
    /// What the body holds (of gRPC, the message).
    pub body: Option<String>,
    /// `http1` or `http2`.
    pub protocol: Option<String>,
    /// What a good check is told; 200.
    pub status: Option<u16>,
    /// With this body; `ok`.
    pub answer: Option<String>,
    /// And with these headers.
    pub answer_headers: BTreeMap<String, String>,
    /// The first so many are told that it is ill, whatever they are like.
    pub ill_at_first: usize,
    /// All after so many are told that it is ill.
    pub well_at_most: Option<usize>,
    /// No check is answered.
    pub hang: bool,
}

/// One check as it came.
#[derive(Debug)]
pub(crate) struct Check<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) host: &'a str,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) body: &'a [u8],
    pub(crate) protocol: &'a str,
}

impl Checked {
    /// Whether a check is as it must be; `before`: how many came before it.
    pub(crate) fn allows(&self, check: &Check<'_>, before: usize) -> bool {
        if before < self.ill_at_first || self.well_at_most.is_some_and(|most| before >= most) {
            return false;
        }
        let same = |wanted: &Option<String>, seen: &str| wanted.as_deref().is_none_or(|wanted| wanted == seen);
        let header = |name: &str| check.headers.get(name).and_then(|value| value.to_str().ok());
        let body = String::from_utf8_lossy(check.body);
        same(&self.method, check.method)
            && same(&self.path, check.path)
            && same(&self.host, check.host)
            && same(&self.protocol, check.protocol)
            && self.headers.iter().all(|(name, value)| header(name) == Some(value.as_str()))
            && self.headers_absent.iter().all(|name| header(name).is_none())
            && self.body.as_deref().is_none_or(|wanted| body.contains(wanted))
    }
}

/// Whether a request is a proxy's health check: it is answered and not written down.
pub(crate) fn is_check(headers: &HeaderMap) -> bool {
    let checks = headers.get("user-agent").is_some_and(|agent| agent == "Envoy/HC");
    checks || headers.contains_key("x-health-check")
}

/// The first bytes of a check by bytes.
pub(crate) const CHECK: &[u8] = b"check";
