//! What a person sees of a running demo.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use super::cast::{Part, SERVICES};
use super::place::Place;
use super::scrape::{Sample, sum};
use super::world::World;
use crate::output;

/// How often the table is drawn anew.
const PACE: Duration = Duration::from_secs(2);
/// Lines of a log that are shown when something failed.
const TAIL: usize = 15;

/// Counts of one service at one moment.
#[derive(Default, Clone, Copy)]
struct Counts {
    requests: f64,
    failed: f64,
    encrypted: f64,
}

/// Draws a table of the services again and again; when nobody watches, only waits.
pub(crate) async fn live(world: &Rc<World>, watched: bool) {
    if !watched {
        return std::future::pending().await;
    }
    let mut before = BTreeMap::new();
    let mut drawn = 0;
    loop {
        let now = counts(world).await;
        let table = table(&before, &now);
        // Go back over the table of before.
        let back = if drawn > 0 { format!("\x1b[{drawn}A\x1b[J") } else { String::new() };
        output::print(&format!("{back}{table}"));
        drawn = table.lines().count();
        before = now;
        tokio::time::sleep(PACE).await;
    }
}

async fn counts(world: &World) -> BTreeMap<&'static str, Counts> {
    let mut all: BTreeMap<&'static str, Counts> = BTreeMap::new();
    for (_, part) in Part::meshed().filter(|(_, part)| part.service().is_some()) {
        let samples = world.metrics(part.name).await;
        let counts = all.entry(part.app).or_default();
        for name in ["istio_requests_total", "istio_tcp_connections_opened_total"] {
            let here = [("reporter", "destination")];
            counts.requests += sum(&samples, name, &here);
            counts.encrypted += sum(&samples, name, &[here[0], ("connection_security_policy", "mutual_tls")]);
        }
        counts.failed += failures(&samples);
    }
    all
}

/// Answers of 5xx.
fn failures(samples: &[Sample]) -> f64 {
    let failed = |sample: &&Sample| {
        sample.name == "istio_requests_total"
            && sample.label("reporter") == "destination"
            && sample.label("response_code").starts_with('5')
    };
    samples.iter().filter(failed).map(|sample| sample.value).sum()
}

fn table(before: &BTreeMap<&'static str, Counts>, now: &BTreeMap<&'static str, Counts>) -> String {
    let mut text = format!("  {:<10} {:>8} {:>9} {:>6}\n", "NAME", "RPS", "SUCCESS", "mTLS");
    for service in &SERVICES {
        let then = before.get(service.name).copied().unwrap_or_default();
        let counts = now.get(service.name).copied().unwrap_or_default();
        let requests = counts.requests - then.requests;
        let share =
            |part: f64| if requests > 0.0 { format!("{:.1}%", 100.0 * part / requests) } else { "-".to_owned() };
        let rate = if before.is_empty() { "-".to_owned() } else { format!("{:.1}", requests / PACE.as_secs_f64()) };
        let success = share(requests - (counts.failed - then.failed));
        let encrypted = share(counts.encrypted - then.encrypted);
        text += &format!("  {:<10} {rate:>8} {success:>9} {encrypted:>6}\n", service.name);
    }
    text
}

/// The ends of the logs, when the demo failed: its folder is about to go.
pub(crate) fn logs_of_failures(place: &Place) {
    let mut logs = vec![place.dir().join("control.log")];
    for (_, part) in Part::numbered() {
        logs.extend(["proxy.log", "app.log"].map(|name| place.of(part.name).join(name)));
    }
    for log in logs {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let bad = |line: &&str| ["error", "ERROR", "panicked", "WARN", "warn"].iter().any(|word| line.contains(word));
        let lines: Vec<&str> = text.lines().filter(bad).collect();
        let tail = lines.get(lines.len().saturating_sub(TAIL)..).unwrap_or_default();
        if !tail.is_empty() {
            eprintln!("--- {}", log.display());
            tail.iter().for_each(|line| eprintln!("{line}"));
        }
    }
}
