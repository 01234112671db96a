//! Envoy's response flags: why an exchange did not end as the upstream wished.

use std::fmt;

/// A set of response flags (`%RESPONSE_FLAGS%`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Flags(u32);

/// Letters and names in Envoy's printing order (`envoy/stream_info/stream_info.h`: the order of its enumeration).
const TABLE: &[(Flags, &str)] = &[
    (Flags::FAILED_LOCAL_HEALTH_CHECK, "LH"),
    (Flags::NO_HEALTHY_UPSTREAM, "UH"),
    (Flags::UPSTREAM_REQUEST_TIMEOUT, "UT"),
    (Flags::LOCAL_RESET, "LR"),
    (Flags::UPSTREAM_REMOTE_RESET, "UR"),
    (Flags::UPSTREAM_CONNECTION_FAILURE, "UF"),
    (Flags::UPSTREAM_CONNECTION_TERMINATION, "UC"),
    (Flags::UPSTREAM_OVERFLOW, "UO"),
    (Flags::NO_ROUTE, "NR"),
    (Flags::DELAY_INJECTED, "DI"),
    (Flags::FAULT_INJECTED, "FI"),
    (Flags::RATE_LIMITED, "RL"),
    (Flags::UNAUTHORIZED_EXTERNAL, "UAEX"),
    (Flags::RATE_LIMIT_SERVICE_ERROR, "RLSE"),
    (Flags::DOWNSTREAM_TERMINATION, "DC"),
    (Flags::RETRY_LIMIT_EXCEEDED, "URX"),
    (Flags::STREAM_IDLE_TIMEOUT, "SI"),
    (Flags::INVALID_ENVOY_HEADERS, "IH"),
    (Flags::DOWNSTREAM_PROTOCOL_ERROR, "DPE"),
    (Flags::MAX_STREAM_DURATION, "UMSDR"),
    (Flags::NO_FILTER_CONFIG, "NFCF"),
    (Flags::DURATION_TIMEOUT, "DT"),
    (Flags::UPSTREAM_PROTOCOL_ERROR, "UPE"),
    (Flags::NO_CLUSTER, "NC"),
    (Flags::OVERLOAD_MANAGER, "OM"),
];

impl Flags {
    /// `UH`: no healthy endpoint.
    pub const NO_HEALTHY_UPSTREAM: Self = Self(1);
    /// `UF`: could not connect.
    pub const UPSTREAM_CONNECTION_FAILURE: Self = Self(1 << 1);
    /// `UC`: the upstream closed before its answer was whole.
    pub const UPSTREAM_CONNECTION_TERMINATION: Self = Self(1 << 2);
    /// `UT`: the upstream took too long.
    pub const UPSTREAM_REQUEST_TIMEOUT: Self = Self(1 << 3);
    /// `UO`: a circuit breaker is open.
    pub const UPSTREAM_OVERFLOW: Self = Self(1 << 4);
    /// `NR`: no route, or no filter chain.
    pub const NO_ROUTE: Self = Self(1 << 5);
    /// `URX`: retries or connect attempts used up.
    pub const RETRY_LIMIT_EXCEEDED: Self = Self(1 << 6);
    /// `DC`: the client went away.
    pub const DOWNSTREAM_TERMINATION: Self = Self(1 << 7);
    /// `FI`: an abort was injected.
    pub const FAULT_INJECTED: Self = Self(1 << 8);
    /// `DI`: a delay was injected.
    pub const DELAY_INJECTED: Self = Self(1 << 9);
    /// `UR`: the upstream reset the stream.
    pub const UPSTREAM_REMOTE_RESET: Self = Self(1 << 10);
    /// `LR`: this side reset the stream.
    pub const LOCAL_RESET: Self = Self(1 << 11);
    /// `RL`: the local rate limit refused it.
    pub const RATE_LIMITED: Self = Self(1 << 12);
    /// `UAEX`: the external authorizer refused it.
    pub const UNAUTHORIZED_EXTERNAL: Self = Self(1 << 13);
    /// `SI`: the stream was idle for too long.
    pub const STREAM_IDLE_TIMEOUT: Self = Self(1 << 14);
    /// `DPE`: the client broke the protocol.
    pub const DOWNSTREAM_PROTOCOL_ERROR: Self = Self(1 << 15);
    /// `UPE`: the upstream broke the protocol.
    pub const UPSTREAM_PROTOCOL_ERROR: Self = Self(1 << 16);
    /// `UMSDR`: the stream's longest life was reached.
    pub const MAX_STREAM_DURATION: Self = Self(1 << 17);
    /// `DT`: a TCP connection's longest life was reached.
    pub const DURATION_TIMEOUT: Self = Self(1 << 18);
    /// `NC`: the route names a cluster that does not exist.
    pub const NO_CLUSTER: Self = Self(1 << 19);
    /// `LH`: this proxy failed its own health check.
    pub const FAILED_LOCAL_HEALTH_CHECK: Self = Self(1 << 20);
    /// `IH`: a strict check of `x-envoy-*` headers failed.
    pub const INVALID_ENVOY_HEADERS: Self = Self(1 << 21);
    /// `RLSE`: the rate limit service failed.
    pub const RATE_LIMIT_SERVICE_ERROR: Self = Self(1 << 22);
    /// `NFCF`: no configuration for a filter.
    pub const NO_FILTER_CONFIG: Self = Self(1 << 23);
    /// `OM`: shed by the overload manager.
    pub const OVERLOAD_MANAGER: Self = Self(1 << 24);

    /// No flag.
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
        TABLE.iter().filter(move |(flag, _)| self.contains(*flag)).map(|(_, letters)| *letters)
    }

    /// The set that consists of the flag with these letters.
    pub fn from_letters(letters: &str) -> Option<Self> {
        TABLE.iter().find(|(_, known)| *known == letters).map(|(flag, _)| *flag)
    }
}

/// As Envoy prints them: `UF,URX`, or `-`.
impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("-");
        }
        for (index, letters) in self.letters().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            f.write_str(letters)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_as_envoy_does() {
        assert_eq!(Flags::empty().to_string(), "-");
        let both = Flags::RETRY_LIMIT_EXCEEDED.union(Flags::UPSTREAM_CONNECTION_FAILURE);
        assert_eq!(both.to_string(), "UF,URX");
        assert_eq!(Flags::from_letters("NR"), Some(Flags::NO_ROUTE));
        assert_eq!(Flags::from_letters("XX"), None);
    }
}
