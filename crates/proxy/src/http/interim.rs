//! Interim answers (1xx but 101) of endpoints on their way to the client of an HTTP/1 connection (`proxy_100_continue`).

use std::cell::RefCell;

use http::{HeaderMap, StatusCode, Version, header};

use super::exchange::Exchange;

/// What waits to be sent to the client. Who fills it is held to the limits of a head, so that it stays small.
#[derive(Debug, Default)]
pub struct Interim {
    waiting: RefCell<Vec<(StatusCode, HeaderMap)>>,
}

impl Interim {
    /// One has come.
    pub fn push(&self, status: StatusCode, mut headers: HeaderMap) {
        for name in [header::CONNECTION, header::UPGRADE, header::TRANSFER_ENCODING, header::CONTENT_LENGTH] {
            headers.remove(name);
        }
        self.waiting.borrow_mut().push((status, headers));
    }

    /// The client may send its body.
    pub fn give_leave(&self) {
        self.push(StatusCode::CONTINUE, HeaderMap::new());
    }

    /// What is to be sent now.
    pub fn take(&self) -> Vec<(StatusCode, HeaderMap)> {
        if self.waiting.borrow().is_empty() { Vec::new() } else { self.waiting.take() }
    }

    /// The exchange is over.
    pub fn clear(&self) {
        self.waiting.borrow_mut().clear();
    }
}

impl Exchange {
    /// Whether interim answers are passed on. There is no way to do so over HTTP/2 yet, and clients of HTTP/1.0 know none.
    pub(super) fn relays_interim(&self) -> bool {
        let shared = &self.shared;
        shared.manager.relay_interim
            && !shared.h2
            && self.record.protocol.is_some_and(|spoken| spoken.name() == "HTTP/1.1")
    }
}

/// Whether requests of this version keep their `expect` header, because the endpoint is to answer it.
pub(super) fn keeps_expect(relay: bool, version: Version) -> bool {
    relay && version == Version::HTTP_11
}
