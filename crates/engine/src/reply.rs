//! Answers that the proxy makes itself, and who is to blame for them.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};

use crate::local_reply::BodyFormat;
use crate::metadata::Metadata;

/// Envoy's response flags, as a set. They stand in the order in which they are written: Envoy writes them as they were raised, and what
/// was injected or refused, or is about retries, is raised before what ends the last attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Flags(u64);

macro_rules! flags {
    ($($bit:literal $name:ident $letters:literal $long:literal $doc:literal;)*) => {
        impl Flags {
            $(#[doc = concat!("`", $letters, "`: ", $doc)] pub const $name: Self = Self(1 << $bit);)*
            const TABLE: &'static [(Self, &'static str, &'static str)] = &[$((Self::$name, $letters, $long),)*];
        }
    };
}

flags! {
    0 FAILED_LOCAL_HEALTH_CHECK "LH" "FailedLocalHealthCheck" "this proxy fails its own health check";
    9 DELAY_INJECTED "DI" "DelayInjected" "a fault's delay";
    10 FAULT_INJECTED "FI" "FaultInjected" "a fault's abort";
    11 RATE_LIMITED "RL" "RateLimited" "a rate limit";
    12 UNAUTHORIZED_EXTERNAL_SERVICE "UAEX" "UnauthorizedExternalService" "denied by an external service";
    13 RATELIMIT_SERVICE_ERROR "RLSE" "RateLimitServiceError" "the rate limit service failed";
    15 UPSTREAM_RETRY_LIMIT_EXCEEDED "URX" "UpstreamRetryLimitExceeded" "the retries (or TCP connection attempts) are used up";
    7 UPSTREAM_OVERFLOW "UO" "UpstreamOverflow" "a circuit limit";
    1 NO_HEALTHY_UPSTREAM "UH" "NoHealthyUpstream" "no healthy endpoint";
    2 UPSTREAM_REQUEST_TIMEOUT "UT" "UpstreamRequestTimeout" "the upstream took too long";
    3 LOCAL_RESET "LR" "LocalReset" "reset by this proxy";
    4 UPSTREAM_REMOTE_RESET "UR" "UpstreamRemoteReset" "reset by the upstream";
    5 UPSTREAM_CONNECTION_FAILURE "UF" "UpstreamConnectionFailure" "no connection to the upstream";
    6 UPSTREAM_CONNECTION_TERMINATION "UC" "UpstreamConnectionTermination" "the upstream closed the connection";
    8 NO_ROUTE_FOUND "NR" "NoRouteFound" "no route, or no filter chain";
    14 DOWNSTREAM_CONNECTION_TERMINATION "DC" "DownstreamConnectionTermination" "the client went away";
    16 STREAM_IDLE_TIMEOUT "SI" "StreamIdleTimeout" "nothing happened for too long";
    17 INVALID_ENVOY_HEADERS "IH" "InvalidEnvoyRequestHeaders" "a bad x-envoy-* header";
    18 DOWNSTREAM_PROTOCOL_ERROR "DPE" "DownstreamProtocolError" "the client broke HTTP";
    19 UPSTREAM_MAX_STREAM_DURATION "UMSDR" "UpstreamMaxStreamDurationReached" "the stream lived too long";
    20 RESPONSE_FROM_CACHE "RFCF" "ResponseFromCacheFilter" "from a cache";
    21 NO_FILTER_CONFIG "NFCF" "NoFilterConfigFound" "a filter's configuration did not come";
    22 DURATION_TIMEOUT "DT" "DurationTimeout" "the connection or request lived too long";
    23 UPSTREAM_PROTOCOL_ERROR "UPE" "UpstreamProtocolError" "the upstream broke HTTP";
    24 NO_CLUSTER_FOUND "NC" "NoClusterFound" "the cluster does not exist";
    25 OVERLOAD_MANAGER "OM" "OverloadManagerTerminated" "this proxy is overloaded";
    26 DNS_FAILURE "DF" "DnsResolutionFailed" "a name did not resolve";
    27 DROP_OVERLOAD "DO" "DropOverload" "dropped as the endpoints' owner asked";
    28 DOWNSTREAM_REMOTE_RESET "DR" "DownstreamRemoteReset" "reset by the client";
    29 UNCONDITIONAL_DROP_OVERLOAD "UDO" "UnconditionalDropOverload" "all dropped as the endpoints' owner asked";
}

impl Flags {
    /// No flag.
    pub const NONE: Self = Self(0);

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` is in it.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The set as bits, for those who count by it.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The letters in Envoy's order, such as `URX,UF`; `-` for none.
    #[must_use]
    pub fn letters(self) -> Cow<'static, str> {
        self.join(|(_, letters, _)| letters)
    }

    /// The long names, such as `UpstreamConnectionFailure`; `-` for none.
    #[must_use]
    pub fn names(self) -> Cow<'static, str> {
        self.join(|(_, _, long)| long)
    }

    /// The flag with these letters.
    #[must_use]
    pub fn parse(letters: &str) -> Option<Self> {
        Self::TABLE.iter().find(|(_, known, _)| *known == letters).map(|(flag, _, _)| *flag)
    }

    fn join(self, pick: impl Fn(&(Self, &'static str, &'static str)) -> &'static str) -> Cow<'static, str> {
        let mut set = Self::TABLE.iter().filter(|(flag, _, _)| self.has(*flag)).map(pick);
        let Some(first) = set.next() else { return Cow::Borrowed("-") };
        set.fold(Cow::Borrowed(first), |all, next| Cow::Owned(format!("{all},{next}")))
    }
}

/// An answer that the proxy makes itself.
#[derive(Debug, Clone)]
pub struct LocalReply {
    /// Its status; for gRPC callers the shell sends 200 with [`grpc_status`].
    pub status: StatusCode,
    /// Its body.
    pub body: Bytes,
    /// The form that its body gets before anything else is done with it; `None`: as it is.
    pub format: Option<Arc<BodyFormat>>,
    /// Its headers beyond content length and type.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// `%RESPONSE_CODE_DETAILS%`
    pub details: Cow<'static, str>,
    /// `%RESPONSE_FLAGS%`
    pub flags: Flags,
    /// The gRPC status to send, where it does not follow from `status`.
    pub grpc_status: Option<u16>,
    /// The user's line that caused it.
    pub origin: Option<Arc<str>>,
    /// False: sent as it is (preflights), never as a gRPC status and without the mapping of local replies.
    pub is_error: bool,
}

impl LocalReply {
    /// An error with a plain text body.
    #[must_use]
    pub fn error(status: StatusCode, body: &'static str, details: impl Into<Cow<'static, str>>, flags: Flags) -> Self {
        Self {
            status,
            body: Bytes::from_static(body.as_bytes()),
            format: None,
            headers: Vec::new(),
            details: details.into(),
            flags,
            grpc_status: None,
            origin: None,
            is_error: true,
        }
    }

    /// The answer to a request whose body is longer than filters wait for.
    #[must_use]
    pub fn too_large() -> Self {
        Self::error(StatusCode::PAYLOAD_TOO_LARGE, "Payload Too Large", "request_payload_too_large", Flags::NONE)
    }

    /// The same with the origin of some metadata.
    #[must_use]
    pub fn from_origin(mut self, metadata: &Metadata) -> Self {
        self.origin = metadata.origin().cloned();
        self
    }
}

/// The gRPC status that an HTTP status stands for (the mapping of gRPC's own document).
#[must_use]
pub const fn grpc_status(status: StatusCode) -> u32 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_print_as_envoy_prints_them() {
        assert_eq!(Flags::NONE.letters(), "-");
        let both = Flags::UPSTREAM_RETRY_LIMIT_EXCEEDED.with(Flags::UPSTREAM_CONNECTION_FAILURE);
        assert_eq!(both.letters(), "URX,UF");
        assert_eq!(both.names(), "UpstreamRetryLimitExceeded,UpstreamConnectionFailure");
        assert_eq!(Flags::parse("NC"), Some(Flags::NO_CLUSTER_FOUND));
        assert_eq!(Flags::parse("XX"), None);
    }
}
