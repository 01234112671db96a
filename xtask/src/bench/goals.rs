//! What is measured, and what it should be. A goal is a ratio to a rival of the same run wherever time is in it.

use super::{Bench, Outcome, calls, cpu, instructions, memory};

/// One line of the table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Goal {
    /// Its name.
    pub(crate) id: &'static str,
    /// What is measured.
    pub(crate) what: &'static str,
    /// More than this is a fault of a release.
    pub(crate) gate: Option<f64>,
    /// Not more than this is good.
    pub(crate) target: Option<f64>,
}

const fn goal(id: &'static str, what: &'static str, gate: f64, target: f64) -> Goal {
    Goal { id, what, gate: Some(gate), target: Some(target) }
}

/// For comparison.
const fn beside(id: &'static str, what: &'static str) -> Goal {
    Goal { id, what, gate: None, target: None }
}

/// All lines of the table; what the figure is a ratio to, the run says.
const GOALS: &[Goal] = &[
    goal("D1", "CPU, HTTP/1 hop with RBAC x10, JSON log, request id, retry policy", 0.45, 0.28),
    goal("D2", "user instructions, plain HTTP/1 hop", 40.0, 20.0),
    goal("D3", "user instructions with D1's features", 0.40, 0.20),
    goal("D4", "CPU, plain HTTP/1 hop", 1.3, 1.0),
    goal("D5", "CPU, two sidecars with mTLS between", 0.40, 0.25),
    Goal { gate: None, ..goal("D5-haproxy", "CPU, two sidecars with mTLS between", 0.0, 1.1) },
    goal("D7", "CPU, gRPC unary over HTTP/2 with D1's features", 0.50, 0.33),
    goal("D10", "system calls, plain hop, 32 connections", 5.5, 4.3),
    beside("D10-features", "system calls with D1's features"),
    goal("D11", "heap allocations with D1's features", 12.0, 3.0),
    beside("D11-plain", "heap allocations, plain hop"),
    goal("D12", "CPU, new mTLS connection with one request", 1.0, 0.75),
    goal("D13", "PSS of one idle instance", 14.0, 9.0),
    beside("D13-dirty", "private dirty memory of the same"),
    beside("D13-loaded", "PSS after a load on 32 connections"),
    goal("D14", "memory for each known service of 10 endpoints", 0.20, 0.06),
    goal("D15", "start to first answer, 10,000 services of 10 endpoints", 0.3, 0.1),
    goal("D15-empty", "start to first answer, one service", 0.4, 0.2),
    goal("D17", "user instructions, 10,000 routes against 10", 1.5, 1.15),
    goal("D17-rules", "user instructions, 1,000 rules of authorization against 10", 1.5, 1.15),
    goal("D18", "CPU, bodies of 1 MiB, plain hop", 1.0, 0.7),
    goal("D18-mtls", "CPU, bodies of 1 MiB, two sidecars with mTLS", 1.0, 0.7),
    goal("D19", "memory for each idle mTLS connection", 0.6, 0.3),
    goal("idle-http", "memory for each idle HTTP/1 connection", 4.7, 1.5),
    goal("workers", "CPU, plain hop, two workers against one", 1.15, 1.05),
    beside("workers-envoy", "CPU, plain hop, two workers against one"),
    beside("workers-haproxy", "CPU, plain hop, two workers against one"),
    goal("opaque", "CPU, new connection of bytes through two sidecars", 0.5, 0.12),
];

/// The goal of that name.
pub(crate) fn goal_of(id: &str) -> Option<&'static Goal> {
    GOALS.iter().find(|goal| goal.id == id)
}

/// Something to run: the goals that it answers, the tools that it needs, and how.
pub(crate) struct Part {
    /// Names for `--only`.
    pub(crate) ids: &'static [&'static str],
    /// Measures.
    pub(crate) run: fn(&Bench) -> anyhow::Result<Vec<Outcome>>,
}

/// Everything, in the order of the table.
pub(crate) const PARTS: &[Part] = &[
    Part { ids: &["D1"], run: cpu::features },
    Part { ids: &["D4"], run: cpu::plain },
    Part { ids: &["D5", "D5-haproxy"], run: cpu::sidecars },
    Part { ids: &["D7"], run: cpu::grpc },
    Part { ids: &["D10", "D10-features"], run: calls::system },
    Part { ids: &["D2", "D3", "D11", "D11-plain"], run: instructions::requests },
    Part { ids: &["D17", "D17-rules"], run: instructions::growth },
    Part { ids: &["D12"], run: cpu::handshakes },
    Part { ids: &["opaque"], run: cpu::opaque },
    Part { ids: &["D18", "D18-mtls"], run: cpu::bulk },
    Part { ids: &["workers"], run: cpu::workers },
    Part { ids: &["D13", "D13-dirty", "D13-loaded"], run: memory::idle },
    Part { ids: &["D14"], run: memory::services },
    Part { ids: &["D15", "D15-empty"], run: memory::starts },
    Part { ids: &["D19", "idle-http"], run: memory::connections },
];
