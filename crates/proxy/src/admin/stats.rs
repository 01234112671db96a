//! `/stats` and `/stats/prometheus`.

use http::{HeaderMap, StatusCode, header};
use telemetry::exposition::{self, Format, Selection};

use super::pages::{Desk, Page, Query, text, typed};

/// `/stats`: text, JSON or Prometheus' text.
pub(super) fn stats(desk: &Desk, headers: &HeaderMap, query: &Query) -> Page {
    match query.value("format").unwrap_or("text") {
        "prometheus" => prometheus(desk, headers, query),
        "json" => selected(query, |selection| {
            let json = exposition::envoy_json(&desk.tower.registry, selection).to_string();
            typed(StatusCode::OK, "application/json", json)
        }),
        "text" | "" => {
            selected(query, |selection| text(StatusCode::OK, exposition::envoy_text(&desk.tower.registry, selection)))
        }
        _ => text(StatusCode::BAD_REQUEST, "usage: /stats?format=(json|prometheus|text)\n"),
    }
}

/// `/stats/prometheus`: Prometheus' text format, or OpenMetrics when the client asks for it.
pub(super) fn prometheus(desk: &Desk, headers: &HeaderMap, query: &Query) -> Page {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let format = Format::negotiate(accept);
    selected(query, |selection| {
        typed(StatusCode::OK, format.content_type(), exposition::prometheus(&desk.tower.registry, format, selection))
    })
}

fn selected(query: &Query, page: impl Fn(&Selection<'_>) -> Page) -> Page {
    let pattern = match query.pattern("filter") {
        Ok(pattern) => pattern,
        Err(refusal) => return *refusal,
    };
    let invert = query.has("invert_filter");
    let accepts = |name: &str| pattern.as_ref().is_none_or(|pattern| pattern.matches(name.as_bytes()) != invert);
    page(&Selection { accepts: Some(&accepts), used_only: query.has("usedonly") })
}
