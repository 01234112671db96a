//! Injected faults: delays and aborts for a share of requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use http::StatusCode;

use crate::dice::Fraction;
use crate::matcher::HeaderMatcher;

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
