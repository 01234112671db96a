//! Requests that are none: what the codec refuses is counted and logged like any answer.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use engine::facts::Protocol;
use engine::framing::Fault;
use engine::reply::Flags;
use http::StatusCode;

use super::serve::HttpConnection;
use crate::net::frames::Flood;
use crate::report::record::{Kind, Record};

/// Reports a request that was refused because it could not be read. Nothing is known about it but the connection it came on.
pub fn report(shared: &HttpConnection, fault: Fault) {
    finish(shared, Some(fault.status()), fault.details());
}

/// Reports an HTTP/2 connection that was ended because of what its client sent. Nothing was answered.
pub fn report_h2(shared: &HttpConnection, error: &hyper::Error) {
    if let Some(details) = fault_of(error) {
        finish(shared, None, &details);
    }
}

fn finish(shared: &HttpConnection, status: Option<StatusCode>, details: &str) {
    if let Some(cells) = shared.site.as_ref().and_then(|site| site.http.as_ref()) {
        cells.downstream_cx_protocol_error.inc();
    }
    let mut record = Record::begin(Kind::Http, &shared.downstream, SystemTime::now(), Instant::now());
    record.protocol = Some(if shared.h2 { Protocol::Http2 } else { Protocol::Http11 });
    record.remote = Some(shared.downstream.facts.remote.ip());
    record.status = status;
    record.flags = Flags::DOWNSTREAM_PROTOCOL_ERROR;
    record.details = Some(Arc::from(details));
    record.complete = true;
    shared.worker.tally.finish(&shared.worker.shared.plan.load(), &record);
}

/// What a client did to have its connection ended; `None`: it did nothing wrong, or went away.
fn fault_of(error: &hyper::Error) -> Option<String> {
    let mut cause: Option<&(dyn Error + 'static)> = error.source();
    while let Some(error) = cause {
        if let Some(h2) = error.downcast_ref::<h2::Error>()
            && h2.is_library()
        {
            return h2.reason().map(|reason| format!("http2.codec_error{{{reason:?}}}"));
        }
        // h2 keeps of an error below it what it says.
        if error.downcast_ref::<io::Error>().is_some_and(|error| error.to_string() == Flood.to_string()) {
            return Some("http2.inbound_control_frames_flood".to_owned());
        }
        cause = error.source();
    }
    None
}
