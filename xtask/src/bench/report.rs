//! What came out: lines of a table with their goals, and the same as JSON.

use std::collections::BTreeMap;

use serde::Serialize;

use super::goals::{Goal, goal_of};
use super::paired::{self, Interval, Rounds};
use super::peers::Subject;

/// Whether a goal holds: by the upper end of the interval, so that luck does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    /// At most the target.
    Holds,
    /// At most the gate.
    GateOnly,
    /// More than the gate, or than the target where there is no gate.
    Missed,
    /// There is no goal: for comparison.
    None,
}

/// What client and backend spent beside the proxies, on the mean of all runs of a line.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Beside {
    /// The client, in the unit of the single figures.
    pub(crate) client: f64,
    /// The backend, likewise.
    pub(crate) backend: f64,
}

/// One line.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Outcome {
    /// The goal's name.
    pub(crate) id: String,
    /// What was measured.
    pub(crate) what: &'static str,
    unit: String,
    gate: Option<f64>,
    target: Option<f64>,
    /// Our figure.
    pub(crate) seen: Interval,
    /// Whether it is good.
    pub(crate) verdict: Verdict,
    figures_unit: &'static str,
    /// The single figures of all who ran, one for each counted round.
    figures: BTreeMap<String, Vec<f64>>,
    /// What others spent meanwhile, where time was measured.
    beside: Option<Beside>,
    /// The configurations in force.
    #[serde(skip)]
    pub(crate) files: BTreeMap<String, String>,
}

impl Outcome {
    /// Ratios of our figures to those of rivals: a line for each goal, and one for each rival without.
    pub(crate) fn against(
        goals: &[(&str, &str)],
        subjects: &[Subject],
        rounds: &Rounds,
        unit: &'static str,
    ) -> Vec<Self> {
        let all: BTreeMap<String, Vec<f64>> =
            subjects.iter().zip(rounds).map(|(subject, list)| (subject.name.clone(), list.clone())).collect();
        let files: BTreeMap<String, String> = subjects.iter().flat_map(|subject| subject.files.clone()).collect();
        let without = all.keys().filter(|name| *name != "tulle" && goals.iter().all(|(_, rival)| rival != name));
        let first = goals.first().map_or("", |(id, _)| id);
        let lines = goals.iter().map(|(id, rival)| (*id, (*rival).to_owned(), goal_of(id)));
        let lines: Vec<_> = lines.chain(without.map(|name| (first, name.clone(), None))).collect();
        let ours = all.get("tulle").cloned().unwrap_or_default();
        lines
            .into_iter()
            .map(|(id, rival, goal)| {
                let theirs = all.get(&rival).cloned().unwrap_or_default();
                let seen = paired::interval(&paired::ratios(&ours, &theirs));
                let what = goal_of(id).map_or("", |goal| goal.what);
                Self::line(id, what, format!("x {rival}"), goal, seen, unit, all.clone(), files.clone())
            })
            .collect()
    }

    /// The ratio of the first to the second, figure by figure.
    pub(crate) fn ratio(
        id: &str,
        (ours, rival): (&str, &str),
        all: BTreeMap<String, Vec<f64>>,
        files: BTreeMap<String, String>,
        unit: &'static str,
    ) -> Self {
        let list = |name: &str| all.get(name).map_or(&[][..], Vec::as_slice);
        let seen = paired::interval(&paired::ratios(list(ours), list(rival)));
        let goal = goal_of(id);
        let what = goal.map_or("", |goal| goal.what);
        Self::line(id, what, format!("x {rival}"), goal, seen, unit, all, files)
    }

    /// Our figures as they are, with those of the others beside them.
    pub(crate) fn absolute(
        id: &str,
        all: BTreeMap<String, Vec<f64>>,
        files: BTreeMap<String, String>,
        unit: &'static str,
    ) -> Self {
        let seen = paired::interval(all.get("tulle").map_or(&[][..], Vec::as_slice));
        let goal = goal_of(id);
        let what = goal.map_or("", |goal| goal.what);
        Self::line(id, what, unit.to_owned(), goal, seen, unit, all, files)
    }

    #[allow(clippy::too_many_arguments, reason = "the columns of the table, put together in one place")]
    fn line(
        id: &str,
        what: &'static str,
        unit: String,
        goal: Option<&Goal>,
        seen: Interval,
        figures_unit: &'static str,
        figures: BTreeMap<String, Vec<f64>>,
        files: BTreeMap<String, String>,
    ) -> Self {
        let (gate, target) = (goal.and_then(|goal| goal.gate), goal.and_then(|goal| goal.target));
        let verdict = verdict(gate, target, seen.high);
        Self { id: id.to_owned(), what, unit, gate, target, seen, verdict, figures_unit, figures, beside: None, files }
    }

    /// The line with what client and backend spent.
    pub(crate) fn with(mut self, beside: Beside) -> Self {
        self.beside = Some(beside);
        self
    }

    /// Whether it is worse than what a release may be.
    pub(crate) fn missed(&self) -> bool {
        self.verdict == Verdict::Missed
    }

    /// The figure, its interval and its gate in words.
    pub(crate) fn said(&self) -> String {
        let seen = self.seen;
        let (low, median, high) = (short(seen.low), short(seen.median), short(seen.high));
        format!("{median} {} [{low} - {high}] (at most {})", self.unit, optional(self.gate))
    }

    /// The cells of the line on a page.
    pub(crate) fn cells(&self) -> [String; 6] {
        let seen = format!(
            "**{}** [{} - {}] {}",
            short(self.seen.median),
            short(self.seen.low),
            short(self.seen.high),
            self.verdict.word()
        );
        let of = self.unit.clone();
        [self.id.clone(), self.what.to_owned(), of, optional(self.gate), optional(self.target), seen.trim().to_owned()]
    }

    /// The line and, below it, the single figures.
    pub(crate) fn print(&self, noisy: bool) {
        let verdict = self.verdict.word();
        // Counts do not feel the noise of the machine; times do.
        let noisy = if noisy && self.figures_unit.contains("us/") { " (noisy)" } else { "" };
        println!(
            "{:<12} {:<11} gate {:>5}  target {:>5}  seen {:>6} [{} - {}]  {verdict}{noisy}",
            self.id,
            self.unit,
            optional(self.gate),
            optional(self.target),
            short(self.seen.median),
            short(self.seen.low),
            short(self.seen.high),
        );
        let medians: Vec<_> =
            self.figures.iter().map(|(name, list)| format!("{name} {}", short(paired::median(list)))).collect();
        let beside = self.beside.map(|beside| (short(beside.client), short(beside.backend)));
        let beside =
            beside.map(|(client, backend)| format!("; client {client}, backend {backend}")).unwrap_or_default();
        println!("{:<12} {}: {} {}{beside}", "", self.what, medians.join(", "), self.figures_unit);
    }
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::GateOnly => "gate only",
            Self::Missed => "missed",
            Self::None => "",
        }
    }
}

fn optional(figure: Option<f64>) -> String {
    figure.map_or_else(|| "-".to_owned(), short)
}

fn verdict(gate: Option<f64>, target: Option<f64>, high: f64) -> Verdict {
    match (gate, target) {
        (None, None) => Verdict::None,
        (_, Some(target)) if high <= target => Verdict::Holds,
        (Some(gate), _) if high <= gate => Verdict::GateOnly,
        _ => Verdict::Missed,
    }
}

/// Three figures that count.
fn short(figure: f64) -> String {
    match figure.abs() {
        100.0.. => format!("{figure:.0}"),
        10.0.. => format!("{figure:.1}"),
        _ => format!("{figure:.2}"),
    }
}

/// Everything that a reader needs to believe the figures, or to repeat them.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Load average of the last minute when the run began; over 4 the times are noisy.
    pub(crate) load_at_start: f64,
    /// Whether it was over 4.
    pub(crate) noisy: bool,
    /// Fewer and shorter rounds than a goal needs.
    pub(crate) quick: bool,
    /// Counted rounds.
    pub(crate) rounds: usize,
    /// Processors.
    pub(crate) processors: usize,
    /// The kernel.
    pub(crate) kernel: String,
    /// What the proxies say of their versions.
    pub(crate) versions: BTreeMap<String, String>,
    /// Lines without figures, and why: one request that failed is enough.
    pub(crate) failed: Vec<String>,
    /// The lines.
    pub(crate) outcomes: Vec<Outcome>,
    /// The configurations in force.
    pub(crate) files: BTreeMap<String, String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_held_against_the_upper_end() {
        assert_eq!(verdict(Some(0.45), Some(0.28), 0.28), Verdict::Holds);
        assert_eq!(verdict(Some(0.45), Some(0.28), 0.281), Verdict::GateOnly);
        assert_eq!(verdict(Some(0.45), Some(0.28), 0.46), Verdict::Missed);
        assert_eq!(verdict(None, Some(1.1), 1.2), Verdict::Missed);
        assert_eq!(verdict(None, None, 9.0), Verdict::None);
        // No figure at all never holds.
        assert_eq!(verdict(Some(0.45), Some(0.28), f64::NAN), Verdict::Missed);
    }
}
