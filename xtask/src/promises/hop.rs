//! What a hop costs: CPU for each request, beside the real Envoy, and the memory of an idle proxy.

use std::path::Path;

use anyhow::Result;

use super::promise;
use crate::bench;

/// The lines of `cargo xtask bench` that are promises: their gates must hold.
pub(super) fn hop(tulle: &Path, rounds: usize, load: bool) -> Result<Vec<bool>> {
    let lines = if load { &["D13", "D1"][..] } else { &["D13"] };
    let outcomes = bench::measured(lines, rounds, tulle)?;
    let promised = outcomes.iter().filter(|outcome| lines.contains(&outcome.id.as_str()));
    Ok(promised.map(|outcome| promise(outcome.what, outcome.said(), !outcome.missed())).collect())
}
