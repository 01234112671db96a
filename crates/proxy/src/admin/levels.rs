//! `/logging`: levels of the process' own log.

use http::StatusCode;
use telemetry::logging;

use super::pages::{Page, Query, text};

const USAGE: &str = "usage: /logging?<name>=<level> (change single level)\n\
    usage: /logging?paths=name1:level1,name2:level2,... (change multiple levels)\n\
    usage: /logging?level=<level> (change all levels)\n";

/// `/logging`.
pub(super) fn logging(query: &Query) -> Page {
    let Some(levels) = logging::levels() else {
        return text(StatusCode::SERVICE_UNAVAILABLE, "this process does not write a log of its own\n");
    };
    for (key, value) in query.pairs() {
        let changed = match key {
            "level" => levels.set_all(value),
            "paths" => value.split(',').try_for_each(|pair| {
                let (module, level) =
                    pair.rsplit_once(':').ok_or_else(|| logging::LevelError::Pair(pair.to_owned()))?;
                levels.set(module, level)
            }),
            module => levels.set(module, value),
        };
        if let Err(error) = changed {
            return text(StatusCode::BAD_REQUEST, format!("error: {error}\n\n{USAGE}"));
        }
    }
    let mut out = "active loggers:\n".to_owned();
    for (name, level) in levels.list() {
        out.push_str(&format!("  {name}: {level}\n"));
    }
    text(StatusCode::OK, out)
}
