//! What a person sees of a running demo.

use std::rc::Rc;
use std::time::Duration;

use super::cast::Part;
use super::place::Place;
use super::world::World;
use crate::output;
use crate::verbs::mesh::Mesh;
use crate::verbs::stat;

/// How often the table is drawn anew.
const PACE: Duration = Duration::from_secs(2);
/// What the table sums up.
const WINDOW: Duration = Duration::from_secs(10);
/// Lines of a log that are shown when something failed.
const TAIL: usize = 15;

/// Draws `tulle stat` again and again; when nobody watches, only waits.
pub(crate) async fn live(world: &Rc<World>, watched: bool) {
    if !watched {
        return std::future::pending().await;
    }
    let mesh = Mesh::of_run_dir(world.place.control());
    let mut drawn = 0;
    loop {
        tokio::time::sleep(PACE).await;
        let Ok(stat) = stat::gather(&mesh, WINDOW).await else { continue };
        let table = stat.table(true, false);
        // Go back over the table of before.
        let back = if drawn > 0 { format!("\x1b[{drawn}A\x1b[J") } else { String::new() };
        output::print(&format!("{back}{table}"));
        drawn = table.lines().count();
    }
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
