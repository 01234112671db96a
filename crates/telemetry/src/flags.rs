//! Envoy's response flags: why an exchange ended as it did, in one or a few letters.

use std::fmt;

/// A set of response flags (Envoy `access_log` operator `%RESPONSE_FLAGS%`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Flags(u32);

/// Short and long name of each flag; the position is the bit.
const NAMES: [(&str, &str); 30] = [
    ("LH", "FailedLocalHealthCheck"),
    ("UH", "NoHealthyUpstream"),
    ("UT", "UpstreamRequestTimeout"),
    ("LR", "LocalReset"),
    ("UR", "UpstreamRemoteReset"),
    ("UF", "UpstreamConnectionFailure"),
    ("UC", "UpstreamConnectionTermination"),
    ("UO", "UpstreamOverflow"),
    ("NR", "NoRouteFound"),
    ("DI", "DelayInjected"),
    ("FI", "FaultInjected"),
    ("RL", "RateLimited"),
    ("UAEX", "UnauthorizedExternalService"),
    ("RLSE", "RateLimitServiceError"),
    ("DC", "DownstreamConnectionTermination"),
    ("URX", "UpstreamRetryLimitExceeded"),
    ("SI", "StreamIdleTimeout"),
    ("IH", "InvalidEnvoyRequestHeaders"),
    ("DPE", "DownstreamProtocolError"),
    ("UMSDR", "UpstreamMaxStreamDurationReached"),
    ("RFCF", "ResponseFromCacheFilter"),
    ("NFCF", "NoFilterConfigFound"),
    ("DT", "DurationTimeout"),
    ("UPE", "UpstreamProtocolError"),
    ("NC", "NoClusterFound"),
    ("OM", "OverloadManagerTerminated"),
    ("DF", "DnsResolutionFailed"),
    ("DO", "DropOverload"),
    ("DR", "DownstreamRemoteReset"),
    ("UDO", "UnconditionalDropOverload"),
];

macro_rules! flags {
    ($($(#[$doc:meta])* $name:ident = $bit:literal),* $(,)?) => {
        impl Flags {
            $($(#[$doc])* pub const $name: Self = Self(1 << $bit);)*
        }
    };
}

flags! {
    /// `LH`: this proxy failed its own health check.
    FAILED_LOCAL_HEALTH_CHECK = 0,
    /// `UH`: no healthy endpoint.
    NO_HEALTHY_UPSTREAM = 1,
    /// `UT`: the upstream took too long.
    UPSTREAM_REQUEST_TIMEOUT = 2,
    /// `LR`: this side reset the stream.
    LOCAL_RESET = 3,
    /// `UR`: the upstream reset the stream.
    UPSTREAM_REMOTE_RESET = 4,
    /// `UF`: could not connect.
    UPSTREAM_CONNECTION_FAILURE = 5,
    /// `UC`: the upstream closed before its answer was whole.
    UPSTREAM_CONNECTION_TERMINATION = 6,
    /// `UO`: a circuit breaker is open.
    UPSTREAM_OVERFLOW = 7,
    /// `NR`: no route, or no filter chain.
    NO_ROUTE = 8,
    /// `DI`: a delay was injected.
    DELAY_INJECTED = 9,
    /// `FI`: an abort was injected.
    FAULT_INJECTED = 10,
    /// `RL`: the local rate limit refused it.
    RATE_LIMITED = 11,
    /// `UAEX`: the external authorizer refused it.
    UNAUTHORIZED_EXTERNAL = 12,
    /// `RLSE`: the rate limit service failed.
    RATE_LIMIT_SERVICE_ERROR = 13,
    /// `DC`: the client went away.
    DOWNSTREAM_TERMINATION = 14,
    /// `URX`: retries or connect attempts used up.
    RETRY_LIMIT_EXCEEDED = 15,
    /// `SI`: the stream was idle for too long.
    STREAM_IDLE_TIMEOUT = 16,
    /// `IH`: a strict check of `x-envoy-*` headers failed.
    INVALID_ENVOY_HEADERS = 17,
    /// `DPE`: the client broke the protocol.
    DOWNSTREAM_PROTOCOL_ERROR = 18,
    /// `UMSDR`: the stream's longest life was reached.
    MAX_STREAM_DURATION = 19,
    /// `RFCF`: answered from a cache.
    RESPONSE_FROM_CACHE = 20,
    /// `NFCF`: no configuration for a filter.
    NO_FILTER_CONFIG = 21,
    /// `DT`: a TCP connection's longest life was reached.
    DURATION_TIMEOUT = 22,
    /// `UPE`: the upstream broke the protocol.
    UPSTREAM_PROTOCOL_ERROR = 23,
    /// `NC`: the route names a cluster that does not exist.
    NO_CLUSTER = 24,
    /// `OM`: shed by the overload manager.
    OVERLOAD_MANAGER = 25,
    /// `DF`: the endpoint's name could not be resolved.
    DNS_RESOLUTION_FAILED = 26,
    /// `DO`: dropped because the cluster says so.
    DROP_OVERLOAD = 27,
    /// `DR`: the client reset the stream.
    DOWNSTREAM_REMOTE_RESET = 28,
    /// `UDO`: dropped unconditionally because the cluster says so.
    UNCONDITIONAL_DROP_OVERLOAD = 29,
}

impl Flags {
    /// No flag: printed as `-`.
    pub const fn empty() -> Self {
        Self(0)
    }

    /// Whether no flag is set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether all flags of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether any flag of `other` is set.
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Adds the flags of `other`.
    pub const fn insert(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// Takes the flags of `other` away.
    pub const fn remove(&mut self, other: Self) {
        self.0 &= !other.0;
    }

    /// Both sets in one.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The letters of each flag that is set, in Envoy's order.
    pub fn letters(self) -> impl Iterator<Item = &'static str> {
        self.names().map(|(letters, _)| letters)
    }

    /// The set that consists of the flag with these letters.
    pub fn from_letters(letters: &str) -> Option<Self> {
        NAMES.iter().position(|(short, _)| *short == letters).map(|bit| Self(1 << bit))
    }

    /// The long names joined by commas (`%RESPONSE_FLAGS_LONG%`); `-` for none.
    pub fn long(self) -> String {
        if self.is_empty() {
            return "-".to_owned();
        }
        self.names().map(|(_, long)| long).collect::<Vec<_>>().join(",")
    }

    /// Short and long names of the flags that are set.
    pub fn names(self) -> impl Iterator<Item = (&'static str, &'static str)> {
        NAMES.iter().enumerate().filter(move |(bit, _)| self.0 & (1 << bit) != 0).map(|(_, names)| *names)
    }
}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("-");
        }
        for (index, (short, _)) in self.names().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            f.write_str(short)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_both_ways() {
        let flags = Flags::UPSTREAM_CONNECTION_FAILURE.union(Flags::RETRY_LIMIT_EXCEEDED);
        assert_eq!(flags.to_string(), "UF,URX");
        assert_eq!(flags.long(), "UpstreamConnectionFailure,UpstreamRetryLimitExceeded");
        assert_eq!(Flags::from_letters("URX"), Some(Flags::RETRY_LIMIT_EXCEEDED));
        assert_eq!(Flags::from_letters("XX"), None);
        assert_eq!(Flags::empty().to_string(), "-");
    }

    #[test]
    fn constants_carry_their_letters() {
        assert_eq!(Flags::NO_CLUSTER.to_string(), "NC");
        assert_eq!(Flags::OVERLOAD_MANAGER.to_string(), "OM");
        assert_eq!(Flags::DOWNSTREAM_PROTOCOL_ERROR.to_string(), "DPE");
        assert_eq!(Flags::UNCONDITIONAL_DROP_OVERLOAD.to_string(), "UDO");
    }
}
