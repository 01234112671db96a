//! Injected faults: delays and aborts for a share of requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use http::{HeaderValue, StatusCode};

use crate::dice::{Dice, Fraction};
use crate::facts::Facts;
use crate::matcher::HeaderMatcher;
use crate::reply::{Flags, LocalReply};

/// Faults to inject (`envoy.extensions.filters.http.fault.v3.HTTPFault`).
#[derive(Debug)]
pub struct FaultPolicy {
    /// Wait first.
    pub delay: Option<FaultDelay>,
    /// Then answer with an error.
    pub abort: Option<FaultAbort>,
    /// Only requests to this cluster.
    pub upstream_cluster: Option<Arc<str>>,
    /// Only requests with such headers.
    pub headers: Vec<HeaderMatcher>,
    /// Only requests from these nodes (`x-envoy-downstream-service-node`).
    pub downstream_nodes: Vec<Arc<str>>,
    /// Faults at once; `None`: any number.
    pub max_active: Option<u32>,
    /// Faults right now.
    pub active: Arc<AtomicU32>,
}

/// A delay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultDelay {
    /// The share of requests.
    pub fraction: Fraction,
    /// How long; `None`: what `x-envoy-fault-delay-request` says, in milliseconds.
    pub fixed: Option<Duration>,
}

/// An abort.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultAbort {
    /// The share of requests.
    pub fraction: Fraction,
    /// What is answered.
    pub kind: AbortKind,
}

/// What an abort answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AbortKind {
    /// An HTTP status.
    Http(StatusCode),
    /// A gRPC status (0 to 16), over HTTP 200.
    Grpc(u32),
    /// What `x-envoy-fault-abort-request` or `x-envoy-fault-abort-grpc-request` says.
    Header,
}

/// One fault under way; dropping it lets another begin.
#[derive(Debug)]
pub struct FaultHold(Arc<AtomicU32>);

impl FaultHold {
    pub(crate) fn take(policy: &FaultPolicy) -> Option<Self> {
        let limit = policy.max_active.unwrap_or(u32::MAX);
        let counted = policy.active.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < limit).then(|| n + 1));
        counted.ok().map(|_| Self(policy.active.clone()))
    }
}

impl Drop for FaultHold {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What a fault does to one request.
#[derive(Debug, Default)]
pub(crate) struct Injected {
    pub(crate) delay: Option<Duration>,
    pub(crate) abort: Option<LocalReply>,
    pub(crate) hold: Option<FaultHold>,
}

impl FaultPolicy {
    /// Decides for one request that goes to `cluster`.
    pub(crate) fn inject(&self, facts: &Facts<'_>, cluster: Option<&str>, dice: &mut Dice) -> Injected {
        let mut injected = Injected::default();
        if !self.concerns(facts, cluster) {
            return injected;
        }
        let delay = self.delay.and_then(|delay| delay.roll(facts, dice));
        let abort = self.abort.and_then(|abort| abort.roll(facts, dice));
        if delay.is_none() && abort.is_none() {
            return injected;
        }
        injected.hold = FaultHold::take(self);
        if injected.hold.is_some() {
            injected.delay = delay;
            injected.abort = abort;
        }
        injected
    }

    fn concerns(&self, facts: &Facts<'_>, cluster: Option<&str>) -> bool {
        let node = || facts.headers.get("x-envoy-downstream-service-node").map(HeaderValue::as_bytes);
        self.upstream_cluster.as_deref().is_none_or(|wanted| cluster == Some(wanted))
            && self.headers.iter().all(|rule| rule.matches(facts))
            && (self.downstream_nodes.is_empty()
                || node().is_some_and(|node| self.downstream_nodes.iter().any(|known| known.as_bytes() == node)))
    }
}

impl FaultDelay {
    fn roll(self, facts: &Facts<'_>, dice: &mut Dice) -> Option<Duration> {
        match self.fixed {
            Some(fixed) => dice.hits(self.fraction).then_some(fixed),
            None => {
                let wait = Duration::from_millis(header_number(facts, "x-envoy-fault-delay-request")?);
                let share = header_share(facts, "x-envoy-fault-delay-request-percentage", self.fraction);
                dice.hits(share).then_some(wait)
            }
        }
    }
}

impl FaultAbort {
    fn roll(self, facts: &Facts<'_>, dice: &mut Dice) -> Option<LocalReply> {
        let share = match self.kind {
            AbortKind::Header => header_share(facts, "x-envoy-fault-abort-request-percentage", self.fraction),
            _ => self.fraction,
        };
        let (status, grpc) = match self.kind {
            AbortKind::Http(status) => (status, None),
            AbortKind::Grpc(code) => (StatusCode::OK, Some(code)),
            AbortKind::Header => header_abort(facts)?,
        };
        if !dice.hits(share) {
            return None;
        }
        let reply = LocalReply::error(status, "fault filter abort", "fault_filter_abort", Flags::FAULT_INJECTED);
        // gRPC has seventeen of them.
        let grpc_status = grpc.map(|code| u16::try_from(code).unwrap_or(u16::MAX));
        Some(LocalReply { grpc_status, ..reply })
    }
}

fn header_abort(facts: &Facts<'_>) -> Option<(StatusCode, Option<u32>)> {
    if let Some(code) = header_number(facts, "x-envoy-fault-abort-request") {
        let code = u16::try_from(code).ok().filter(|code| (200..600).contains(code))?;
        return StatusCode::from_u16(code).ok().map(|status| (status, None));
    }
    let code = header_number(facts, "x-envoy-fault-abort-grpc-request")?;
    u32::try_from(code).ok().map(|code| (StatusCode::OK, Some(code)))
}

/// A share from a header, never above the configured one.
fn header_share(facts: &Facts<'_>, name: &str, limit: Fraction) -> Fraction {
    let asked = header_number(facts, name).and_then(|share| u32::try_from(share).ok());
    Fraction { numerator: asked.map_or(limit.numerator, |share| share.min(limit.numerator)), ..limit }
}

fn header_number(facts: &Facts<'_>, name: &str) -> Option<u64> {
    facts.headers.get(name)?.to_str().ok()?.trim().parse().ok()
}
