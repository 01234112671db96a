//! The table of `docs/performance.md`, written from a run: lines that the run did not measure stay as they are.

use anyhow::{Context, Result};

use super::report::{Outcome, Report};

/// The page.
const PAGE: &str = "docs/performance.md";
/// What stands before and after the table.
const MARKS: (&str, &str) = ("<!-- figures: `cargo xtask bench --docs` -->\n", "<!-- end of figures -->\n");
const HEAD: &str = "| line | what | of | gate | target | seen |\n|---|---|---|--:|--:|--:|\n";

/// Writes the lines of a run into the page.
pub(crate) fn write(report: &Report) -> Result<()> {
    let text = std::fs::read_to_string(PAGE).context(PAGE)?;
    std::fs::write(PAGE, filled(&text, &report.outcomes, &circumstances(report))?).context(PAGE)
}

/// What must be known to read the figures.
fn circumstances(report: &Report) -> String {
    let versions: Vec<_> = report.versions.values().map(String::as_str).collect();
    let noisy = if report.noisy { ", noisy" } else { "" };
    let quick = if report.quick { ", a quick look only" } else { "" };
    format!(
        "The last run: {} processors, kernel {}, {} rounds, load average {} at its start{noisy}{quick}; {}.\n",
        report.processors,
        report.kernel,
        report.rounds,
        report.load_at_start,
        versions.join("; ")
    )
}

fn filled(text: &str, outcomes: &[Outcome], circumstances: &str) -> Result<String> {
    let (before, rest) = text.split_once(MARKS.0).context("the page has no mark where the table begins")?;
    let (old, after) = rest.split_once(MARKS.1).context("the page has no mark where the table ends")?;
    let mut lines: Vec<String> = old.lines().filter(|line| line.starts_with("| ")).skip(1).map(str::to_owned).collect();
    for outcome in outcomes {
        let new = outcome.cells().iter().fold("|".to_owned(), |line, cell| format!("{line} {cell} |"));
        match lines.iter_mut().find(|line| key(line) == key(&new)) {
            Some(line) => *line = new,
            None => lines.push(new),
        }
    }
    lines.sort_by_key(|line| order(line));
    Ok([before, MARKS.0, HEAD, &lines.join("\n"), "\n\n", circumstances, MARKS.1, after].concat())
}

/// What a line is known by: its name, and what its figure is a ratio to.
fn key(line: &str) -> (Option<&str>, Option<&str>) {
    let mut cells = line.split('|').map(str::trim);
    (cells.nth(1), cells.nth(1))
}

/// `D2` before `D10`, words last.
fn order(line: &str) -> (u32, String) {
    let name = line.split('|').map(str::trim).nth(1).unwrap_or("");
    let digits: String = name.chars().skip(1).take_while(char::is_ascii_digit).collect();
    (digits.parse().unwrap_or(u32::MAX), line.to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_run_replaces_its_own_lines_alone() {
        let page = format!("# Page\n\n{}{HEAD}| D1 | old | x envoy | 1 | 1 | 9 |\n{}\nProse.\n", MARKS.0, MARKS.1);
        let figures = |ours| BTreeMap::from([("tulle".to_owned(), vec![ours]), ("envoy".to_owned(), vec![100.0])]);
        let outcome = |id, ours| Outcome::ratio(id, ("tulle", "envoy"), figures(ours), BTreeMap::new(), "us");
        let once = filled(&page, &[outcome("D12", 50.0), outcome("D1", 25.0)], "Here.\n").unwrap();
        assert!(once.contains("| x envoy | 0.45 | 0.28 | **0.25** [0.25 - 0.25] holds |\n| D12 | "), "{once}");
        assert!(once.starts_with("# Page\n\n<!--") && once.ends_with("Here.\n<!-- end of figures -->\n\nProse.\n"));
        let twice = filled(&once, &[outcome("D12", 90.0)], "Here.\n").unwrap();
        assert!(twice.contains("| **0.90** [0.90 - 0.90] gate only |") && twice.contains("**0.25**"), "{twice}");
    }
}
