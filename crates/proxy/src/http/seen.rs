//! Which of the headers that this proxy knows a message has: one look at each name that is there, instead of a look-up for
//! each that might be.

use http::HeaderMap;

/// A set of names. What is added or taken away later does not change it: it tells what may be there of what came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen(u32);

impl Seen {
    pub(super) const CONTENT_LENGTH: Self = Self(1);
    pub(super) const TRANSFER_ENCODING: Self = Self(1 << 1);
    pub(super) const CONNECTION: Self = Self(1 << 2);
    /// `upgrade`, `keep-alive`, `proxy-connection`: like `connection` and `transfer-encoding` of one hop alone.
    pub(super) const HOP: Self = Self(1 << 3);
    pub(super) const EXPECT: Self = Self(1 << 4);
    pub(super) const TE: Self = Self(1 << 5);
    pub(super) const COOKIE: Self = Self(1 << 6);
    pub(super) const FORWARDED_FOR: Self = Self(1 << 7);
    pub(super) const FORWARDED_PROTO: Self = Self(1 << 8);
    pub(super) const REQUEST_ID: Self = Self(1 << 9);
    pub(super) const CLIENT_CERTIFICATE: Self = Self(1 << 10);
    /// `x-envoy-...`
    pub(super) const ENVOY: Self = Self(1 << 11);
    /// `x-envoy-peer-metadata` and `x-envoy-peer-metadata-id`.
    pub(super) const PEER: Self = Self(1 << 12);
    pub(super) const GRPC_STATUS: Self = Self(1 << 13);
    pub(super) const CONTENT_TYPE: Self = Self(1 << 14);

    /// What there is.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        headers.keys().fold(Self::default(), |seen, name| seen.with(Self::one(name.as_str())))
    }

    /// Whether it has one of these.
    pub(super) const fn any(self, of: Self) -> bool {
        self.0 & of.0 != 0
    }

    pub(super) const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn one(name: &str) -> Self {
        match name {
            "content-length" => Self::CONTENT_LENGTH,
            "content-type" => Self::CONTENT_TYPE,
            "transfer-encoding" => Self::TRANSFER_ENCODING,
            "connection" => Self::CONNECTION,
            "upgrade" | "keep-alive" | "proxy-connection" => Self::HOP,
            "expect" => Self::EXPECT,
            "te" => Self::TE,
            "cookie" => Self::COOKIE,
            "x-forwarded-for" => Self::FORWARDED_FOR,
            "x-forwarded-proto" => Self::FORWARDED_PROTO,
            "x-request-id" => Self::REQUEST_ID,
            "x-forwarded-client-cert" => Self::CLIENT_CERTIFICATE,
            "grpc-status" => Self::GRPC_STATUS,
            "x-envoy-peer-metadata" | "x-envoy-peer-metadata-id" => Self::PEER.with(Self::ENVOY),
            _ if name.starts_with("x-envoy-") => Self::ENVOY,
            _ => Self::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn each_name_is_seen_and_no_other() {
        let seen = |names: &[&'static str]| {
            let value = HeaderValue::from_static("v");
            Seen::of(&names.iter().map(|name| (HeaderName::from_static(name), value.clone())).collect())
        };
        assert_eq!(seen(&["accept", "x-envoyance"]), Seen::default());
        let some = seen(&["te", "x-request-id", "x-envoy-retry-on"]);
        assert!(some.any(Seen::TE) && some.any(Seen::REQUEST_ID) && some.any(Seen::ENVOY));
        assert!(!some.any(Seen::PEER) && !some.any(Seen::HOP.with(Seen::CONNECTION)));
        assert!(seen(&["x-envoy-peer-metadata"]).any(Seen::PEER));
    }
}
