//! `/tulle/edges` and `/tulle/tap`.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::BodyExt;
use telemetry::tap::{Filter, Watch};
use tokio::time::Interval;

use super::pages::{Desk, Page, Query, text, typed};

/// The window of `/tulle/edges` when none is asked for.
const WINDOW: Duration = Duration::from_secs(60);
/// How often a quiet tap says that it is still there, so that a client that is gone is noticed.
const BEAT: Duration = Duration::from_secs(1);

/// `/tulle/edges?window=60`: who called whom, as JSON.
pub(super) fn edges(desk: &Desk, query: &Query) -> Page {
    let window = match query.value("window").map(|text| text.trim_end_matches('s').parse::<f64>()) {
        None => WINDOW,
        Some(Ok(seconds)) if (0.0..=86_400.0).contains(&seconds) => Duration::from_secs_f64(seconds),
        Some(_) => return text(StatusCode::BAD_REQUEST, "window: a number of seconds up to 86400\n"),
    };
    let report = desk.tower.registry.report(Instant::now(), window, desk.tower.facts());
    match serde_json::to_vec(&report) {
        Ok(body) => typed(StatusCode::OK, "application/json", body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

/// `/tulle/tap`: finished exchanges as JSON lines, until the client goes. A line `{"left_out":N}` says how many were
/// not shown.
pub(super) fn tap(desk: &Desk, query: &Query) -> Page {
    let (filter, rate) = match Filter::parse(query.pairs()) {
        Ok(parsed) => parsed,
        Err(error) => return text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    };
    let Some(watch) = desk.tower.tap.watch(filter, rate) else {
        return text(StatusCode::SERVICE_UNAVAILABLE, "too many watchers\n");
    };
    let mut page = Response::new(Lines { watch, beat: tokio::time::interval(BEAT) }.boxed());
    page.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    page
}

struct Lines {
    watch: Watch,
    beat: Interval,
}

impl http_body::Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.watch.events.poll_recv(context) {
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(Some(event)) => {
                let mut line = serde_json::to_vec(&*event).unwrap_or_default();
                line.push(b'\n');
                return Poll::Ready(Some(Ok(Frame::data(line.into()))));
            }
            Poll::Pending => {}
        }
        if self.beat.poll_tick(context).is_ready() {
            let left_out = self.watch.left_out();
            let line = if left_out > 0 { format!("{{\"left_out\":{left_out}}}\n") } else { "\n".to_owned() };
            return Poll::Ready(Some(Ok(Frame::data(line.into()))));
        }
        Poll::Pending
    }
}
