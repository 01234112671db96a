//! Requests that are none: what the codec refuses is counted and logged like any answer.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use engine::facts::Protocol;
use engine::framing::Fault;
use engine::reply::Flags;

use super::serve::HttpConnection;
use crate::report::record::{Kind, Record};

/// Reports a request that was refused because it could not be read. Nothing is known about it but the connection it came on.
pub fn report(shared: &HttpConnection, fault: Fault) {
    if let Some(cells) = shared.site.as_ref().and_then(|site| site.http.as_ref()) {
        cells.downstream_cx_protocol_error.inc();
    }
    let mut record = Record::begin(Kind::Http, &shared.downstream, SystemTime::now(), Instant::now());
    record.protocol = Some(if shared.h2 { Protocol::Http2 } else { Protocol::Http11 });
    record.remote = Some(shared.downstream.facts.remote.ip());
    record.status = Some(fault.status());
    record.flags = Flags::DOWNSTREAM_PROTOCOL_ERROR;
    record.details = Some(Arc::from(fault.details()));
    record.complete = true;
    shared.worker.tally.finish(&shared.worker.shared.plan.load(), &record);
}
