//! When to try again: the policy, and the state machine of one request.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName};

use crate::dice::Dice;
use crate::facts::Facts;
use crate::matcher::HeaderMatcher;

const RATE_LIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");

/// When to try again (`envoy.config.route.v3.RetryPolicy`).
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    /// Conditions.
    pub on: RetryOn,
    /// Retries at most. Default 1.
    pub num_retries: u32,
    /// Limit of one attempt; `None`: the whole exchange's.
    pub per_try_timeout: Option<Duration>,
    /// How long an attempt may bring nothing; `None`: the route's own idle limit.
    pub per_try_idle_timeout: Option<Duration>,
    /// Statuses for `retriable-status-codes`.
    pub status_codes: Vec<u16>,
    /// Response headers for `retriable-headers`; one must match.
    pub headers: Vec<HeaderMatcher>,
    /// Requests that may be retried at all; none: all; else one must match.
    pub request_headers: Vec<HeaderMatcher>,
    /// First back-off. Default 25 ms.
    pub base_interval: Duration,
    /// Longest back-off. Default ten times the base.
    pub max_interval: Duration,
    /// Response headers that say when to come back.
    pub rate_limited: Option<RateLimitedBackOff>,
    /// Avoid endpoints already tried.
    pub previous_hosts: bool,
    /// Picks made to avoid them. Default 1.
    pub host_attempts: u32,
    /// Leave out priorities already tried, looking again at every so manieth retry; `None`: they are not looked at.
    pub previous_priorities: Option<u32>,
}

/// Response headers that say when to come back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimitedBackOff {
    /// Headers in order of preference, and whether the value is a Unix time (else seconds from now).
    pub headers: Vec<(HeaderName, bool)>,
    /// Longer waits are not believed. Default 300 s.
    pub max_interval: Duration,
}

/// Conditions for a retry, as a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RetryOn(u32);

macro_rules! conditions {
    ($($bit:literal $name:ident $word:literal $doc:literal;)*) => {
        impl RetryOn {
            $(#[doc = concat!("`", $word, "`: ", $doc)] pub const $name: Self = Self(1 << $bit);)*
            const TABLE: &'static [(Self, &'static str)] = &[$((Self::$name, $word),)*];
        }
    };
}

conditions! {
    0 SERVER_ERROR "5xx" "any 5xx, or no answer at all";
    1 GATEWAY_ERROR "gateway-error" "502, 503 or 504";
    2 RESET "reset" "no answer at all";
    3 CONNECT_FAILURE "connect-failure" "no connection";
    4 RETRIABLE_4XX "retriable-4xx" "409";
    5 REFUSED_STREAM "refused-stream" "the upstream refused the stream";
    6 STATUS_CODES "retriable-status-codes" "a status listed";
    7 HEADERS "retriable-headers" "a response header listed";
    8 RATE_LIMITED "envoy-ratelimited" "`x-envoy-ratelimited` is there";
    9 RESET_BEFORE_REQUEST "reset-before-request" "reset before the request was sent";
    10 GRPC_CANCELLED "cancelled" "gRPC status 1";
    11 GRPC_DEADLINE_EXCEEDED "deadline-exceeded" "gRPC status 4";
    12 GRPC_INTERNAL "internal" "gRPC status 13";
    13 GRPC_RESOURCE_EXHAUSTED "resource-exhausted" "gRPC status 8";
    14 GRPC_UNAVAILABLE "unavailable" "gRPC status 14";
    15 HTTP3_POST_CONNECT_FAILURE "http3-post-connect-failure" "HTTP/3 only; accepted, never true";
}

impl RetryOn {
    /// No condition.
    pub const NONE: Self = Self(0);

    /// Whether all of `other` is in it.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Parses words divided by commas. The error is the word that does not exist.
    pub fn parse(words: &str) -> Result<Self, &str> {
        words.split(',').map(str::trim).filter(|word| !word.is_empty()).try_fold(Self::NONE, |set, word| {
            let found = Self::TABLE.iter().find(|(_, known)| *known == word).ok_or(word)?;
            Ok(set.with(found.0))
        })
    }
}

/// How an attempt failed without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No connection.
    Connect,
    /// Reset or closed; the request had been (partly) sent.
    Reset,
    /// Reset or closed before anything of the request was sent.
    ResetBeforeRequest,
    /// HTTP/2 REFUSED_STREAM, or GOAWAY below this stream.
    RefusedStream,
    /// The limit of one attempt passed.
    PerTryTimeout,
    /// A circuit limit refused the attempt.
    Overflow,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Hand the result on.
    Finish(Why),
    /// Wait so long, then try again.
    Retry {
        /// The back-off.
        after: Duration,
    },
}

/// Why there is no further attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Nothing to retry: success, or a failure that the policy does not name.
    NotRetriable,
    /// The retries are used up (`URX`).
    Exhausted,
}

/// The retries of one request.
#[derive(Debug, Clone)]
pub struct Retries {
    on: RetryOn,
    left: u32,
    done: u32,
}

impl Retries {
    /// Begins. `policy`: the route's; without one nothing is retried.
    #[must_use]
    pub fn new(policy: Option<&RetryPolicy>, facts: &Facts<'_>) -> Self {
        let allowed = policy.filter(|policy| {
            policy.request_headers.is_empty() || policy.request_headers.iter().any(|rule| rule.matches(facts))
        });
        let Some(policy) = allowed else {
            return Self::none();
        };
        Self { on: policy.on, left: policy.num_retries, done: 0 }
    }

    /// Of a request that is never retried.
    #[must_use]
    pub const fn none() -> Self {
        Self { on: RetryOn::NONE, left: 0, done: 0 }
    }

    /// Attempts begun so far, the first included (`%UPSTREAM_REQUEST_ATTEMPT_COUNT%`, `x-envoy-attempt-count`).
    #[must_use]
    pub const fn attempts(&self) -> u32 {
        self.done + 1
    }

    /// Whether another attempt could still follow: only then need the request's body be kept.
    #[must_use]
    pub const fn may_retry(&self) -> bool {
        self.left > 0 && self.on.0 != 0
    }

    /// The head of an answer came. `grpc_status`: of a trailers-only answer.
    pub fn on_response(
        &mut self,
        policy: &RetryPolicy,
        status: u16,
        headers: &HeaderMap,
        grpc_status: Option<u32>,
        wall: SystemTime,
        dice: &mut Dice,
    ) -> Next {
        let on = self.on;
        let gateway = matches!(status, 502..=504);
        let server = (500..600).contains(&status);
        let grpc = match grpc_status {
            Some(1) => on.has(RetryOn::GRPC_CANCELLED),
            Some(4) => on.has(RetryOn::GRPC_DEADLINE_EXCEEDED),
            Some(8) => on.has(RetryOn::GRPC_RESOURCE_EXHAUSTED),
            Some(13) => on.has(RetryOn::GRPC_INTERNAL),
            Some(14) => on.has(RetryOn::GRPC_UNAVAILABLE),
            _ => false,
        };
        let wanted = (server && on.has(RetryOn::SERVER_ERROR))
            || (gateway && on.has(RetryOn::GATEWAY_ERROR))
            || (status == 409 && on.has(RetryOn::RETRIABLE_4XX))
            || (on.has(RetryOn::STATUS_CODES) && policy.status_codes.contains(&status))
            || (on.has(RetryOn::HEADERS) && policy.headers.iter().any(|rule| rule.matches_in(headers)))
            || grpc;
        // A rate limit's own answer is retried on its own word alone, as in Envoy.
        let limited = (wanted || on.has(RetryOn::RATE_LIMITED)) && headers.contains_key(RATE_LIMITED);
        let wanted = if limited { on.has(RetryOn::RATE_LIMITED) } else { wanted };
        let told = wanted.then(|| policy.rate_limited.as_ref().and_then(|rule| rule.wait(headers, wall))).flatten();
        self.next(policy, wanted, told, dice)
    }

    /// The attempt failed without an answer.
    pub fn on_failure(&mut self, policy: &RetryPolicy, failure: Failure, dice: &mut Dice) -> Next {
        let on = self.on;
        let wanted = match failure {
            Failure::Overflow => false,
            Failure::Connect => {
                on.has(RetryOn::CONNECT_FAILURE)
                    || on.has(RetryOn::SERVER_ERROR)
                    || on.has(RetryOn::GATEWAY_ERROR)
                    || on.has(RetryOn::RESET)
            }
            Failure::RefusedStream => {
                on.has(RetryOn::REFUSED_STREAM)
                    || on.has(RetryOn::SERVER_ERROR)
                    || on.has(RetryOn::GATEWAY_ERROR)
                    || on.has(RetryOn::RESET)
            }
            Failure::ResetBeforeRequest => {
                on.has(RetryOn::RESET_BEFORE_REQUEST)
                    || on.has(RetryOn::SERVER_ERROR)
                    || on.has(RetryOn::GATEWAY_ERROR)
                    || on.has(RetryOn::RESET)
            }
            Failure::Reset | Failure::PerTryTimeout => {
                on.has(RetryOn::SERVER_ERROR) || on.has(RetryOn::GATEWAY_ERROR) || on.has(RetryOn::RESET)
            }
        };
        self.next(policy, wanted, None, dice)
    }

    fn next(&mut self, policy: &RetryPolicy, wanted: bool, told: Option<Duration>, dice: &mut Dice) -> Next {
        if !wanted {
            return Next::Finish(Why::NotRetriable);
        }
        let Some(left) = self.left.checked_sub(1) else {
            return Next::Finish(Why::Exhausted);
        };
        self.left = left;
        self.done += 1;
        Next::Retry { after: told.unwrap_or_else(|| policy.back_off(self.done, dice)) }
    }
}

impl RetryPolicy {
    /// The wait before retry number `retry` (from 1): a random time below base × (2^retry − 1), at most the maximum.
    #[must_use]
    pub fn back_off(&self, retry: u32, dice: &mut Dice) -> Duration {
        let base = u64::try_from(self.base_interval.as_micros()).unwrap_or(u64::MAX);
        let factor = 1_u64.checked_shl(retry).map_or(u64::MAX, |power| power - 1);
        let max = u64::try_from(self.max_interval.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(dice.below(base.saturating_mul(factor).min(max)))
    }
}

impl RateLimitedBackOff {
    /// The wait that the first usable header asks for.
    fn wait(&self, headers: &HeaderMap, wall: SystemTime) -> Option<Duration> {
        self.headers.iter().find_map(|(name, is_unix_time)| {
            let seconds: u64 = headers.get(name)?.to_str().ok()?.trim().parse().ok()?;
            let wait = if *is_unix_time {
                let now = wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                Duration::from_secs(seconds).saturating_sub(now)
            } else {
                Duration::from_secs(seconds)
            };
            (wait > Duration::ZERO && wait <= self.max_interval).then_some(wait)
        })
    }
}
